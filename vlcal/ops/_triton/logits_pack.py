"""Launchers of the kernels that pack features, and the checks every caller of them shares."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlcal.ops import _triton

# up to so many classes, groups of them are small
FEW = 8192
# classes of a tile, images of a tile; packed rows are padded to tiles and to whole steps of depth
BLOCK = 128
STEP = 64
# rows packed by a program; the interpreter is slow by the program
_ROWS = BLOCK if _triton.interpreted() else 16


class Shape(NamedTuple):
    """How a kernel that multiplies tiles is launched."""

    stages: int
    registers: int | None = None


# by products per pair of values, where shared memory is that of Hopper
STAGES = {1: 4, 3: 3}
BYTES = {1: 2 * STEP * (BLOCK + BLOCK), 3: 4 * STEP * (BLOCK + BLOCK)}  # of a stage
WARPS = 8


def shape(device: torch.device, terms: int) -> Shape:
    """How to launch tiles of products on the device."""
    return Shape(_triton.stages(device, STAGES[terms], BYTES[terms]))


def walk_shape(device: torch.device, terms: int) -> Shape:
    """How to launch the walk over the classes on the device."""
    if terms == 1 and _triton.stages(device, 6, BYTES[1]) == 6:
        # two programs on a multiprocessor: one adds up exponentials under the other's products
        return Shape(stages=3, registers=128)
    return shape(device, terms)


class Classes(NamedTuple):
    """Packed classes: parts [rows, depth], and what the kernels need to know of them.

    `center` [D] float64; `unscale` [] float32 undoes the scale of the parts; `limits` [5] float64
    as `pack_images` wants them; `image_center` [D] and `bias` [rows] (its products with the
    centred classes) when images are centred, in the fast precision.
    """

    hi: Tensor
    lo: Tensor
    center: Tensor
    unscale: Tensor
    limits: Tensor
    image_center: Tensor | None
    bias: Tensor | None
    count: int

    @property
    def terms(self) -> int:
        """Products per pair of values: 1 in the fast precision, else 3."""
        return 3 if self.image_center is None else 1

    @property
    def tiles(self) -> int:
        """Tiles of classes."""
        return len(self.hi) // BLOCK

    @property
    def group(self) -> int:
        """Classes of which the largest score is stored, to rank them: the ranking reads them all.

        Small groups where the scores are few, large ones where storing would take longer.
        """
        return 4 if self.count <= FEW else 16

    @property
    def groups(self) -> int:
        """Groups of classes."""
        return len(self.hi) // self.group


class Images(NamedTuple):
    """Packed images, the scale of each, its error bound, and its product with the class center."""

    hi: Tensor
    lo: Tensor
    inverse: Tensor
    margin: Tensor
    pivot: Tensor
    count: int


def refuse(*args: object) -> str | None:
    """Why the kernels on logits cannot take these arguments; None if they can."""
    matrices = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim == 2]
    if any(arg.dtype == torch.float64 for arg in matrices):
        return "float64 features are computed by the reference alone"
    # a 0-d tensor is read wherever it is
    return _triton.refuse_device(*(a for a in args if isinstance(a, Tensor) and a.ndim))


def factor_on(device: torch.device, scale: Tensor) -> Tensor:
    """`logit_scale` as a float64 0-d tensor on the device, without waiting for the device."""
    if scale.device == device:
        return scale.double()
    return torch.full((), float(scale), dtype=torch.float64, device=device)


def pack_classes(text: Tensor, images: Tensor | None) -> Classes:
    """Centre and pack classes [C, D]; `images` are those of the call in the fast precision."""
    center = text.mean(0, dtype=torch.float64)
    image_center = None if images is None else images.mean(0, dtype=torch.float64)
    scale = power_of_two(text, center)
    hi, lo, sizes, along = pack(text, scale, center=center, vector=image_center)
    center_norm, image_norm = center.norm(), center.new_zeros(())
    bias = None
    if image_center is not None:
        image_norm = image_center.norm()
        bias = (along - image_center.dot(center)).float()
    largest = sizes.amax(1)
    limits = torch.stack([*largest, largest[0] + center_norm, image_norm])
    unscale = (1 / scale).float()
    return Classes(hi, lo, center, unscale, limits, image_center, bias, len(text))


def power_of_two(values: Tensor, center: Tensor | None = None) -> Tensor:
    """The scale that keeps |values - center| below 2^14 and clear of subnormals: [] float64."""
    largest = torch.linalg.vector_norm(values, torch.inf).double()
    if center is not None:
        largest = largest + torch.linalg.vector_norm(center, torch.inf)
    exponent = torch.frexp(largest).exponent.clamp(-112, 126).long()
    # from its bits: a power function need not be exact
    return ((1023 + 14 - exponent) << 52).view(torch.float64)


def pack(
    rows: Tensor,
    scale: Tensor,
    *,
    center: Tensor | None = None,
    vector: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows under one scale: hi, lo, sizes and products with `vector`; see the kernel."""
    n, dim = rows.shape
    padded, depth = _padded(n, BLOCK), _padded(dim, STEP)
    hi = torch.empty((padded, depth), dtype=torch.float16, device=rows.device)
    lo = torch.empty_like(hi)
    sizes = torch.empty((3, padded), dtype=torch.float64, device=rows.device)
    along = torch.empty(padded, dtype=torch.float64, device=rows.device)
    kernels("logits_pack_kernels").pack_classes[(padded // _ROWS,)](
        rows,
        scale if center is None else center,
        scale if vector is None else vector,
        scale if weight is None else weight,
        scale,
        hi,
        lo,
        sizes,
        along,
        n,
        padded,
        dim,
        depth,
        *rows.stride(),
        CENTERED=center is not None,
        ALONG=vector is not None,
        WEIGHTED=weight is not None,
        SPLIT=True,
        ROWS=_ROWS,
        BLOCK_D=STEP,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return hi, lo, sizes, along


def pack_images(images: Tensor, classes: Classes) -> Images:
    """Pack images [n, D] for products with these classes."""
    n, dim = images.shape
    padded, depth = _padded(n, BLOCK), classes.hi.shape[1]
    split = classes.terms == 3
    hi = torch.empty((padded, depth), dtype=torch.float16, device=images.device)
    lo = torch.empty_like(hi) if split else hi
    inverse = torch.empty(padded, dtype=torch.float32, device=images.device)
    margin = torch.empty(padded, dtype=torch.float64, device=images.device)
    pivot = torch.empty_like(margin)
    kernels("logits_pack_kernels").pack_images[(padded // _ROWS,)](
        images,
        classes.center if classes.image_center is None else classes.image_center,
        classes.center,
        classes.limits,
        hi,
        lo,
        inverse,
        margin,
        pivot,
        n,
        dim,
        depth,
        *images.stride(),
        CENTERED=classes.image_center is not None,
        SPLIT=split,
        ROWS=_ROWS,
        BLOCK_D=STEP,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return Images(hi, lo, inverse, margin, pivot, n)


def kernels(name: str) -> Any:
    """A module of kernels, imported when one is launched: it needs Triton."""
    return import_module(f"vlcal.ops._triton.{name}")


def padded_rows(values: Tensor, n: int, fill: float) -> Tensor:
    """Values [len] as [n], filled up."""
    return torch.nn.functional.pad(values, (0, n - len(values)), value=fill)


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block
