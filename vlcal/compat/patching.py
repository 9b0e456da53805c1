"""Other libraries' names made to mean the functions here, until it is undone."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from vlcal.types import VlcalWarning

if TYPE_CHECKING:
    from typing_extensions import Self

_OBJECTS = ("BinaryCalibrationError", "CalibrationError", "MulticlassCalibrationError")
_FUNCTIONS = ("binary_calibration_error", "calibration_error", "multiclass_calibration_error")
_ERRORS = ("ACE", "ECE", "MCE")

# library -> its modules and the public names replaced there by those of vlcal.compat.<library>
NAMES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "torchmetrics": (
        ("torchmetrics", ("CalibrationError",)),
        ("torchmetrics.classification", _OBJECTS),
        ("torchmetrics.classification.calibration_error", _OBJECTS),
        ("torchmetrics.functional", ("calibration_error",)),
        ("torchmetrics.functional.classification", _FUNCTIONS),
        ("torchmetrics.functional.classification.calibration_error", _FUNCTIONS),
    ),
    "netcal": (
        ("netcal.metrics", _ERRORS),
        ("netcal.metrics.confidence", _ERRORS),
        ("netcal.binning", ("HistogramBinning", "IsotonicRegression")),
        ("netcal.scaling", ("TemperatureScaling",)),
    ),
    "faiss": (("faiss", ("IndexFlat", "IndexFlatIP", "IndexFlatL2", "knn")),),
}

_DISTRIBUTIONS = {"faiss": "faiss-cpu"}


class Replaced(NamedTuple):
    """One name of one module, with what it meant and what it means."""

    module: ModuleType
    name: str
    original: Any
    ours: Any


class Patch:
    """A patched library; `undo()` or the end of a `with` block restores it.

    Args:
        library: its name.
        replaced: the names, patched already.
    """

    def __init__(self, library: str, replaced: tuple[Replaced, ...]) -> None:
        self.library, self.replaced = library, replaced

    def undo(self) -> None:
        """Give every name its original meaning back; a second call does nothing.

        A name that somebody else has given another meaning since keeps that one, with a
        VlcalWarning.
        """
        if _active.get(self.library) is not self:
            return
        del _active[self.library]
        for module, name, original, ours in self.replaced:
            if vars(module).get(name) is ours:
                setattr(module, name, original)
            else:
                warnings.warn(
                    f"patch: {module.__name__}.{name} was changed after the patch of "
                    f"{self.library} and is left as it is",
                    VlcalWarning,
                    stacklevel=2,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if _active.get(self.library) is self else "undone"
        return f"Patch({self.library!r}, {len(self.replaced)} names, {state})"


_active: dict[str, Patch] = {}


def patch(library: str) -> Patch:
    """Make the calibration names of an installed library mean those of `vlcal.compat.<library>`.

    Code that imports the names afterwards, or looks them up in their modules, gets ours; names that
    were imported before and objects made before stay what they are.

    Args:
        library: "torchmetrics", "netcal" or "faiss".

    Returns:
        A `Patch`, patched already: call `undo()`, or use it in a `with` statement.

    Raises:
        ValueError: the library is none of those.
        ImportError: it is not installed.
        RuntimeError: it is patched already, or its version lacks one of the names; nothing is
            changed then.

        >>> with patch("faiss"):
        ...     import faiss
        ...     faiss.IndexFlatL2.__module__
        'vlcal.compat.faiss'
    """
    if library not in NAMES:
        raise ValueError(f"patch: library must be one of {', '.join(NAMES)}, got {library!r}")
    if library in _active:
        raise RuntimeError(f"patch: {library} is patched already; undo() that patch first")
    if find_spec(library) is None:
        name = _DISTRIBUTIONS.get(library, library)
        raise ImportError(f"patch: {library} is not installed: pip install {name}")
    ours = import_module(f"vlcal.compat.{library}")
    replaced = tuple(
        _find(import_module(module), name, ours)
        for module, names in NAMES[library]
        for name in names
    )
    for module, name, _, replacement in replaced:
        setattr(module, name, replacement)
    _active[library] = Patch(library, replaced)
    return _active[library]


def _find(module: ModuleType, name: str, ours: ModuleType) -> Replaced:
    if name not in vars(module):
        raise RuntimeError(
            f"patch: this version of {module.__name__.partition('.')[0]} has no "
            f"{module.__name__}.{name}"
        )
    return Replaced(module, name, vars(module)[name], vars(ours)[name])
