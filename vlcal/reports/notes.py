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
        "How to read what a threshold buys",
        "A model that may stay silent answers only when it is sure enough. From left to right it "
        "answers more and more, surest first; the height is the share of wrong answers among those "
        "given. The right end is the error rate of all. The threshold is chosen on the images it "
        "is shown for, so on other images its precision may be lower. Of a well-calibrated model "
        "the mean confidence of the answers is their precision, also where no labels are at hand.",
    ),
    (
        "How to read the error at every number of bins",
        "ECE depends on how many bins there are, and on whether they have equal width or hold "
        "equally many images. Lines that cross mean that the ranking of methods is a matter of "
        "that choice. A line rises to the right also by chance alone, because small bins hold few "
        "images. Bins of equal mass are put together from cells of 0.1 points of confidence or "
        "less, whose images are never split.",
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
