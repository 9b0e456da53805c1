"""The commands behind the command line: plain functions whose signatures are the flags."""

from vlcal.commands.answers import Answer
from vlcal.commands.calibrating import calibrate
from vlcal.commands.measuring import evaluate, info, report
from vlcal.commands.tuning import demo, predict, tune

COMMANDS = (demo, tune, predict, calibrate, evaluate, report, info)

__all__ = [
    "COMMANDS",
    "Answer",
    "calibrate",
    "demo",
    "evaluate",
    "info",
    "predict",
    "report",
    "tune",
]
