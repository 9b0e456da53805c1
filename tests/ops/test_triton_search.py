"""The search on a GPU: its screen, its exact phase, and what can go wrong between them."""

import pytest
import torch

from tests.ops.cases import rows, search
from tests.ops.test_screens import DATA, draw
from tests.oracle import device_of
from vlcal.ops import SearchIndex, _triton, knn, proximity, rank_vocabulary, reference
from vlcal.ops._triton import search as gpu
from vlcal.ops._triton import search_exact, search_rows, search_screen

pytestmark = pytest.mark.skipif(_triton.missing() is not None, reason=str(_triton.missing()))

DEVICE = torch.device(device_of("triton"))
K = 3
# enough keys that the screen is used
M = 700


def screened(queries, keys, k=K, exclude_self=False, dot=False, screens=None):
    """Costs and indices by way of the screen, however few the queries."""
    queries, keys = queries.to(DEVICE), keys.to(DEVICE)
    assert gpu.worth_a_screen(len(keys), k + exclude_self)
    screens = screens or search_screen.SCREENS
    *found, bad = gpu.find_prepared(queries, gpu.prepare(keys, dot), k, exclude_self, screens)
    assert not bad
    return [value.cpu() for value in found]


def assert_found(found, queries, keys, exclude_self=False):
    distance, index = reference.knn(queries, keys, found[1].shape[1], exclude_self)
    assert torch.equal(found[1], index)
    assert torch.equal(found[0].sqrt().float(), distance)


@pytest.mark.parametrize("name", DATA)
def test_screen_finds_what_float64_finds(name):
    keys = DATA[name](M, 70)
    queries = torch.cat([keys[:9], DATA[name](40, 70)[20:].flip(1)])
    assert_found(screened(queries, keys), queries, keys)


@pytest.mark.parametrize(("n", "dim"), [(384, 1), (511, 65), (1025, 3), (400, 513), (700, 64)])
def test_any_depth_and_number_of_keys(n, dim):
    queries, keys, _ = search(5, n, dim, K)
    assert_found(screened(queries, keys), queries, keys)


@pytest.mark.parametrize("n_queries", [1, 33, 65])
def test_any_number_of_queries(n_queries):
    queries, keys, _ = search(n_queries, M, 20, K)
    assert_found(screened(queries, keys), queries, keys)


def test_queries_in_parts_know_themselves(monkeypatch):
    monkeypatch.setattr(gpu, "MOST_QUERIES", 100)
    keys = rows(384, 20)
    assert_found(screened(keys, keys, 2, True), keys, keys, True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_searched_as_it_is(dtype):
    queries, keys, _ = search(5, M, 30, K, dtype)
    assert_found(screened(queries, keys), queries, keys)
    assert_found(screened(queries.double(), keys), queries, keys)


@pytest.mark.parametrize("scale", [1e-300, 1e-120, 1e120, 1e300])
def test_float64_at_the_ends_of_its_range(scale):
    # squares underflow to nothing or overflow to infinity, and then the lowest index comes first
    queries, keys, _ = search(5, M, 30, K, torch.float64)
    assert_found(screened(queries * scale, keys * scale), queries * scale, keys * scale)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_queries_of_another_size_than_the_keys(scale):
    queries, keys, _ = search(5, M, 30, K)
    mixed = torch.cat([queries, queries * scale, queries[:1] * 0])
    assert_found(screened(mixed, keys), mixed, keys)


@pytest.mark.parametrize("view", ["transposed", "every other row", "every other column"])
def test_any_strides(view):
    def strided(n, seed):
        if view == "transposed":
            return rows(40, n, seed=seed).T
        return (
            rows(2 * n, 40, seed=seed)[::2]
            if view == "every other row"
            else rows(n, 80, seed=seed)[:, ::2]
        )

    queries, keys = strided(6, 1), strided(M, 0)
    assert not queries.is_contiguous()
    assert_found(screened(queries, keys), queries, keys)


def test_rows_further_apart_than_32_bits_count(tmp_path):
    # a sparse file, of which four pages are ever touched
    stride, n, dim = 3 * 2**28 + 64, 4, 40
    flat = torch.from_file(
        str(tmp_path / "rows"), shared=True, size=(n - 1) * stride + dim, dtype=torch.float16
    )
    keys = flat.as_strided((n, dim), (stride, 1))
    keys.copy_(rows(n, dim))
    assert (n - 1) * stride > 2**31
    cost, index, _ = gpu._scan_all(keys.to(DEVICE), keys.to(DEVICE), 2, False, False)
    assert_found([cost.cpu(), index.cpu()], keys, keys)
    zero = torch.zeros(dim, dtype=torch.float64, device=DEVICE)
    one = torch.ones((), dtype=torch.float64, device=DEVICE)
    half, (length, residual, _), _ = search_rows.place(keys.to(DEVICE), zero, one, 64, False)
    assert torch.equal(half[:, :dim].cpu(), keys)
    assert not half[:, dim:].any()
    assert torch.allclose(length.cpu(), keys.double().norm(dim=1))
    assert not residual.any()


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [
        (1.0, 10),
        (0.99, 11),
        (1500.0, 0),
        (0.0, 11),
        (1e300, -400),
        (1e-310, 400),
        (torch.inf, -400),
    ],
)
def test_scales_take_the_largest_coordinate_to_the_top_of_fp16(largest, exponent):
    largest = torch.tensor(largest, dtype=torch.float64, device=DEVICE)
    assert search_rows.scale(largest, None) == 2.0**exponent
    most = torch.tensor(8.0, dtype=torch.float64, device=DEVICE)
    assert search_rows.scale(largest, most) == min(8.0, 2.0**exponent)


