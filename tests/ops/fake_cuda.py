"""A GPU that is not there: launchers run on it as they would, and may neither wait nor look.

Tensors on it have shapes and no values. What would make the CPU wait for the device, which nothing
may while a CUDA graph is captured, is refused by its name; launches are recorded instead of run.

    with fake_cuda(capturing=True) as gpu:
        knn(torch.empty(100, 512, device=gpu.device), torch.empty(9000, 512, device=gpu.device), 10)
    assert gpu.kernels == [...]
"""

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlcal.ops import _triton

# functions whose result depends on values in its shape, or that wait although it does not
WAITING = {
    "nonzero", "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive",
    "bincount", "repeat_interleave", "nonzero_static", "equal", "_assert_async", "histc",
}  # fmt: skip
FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh"}


class Waits(AssertionError):
    """Something would have waited for the device where nothing may."""


class Launch(NamedTuple):
    """One launch of a kernel: arguments by name, launch options apart."""

    kernel: str
    grid: tuple[int, ...]
    args: dict[str, Any]
    options: dict[str, Any]


class FakeGPU(TorchDispatchMode):
    """What happened on the GPU, and its rules."""

    def __init__(
        self,
        capturing: bool,
        answer: Callable[[Tensor], Any],
        compile_launch: Callable[..., None] | None,
    ) -> None:
        super().__init__()
        # not the current one: a launcher that forgets its guard launches on the wrong device
        self.device, self.current = torch.device("cuda", 1), 0
        self.capturing, self.answer = capturing, answer
        self.compile_launch = compile_launch
        self.launches: list[Launch] = []
        self.operations: list[str] = []
        self.waits: list[str] = []
        self.launched_before_waits: list[int] = []
        self.live = self.peak = 0
        self._storages: dict[int, int] = {}

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels launched, in order."""
        return [launch.kernel for launch in self.launches]

    def wait(self, what: str) -> None:
        self.waits.append(what)
        self.launched_before_waits.append(len(self.launches))
        if self.capturing:
            raise Waits(f"{what} waits for the device while a graph is captured")

    def launch(self, kernel: Any, grid: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        names = list(inspect.signature(kernel.fn).parameters)
        given = dict(zip(names, args, strict=False))
        options = {name: value for name, value in kwargs.items() if name not in names}
        given |= {name: value for name, value in kwargs.items() if name in names}
        assert set(given) == set(names), f"{kernel.fn.__name__}: {set(names) ^ set(given)}"
        grid = grid(given) if callable(grid) else grid
        assert 0 < grid[0] < 2**31, grid
        assert all(0 < size <= 65535 for size in grid[1:]), grid
        for name, value in given.items():
            if isinstance(value, Tensor):
                here = value.device == torch.device("cuda", self.current)
                assert here, f"{name} is on {value.device}, the launch on cuda:{self.current}"
            elif isinstance(value, int):
                assert -(2**63) <= value < 2**63, (name, value)
            else:
                assert value is None or type(value) is float, (name, value)
        self.launches.append(Launch(kernel.fn.__name__, tuple(grid), given, options))
        if self.compile_launch:
            self.compile_launch(kernel, given, options)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().split("::")[1].split(".")[0]
        if func.namespace == "vlcal":
            return self._run_body(func, args, kwargs)
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # inside the body of a custom op nobody else has taken it apart
            with self:
                return func.decompose(*args, **kwargs)
        if name == "_local_scalar_dense":
            if args[0].is_cuda:
                self.wait(f"reading a value ({_caller()})")
            return self.answer(args[0])
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._check(name, args, inputs)
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if name in ("_to_copy", "copy_") and len({value.is_cuda for value in inputs + outputs}) > 1:
            self.wait(f"a copy between CPU and device ({_caller()})")
        if name not in FREE and not func.is_view and any(value.is_cuda for value in outputs):
            self.operations.append(name)
        for output in outputs:
            self._count_memory(output)
        return result

    def _check(self, name: str, args: tuple, inputs: list[Tensor]) -> None:
        on_gpu = any(value.is_cuda for value in inputs)
        if on_gpu and name in WAITING:
            self.wait(f"{name} ({_caller()})")
        if on_gpu and name in ("index", "index_put", "index_put_"):
            for index in tree_leaves(args[1]):
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self.wait(f"{name} by a mask ({_caller()})")
        if on_gpu and name in ("where", "index", "index_put", "index_put_"):
            for value in inputs:
                if not value.is_cuda:
                    self.wait(f"{name} with a tensor on the CPU ({_caller()})")

    def _run_body(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A custom op is what it does, and what it returns is what its fake promises."""
        promised = func(*args, **kwargs)
        with self:
            made = OPDEFS[func.name()]._init_fn(*args, **kwargs)
        for real, fake in zip(tree_leaves(made), tree_leaves(promised), strict=True):
            facts = [(one.shape, one.stride(), one.dtype, one.device) for one in (real, fake)]
            assert facts[0] == facts[1], f"{func.name()}: {facts[0]}, promised {facts[1]}"
        return made

    def _count_memory(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if not value.is_cuda or storage._cdata in self._storages:
            return
        self._storages[storage._cdata] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.live -= self._storages.pop(key)


@contextmanager
def fake_cuda(
    *,
    capturing: bool = False,
    capability: tuple[int, int] = (9, 0),
    processors: int = 132,
    shared: int = 227 << 10,
    answer: Callable[[Tensor], Any] = lambda value: value.dtype == torch.bool,
    compile_launch: Callable[..., None] | None = None,
) -> Iterator[FakeGPU]:
    """Tensors made inside on `.device` are on a GPU, and Triton's launchers find it.

    Args:
        capturing: whether a CUDA graph is captured: then what would wait raises `Waits`, else it
            is written down in `.waits`.
        capability: of the GPU.
        processors: its multiprocessors.
        shared: bytes of shared memory that a program can have.
        answer: what reading the value of a tensor gives: True for a bool and 0 for a number, as
            if everything asked were so and no bad row found.
        compile_launch: called with each kernel, its arguments by name, and its options.
    """
    gpu = FakeGPU(capturing, answer, compile_launch)

    def exchange(device: int) -> int:
        before, gpu.current = gpu.current, device if device >= 0 else gpu.current
        return before

    def recorded(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: gpu.launch(kernel, grid, args, kwargs)

    from triton.runtime import interpreter, jit

    properties = SimpleNamespace(
        multi_processor_count=processors, shared_memory_per_block_optin=shared
    )
    seen = SimpleNamespace(
        is_available=lambda: True, get_device_properties=lambda device=None: properties
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "_exchange_device", exchange)
        patch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: properties)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
        patch.setattr(torch.cuda, "synchronize", lambda device=None: gpu.wait("synchronize"))
        patch.setattr(_triton, "_INTERPRETED", False)
        # for `_triton` alone: torch itself must not look for the GPU
        patch.setattr(_triton, "torch", SimpleNamespace(cuda=seen))
        for kind in (jit.KernelInterface, jit.JITFunction, interpreter.InterpretedFunction):
            patch.setattr(kind, "__getitem__", recorded)
        _forget_devices()
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), gpu:
                _skip_if_views_need_a_driver(gpu.device)
                yield gpu
        finally:
            _forget_devices()


def _skip_if_views_need_a_driver(device: torch.device) -> None:
    # torch 2.6 asks the driver for the device of a slice, though it has no values
    try:
        torch.empty(2, device=device)[::2]
    except RuntimeError as error:
        pytest.skip(f"this torch cannot pretend to have a GPU: {str(error).splitlines()[0]}")


def _forget_devices() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("vlcal."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _caller() -> str:
    """The line of the package that asked."""
    frame = sys._getframe(1)
    while frame and not frame.f_globals.get("__name__", "").startswith("vlcal"):
        frame = frame.f_back
    if frame is None:
        return "not in the package"
    return f"{frame.f_globals['__name__']}:{frame.f_lineno}"
