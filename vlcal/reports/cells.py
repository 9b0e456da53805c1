"""Outcomes in fine cells of confidence: few enough to store, enough to draw every curve again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

from vlcal.ops import BinStatistics, bin_statistics
from vlcal.types import Outcomes

BINS = range(5, 51)  # numbers of bins whose error the cells give exactly
GRID = "bins 5-50, 0.001, tail"
_NAMES = ("cell", "count", "correct", "units")


@cache
def _edges() -> torch.Tensor:
    # every edge of every number of bins as numpy makes it, so that bins are sums of whole cells;
    # thousandths; and a tail, because many models are surer than 0.999
    bins = [np.linspace(0.0, 1.0, n + 1) for n in BINS]
    tail = 1.0 - 10.0 ** (-np.arange(60, 141) / 20)
    return torch.from_numpy(np.unique(np.concatenate([*bins, np.linspace(0.0, 1.0, 1001), tail])))


def cells_of(outcomes: Outcomes, closed: Literal["right", "left"] = "right") -> BinStatistics:
    """Statistics of about 1,800 cells of confidence: additive over samples, batches and datasets.

    The cells hold every edge of 5 to 50 bins of equal width, so the error at any of these numbers
    of bins is exact. Confidences above 0.999 are resolved down to a distance of 1e-7 from 1.

    Args:
        outcomes: confidences in 0..1, with whether they were right.
        closed: side on which cells are closed.

    Raises:
        ValueError: a confidence is NaN or outside 0..1.
    """
    edges = _edges().to(outcomes.confidence.device)
    return bin_statistics(outcomes.confidence, outcomes.correct, closed=closed, edges=edges)


def equal_width(cells: BinStatistics, n_bins: int) -> BinStatistics:
    """The bins of `bin_statistics(confidence, correct, n_bins)`, exactly, for 5 to 50 bins."""
    if n_bins not in BINS:
        raise ValueError(f"equal_width: n_bins must be in {BINS[0]}..{BINS[-1]}, got {n_bins}")
    assert cells.edges is not None
    wanted = torch.from_numpy(np.linspace(0.0, 1.0, n_bins + 1))
    of_cell = torch.bucketize(cells.edges[:-1].cpu(), wanted, right=True) - 1
    return BinStatistics(_summed(cells, of_cell, n_bins), wanted, cells.closed)


def equal_mass(cells: BinStatistics, n_bins: int) -> BinStatistics:
    """Bins of equal count in which the samples of a cell stay together, as ties do.

    A cell that holds the ranks r..s-1 of N goes to bin floor(n_bins (r + s) / (2 N)).
    """
    end = cells.count.cpu().cumsum(0)
    middle = n_bins * (2 * end - cells.count.cpu())
    # an empty last cell lies at rank N, which is in no bin
    of_cell = middle.div(2 * max(cells.n, 1), rounding_mode="floor").clamp(max=n_bins - 1)
    return BinStatistics(_summed(cells, of_cell, n_bins))


def _summed(cells: BinStatistics, of_cell: torch.Tensor, n_bins: int) -> torch.Tensor:
    table = torch.zeros(3, n_bins, dtype=torch.int64)
    return table.index_add_(1, of_cell, cells.table.cpu())


def stored(cells: BinStatistics) -> dict[str, Any]:
    """The cells that hold samples as plain integers and texts, ready for JSON."""
    full = cells.count.cpu().nonzero()[:, 0]
    columns = [full, *cells.table.cpu()[:, full]]
    named = {name: column.tolist() for name, column in zip(_NAMES, columns, strict=True)}
    return {"grid": GRID, "closed": cells.closed, **named}


def of_row(outcomes: Outcomes, closed: Literal["right", "left"]) -> dict[str, Any] | None:
    """What a row stores of its outcomes; None where a confidence is not a number."""
    if not bool(torch.isfinite(outcomes.confidence).all()):
        return None
    return stored(cells_of(outcomes, closed))


def row_cells(row: Mapping[str, Any]) -> BinStatistics | None:
    """The cells stored in a row, or None if it has none.

    Raises:
        ValueError: they are of another grid, or are not counts of cells.
    """
    content = row.get("cells")
    if content is None:
        return None
    who = "row_cells: cells"
    if not isinstance(content, Mapping) or content.get("grid") != GRID:
        raise ValueError(f"{who} must be of the grid {GRID!r}")
    try:
        chosen, *columns = (torch.tensor(content[name]) for name in _NAMES)
        closed: Any = content.get("closed")
        table = torch.stack(columns)
    except (TypeError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{who} must hold {', '.join(_NAMES)}, equally long: {error}") from error
    size = len(_edges()) - 1
    good = (
        closed in ("right", "left")
        and table.dtype == chosen.dtype == torch.int64
        and chosen.ndim == 1
        and table.shape == (3, len(chosen))
        and bool((chosen.diff() > 0).all() and (chosen >= 0).all() and (chosen < size).all())
        and bool((table >= 0).all() and (table[1] <= table[0]).all())
    )
    if not good:
        raise ValueError(
            f"{who} must be integers: ascending cells below {size}, 0 <= correct <= count"
        )
    full = torch.zeros(3, size, dtype=torch.int64)
    full[:, chosen] = table
    return BinStatistics(full, _edges(), closed)
