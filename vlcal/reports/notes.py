"""The "how to read this" texts of a report."""

HOW_TO_READ: tuple[tuple[str, str], ...] = (
    (
        "What is calibration, and what is ECE?",
        "A model is calibrated if of all images it is 80 % confident about, 80 % are right. "
        "The expected calibration error (ECE) sorts images into bins of confidence, takes the "
        "distance between mean confidence and accuracy in each, and averages it over images. "
        "0 is perfect. Positive gaps are over-confidence: the model promises more than it "
        "keeps.",
    ),
    (
        "What are base and new classes?",
        "The class names are cut in two halves. Tuning sees images of the base half only; "
        "then the same model is asked to tell the new classes apart by name alone. Base "
        "images are tested against base names and new images against new names. Tuning often "
        "keeps accuracy on new classes but leaves the model too sure of itself there.",
    ),
    (
        "How to read the reliability diagrams",
        "Grey bars are accuracy per bin of confidence. The hatched box reaches from there to "
        "the mean confidence of the bin: orange, leaning right, is over-confidence; blue, "
        "leaning left, is under-confidence. Whiskers are 95 % Wilson intervals of the "
        "accuracy: a box that stays inside its whisker may be chance. Bins with fewer than 30 "
        "images are faded. Below, the share of images per bin; the distance between the two "
        "vertical lines is the overall gap.",
    ),
    (
        "Why do small differences in ECE mean little?",
        "ECE is computed from a sample. Even a perfectly calibrated model has an ECE above 0 "
        "on a finite test set, and the fewer images and the more bins, the higher it is. "
        "Compare differences with the deviations over seeds and with the whiskers before "
        "believing them.",
    ),
    (
        "Why is the joint accuracy called H but the joint error mean?",
        "Papers report the harmonic mean of base and new accuracy, which punishes a model "
        "that is good at one half only. For errors a harmonic mean would reward exactly that, "
        "so errors are averaged plainly.",
    ),
    (
        "Can these numbers be compared with a paper?",
        "Only under the same convention: the number of bins, which of their sides is closed, "
        "and what happens at a confidence of exactly 1 change the value. The convention of "
        "this page stands under the table; numbers of two conventions are never put into one "
        "table.",
    ),
)
