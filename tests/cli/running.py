"""One call of the command line: exit code, what it says, what it warns of."""

from vlcal.cli import main


def run(capsys, *words):
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def flags(folder, *names, val=False):
    """The flags of arrays of the fixture `models`, for test and with `val` for validation images.

    Names are those of the flags; `val` names only what belongs to images.
    """
    files = {
        "logits": "logits.npy",
        "labels": "labels.npy",
        "image-features": "images.npy",
        "text-features": "text.npy",
        "zero-shot-logits": "zs_logits.npy",
        "zero-shot-text-features": "zs_text.npy",
        "classes": "names.txt",
    }
    words = ["--logit-scale", 20]
    for name in names:
        words += [f"--{name}", folder / files[name]]
        if val and name not in ("text-features", "zero-shot-text-features", "classes"):
            words += [f"--val-{name}", folder / f"val_{files[name]}"]
    return words