@pytest.mark.parametrize(("n", "wanted"), [(1, 1), (2, 2), (3, 5), (70, 129)])
def test_floors_are_what_witnesses_score_less_their_doubt_twice(n, wanted):
    best = torch.randn(n, wanted).sort(descending=True).values
    best[0, -1] = -torch.inf
    doubt = torch.rand(n, dtype=torch.float64)
    floor, rungs, rising = (x.cpu() for x in search_rows.floors(best.to(DEVICE), doubt.to(DEVICE)))
    ranks = [wanted >> i for i in range(4) if wanted >> i]
    assert torch.equal(rungs, best[:, [rank - 1 for rank in ranks[1:]]])
    assert (rungs.diff() >= 0).all()
    exact = best[:, [rank - 1 for rank in ranks]].double() - 2 * doubt[:, None]
    got = torch.cat([floor[:, None], rising], 1).double()
    assert (got <= exact).all()
    assert torch.allclose(got, exact, rtol=1e-6, atol=1e-29)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n_keys", [40, 400])  # all scanned, and screened
def test_an_index_refuses_queries_that_are_not_finite(monkeypatch, n_keys, bad):
    monkeypatch.setattr(gpu, "MOST_QUERIES", 5)  # row 7 is in the second part of four
    queries, keys, _ = search(20, n_keys, 70, K)
    index = SearchIndex(keys.to(DEVICE), backend="triton")
    queries = queries.clone()
    queries[7, 66] = bad
    with pytest.raises(ValueError, match=r"SearchIndex\.knn: queries must be finite.* row 7 \(1 "):
        index.knn(queries.to(DEVICE), K)
    huge = queries.double().nan_to_num(0.0, 0.0, 0.0) * 1e300
    index.knn(huge.to(DEVICE), K)


@pytest.mark.parametrize("name", ["clustered", "twins"])
def test_lists_that_overflow_are_scanned(monkeypatch, name):
    capacity = 16
    monkeypatch.setattr(gpu, "capacity_for", lambda n_keys, wanted: capacity)
    counts = []
    screens = search_screen.SCREENS

    def screen(*args):
        counts.append(screens.screen(*args))
        return counts[-1]

    keys = DATA[name](M, 40)
    # queries far away find most keys equally good
    queries = torch.cat([keys[:7], 1e4 * DATA[name](5, 40)])
    found = screened(queries, keys, screens=screens._replace(screen=screen))
    assert (counts[0][0] > capacity).any()
    assert_found(found, queries, keys)


def test_only_some_lists_overflow(monkeypatch):
    monkeypatch.setattr(gpu, "capacity_for", lambda n_keys, wanted: 16)
    crowd = 30 + draw(1, 40) + 1e-5 * draw(700, 40, seed=1)
    keys = torch.cat([rows(700, 40), crowd])
    queries = torch.cat([rows(5, 40, seed=1), crowd[:3]])
    assert_found(screened(queries, keys), queries, keys)


def test_of_equal_keys_the_lowest_come_first():
    # five rows, each 80 times: every neighbor is one of 80 at the same distance
    keys = rows(5, 16).repeat(80, 1)
    found = screened(keys[:20], keys)
    assert_found(found, keys[:20], keys)
    assert torch.equal(found[1][:, 0], torch.arange(5).repeat(4))
    assert torch.equal(found[1][:, 1:], found[1][:, :1] + torch.tensor([5, 10]))


@pytest.mark.parametrize("name", ["clustered", "twins"])
def test_excluding_itself_survives_the_screen(name):
    keys = DATA[name](400, 40)
    assert_found(screened(keys, keys, 2, exclude_self=True), keys, keys, True)


