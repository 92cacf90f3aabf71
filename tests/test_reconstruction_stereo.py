"""Stereo: slow loops for census, costs and paths, and the real motorcycle."""

import math

import pytest
import torch
from conftest import rng, uniform
from scipy import ndimage

from course_lib.reconstruction import stereo


def slow_census(grey, h, w):
    H, W = grey.shape
    codes = torch.zeros(H, W, dtype=torch.int64)
    for y in range(H):
        for x in range(W):
            bits = ""
            for i in range(-(h // 2), h // 2 + 1):
                for j in range(-(w // 2), w // 2 + 1):
                    if i or j:
                        there = grey[min(max(y + i, 0), H - 1), min(max(x + j, 0), W - 1)]
                        bits += "1" if there < grey[y, x] else "0"
            codes[y, x] = int(bits, 2)
    return codes


@pytest.mark.parametrize("window", [(3, 3), (5, 5), (1, 7), (7, 9)])
def test_census_is_that_of_a_slow_loop(window):
    grey = uniform(6, 8, seed=1).mul(5).round()  # with equal neighbours
    assert torch.equal(stereo.census(grey, window), slow_census(grey, *window))


def test_census_does_not_see_exposure():
    grey = uniform(9, 11)
    assert torch.equal(stereo.census(0.3 * grey**2 + 0.1), stereo.census(grey))


def test_bits_are_counted():
    words = torch.randint(0, 2**62, (500,), generator=rng())
    expected = [bin(word).count("1") for word in words.tolist()]
    assert stereo.count_bits(words).tolist() == expected
    assert stereo.count_bits(torch.tensor([0, 1, 2**62 - 1, 2**63 - 1])).tolist() == [0, 1, 62, 63]


def test_costs_of_a_shifted_image():
    right = uniform(3, 8, 20, dtype=torch.float32)
    left = right.roll(3, 2)  # the left pixel x is the right pixel x − 3
    cost = stereo.matching_cost(left, right, 6)
    assert cost.shape == (6, 8, 20) and (cost[3, :, 5:-2] == 0).all() and (cost[4, :, :4] == 12).all()
    assert cost[2, :, 6:-2].mean() > 5
    assert (stereo.match(left, right, 6).disparity[:, 6:-3] - 3).abs().max() < 0.51


def slow_path(cost, grey, dy, dx, P1, P2):
    """Equation 13, pixel by pixel, along one direction."""
    D, H, W = cost.shape
    L = torch.zeros(D, H, W, dtype=cost.dtype)
    for y in range(H) if dy >= 0 else range(H - 1, -1, -1):
        for x in range(W) if dx >= 0 else range(W - 1, -1, -1):
            if not (0 <= y - dy < H and 0 <= x - dx < W):
                L[:, y, x] = cost[:, y, x]
                continue
            before = L[:, y - dy, x - dx].tolist()
            large = max(P2 / (1 + 20 * abs(float(grey[y, x] - grey[y - dy, x - dx]))), 1.5 * P1)
            for d in range(D):
                ways = [before[d], min(before) + large]
                ways += [before[e] + P1 for e in (d - 1, d + 1) if 0 <= e < D]
                L[d, y, x] = cost[d, y, x] + min(ways) - min(before)
    return L


@pytest.mark.parametrize(("paths", "D"), [(4, 5), (8, 5), (8, 1)])
def test_semi_global_matching_is_that_of_a_slow_loop(paths, D):
    cost, grey = 10 * uniform(D, 5, 6), uniform(5, 6, seed=1)
    ways = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)][:paths]
    expected = sum(slow_path(cost, grey, dy, dx, 1.0, 10.0) for dy, dx in ways)
    kept = cost.clone()
    torch.testing.assert_close(stereo.semi_global_matching(cost, grey, 1.0, 10.0, paths), expected)
    assert torch.equal(cost, kept), "the costs stay as they were"


def test_without_penalties_each_pixel_decides_alone():
    cost = uniform(6, 7, 9)
    answer = stereo.semi_global_matching(cost, torch.zeros(7, 9).double(), 0.0, 0.0)
    assert torch.equal(answer.argmin(0), cost.argmin(0))


def test_parabolas_are_hit_to_a_fraction_of_a_pixel():
    true = 1 + 6 * uniform(4, 5)
    d = torch.arange(9)[:, None, None]
    torch.testing.assert_close(stereo.best_disparity((d - true) ** 2), true)
    assert torch.equal(stereo.best_disparity((d - 20.0).abs().expand(9, 2, 2)), torch.full((2, 2), 8.0)), "at the end"
    assert torch.equal(stereo.best_disparity(torch.ones(9, 2, 2)), torch.zeros(2, 2)), "no valley"
    assert torch.equal(stereo.best_disparity(torch.tensor([1.0, 0.0])[:, None, None]), torch.ones(1, 1))


def test_the_right_image_answers():
    cost = uniform(4, 3, 8)
    right = stereo.right_cost(cost)
    for d, y, x in [(0, 0, 0), (2, 1, 5), (3, 2, 4)]:
        assert right[d, y, x] == cost[d, y, x + d]
    assert right[3, 0, 5] == math.inf
    left = torch.full((1, 8), 2.0)
    left[0, 5] = 4
    answer = torch.full((1, 8), 2.0)
    confirmed = stereo.left_right_check(left, answer)
    assert confirmed.tolist() == [[False, False, True, True, True, False, True, True]]


@pytest.mark.parametrize("least", [1, 2, 5, 40])
def test_islands_are_connected_parts_of_nearly_one_disparity(least):
    """Against scipy's labels, one level of disparity at a time: levels lie farther apart than `step`."""
    level = torch.randint(3, (13, 17), generator=rng())
    disparity, valid = 10 * level + 1.8 * uniform(13, 17), uniform(13, 17, seed=1) < 0.8
    expected = torch.zeros_like(valid)
    for one in range(3):
        labels, count = ndimage.label((level == one).logical_and(valid).numpy())
        for island in (torch.from_numpy(labels == k) for k in range(1, count + 1)):
            expected |= island & (island.sum() >= least)
    found = stereo.without_speckles(disparity, valid, least)
    assert torch.equal(found, expected)
    assert torch.equal(stereo.without_speckles(disparity.mT, valid.mT, least), found.mT)
    assert torch.equal(stereo.without_speckles(disparity, found, least), found)


def test_a_slope_is_one_island_and_a_jump_makes_two():
    slope = torch.arange(12.0).mul(2).expand(3, 12)
    valid = torch.ones(3, 12, dtype=torch.bool)
    assert stereo.without_speckles(slope, valid, 36, step=2.0).all()
    assert not stereo.without_speckles(slope, valid, 4, step=1.9).any()


def test_holes_are_filled_from_behind():
    disparity = torch.tensor([[9.0, 5, 0, 0, 8, 8, 0, 3]]).repeat(7, 1)
    valid = (disparity > 0) & (torch.arange(7) != 3)[:, None]  # one row has nothing
    filled = stereo.fill(disparity, valid)
    expected = stereo.ndimage.median_filter([[9.0, 5, 5, 5, 8, 8, 3, 3]] * 7, 5, mode="nearest")
    assert filled.tolist() == expected.tolist()
    with pytest.raises(ValueError, match="no valid"):
        stereo.fill(disparity, valid & False)


def test_bad_pixels_count_what_is_unknown_as_wrong():
    truth = torch.tensor([[1.0, 2, 3, math.nan]])
    assert stereo.bad_pixels(torch.tensor([[1.5, 9, math.nan, 0]]), truth, 1.0) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one shape"):
        stereo.bad_pixels(truth[:, :2], truth, 1)
    with pytest.raises(ValueError, match="known pixels"):
        stereo.bad_pixels(truth, truth * math.nan, 1)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda a: stereo.matching_cost(a, a[..., :5], 3), ValueError, "one size"),
        (lambda a: stereo.matching_cost(a.long(), a.long(), 3), TypeError, "floats"),
        (lambda a: stereo.matching_cost(a, a, 0), ValueError, "1 to 8 disparities"),
        (lambda a: stereo.matching_cost(a, a, 9), ValueError, "1 to 8 disparities"),
        (lambda a: stereo.census(a[0], (4, 5)), ValueError, "odd"),
        (lambda a: stereo.census(a[0], (9, 9)), ValueError, "64"),
        (lambda a: stereo.block_mean(a, 2), ValueError, "odd side"),
        (lambda a: stereo.semi_global_matching(a, a[0], paths=5), ValueError, "4 or 8 paths"),
        (lambda a: stereo.semi_global_matching(a, a[0], 5.0, 1.0), ValueError, "P1 ≤ P2"),
        (lambda a: stereo.semi_global_matching(a, a[0, 1:]), ValueError, "grey"),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(torch.zeros(3, 6, 8))


def test_half_precision_matches_too():
    left = uniform(3, 12, 24, dtype=torch.float32)
    full = stereo.match(left.roll(2, 2), left, 5).disparity
    half = stereo.match(left.roll(2, 2).half(), left.half(), 5).disparity
    assert ((full - half).abs() < 0.2).double().mean() > 0.9


@pytest.fixture(scope="module")
def motorcycle():
    return stereo.load_motorcycle()


def test_the_motorcycle_is_below_the_bar(motorcycle):
    """Full size, 8 paths, occlusions included; paths, the check and the filling each help."""
    left, right, truth = motorcycle.left, motorcycle.right, motorcycle.disparity
    costs = stereo.block_mean(stereo.matching_cost(left, right, 64), 5)
    alone = stereo.best_disparity(costs)
    costs = stereo.semi_global_matching(costs, left.mean(0))
    paths = stereo.best_disparity(costs)
    confirmed = stereo.left_right_check(paths, stereo.best_disparity(stereo.right_cost(costs)))
    filled = stereo.fill(paths, confirmed)
    clean = stereo.fill(paths, stereo.without_speckles(paths, confirmed))
    bad = [stereo.bad_pixels(answer, truth, 2) for answer in (alone, paths, filled, clean)]
    assert bad[1] < 0.8 * bad[0] and bad[2] < 0.7 * bad[1] and bad[3] < 0.9 * bad[2] and bad[3] <= 0.065
    known = truth.isfinite() & confirmed
    off = (paths - truth).abs()[known]
    assert (off > 2).double().mean() < 0.05 and off.median() < 0.5


def test_depth_and_points_in_metres(motorcycle):
    d = torch.full((500, 741), torch.nan)
    d[255, 311], d[0, 0] = 30.0, -40.0
    points, colours = motorcycle.points(d)
    Z = 994.978 * 0.193001 / 61.086
    expected = torch.tensor([[-0.193 / 994.978 * Z, 0.123 / 994.978 * Z, Z]])
    torch.testing.assert_close(points, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(colours[0], motorcycle.left[:, 255, 311])
    depth = motorcycle.depth(motorcycle.disparity)
    known = depth[motorcycle.disparity.isfinite()]
    assert known.min() > 1.5 and known.max() < 6, "a motorcycle in a room"
