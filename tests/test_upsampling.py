"""Upsampling by hand against torch's kernels in float64, closed forms, and the laws it must obey."""

import functools
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import normal, rng, uniform
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_lib import upsampling as up
from course_lib.base import checkpoints, datasets, images, zoo
from course_lib.base.sampling import in_batches
from course_lib.upsampling.network import random_zoom

drawn = settings(max_examples=500, deadline=None, derandomize=True, database=None)

small = st.integers(1, 7)
axis = st.one_of(st.integers(1, 12), st.integers(1, 12), st.integers(30, 75))  # a band's block holds 32 outputs
factor = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 2.5, 3.0]), st.floats(0.3, 4.0))
seeds = st.integers(0, 2**31)
INTERPOLATIONS = [("nearest", {}), *((m, {"align_corners": c}) for m in ("bilinear", "bicubic") for c in (False, True))]
interpolations = pytest.mark.parametrize(("mode", "options"), INTERPOLATIONS, ids=lambda v: str(v))
WAYS = [up.transposed_convolution, up.transposed_convolution_by_zeros, up.transposed_convolution_by_matrix]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Same shape and dtype, and as near as the dtype's bar, relative to the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    bar = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[ours.dtype]
    if ours.numel():
        scale = max(1.0, theirs.abs().max().item())
        assert (ours - theirs).abs().max().item() <= bar * scale


def assert_same_operation(ours, theirs, *inputs: torch.Tensor, seed: int = 1) -> None:
    """Equal values and gradients in float64; our float32 is near the float64 values (torch's own may be farther)."""
    inputs = [i.detach().requires_grad_() for i in inputs]
    a, b = ours(*inputs), theirs(*inputs)
    assert_same(a, b)
    cotangent = normal(*b.shape, seed=seed)
    both = [torch.autograd.grad(y, inputs, cotangent) for y in (a, b)]
    for mine, reference in zip(*both, strict=True):
        assert_same(mine, reference)
    with torch.no_grad():
        assert_same(ours(*[i.float() for i in inputs]), b.detach().float())


# Interpolation


@interpolations
@drawn
@given(height=axis, width=axis, size=st.tuples(axis, axis), factors=st.none() | st.tuples(factor, factor), seed=seeds)
def test_interpolation_equals_torch(mode, options, height, width, size, factors, seed):
    if factors:
        size = math.floor(height * factors[0]), math.floor(width * factors[1])
        assume(min(size) > 0)
        options = {**options, "scale_factor": factors}
    else:
        options = {**options, "size": size}
    ours, x = getattr(up, mode), normal(1 + seed % 2, 2, height, width, seed=seed)
    # torch's backward may round otherwise than its forward in large images (nearest), and takes one that keeps its
    # size for a copy whatever the factors (bicubic).
    if (mode == "nearest" and sum(size) > 128) or (mode == "bicubic" and factors and size == (height, width)):
        assert_same(ours(x, **options), F.interpolate(x, mode=mode, **options))
        return
    assert_same_operation(lambda x: ours(x, **options), lambda x: F.interpolate(x, mode=mode, **options), x)