@pytest.mark.parametrize("name", ["clustered", "far from the origin", "all norms", "zero rows"])
def test_largest_dot_products_survive_the_screen(name):
    keys, queries = DATA[name](M, 40), draw(30, 40, seed=5)
    cost, _ = screened(queries, keys, 1, dot=True)
    assert torch.equal(-cost[:, 0], reference.vocabulary_scores(queries, keys, True))


def test_ranking_uses_the_screen_and_the_mean_is_one_product():
    words, anchors = rows(60, 40), rows(300, 40, seed=1)
    for reduce in ("max", "mean"):
        got, believed = (
            rank_vocabulary(words.to(place), anchors.to(place), 9, reduce=reduce, backend=backend)
            for backend, place in (("triton", DEVICE), ("reference", "cpu"))
        )
        assert torch.equal(got.index.cpu(), believed.index)
        assert torch.equal(got.score.cpu(), believed.score)


@pytest.mark.parametrize("k", [1, 2, 31, 50])
def test_scan_finds_any_number_of_neighbors(k):
    queries, keys, _ = search(5, 50, 20, k)
    cost, index, _ = gpu._scan_all(queries.to(DEVICE), keys.to(DEVICE), k, False, False)
    assert_found([cost.cpu(), index.cpu()], queries, keys)


def test_slices_of_the_keys_are_merged(monkeypatch):
    monkeypatch.setattr(search_exact, "tiles_for", lambda tiles, n: search_exact.Tiles(4, 16))
    keys = rows(30, 20).repeat(10, 1)
    cost, index, _ = gpu._scan_all(keys[:5].to(DEVICE), keys.to(DEVICE), 7, True, False)
    assert_found([cost.cpu(), index.cpu()], keys[:5], keys, True)


def test_index_answers_as_knn():
    queries, keys, _ = search(20, 400, 40, K)
    index = SearchIndex(keys.to(DEVICE), backend="triton")
    for wanted in (queries, queries[:1], queries[:0], queries.double()):
        found = index.knn(wanted.to(DEVICE), K)
        expected = knn(wanted, keys, K, backend="reference")
        assert torch.equal(found.index.cpu(), expected.index)
        assert torch.equal(found.distance.cpu(), expected.distance)
    close = index.proximity(queries.to(DEVICE), 30)
    assert torch.allclose(close.cpu(), proximity(queries, keys, 30, backend="reference"))


def test_refuses_more_neighbors_than_registers_hold():
    keys = torch.zeros(3000, 2, device=DEVICE)
    with pytest.raises(NotImplementedError, match="triton: finds at most 2048 neighbors, asked"):
        knn(keys[:2], keys, 2100, backend="triton")
    with pytest.raises(NotImplementedError, match="SearchIndex: finds at most 2048 neighbors"):
        SearchIndex(keys, backend="triton").knn(keys[:2], 2100)


def test_refuses_types_it_does_not_know():
    keys = torch.zeros(4, 2, device=DEVICE).to(torch.float8_e5m2)
    assert gpu.refuse(keys) == "torch.float8_e5m2 is not supported"


def test_another_pair_of_screens_gives_the_same_answers():
    def group_max(q16, k16, bias):
        return (q16.float() @ k16.float().T + bias).split(50, dim=1)[0]

    def screen(q16, k16, bias, floor, capacity, ladder):
        scores = (q16.float() @ k16.float().T + bias).cpu()
        found = scores >= floor.cpu()[:, None]
        order = found.int().argsort(dim=1, descending=True)[:, :capacity]
        count = found.sum(1, dtype=torch.int32)
        return (
            count.to(DEVICE),
            order.int().contiguous().to(DEVICE),
            scores.gather(1, order).contiguous().to(DEVICE),
        )

    queries, keys, _ = search(20, M, 40, K)
    assert_found(screened(queries, keys, screens=gpu.Screens(group_max, screen)), queries, keys)


@pytest.mark.parametrize("wanted", [1, 2, 11, 50, 129, 1000, 2049])
@pytest.mark.parametrize("n_keys", [128, 10_000, 1_000_000, 10**10])
def test_lists_have_room_for_what_is_expected(n_keys, wanted):
    if not gpu.worth_a_screen(n_keys, wanted):
        return
    every, capacity = gpu.every_for(n_keys, wanted), gpu.capacity_for(n_keys, wanted)
    assert n_keys // every // gpu.GROUP >= wanted
    assert capacity & (capacity - 1) == 0
    assert 4 * every * wanted <= capacity <= gpu.MOST_ENTRIES
