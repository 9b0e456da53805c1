"""Exact nearest neighbors and vocabulary ranking, against faiss and plain torch."""

import pytest
import torch

from benchmarks import peers, workloads
from benchmarks.measure import Provider, settings
from benchmarks.peak import peaks
from vlcal import ops

TARGETS = {
    (1, 100_000): 6,
    (10, 100_000): 6,
    (50, 100_000): 4.5,
    (10, 10_000): 3.5,
    (10, 1_000_000): 6,
}


def differences(truth, k):
    """Share of neighbors that are not those of the exact answer."""
    return lambda found: float((torch.as_tensor(found[1])[:, :k] != truth).float().mean())


@pytest.mark.parametrize("workload", workloads.SEARCH, ids=str)
def bench_knn(bench, workload):
    queries, keys = workload.features()
    bench.check("knn", queries[:5], keys[:5000], workload.k)
    index, narrow = (index_of(keys, isa) for isa in ("native", "avx2"))
    truth = index.knn(queries, workload.k).index
    assert torch.equal(truth[:2], exact_index(queries[:2], keys, workload.k))

    def ours():
        return index.knn(queries, workload.k)

    without = peers.missing("faiss")
    flat, default = (
        None if without else peers.FaissFlat(keys, blas=blas) for blas in (True, False)
    )
    few = workload.n == 100
    bench.compare(
        "knn",
        workload,
        [
            Provider("vlcal", ours),
            Provider("vlcal, index built each time", lambda: ops.knn(queries, keys, workload.k)),
            Provider("vlcal, avx2", lambda: narrow.knn(queries, workload.k), isa="avx2"),
            Provider(
                "faiss, BLAS forced",
                lambda: flat.search(queries, workload.k),
                TARGETS.get((workload.k, workload.classes)),
                missing=without,
            ),
            Provider(
                "faiss, defaults",
                lambda: default.search(queries, workload.k),
                20 if few and workload.k == 10 else None,
                missing=without,
            ),
            Provider(
                "torch mm + topk",
                lambda: peers.torch_topk(queries, keys, workload.k),
                7 if few and workload.k == 10 else None,
            ),
        ],
        error=differences(truth, workload.k),
        work=comparisons(workload),
    )


def comparisons(workload):
    """Every query with every key, in the narrowest format this CPU multiplies."""
    unit = "int8" if "int8" in peaks() else "float32"
    return 2.0 * workload.n * workload.classes * workload.dim, unit


def index_of(keys, isa):
    """An index packed for the kernels of that instruction set."""
    with settings(isa=isa):
        return ops.SearchIndex(keys)


def exact_index(queries, keys, k):
    squared = torch.cdist(
        queries.double(), keys.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return squared.sort(stable=True).indices[:, :k]


def bench_knn_without_vnni(bench):
    """The float path alone, as on machines without VNNI and BF16."""
    workload = workloads.SEARCH[0]
    queries, keys = workload.features()
    bench.check("knn", queries[:5], keys[:5000], workload.k)
    index, without = index_of(keys, "avx512"), peers.missing("faiss")
    flat = None if without else peers.FaissFlat(keys, blas=True)
    bench.compare(
        "knn",
        workload,
        [
            Provider("vlcal, avx512", lambda: index.knn(queries, workload.k), isa="avx512"),
            Provider(
                "faiss, BLAS forced",
                lambda: flat.search(queries, workload.k),
                1.5,
                missing=without,
            ),
        ],
    )


@pytest.mark.parametrize("number", [0, 3], ids=["100 queries", "1000 queries"])
def bench_knn_on_two_threads(bench, number):
    workload = workloads.SEARCH[number]
    queries, keys = workload.features()
    bench.check("knn", queries[:5], keys[:5000], workload.k)
    index = ops.SearchIndex(keys)

    def ours():
        return index.knn(queries, workload.k)

    both = Provider("vlcal, 2 threads", ours, threads=2)
    bench.compare("knn", workload, [both, Provider("vlcal, 1 thread", ours, 1.8)])


def bench_index_build(bench):
    workload = workloads.SEARCH[0]
    _, keys = workload.features()
    bench.check("knn")
    without = peers.missing("faiss")
    bench.compare(
        "knn",
        workload.named("build of 100k keys"),
        [
            Provider("vlcal", lambda: ops.SearchIndex(keys)),
            Provider("faiss", lambda: peers.FaissFlat(keys, blas=True), missing=without),
        ],
    )


@pytest.mark.parametrize("reduce", ["mean", "max"])
def bench_rank_vocabulary(bench, reduce):
    """Choosing the outliers of DOR: 5,000 nouns nearest to the classes."""
    workload = workloads.Workload("100k nouns, 100 classes", "outlier choice", 100, 100_000, k=5000)
    anchors, candidates = workload.features()
    bench.check("rank_vocabulary", candidates[:3000], anchors, 50, reduce=reduce)
    plain = {"mean": lambda s: s.mean(-1), "max": lambda s: s.amax(-1)}[reduce]
    bench.compare(
        "rank_vocabulary",
        workload.named(f"{workload.name}, {reduce}"),
        [
            Provider(
                "vlcal", lambda: ops.rank_vocabulary(candidates, anchors, 5000, reduce=reduce)
            ),
            Provider("torch mm + topk", lambda: plain(candidates @ anchors.T).topk(5000)),
        ],
    )
