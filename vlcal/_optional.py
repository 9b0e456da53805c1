"""Optional dependencies: imported where needed, refused in a sentence that names the extra."""

from __future__ import annotations

import importlib
from types import ModuleType


def optional(module: str, extra: str, who: str) -> ModuleType:
    """The module, or an ImportError that says who needs it, which extra has it, and the cause.

    Some pairs of torch and torchvision raise RuntimeError while being imported, so every exception
    counts as "missing".
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ImportError(
            f"{who} needs {module}: pip install 'vlcal[{extra}]' ({cause})"
        ) from error
