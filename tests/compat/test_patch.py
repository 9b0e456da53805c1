"""A patch reaches every public name of a library, and undoing it leaves no trace."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch

import vlcal
from vlcal.compat import patching
from vlcal.compat.patching import NAMES

libraries = pytest.mark.parametrize("library", NAMES)


def installed(library):
    pytest.importorskip(library, reason=f"{library} is not installed")


def meanings(library):
    return {
        (module, name): vars(importlib.import_module(module)).get(name)
        for module, names in NAMES[library]
        for name in names
    }


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    yield
    assert patching._active == {}


@libraries
def test_every_name_is_ours_inside_and_theirs_outside(library):
    installed(library)
    before = meanings(library)
    with vlcal.patch(library) as handle:
        inside = meanings(library)
        assert {value.__module__.rpartition(".")[0] for value in inside.values()} <= {
            "vlcal.compat",
            f"vlcal.compat.{library}",
        }
        assert "active" in repr(handle)
    assert meanings(library) == before
    assert "undone" in repr(handle)
    handle.undo()  # a second time does nothing
    assert meanings(library) == before


@pytest.mark.parametrize("library", ["torchmetrics", "netcal"])
def test_no_package_of_the_library_still_exports_the_original(library):
    installed(library)
    with vlcal.patch(library) as handle:
        originals = {id(each.original): each.name for each in handle.replaced}
        packages = [
            module
            for name, module in list(sys.modules.items())
            # the files that define them keep theirs in netcal, whose classes are named as the files
            if name.partition(".")[0] == library and hasattr(module, "__path__")
        ]
        left = [
            f"{module.__name__}.{name}"
            for module in packages
            for name, value in vars(module).items()
            if id(value) in originals
        ]
        assert left == []


def test_patched_torchmetrics_gives_ours_everywhere():
    installed("torchmetrics")
    import torchmetrics

    preds, target = torch.randn(50, 3), torch.randint(3, (50,))
    expected = torchmetrics.functional.calibration_error(preds, target, "multiclass", num_classes=3)
    with vlcal.patch("torchmetrics"):
        from torchmetrics.classification import MulticlassCalibrationError

        metrics = torchmetrics.MetricCollection(
            [
                MulticlassCalibrationError(3),
                torchmetrics.classification.MulticlassAccuracy(3),
            ]
        )
        metrics.update(preds, target)
        assert metrics["MulticlassCalibrationError"].table.shape == (3, 16)
        found = [
            metrics.compute()["MulticlassCalibrationError"],
            torchmetrics.CalibrationError("multiclass", num_classes=3)(preds, target),
            torchmetrics.functional.calibration_error(preds, target, "multiclass", num_classes=3),
        ]
    for value in found:
        torch.testing.assert_close(value, expected)
    theirs = torchmetrics.CalibrationError("multiclass", num_classes=3)
    assert type(theirs).__module__.startswith("torchmetrics")


def test_patched_faiss_searches_here():
    installed("faiss")
    import faiss

    with vlcal.patch("faiss"):
        index = faiss.IndexFlatIP(2)
        index.add(np.ones((3, 2), dtype="float32"))
        assert index.search(np.ones((1, 2), dtype="float32"), 3)[1].tolist() == [[0, 1, 2]]
    assert faiss.IndexFlatIP.__module__ == "faiss.swigfaiss"


def test_a_patch_is_undone_when_the_block_fails():
    installed("torchmetrics")
    before = meanings("torchmetrics")
    with pytest.raises(ZeroDivisionError), vlcal.patch("torchmetrics"):
        _ = 1 / 0
    assert meanings("torchmetrics") == before


def test_a_second_patch_is_refused_and_the_first_stays():
    installed("torchmetrics")
    with vlcal.patch("torchmetrics"):
        inside = meanings("torchmetrics")
        with pytest.raises(RuntimeError, match=r"torchmetrics is patched already; undo\(\) that"):
            vlcal.patch("torchmetrics")
        assert meanings("torchmetrics") == inside


def test_a_name_changed_by_somebody_else_is_left_alone(monkeypatch):
    installed("faiss")
    import faiss

    original, handle = faiss.knn, vlcal.patch("faiss")
    somebody = lambda: None  # noqa: E731
    faiss.knn = somebody
    with pytest.warns(vlcal.VlcalWarning, match=r"faiss\.knn was changed after the patch of faiss"):
        handle.undo()
    assert faiss.knn is somebody
    assert faiss.IndexFlatL2.__module__ == "faiss.swigfaiss"
    faiss.knn = original


def test_a_version_without_a_name_changes_nothing(monkeypatch):
    installed("torchmetrics")
    names = (*NAMES["torchmetrics"], ("torchmetrics", ("SmoothCalibrationError",)))
    monkeypatch.setitem(NAMES, "torchmetrics", names)
    before = meanings("torchmetrics")
    with pytest.raises(RuntimeError, match=r"has no torchmetrics\.SmoothCalibrationError"):
        vlcal.patch("torchmetrics")
    assert meanings("torchmetrics") == before


def test_unknown_and_missing_libraries_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="must be one of torchmetrics, netcal, faiss, got 'scipy'"):
        vlcal.patch("scipy")
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="patch: faiss is not installed: pip install faiss"):
        vlcal.patch("faiss")


def test_importing_vlcal_imports_none_of_them():
    code = f"import sys, vlcal; vlcal.patch; print([n for n in {[*NAMES]} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