@interpolations
@pytest.mark.parametrize("size", [(200, 3), (3, 133), (64, 65), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_interpolation_of_every_dtype_and_memory_order(mode, options, size, dtype, device):
    x = normal(2, 3, 21, 70, dtype=dtype).to(device)
    ours = getattr(up, mode)(x, size, **options)
    assert ours.device == x.device
    assert_same(ours.cpu(), F.interpolate(x.double().cpu(), size, mode=mode, **options).to(dtype))
    for view in (x.to(memory_format=torch.channels_last), x.mT.contiguous().mT, x[:1].expand(2, -1, -1, -1)):
        expected = ours if view.shape[0] == 2 and torch.equal(view, x) else ours[:1].expand_as(ours)
        assert_same(getattr(up, mode)(view, size, **options), expected)


@interpolations
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_places_are_exact_in_wide_images_and_under_autocast(mode, options, dtype, device):
    """A ramp of 2,000 columns, of which bfloat16 cannot count 300: the same pixels are mixed, in exact proportions."""
    x = (torch.arange(2000) % 256).to(device, dtype).expand(1, 1, 1, -1)
    expected = F.interpolate(x.double().cpu(), (1, 3001), mode=mode, **options)
    with torch.autocast(device.type, torch.bfloat16):
        y = getattr(up, mode)(x, (1, 3001), **options)
    assert y.dtype == dtype
    rounding = 0.51 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.double().cpu(), expected, rtol=rounding, atol=2e-4)


@interpolations
def test_inference_leaves_nothing_behind_that_training_cannot_use(mode, options):
    x = normal(1, 1, 3, 3)
    with torch.inference_mode():
        expected = getattr(up, mode)(x, (17, 19), **options)
    x.requires_grad_()
    y = getattr(up, mode)(x, (17, 19), **options)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    gradient.sum().backward()
    assert torch.equal(y, expected) and x.grad.abs().min() > 0


@drawn
@given(n=st.integers(1, 300), factor=st.integers(1, 40), tenths=st.sampled_from([3, 7, 10]))
def test_nearest_breaks_ties_as_torch_does(n, factor, tenths):
    """Factors such as 2.3 put outputs exactly between two pixels, where the last bit decides."""
    scale = factor / tenths
    assume(1 <= n * scale < 2000)
    for dtype in (torch.float32, torch.float64):
        x = torch.arange(2.0 * n, dtype=dtype).view(1, 2, n, 1)
        assert torch.equal(up.nearest(x, None, (scale, 1)), F.interpolate(x, scale_factor=(scale, 1)))


@interpolations
@drawn
@given(sizes=st.tuples(axis, axis, axis, axis), value=st.floats(-1e3, 1e3))
def test_constants_stay_constant(mode, options, sizes, value):
    x = torch.full((1, 1, *sizes[:2]), value, dtype=torch.float64)
    y = getattr(up, mode)(x, sizes[2:], **options)
    assert (y - value).abs().max() <= 1e-13 * max(1, abs(value))


@drawn
@given(n=st.integers(2, 40), m=axis)
def test_bilinear_follows_a_ramp_by_its_convention(n, m):
    """On x[i] = i the result is the coordinate itself: i·(n−1)/(m−1), or (i + ½)·n/m − ½ inside the borders."""
    x, i = torch.arange(n, dtype=torch.float64), torch.arange(m, dtype=torch.float64)
    corners = i * (n - 1) / (m - 1) if m > 1 else i
    half_pixels = ((i + 0.5) * n / m - 0.5).clamp(0, n - 1)
    for align_corners, expected in ((True, corners), (False, half_pixels)):
        down = up.bilinear(x.view(1, 1, n, 1), (m, 1), align_corners=align_corners)
        right = up.bilinear(x.view(1, 1, 1, n), (1, m), align_corners=align_corners)
        assert_same(down.flatten(), expected)
        assert_same(right.flatten(), expected)


def test_the_lecture_table():
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]])[None, None]
    y = up.bilinear(x, 4, align_corners=True)[0, 0]
    table = [[10, 13, 17, 20], [17, 20, 23, 27], [23, 27, 30, 33], [30, 33, 37, 40]]
    assert y.round().int().tolist() == table
    corners = torch.tensor([0, -1])
    for ours in (up.bilinear, up.bicubic):
        y = ours(normal(1, 1, 5, 4), (9, 7), align_corners=True)[0, 0]
        assert_same(y[corners][:, corners], normal(1, 1, 5, 4)[0, 0][corners][:, corners])


