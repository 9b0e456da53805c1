"""Laws of the class-wise statistics: one table per class, additivity, refusals."""

import pytest
import torch
from torch.library import opcheck

from tests.ops.cases import stored_probs
from tests.oracle import cpu_backends
from vlcal import _native
from vlcal.ops import bin_statistics, classwise_statistics

needs_native = pytest.mark.skipif(_native.missing() is not None, reason=str(_native.missing()))


def test_toy_table():
    probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25]])
    classes = classwise_statistics(probs, torch.tensor([0, 1, 1]), 2)
    assert classes[0].count.tolist() == [1, 2]
    assert classes[0].correct.tolist() == [0, 1]
    # |0.25 - 0| + |1.5 - 1|, and |0.5 - 1| + |0.75 - 1|, over 3 samples
    assert classes.errors().tolist() == pytest.approx([0.75 / 3, 0.75 / 3])


@pytest.mark.parametrize("backend", cpu_backends())
def test_each_class_is_binned_like_its_own_confidences(backend):
    probs, labels = stored_probs(1500, 30)
    classes = classwise_statistics(probs, labels, 10, closed="left", backend=backend)
    for label in (0, 17, 29):
        alone = bin_statistics(probs[:, label], labels == label, 10, closed="left")
        assert torch.equal(classes[label].table, alone.table)
        assert classes.errors()[label] == pytest.approx(alone.ece())


@pytest.mark.parametrize("backend", cpu_backends())
def test_given_edges_are_those_of_each_class(backend):
    probs, labels = stored_probs(1500, 30)
    probs[:9, 17] = 0
    edges = torch.tensor([-1, 0, 1e-3, 0.5, 1], dtype=torch.float64)
    classes = classwise_statistics(probs, labels, edges=edges, backend=backend)
    alone = bin_statistics(probs[:, 17], labels == 17, edges=edges)
    assert torch.equal(classes[17].table, alone.table)
    assert classes[17].count[0] == 9
    with pytest.raises(ValueError, match=r"classwise_statistics: edges must be .* ascending"):
        classwise_statistics(probs, labels, edges=edges.flip(0), backend=backend)


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx512"])
def test_same_bits_for_any_split_and_instruction_set(isa, limit_isa):
    probs, labels = stored_probs(2500, 40)
    whole = classwise_statistics(probs, labels, backend="reference").table
    limit_isa(isa)
    parts = [
        classwise_statistics(probs[rows], labels[rows]) for rows in (slice(900), slice(900, None))
    ]
    assert torch.equal((parts[0] + parts[1]).table, whole)


@pytest.mark.parametrize("backend", cpu_backends())
@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_refuses_values_that_are_no_probability(backend, bad):
    probs, labels = stored_probs(50, 40)
    probs[31, 7] = bad
    with pytest.raises(ValueError, match=r"got .* in row 31, class 7"):
        classwise_statistics(probs, labels, backend=backend)


def test_refuses_what_breaks_the_contract():
    probs, labels = stored_probs(5, 4)
    with pytest.raises(ValueError, match=r"probs must be floating point \[N, C\]"):
        classwise_statistics(probs[0], labels)
    with pytest.raises(ValueError, match=r"labels must be in 0..3, got 9 in row 1"):
        classwise_statistics(probs, torch.tensor([0, 9, 0, 0, 0]))
    with pytest.raises(ValueError, match="only statistics of the same classes can be added"):
        classwise_statistics(probs, labels) + classwise_statistics(probs[:, :3], labels % 3)


def test_opcheck():
    probs, labels = stored_probs(20, 10)
    edges = torch.linspace(0, 1, 16, dtype=torch.float64)
    opcheck(torch.ops.vlcal.classwise_statistics.default, (probs, labels, edges, True, ""))
