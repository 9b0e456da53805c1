"""Imports point downwards: a room knows the rows below it and nobody beside it."""

import ast
from pathlib import Path

import pytest

import vlcal

ROWS = (
    ("_native", "_optional", "_files", "_arrays"),
    ("_cuda",),
    ("types", "distributed", "assets"),
    ("ops",),
    ("clip", "data", "info"),
    ("regularizers", "calibrators", "metrics"),
    ("tuners",),
    ("training", "prediction", "protocols"),
    ("reports",),
    ("evaluation",),
    ("experiment", "inputs", "compat"),
    ("writeup",),
    ("demo",),
    ("commands",),
    ("cli",),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
PACKAGE = Path(vlcal.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(parts):
    return Path(parts[0]).stem


def imported_rooms(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "vlcal":
            names = [f"vlcal.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("vlcal."))


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name != "__init__.py" or len(f.parts) > 1], ids=str
)
def test_imports_point_downwards(file):
    room = room_of(file.parts)
    assert room in ROW, f"{room} has no row in the plan of the house"
    for other in imported_rooms(ast.parse((PACKAGE / file).read_text())):
        if other in ROW and other != room:
            assert ROW[other] < ROW[room], f"{file} imports {other}, which is not below it"