def test_half_pixels_at_the_border():
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert up.bilinear(x, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    assert up.nearest(x, (1, 5)).flatten().tolist() == [0, 0, 0, 1, 1]
    # With the border pixel repeated: the cubic at 1.25, a·(1.25³ − 5·1.25² + 8·1.25 − 4), then at 0.75 and 1.75.
    expected = [-27 / 256, 67 / 256 - 9 / 256, 1 - 58 / 256, 1 + 27 / 256]
    assert up.bicubic(x, (1, 4)).flatten().tolist() == pytest.approx(expected, abs=1e-15)


# Unpooling and shuffling


@drawn
@given(shape=st.tuples(st.integers(1, 2), small, small, small), step=st.tuples(st.integers(1, 4), small), seed=seeds)
def test_bed_of_nails_is_a_transposed_convolution_with_one(shape, step, seed):
    C, gaps = shape[1], (step[0] - 1, step[1] - 1)
    one = torch.ones(C, 1, 1, 1, dtype=torch.float64)

    def theirs(x):
        return F.conv_transpose2d(x, one.to(x), stride=step, output_padding=gaps, groups=C)

    assert_same_operation(lambda x: up.bed_of_nails(x, step), theirs, normal(*shape, seed=seed))


@drawn
@given(
    shape=st.tuples(st.integers(1, 2), small, st.integers(3, 9), st.integers(3, 9)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    step=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=seeds,
)
def test_max_unpool_equals_torch(shape, window, step, seed):
    pooled, indices = F.max_pool2d(normal(*shape, seed=seed), window, step, return_indices=True)
    size = shape[2:]

    default = [(n - 1) * s + k for n, s, k in zip(pooled.shape[2:], step, window, strict=True)]
    assume(all(d - s < n < d + s for d, s, n in zip(default, step, size, strict=True)))  # torch takes no other
    ours = functools.partial(up.max_unpool, indices=indices, size=size)

    def theirs(x):
        return F.max_unpool2d(x, indices, window, step, output_size=size)

    if all(len(places.unique()) == len(places) for places in indices.flatten(0, 1).flatten(1)):
        assert_same_operation(ours, theirs, pooled)
    else:  # of values that share a place torch gives each a gradient
        assert torch.equal(ours(pooled), theirs(pooled))
        assert torch.autograd.gradcheck(ours, pooled.requires_grad_())


def test_max_unpool_of_overlapping_windows_counts_a_maximum_once():
    """All four windows of 3×3 at stride 2 find the one maximum, and it is put back once: the derivative is 1."""
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[..., 2, 2] = 1

    def there_and_back(x):
        return up.max_unpool(*F.max_pool2d(x, 3, 2, return_indices=True), 5)

    gradient = torch.autograd.functional.jacobian(there_and_back, x)[0, 0, 2, 2, 0, 0]
    assert torch.equal(there_and_back(x), x)
    assert torch.equal(gradient, x[0, 0])
    step = 1e-6 * x
    assert (there_and_back(x + step) - there_and_back(x - step)).sum().item() / 2e-6 == pytest.approx(1)


def test_max_unpool_keeps_the_last_of_values_that_share_a_place(device):
    x, indices = normal(2, 3, 40, 50).to(device), torch.randint(0, 100, (2, 3, 40, 50), generator=rng()).to(device)
    expected = torch.zeros(2, 3, 100, dtype=x.dtype)
    for i, place in zip(torch.cartesian_prod(*map(torch.arange, x.shape)).tolist(), indices.flatten(), strict=True):
        expected[i[0], i[1], place] = x[tuple(i)]
    assert torch.equal(up.max_unpool(x, indices, 10).flatten(2).cpu(), expected)
    x[..., 0] = math.inf  # what another one covers leaves no trace
    assert not up.max_unpool(x, indices, 10).isnan().any()


@drawn
@given(shape=st.tuples(st.integers(1, 2), small, small, small), factor=st.integers(1, 4), seed=seeds)
def test_pixel_shuffle_and_its_inverse_equal_torch(shape, factor, seed):
    B, C, H, W = shape
    x = normal(B, C * factor**2, H, W, seed=seed)
    assert_same_operation(lambda x: up.pixel_shuffle(x, factor), lambda x: F.pixel_shuffle(x, factor), x)
    y = normal(B, C, H * factor, W * factor, seed=seed)
    assert_same_operation(lambda y: up.pixel_unshuffle(y, factor), lambda y: F.pixel_unshuffle(y, factor), y)
    assert torch.equal(up.pixel_unshuffle(up.pixel_shuffle(x, factor), factor), x)


# Convolution and its transpose


@st.composite
def geometries(draw):
    """A transposed convolution that torch accepts: input and weight shapes, and the options."""
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    size, kernel, stride = (draw(two) for _ in range(3))
    kernel = draw(st.sampled_from([kernel, (kernel[0] + 2, kernel[1] + 2)]))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
    C_in, C_out, B = draw(st.tuples(*[st.integers(1, 3)] * 3))
    axes = zip(size, kernel, stride, padding, extra, strict=True)
    assume(all((n - 1) * s - 2 * p + k + e >= 1 for n, k, s, p, e in axes))
    return (B, C_in, *size), (C_in, C_out, *kernel), {"stride": stride, "padding": padding}, extra


@ways
@drawn
@given(geometry=geometries(), has_bias=st.booleans(), seed=seeds)
def test_transposed_convolution_equals_torch(way, geometry, has_bias, seed):
    x_shape, weight_shape, options, extra = geometry
    options = {**options, "output_padding": extra}
    inputs = [normal(*x_shape, seed=seed), normal(*weight_shape, seed=seed + 1)]
    if has_bias:
        inputs.append(normal(weight_shape[1], seed=seed + 2))
    assert_same_operation(lambda *i: way(*i, **options), lambda *i: F.conv_transpose2d(*i, **options), *inputs)


@drawn
@given(geometry=geometries(), has_bias=st.booleans(), size=st.tuples(small, small), seed=seeds)
def test_convolution_and_its_matrix_equal_torch(geometry, has_bias, size, seed):
    (B, _, _, _), weight_shape, options, _ = geometry
    size = tuple(max(n, k - 2 * p) for n, k, p in zip(size, weight_shape[2:], options["padding"], strict=True))
    x = normal(B, weight_shape[1], *size, seed=seed)
    inputs = [x, normal(*weight_shape, seed=seed + 1)]
    if has_bias:
        inputs.append(normal(weight_shape[0], seed=seed + 2))
    assert_same_operation(lambda *i: up.convolution(*i, **options), lambda *i: F.conv2d(*i, **options), *inputs)
    expected = F.conv2d(*inputs[:2], **options)
    matrix = up.convolution_matrix(inputs[1], size, **options)
    assert_same((x.flatten(1) @ matrix.mT).view_as(expected), expected)


@ways
@drawn
@given(geometry=geometries(), seed=seeds)
def test_the_adjoint_identity(way, geometry, seed):
    """⟨conv(x), y⟩ = ⟨x, convT(y)⟩, whatever torch thinks."""
    y_shape, weight_shape, options, extra = geometry
    y, weight = normal(*y_shape, seed=seed), normal(*weight_shape, seed=seed + 1)
    back = way(y, weight, output_padding=extra, **options)
    x = normal(*back.shape, seed=seed + 2)
    there = up.convolution(x, weight, **options)[:, :, : y_shape[2], : y_shape[3]]
    left, right = (there * y).sum(), (x * back).sum()
    assert abs(left - right) <= 1e-12 * (there.norm() * y.norm() + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_convolutions_on_every_device_dtype_and_layout(device, dtype):
    x, weight = normal(2, 4, 6, 5, dtype=dtype).to(device), normal(4, 3, 3, 3, dtype=dtype).to(device)
    layouts = (x, weight), (x.to(memory_format=torch.channels_last), weight.mT.contiguous().mT)
    exact = F.conv_transpose2d(x.cpu().double(), weight.cpu().double(), stride=2).to(device, dtype)
    for inputs in layouts:
        for way in WAYS:
            assert_same(way(*inputs, stride=2), exact)
        assert_same(
            up.convolution(exact.to(memory_format=torch.channels_last), inputs[1], stride=2),
            F.conv2d(exact.cpu().double(), weight.cpu().double(), stride=2).to(device, dtype),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(dtype):
    """64 patches overlap in every pixel: the sum is the exact one, rounded, in values and in gradients."""
    x, weight = uniform(1, 8, 24, 300, dtype=dtype).requires_grad_(), uniform(8, 1, 8, 8, dtype=dtype).requires_grad_()
    operations = [(way, F.conv_transpose2d, weight) for way in WAYS[:2]]
    for ours, theirs, kernel in (*operations, (up.convolution, F.conv2d, weight.detach().mT.mT[:1].requires_grad_())):
        image = x if theirs is F.conv_transpose2d else x[:, : kernel.shape[1]].detach().requires_grad_()
        y, exact_inputs = ours(image, kernel), [t.detach().double().requires_grad_() for t in (image, kernel)]
        expected = theirs(*exact_inputs)
        gradients = torch.autograd.grad(y, (image, kernel), torch.ones_like(y))
        exact_gradients = torch.autograd.grad(expected, exact_inputs, torch.ones_like(expected))
        for mine, exact in zip((y, *gradients), (expected, *exact_gradients), strict=True):
            assert mine.dtype == dtype
            torch.testing.assert_close(mine.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=0)


# Derivatives of the second order, and batches without images


def cases() -> dict:
    """Every operation with a small input of its own."""
    indices = F.max_pool2d(normal(1, 2, 4, 4), 2, return_indices=True)[1]
    shared = F.max_pool2d(normal(1, 2, 4, 4), 2, 1, return_indices=True)[1]
    weight, bias = normal(2, 3, 3, 2, seed=3), normal(3, seed=4)
    options = {"stride": (3, 2), "padding": 1}
    return {
        **{f"{m} {o}": (lambda x, m=m, o=o: getattr(up, m)(x, (5, 2), **o), (1, 2, 3, 4)) for m, o in INTERPOLATIONS},
        "bed_of_nails": (up.bed_of_nails, (1, 2, 2, 2)),
        "max_unpool": (lambda x: up.max_unpool(x, indices[: len(x)], 4), (1, 2, 2, 2)),
        "pixel_shuffle": (lambda x: up.pixel_shuffle(x, 2), (1, 4, 2, 1)),
        "pixel_unshuffle": (lambda x: up.pixel_unshuffle(x, 2), (1, 1, 2, 4)),
        "max_unpool, overlapping": (lambda x: up.max_unpool(x, shared[: len(x)], 4), (1, 2, 3, 3)),
        "convolution": (up.convolution, (1, 3, 5, 5), weight, normal(2), options),
        **{w.__name__: (w, (1, 2, 3, 3), weight, bias, {**options, "output_padding": 1}) for w in WAYS},
        "resize_convolution": (up.resize_convolution, (1, 2, 2, 3), normal(1, 2, 3, 3), normal(1)),
    }


@pytest.mark.parametrize("name", cases())
def test_second_derivatives(name):
    function, shape, *rest = cases()[name]
    options = rest.pop() if rest and isinstance(rest[-1], dict) else {}
    inputs = [t.requires_grad_() for t in (normal(*shape), *rest)]
    # A square on top, since the derivative of a linear operation alone has none.
    for call in (lambda *i: function(*i, **options), lambda *i: function(*i, **options) ** 2):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("name", cases())
def test_an_empty_batch_stays_empty(name):
    function, shape, *rest = cases()[name]
    options = rest.pop() if rest and isinstance(rest[-1], dict) else {}
    full = function(normal(*shape), *rest, **options)
    x = torch.zeros(0, *shape[1:], dtype=torch.float64, requires_grad=True)
    empty = function(x, *rest, **options)
    assert empty.shape == (0, *full.shape[1:])
    empty.sum().backward()
    assert x.grad.shape == x.shape


# The checkerboard


@drawn
@given(
    size=st.tuples(small, small),
    kernel=st.tuples(small, small),
    stride=st.tuples(small, small),
    padding=st.integers(0, 2),
)
def test_overlap_count_is_a_transposed_convolution_of_ones(size, kernel, stride, padding):
    assume(all((n - 1) * s + k > 2 * padding for n, s, k in zip(size, stride, kernel, strict=True)))
    ones = torch.ones(1, 1, *size), torch.ones(1, 1, *kernel)
    expected = F.conv_transpose2d(*ones, stride=stride, padding=padding)[0, 0].long()
    assert torch.equal(up.overlap_count(size, kernel, stride, padding), expected)
    row = F.conv_transpose1d(ones[0][0, :, :1], ones[1][0, :, :1], stride=stride[1], padding=padding)[0, 0].long()
    assert torch.equal(up.overlap_count(size[1], kernel[1], stride[1], padding), row)
    inside = up.overlap_count(20, kernel[0], stride[0])[kernel[0] : -kernel[0]]
    assert (len(inside.unique()) == 1) == (kernel[0] % stride[0] == 0)


@drawn
@given(C=st.integers(1, 3), C_in=small, kernel=st.sampled_from([1, 3]), factor=st.integers(1, 3), seed=seeds)
def test_icnr_starts_as_nearest_neighbours(C, C_in, kernel, factor, seed):
    weight = torch.zeros(C * factor**2, C_in, kernel, kernel, dtype=torch.float64, requires_grad=True)
    assert up.icnr_(weight, factor, rng(seed)) is weight
    assert weight.requires_grad and weight.abs().min() > 0
    x = normal(1, C_in, 4, 5, seed=seed)
    shuffled = F.pixel_shuffle(F.conv2d(x, weight, padding=kernel // 2), factor)
    first = F.conv2d(x, weight[:: factor**2], padding=kernel // 2)
    assert_same(shuffled, F.interpolate(first, scale_factor=factor))


def test_icnr_draws_the_variance_of_he():
    weight = up.icnr_(torch.empty(4 * 64, 32, 3, 3), 2, rng(0))
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.02)


@drawn
@given(shape=st.tuples(st.integers(1, 2), small, small, small), factor=st.integers(1, 3), C_out=small, seed=seeds)
def test_resize_convolution_equals_torch(shape, factor, C_out, seed):
    def theirs(x, weight, bias):
        return F.conv2d(F.interpolate(x, scale_factor=factor), weight, bias, padding=(1, 2))

    inputs = normal(*shape, seed=seed), normal(C_out, shape[1], 3, 5, seed=seed + 1), normal(C_out, seed=seed + 2)
    assert_same_operation(lambda *i: up.resize_convolution(*i, factor=factor), theirs, *inputs)


def test_resize_convolution_draws_no_checkerboard():
    """On a constant image it is constant inside, for any kernel; a transposed convolution is not."""
    x, weight = torch.ones(1, 1, 6, 6, dtype=torch.float64), normal(1, 1, 3, 3)
    inside = up.resize_convolution(x, weight)[:, :, 2:-2, 2:-2]
    assert inside.std() < 1e-12 < up.transposed_convolution(x, weight, stride=2)[:, :, 3:-3, 3:-3].std()


# The network


def test_an_untrained_network_is_bicubic_interpolation():
    for shape in ((1, 3, 5, 9), (2, 3, 16, 16)):
        x = uniform(*shape, dtype=torch.float32)
        assert torch.equal(up.Upsampler(width=8, blocks=1)(x), up.bicubic(x, scale_factor=4))
    for wrong, error in (
        (torch.zeros(1, 1, 8, 8), ValueError),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError),
    ):
        with pytest.raises(error, match=r"expected images \(B, 3, H, W\)|must be a floating-point tensor"):
            up.Upsampler(width=8, blocks=1)(wrong)


def test_the_network_starts_without_grain():
    """Whatever the layers before draw, ICNR keeps the pixels of a cell equal until training parts them."""
    network = up.Upsampler(width=8, blocks=1)
    torch.nn.init.normal_(network.enlarge[-1].weight)
    y = network(torch.full((1, 3, 24, 24), 0.3))[..., 44:52, 44:52]
    assert y.std(dim=(2, 3)).max() < 1e-5 < y.abs().max()


def test_shrink_averages_cells_and_zoom_keeps_colours():
    x = uniform(2, 3, 8, 12)
    assert_same(up.shrink(x), x.view(2, 3, 2, 4, 3, 4).mean((3, 5)))
    colours = uniform(4, 3, 1, 1, dtype=torch.float32).expand(-1, -1, 32, 32)
    ramp = torch.linspace(0, 1, 32).expand(1, 3, 32, 32)
    slopes = set()
    for seed in range(20):
        torch.testing.assert_close(random_zoom(colours, rng(seed)), colours)
        zoomed = random_zoom(ramp, rng(seed))
        assert zoomed.shape == ramp.shape and torch.equal(zoomed, random_zoom(ramp, rng(seed)))
        slope = (zoomed[0, 0, 5, 20] - zoomed[0, 0, 5, 10]).item() / (ramp[0, 0, 5, 20] - ramp[0, 0, 5, 10]).item()
        assert 0.74 < abs(slope) < 1.01
        slopes.add(slope > 0)
    assert slopes == {True, False}, "some are mirrored, and some are not"


def test_a_training_step_learns_and_refuses_other_ranges():
    torch.manual_seed(0)
    network = up.Upsampler(width=8, blocks=1)
    step = up.upsampler_step(network, torch.optim.Adam(network.parameters(), 3e-3), rng())
    x = images.resize(datasets.load_image("cat"), 64)[..., :64]
    for _ in range(60):
        step((x, None))
    tiny = up.shrink(x)
    assert F.l1_loss(network(tiny), x) < F.l1_loss(up.bicubic(tiny, scale_factor=4), x), "it begins as bicubic"
    with pytest.raises(ValueError, match="-1"):
        up.upsampler_step(network, None, rng())((2 * x - 1, None))


def psnr(y, x):
    return (-10 * (y.clamp(0, 1) - x).square().mean((1, 2, 3)).log10()).mean().item()


def test_the_shipped_network_draws_a_cat_it_has_not_seen():
    network, photo = zoo.load("upsampler_cats", "cpu"), images.resize(datasets.load_image("cat")[..., 95:395], 64)
    tiny = up.shrink(photo)
    assert psnr(network(tiny), photo) > psnr(up.bicubic(tiny, scale_factor=4), photo) + 1


def test_the_shipped_network_has_the_score_of_its_header():
    if not datasets.is_available("cat_faces"):
        pytest.skip("needs cat_faces, in COURSE_DATA or the cache")
    score = json.loads(checkpoints.load("upsampler_cats")[1]["score"])
    x, _ = datasets.load("cat_faces", "test")[:]
    tiny = up.shrink(x)
    network = zoo.load("upsampler_cats", "cpu")
    assert psnr(in_batches(network, network, tiny, batch_size=32), x) == pytest.approx(score["PSNR, dB"], abs=0.02)
    assert psnr(up.bicubic(tiny, scale_factor=4), x) == pytest.approx(score["PSNR of bicubic, dB"], abs=0.02)
    assert score["PSNR, dB"] > score["PSNR of one kernel, dB"] + 0.5


def test_the_recipe(tmp_path, monkeypatch):
    if not datasets.is_available("cat_faces"):
        pytest.skip("needs cat_faces, in COURSE_DATA or the cache")
    monkeypatch.chdir(tmp_path)
    scores = importlib.import_module("recipes.upsampling").main(["--quick"])
    assert all(20 < score < 30 for score in scores.values()) and len(scores) == 3
    metadata = checkpoints.restore(up.Upsampler(), tmp_path / "build" / "upsampler_cats_quick.safetensors")
    assert metadata["recipe"].startswith("python recipes/upsampling.py --steps 20")
    assert list(Path("build").glob("*.png"))


# What people bring


def test_numpy_integers_are_integers():
    two, x, weight = np.int64(2), normal(1, 4, 3, 3), normal(4, 1, 3, 3)
    for call in (
        *(lambda n, f=f: f(x, n) for f in (up.nearest, up.bilinear, up.bicubic, up.bed_of_nails, up.pixel_shuffle)),
        *(lambda n, f=f: f(x, None, np.float32(n)) for f in (up.nearest, up.bilinear, up.bicubic)),
        *(lambda n, f=f: f(x, weight, None, n, (1, n - 1), n - 1) for f in WAYS),
        lambda n: up.pixel_unshuffle(x.repeat(1, 1, n, n), n),
        lambda n: up.max_unpool(x, torch.arange(36).view(x.shape) % 4, n),
        lambda n: up.resize_convolution(x, weight.transpose(0, 1), factor=n),
        lambda n: up.convolution_matrix(weight, n + 1, n, n - 1),
        lambda n: up.overlap_count(n, n + 1, n),
        lambda n: up.icnr_(weight.clone(), n, rng()),
    ):
        assert torch.equal(call(two), call(2))


# Errors

x, integers = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4, dtype=torch.int64)
kernel = torch.zeros(2, 2, 3, 3)
INTERPOLATE = [up.nearest, up.bilinear, up.bicubic]
ON_MAPS = [
    *(lambda x, f=f: f(x, 2) for f in [*INTERPOLATE, up.bed_of_nails, up.pixel_shuffle, up.pixel_unshuffle]),
    lambda x: up.max_unpool(x, integers, 9),
    *(lambda x, f=f: f(x, kernel) for f in [up.convolution, up.resize_convolution, *WAYS]),
    lambda x: up.icnr_(x, 1),
]


@pytest.mark.parametrize("call", ON_MAPS)
def test_what_is_no_batch_of_float_maps_is_refused(call):
    for wrong in (integers, x.bool(), x.to(torch.complex64), [[1.0]]):
        with pytest.raises(TypeError, match="must be a floating-point tensor; got"):
            call(wrong)
    for wrong in (x[0], x[None], x[:, :0], x[:, :, :0], x[..., :0]):
        with pytest.raises(ValueError, match=r"must have shape \(.*got \("):
            call(wrong)


@pytest.mark.parametrize("call", INTERPOLATE)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give size or scale_factor"),
        ({"size": 2, "scale_factor": 2}, "give size or scale_factor"),
        ({"size": 0}, "size must be .* at least 1; got 0"),
        ({"size": (3, -1)}, r"size must be .*got \(3, -1\)"),
        ({"size": 2.5}, "size must be an integer"),
        ({"size": (1, 2, 3)}, r"size must be .*got \(1, 2, 3\)"),
        ({"scale_factor": 0}, "scale_factor must be a positive number or two; got 0"),
        ({"scale_factor": (1, -2.0)}, "scale_factor must be a positive"),
        ({"scale_factor": math.nan}, "scale_factor must be a positive"),
        ({"scale_factor": 0.3}, r"scale_factor=0.3 shrinks x of size \(3, 4\) to \(0, 1\)"),
    ],
)
def test_interpolation_refuses(call, arguments, message):
    with pytest.raises(ValueError, match=message):
        call(x, **arguments)


CONVOLUTIONS = [up.convolution, *WAYS]


@pytest.mark.parametrize("call", CONVOLUTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"weight": torch.zeros(3, 3, 3, 3)},
            r"x must have 3 channels .*\(3, 3, 3, 3\).*got x of shape \(1, 2, 3, 4\)",
        ),
        ({"weight": kernel[:0]}, "weight must have shape"),
        ({"weight": kernel[:, :, :0]}, "weight must have shape"),
        ({"weight": kernel[0]}, "weight must have shape"),
        ({"bias": torch.zeros(3)}, r"bias must have shape \(2,\).*\(2, 2, 3, 3\); got \(3,\)"),
        ({"bias": torch.zeros(2).double()}, r"bias must have .*; got \(2,\) and torch.float64"),
        ({"stride": 0}, "stride must be .* at least 1; got 0"),
        ({"padding": -1}, "padding must be .* at least 0; got -1"),
        ({"stride": (1, 1.5)}, "stride must be"),
    ],
)
def test_convolutions_refuse(call, arguments, message):
    arguments = {"x": x, "weight": kernel, **arguments}
    with pytest.raises(ValueError, match=message):
        call(**arguments)
    with pytest.raises(TypeError, match="weight must have the dtype of x, torch.float32; got torch.float64"):
        call(x, kernel.double())


