"""Shared blocks against their formulas written out with torch's plain functions in float64, and their gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_lib.base import layers

drawn = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64 with all parameters drawn anew, also those that begin at 0."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(0.3 * normal(*parameter.shape, seed=seed + i))
    return module


# The embedding of time


@drawn
@given(
    t=st.lists(st.floats(0, 1000), min_size=1, max_size=4),
    half=st.integers(1, 9),
    period=st.sampled_from([100.0, 10_000.0]),
)
def test_timestep_embedding_is_the_formula(t, half, period):
    found = layers.timestep_embedding(torch.tensor(t, dtype=torch.float64), 2 * half, period)
    for row, time in zip(found.tolist(), t, strict=True):
        angles = [time / period ** (i / half) for i in range(half)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles)], abs=1e-9)


def test_timestep_embedding_turns_from_one_radian_a_step_to_nearly_none():
    found = layers.timestep_embedding(torch.arange(3), 8)
    assert found.dtype == torch.float32  # of whole times
    torch.testing.assert_close(found[:, 4], torch.arange(3).float().sin())
    assert found[2, 7] == pytest.approx(2 * 10_000**-0.75, rel=1e-4)


def test_every_time_has_its_own_embedding():
    assert torch.pdist(layers.timestep_embedding(torch.arange(1001).double(), 32)).min() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_times_but_not_their_embedding(dtype):
    t = torch.tensor([0.5, 3.0, 250.0], dtype=dtype)  # have no more digits than that
    assert torch.equal(layers.timestep_embedding(t, 32), layers.timestep_embedding(t.float(), 32))


@pytest.mark.parametrize(("t", "dim"), [(torch.zeros(2, 1), 4), (torch.zeros(()), 4), (torch.zeros(2), 3)])
def test_timestep_embedding_refuses(t, dim):
    with pytest.raises(ValueError, match=r"expected t \(B,\) and an even dim ≥ 2"):
        layers.timestep_embedding(t, dim)
    with pytest.raises(ValueError, match="and 0"):
        layers.timestep_embedding(torch.zeros(2), 0)


# Blocks


def group_norm(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    B, C, H, W = x.shape
    parts = x.reshape(B, groups, -1)
    parts = (parts - parts.mean(2, keepdim=True)) / (parts.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
    return parts.reshape(B, C, H, W) * weight[:, None, None] + bias[:, None, None]


def test_group_norm_is_its_formula_in_the_input_dtype(device):
    norm, x = awake(layers.GroupNorm(2, 6)).to(device), (3 + 2 * normal(3, 6, 4, 5)).to(device)
    expected = group_norm(x, 2, norm.weight, norm.bias)
    torch.testing.assert_close(norm(x), expected)
    norm = norm.float()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.004)):
        found = norm(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("autocast", [False, True])
def test_group_norm_rounds_once(autocast):
    """Of bfloat16 maps, with a contrast that is small beside the mean: sums, weights and biases keep their digits."""
    x, norm = (16 + normal(1, 8, 64, 64)).bfloat16(), awake(layers.GroupNorm(1, 8)).float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = norm(x)
    assert torch.equal(found, norm(x.float()).bfloat16())


@pytest.mark.parametrize("channels", [(6, 6), (6, 4)], ids=["same", "other"])
@pytest.mark.parametrize("embedding", [5, None])
def test_residual_block_is_its_formula(channels, embedding):
    block = awake(layers.ResidualBlock(*channels, embedding, groups=2))
    x = normal(3, channels[0], 5, 4)
    e = None if embedding is None else normal(3, 5, seed=1)
    h = F.silu(group_norm(x, 2, block.norm1.weight, block.norm1.bias))
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = group_norm(h, 2, block.norm2.weight, block.norm2.bias)
    if e is not None:
        both = F.linear(e * torch.sigmoid(e), block.scale_shift.weight, block.scale_shift.bias)
        scale, shift = both[:, : channels[1], None, None], both[:, channels[1] :, None, None]
        h = h * (1 + scale) + shift
    h = F.conv2d(F.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    across = x if channels[0] == channels[1] else F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, e), across + h)


def test_a_new_block_is_the_identity():
    x = normal(2, 8, 4, 4)
    assert torch.equal(layers.ResidualBlock(8, 8, 5).double()(x, normal(2, 5)), x)
    assert torch.equal(layers.SelfAttention(8).double()(x), x)


def test_attention_is_its_formula():
    """A loop over images and pixels."""
    attention, x = awake(layers.SelfAttention(4, groups=2)), normal(2, 4, 2, 3)
    normed = group_norm(x, 2, attention.norm.weight, attention.norm.bias)
    expected = x.clone()
    for b in range(2):
        pixels = [normed[b, :, i, j] for i in range(2) for j in range(3)]
        q, k, v = torch.stack([attention.qkv.weight @ pixel + attention.qkv.bias for pixel in pixels]).split(4, 1)
        for n in range(6):
            scores = torch.stack([q[n] @ k[m] / 2 for m in range(6)]).exp()  # √4 channels
            mixed = sum(score * value for score, value in zip(scores / scores.sum(), v, strict=True))
            expected[b, :, n // 3, n % 3] += attention.out.weight @ mixed + attention.out.bias
    torch.testing.assert_close(attention(x), expected)


def test_attention_knows_no_places():
    """Pixels in another order give the same pixels in that order."""
    attention, x = awake(layers.SelfAttention(8)), normal(1, 8, 3, 4)
    order = torch.randperm(12, generator=rng())
    shuffled = x.flatten(2)[:, :, order].unflatten(2, (3, 4))
    torch.testing.assert_close(attention(shuffled).flatten(2), attention(x).flatten(2)[:, :, order])


def cross_attention() -> layers.CrossAttention:
    """Of 4 channels in 2 heads, to rows of 3 numbers."""
    return awake(layers.CrossAttention(4, 3, heads=2, groups=2))


def test_cross_attention_is_its_formula():
    """A loop over images, pixels and heads; rows that the mask leaves out do not count."""
    attention, x, context = cross_attention(), normal(2, 4, 2, 3), normal(2, 5, 3, seed=1)
    context_mask = torch.tensor([[True, False, True, True, False], [False] * 5])
    normed = group_norm(x, 2, attention.norm.weight, attention.norm.bias)
    expected = x.clone()
    for b in range(2):
        rows = [attention.nothing, *(row for row, counts in zip(context[b], context_mask[b], strict=True) if counts)]
        k, v = torch.stack([attention.kv.weight @ row + attention.kv.bias for row in rows]).split(4, 1)
        for i, j in [(i, j) for i in range(2) for j in range(3)]:
            q = attention.q.weight @ normed[b, :, i, j] + attention.q.bias
            mixed = torch.zeros(4, dtype=x.dtype)
            for head in (slice(0, 2), slice(2, 4)):
                scores = torch.stack([q[head] @ key[head] / math.sqrt(2) for key in k]).exp()
                mixed[head] = sum(s * value[head] for s, value in zip(scores / scores.sum(), v, strict=True))
            expected[b, :, i, j] += attention.out.weight @ mixed + attention.out.bias
    torch.testing.assert_close(attention(x, context, context_mask), expected)
    torch.testing.assert_close(attention(x[1:]), expected[1:])  # no context


def test_cross_attention_knows_no_order_of_the_context():
    attention, x, context = cross_attention(), normal(2, 4, 2, 3), normal(2, 5, 3, seed=1)
    torch.testing.assert_close(attention(x, context.flip(1)), attention(x, context))


@pytest.mark.parametrize("kind", [layers.SelfAttention, lambda c: layers.CrossAttention(c, 8)], ids=["self", "cross"])
def test_attention_under_autocast_is_nearly_the_same(kind):
    attention, x, rest = awake(kind(16)).float(), normal(2, 16, 4, 4).float(), ()
    if isinstance(attention, layers.CrossAttention):
        rest = normal(2, 5, 8, seed=1).float(), torch.tensor([[True] * 5, [True, False, False, True, False]])
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x, *rest)
    assert found.dtype == torch.float32  # x is added
    torch.testing.assert_close(found - x, attention(x, *rest) - x, rtol=0.05, atol=0.05)


def test_downsample_takes_every_second_pixel_of_the_convolution():
    down, x = awake(layers.Downsample(3)), normal(2, 3, 6, 4)
    full = F.conv2d(x, down.weight, down.bias, padding=1)
    torch.testing.assert_close(down(x), full[:, :, ::2, ::2])


def test_upsample_repeats_pixels_before_the_convolution():
    up, x = awake(layers.Upsample(3)), normal(2, 3, 3, 2)
    twice = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(up(x), F.conv2d(twice, up.weight, up.bias, padding=1))


@pytest.mark.parametrize(
    "module",
    [
        layers.ResidualBlock(2, 4, None, 2),
        layers.SelfAttention(2, 1),
        layers.CrossAttention(2, 3, 1, 1),
        layers.Downsample(2),
        layers.Upsample(2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_gradients(module):
    assert torch.autograd.gradcheck(awake(module), (normal(2, 2, 2, 2).requires_grad_(),))


def test_dropout_only_while_training():
    block, x = awake(layers.ResidualBlock(4, 4, None, 2, dropout=0.5)), normal(2, 4, 4, 4)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_the_memory_format_is_kept():
    block = awake(layers.ResidualBlock(4, 8, 5, 2)).to(memory_format=torch.channels_last)
    x, e = normal(2, 4, 4, 4), normal(2, 5)
    y = block(x.contiguous(memory_format=torch.channels_last), e)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, block(x, e))
