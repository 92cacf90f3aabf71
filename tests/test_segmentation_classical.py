"""Otsu's threshold against scikit-image, islands and distance_transform against SciPy, and 24 coins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import segmentation as skimage_segmentation
from skimage.filters import threshold_otsu

from course_lib.base import datasets
from course_lib.segmentation.classical import (
    connected_components,
    distance_transform,
    otsu_threshold,
    subtract_background,
    watershed,
)
from course_lib.segmentation.semantic import rim

drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
EIGHT = torch.ones(3, 3).int().numpy()  # neighbours by a side or a corner
sizes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def noise(size: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


@drawn
@given(size=st.tuples(st.integers(2, 30), st.integers(2, 30)), power=st.floats(0.2, 5), seed=st.integers(0, 999))
def test_otsu_equals_skimage(size, power, seed):
    values = noise(size, seed).double() ** power
    assert otsu_threshold(values) == pytest.approx(float(threshold_otsu(values.numpy())), abs=1e-6)


@pytest.mark.parametrize("name", ["coins", "camera", "page"])
def test_otsu_equals_skimage_on_images(name):
    grey = datasets.load_image(name).mean(1)[0]
    assert otsu_threshold(grey) == pytest.approx(float(threshold_otsu(grey.numpy())), abs=1e-6)


@drawn
@given(size=sizes, share=st.floats(0, 1), seed=st.integers(0, 999))
def test_islands_equal_scipy(size, share, seed):
    mask = noise(size, seed) < share
    mine = connected_components(mask)
    theirs, n = ndimage.label(mask.numpy(), EIGHT)
    assert int(mine.max()) == n and torch.equal(mine > 0, mask)
    pairs = torch.stack([mine.flatten(), torch.from_numpy(theirs).long().flatten()], 1).unique(dim=0)
    assert len(pairs) == n + int((~mask).any()), "one to one"


def test_islands_are_numbered_without_gaps():
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]]).bool()
    assert connected_components(mask).tolist() == [[2, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 3]]
    assert (connected_components(torch.ones(3, 4).bool()) == 1).all()
    assert (connected_components(torch.zeros(3, 4).bool()) == 0).all()


@drawn
@given(size=sizes, share=st.floats(0, 0.99), seed=st.integers(0, 999))
def test_depth_equals_scipy(size, share, seed):
    mask = noise(size, seed) < share
    mask[0, 0] = False
    theirs = ndimage.distance_transform_cdt(mask.numpy(), metric="chessboard")
    assert torch.equal(distance_transform(mask), torch.from_numpy(theirs).float())


def test_flatten_removes_slow_light_and_keeps_steps():
    ramp = torch.linspace(0, 1, 60).expand(50, 60)
    torch.testing.assert_close(subtract_background(ramp, 11)[:, 10:-10], torch.zeros(50, 40), atol=1e-5, rtol=0)
    disc = ((torch.arange(50)[:, None] - 25) ** 2 + (torch.arange(60) - 30) ** 2 < 30).float()
    lit = subtract_background(ramp + disc, 25)
    assert lit[25, 30] > 0.7 and abs(float(lit[25, 10])) < 0.05


def test_there_are_24_coins():
    """Counted by eye: four rows of six."""
    grey = datasets.load_image("coins").mean(1)[0]
    assert int(connected_components(grey > otsu_threshold(grey)).max()) > 50, "the light is uneven"
    flat = subtract_background(grey, 101, 7)
    coins = connected_components(flat > otsu_threshold(flat))
    assert int(coins.max()) == 24 and int(torch.bincount(coins.flatten()).min()) > 1000


def test_classical_refuses_bad_input():
    with pytest.raises(ValueError, match="two different values"):
        otsu_threshold(torch.ones(3, 3))
    with pytest.raises(ValueError, match="two different values"):
        otsu_threshold(torch.ones(0))
    for function in (connected_components, distance_transform):
        with pytest.raises(TypeError, match="booleans; got torch.float32"):
            function(torch.zeros(3, 3))
        with pytest.raises(ValueError, match=r"\(H, W\); got \(1, 3, 3\)"):
            function(torch.zeros(1, 3, 3).bool())
    with pytest.raises(ValueError, match="with an outside"):
        distance_transform(torch.ones(3, 3).bool())
    for side, smooth in ((4, 1), (3, 2), (0, 1)):
        with pytest.raises(ValueError, match="odd"):
            subtract_background(torch.zeros(9, 9), side, smooth)
    with pytest.raises(ValueError, match="half"):
        subtract_background(torch.zeros(9, 9), 21)
    with pytest.raises(ValueError, match=r"a grey image \(H, W\); got \(1, 9, 9\)"):
        subtract_background(torch.zeros(1, 9, 9), 3)


def test_otsu_far_from_zero():
    """Two values that float32 can hardly tell apart."""
    values = 1e6 + torch.cat([torch.zeros(50), torch.ones(50)]).double() + torch.linspace(0, 0.1, 100).double()
    assert otsu_threshold(values) == pytest.approx(threshold_otsu(values.numpy()), rel=0, abs=1e-6)
    for bad, bins in ((values, 1), (torch.tensor([0.0, math.nan]), 256), (torch.tensor([0.0, math.inf]), 256)):
        with pytest.raises(ValueError, match="finite values and at least two bins"):
            otsu_threshold(bad, bins)


def test_masks_without_pixels_have_no_islands_and_no_rim():
    for size in ((0, 4), (4, 0)):
        mask = torch.zeros(size, dtype=torch.bool)
        assert connected_components(mask).shape == rim(mask).shape == size


@drawn
@given(size=sizes, share=st.floats(0.3, 1), lakes=st.integers(0, 5), seed=st.integers(0, 999))
def test_watershed_equals_skimage(size, share, lakes, seed):
    """On a relief without equal heights, where there is one answer."""
    g = torch.Generator().manual_seed(seed)
    H, W = size
    relief = torch.randperm(H * W, generator=g).view(H, W).float() - 7
    mask, markers = noise(size, seed) < share, torch.zeros(H, W, dtype=torch.int64)
    places = torch.randperm(H * W, generator=g)[:lakes]
    markers.view(-1)[places] = torch.arange(1, len(places) + 1)
    given = relief.clone(), markers.clone(), mask.clone()
    mine = watershed(relief, markers, mask)
    arrays = relief.numpy(), markers.numpy()
    theirs = skimage_segmentation.watershed(*arrays, connectivity=2, mask=mask.numpy()) if lakes else markers.numpy()
    assert mine.dtype == torch.int64 and mine.tolist() == theirs.tolist()
    assert all(torch.equal(a, b) for a, b in zip(given, (relief, markers, mask), strict=True)), "inputs stay"


def test_watershed_parts_two_discs_that_touch():
    rows, columns = torch.meshgrid(torch.arange(30), torch.arange(50), indexing="ij")
    left, right = ((rows - 15) ** 2 + (columns - c) ** 2 <= 121 for c in (15, 34))
    both = left | right
    markers = torch.zeros(30, 50, dtype=torch.int64)
    markers[15, 15], markers[15, 34] = 1, 2
    lakes = watershed(-distance_transform(both), markers, both)
    assert torch.equal(lakes > 0, both)
    assert (lakes[left & ~right] == 1).float().mean() > 0.98 and (lakes[right & ~left] == 2).float().mean() > 0.98


def test_watershed_refuses_what_it_cannot_flood():
    relief, markers, mask = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int64), torch.ones(3, 4).bool()
    assert not watershed(relief, markers, mask).any(), "no markers, no water"
    for wrong in ((relief[:2], markers, mask), (relief / 0, markers, mask), (relief, markers - 1, mask)):
        with pytest.raises(ValueError, match="finite relief, markers from 0"):
            watershed(*wrong)
    with pytest.raises(TypeError, match="markers of int64"):
        watershed(relief, markers.float(), mask)