@ways
def test_transposed_convolutions_refuse(way):
    for options in ({"output_padding": 1}, {"stride": (3, 2), "output_padding": (0, 2)}):
        with pytest.raises(ValueError, match="output_padding must be smaller than stride; got"):
            way(x, kernel, **options)
    with pytest.raises(ValueError, match="output_padding must be .* at least 0"):
        way(x, kernel, stride=2, output_padding=-1)
    with pytest.raises(ValueError, match=r"at least 1×1.*size \(3, 4\).*kernel of size \(3, 3\)"):
        way(x, kernel, padding=3)


def test_the_others_refuse():
    for call, error, message in [
        (lambda: up.convolution(x, torch.zeros(2, 2, 4, 1)), ValueError, r"size \(3, 4\).*size \(4, 1\)"),
        (lambda: up.convolution_matrix(kernel, 2), ValueError, "at least 1×1"),
        (lambda: up.convolution_matrix(integers, 2), TypeError, "weight must be a floating-point"),
        (lambda: up.bed_of_nails(x, 0), ValueError, "factor must be"),
        (lambda: up.pixel_shuffle(x, 2), ValueError, r"multiple of factor² = 4 channels; got \(1, 2, 3, 4\)"),
        (lambda: up.pixel_shuffle(x, 0), ValueError, "factor must be one integer, at least 1; got 0"),
        (lambda: up.pixel_unshuffle(x, (1, 1)), ValueError, "factor must be one integer"),
        (lambda: up.pixel_unshuffle(x, 2), ValueError, r"multiples of factor=2; got \(1, 2, 3, 4\)"),
        (lambda: up.max_unpool(x, integers.int(), 4), TypeError, "indices must be int64; got torch.int32"),
        (lambda: up.max_unpool(x, integers[0], 4), ValueError, r"shape of x, \(1, 2, 3, 4\); got \(2, 3, 4\)"),
        (lambda: up.max_unpool(x, integers + 16, 4), ValueError, r"lie in \[0, 16\) for size \(4, 4\); got 16 to 16"),
        (lambda: up.max_unpool(x, integers - 1, 4), ValueError, "got -1 to -1"),
        (lambda: up.max_unpool(x, integers, 0), ValueError, "size must be"),
        (lambda: up.overlap_count(3, 0, 1), ValueError, "kernel must be"),
        (lambda: up.overlap_count(3, 2, 1, 2), ValueError, "at least 1×1"),
        (lambda: up.icnr_(kernel, 2), ValueError, r"multiple of factor² = 4 outputs; got \(2, 2, 3, 3\)"),
        (lambda: up.icnr_(kernel[:0], 1), ValueError, "weight must have shape"),
        (lambda: up.resize_convolution(x, kernel[:, :, :2]), ValueError, "odd kernel; got shape"),
        (lambda: up.resize_convolution(x, kernel, factor=0), ValueError, "factor must be"),
    ]:
        with pytest.raises(error, match=message):
            call()


# The benchmark


def test_the_benchmark_runs(tmp_path, capsys):
    benchmark = importlib.import_module("benchmarks.upsampling")
    benchmark.main(["--quick", "--json", str(tmp_path / "times.json"), "--plot", str(tmp_path / "times.png")])
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert {row["operation"] for row in rows} >= {"nearest", "bilinear", "bicubic", "transposed convolution"}
    assert all(row["ours_ms"] > 0 and row["torch_ms"] > 0 and row["error"] < 1e-3 for row in rows)
    assert all(row["operation"] in capsys.readouterr().out for row in rows[:1])
    assert (tmp_path / "times.png").stat().st_size > 10_000
