"""The U-Net against its wiring written out, against diffusers' of the same weights, and the promises of its inputs."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import normal
from torch import nn

from course_lib.base import layers
from course_lib.base.unet import Config, UNet

TINY = Config(width=8, multipliers=(1, 2), groups=4)
FULL = Config(channels=2, width=8, multipliers=(1, 2), blocks=2, attention=(1,), classes=3, groups=4)


def awake(config: Config, seed: int = 0) -> UNet:
    """A network in float64 and eval mode whose layers that begin at 0 have left it."""
    torch.manual_seed(seed)
    network = UNet(config).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * normal(*parameter.shape, seed=seed + i))
    return network


# What it computes


def test_the_wiring_written_out():
    """Two levels of two blocks, attention on the coarse one."""
    n = awake(FULL)
    x, t, c = normal(3, 2, 8, 4), torch.tensor([1, 10, 500]), torch.tensor([0, 2, 1])
    e = n.embedding.mlp(layers.timestep_embedding(t.double(), 8)) + n.embedding.condition.weight[c]
    h0 = n.first(x)
    h1 = n.down[0][0](h0, e)
    h2 = n.down[1][0](h1, e)
    h3 = n.down[2][0](h2)
    h4 = n.down[3][1](n.down[3][0](h3, e))
    h5 = n.down[4][1](n.down[4][0](h4, e))
    assert h3.shape[2:] == (4, 2)
    h = n.middle[2](n.middle[1](n.middle[0](h5, e)), e)
    for stage, skip in zip(n.up[:3], (h5, h4, h3), strict=True):  # of the coarse level, one more than on the way down
        h = stage[1](stage[0](torch.cat([h, skip], 1), e))
    h = n.up[2][2](h)
    for stage, skip in zip(n.up[3:], (h2, h1, h0), strict=True):
        h = stage[0](torch.cat([h, skip], 1), e)
    assert len(n.down) == 5 and len(n.up) == 6
    torch.testing.assert_close(n(x, t, c), n.last(F.silu(n.norm(h))))


def test_equals_diffusers():
    """The same function, to rounding, once it has our weights."""
    diffusers = pytest.importorskip("diffusers")
    ours = awake(Config(channels=3, width=32, multipliers=(1, 2, 2)))
    theirs = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
        norm_eps=1e-5,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,  # cosines first
        freq_shift=0,
    ).double()
    order = ("time_embedding", "conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
    names = [f"{part}.{name}" for part in order for name in getattr(theirs, part).state_dict()]
    theirs.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    x, t = normal(2, 3, 16, 8), torch.tensor([3, 917])
    # They compute the embedding of time in float32.
    torch.testing.assert_close(ours(x, t), theirs.eval()(x, t).sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TINY, (8, 8)),
        (TINY, (2, 6)),
        (dataclasses.replace(TINY, multipliers=(1,)), (5, 7)),
        (dataclasses.replace(TINY, multipliers=(1, 1, 2, 2), channels=3), (8, 16)),
        (dataclasses.replace(TINY, patch=2, channels=3), (28, 32)),
        (dataclasses.replace(TINY, patch=4, blocks=2, attention=(0, 1)), (8, 16)),
        (dataclasses.replace(TINY, out_channels=5, time=False), (4, 10)),
        (dataclasses.replace(FULL, dropout=0.5), (4, 4)),
        (dataclasses.replace(TINY, vector=6), (4, 4)),
    ],
)
def test_shapes_and_gradients(config, size):
    """Of every size that the divisor allows; and each parameter learns, those of "no condition" too."""
    network, B = awake(config).train(), 3
    x = normal(B, config.channels, *size)
    t = torch.tensor([1, 5, 900]) if config.time else None
    condition = torch.tensor([0, 1, 2]) if config.classes else normal(B, 6) if config.vector else None
    out = network(x, t, condition, None if condition is None else torch.tensor([True, False, True]))
    assert out.shape == (B, config.out_channels or config.channels, *size)
    (out * normal(*out.shape, seed=1)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_new_network_says_nothing_but_can_learn():
    network = UNet(FULL)
    x, t, c = normal(2, 2, 4, 4).float(), torch.tensor([1, 2]), torch.tensor([1, 2])
    out = network(x, t, c)
    assert not out.any()
    (out - x).square().sum().backward()
    assert network.last.weight.grad.abs().max() > 0


def test_patches_are_channels():
    """With patch 2 it is the network of four times the channels, between two reorderings of pixels."""
    patched = awake(dataclasses.replace(TINY, patch=2))
    plain = UNet(dataclasses.replace(TINY, channels=4)).double()
    plain.load_state_dict(patched.state_dict())
    x, t = normal(2, 1, 8, 12), torch.tensor([7, 70])
    pieces = torch.stack([x[:, 0, i::2, j::2] for i in range(2) for j in range(2)], 1)
    out, expected = patched(x, t), plain(pieces, t)
    for k in range(4):
        torch.testing.assert_close(out[:, 0, k // 2 :: 2, k % 2 :: 2], expected[:, k])


def test_the_time_matters_to_every_image_by_itself():
    network, x = awake(TINY), normal(1, 1, 8, 8).repeat(3, 1, 1, 1)
    out = network(x, torch.tensor([1, 2, 1000]))
    assert torch.pdist(out.flatten(1)).min() > 1e-2
    torch.testing.assert_close(network(x, torch.tensor([1000, 2, 1])), out.flip(0))
    assert torch.equal(network(x, torch.tensor([1.0, 2.0, 1000.0])), out)


@pytest.mark.parametrize("kind", ["classes", "vector"])
def test_the_condition_matters_and_the_mask_selects(kind):
    network = awake(dataclasses.replace(TINY, **{kind: 3}))
    x, t = normal(1, 1, 4, 4).repeat(3, 1, 1, 1), torch.full((3,), 5)
    condition = torch.tensor([0, 1, 2]) if kind == "classes" else normal(3, 3, seed=1)
    with_it, without = network(x, t, condition), network(x, t)
    assert torch.pdist(torch.cat([with_it, without[:1]]).flatten(1)).min() > 1e-2
    condition_mask = torch.tensor([True, False, True])
    mixed = network(x, t, condition, condition_mask)
    torch.testing.assert_close(mixed[condition_mask], with_it[condition_mask])
    torch.testing.assert_close(mixed[~condition_mask], without[~condition_mask])


WORDS = Config(width=8, multipliers=(1, 2), attention=(1,), vector=4, context=6, groups=4)


def test_the_context_matters_row_by_row():
    """Rows count where the mask says so; none at all is no context; a vector counts beside it."""
    network, context = awake(WORDS), normal(3, 5, 6, seed=1)
    x, t = normal(1, 1, 8, 8).repeat(3, 1, 1, 1), torch.full((3,), 5)
    without = network(x, t)
    assert torch.pdist(torch.cat([network(x, t, context=context), without[:1]]).flatten(1)).min() > 1e-3
    context_mask = torch.tensor([[True, True, False, False, False], [False] * 5, [True] * 5])
    masked = network(x, t, context=context, context_mask=context_mask)
    torch.testing.assert_close(masked[:1], network(x[:1], t[:1], context=context[:1, :2]))
    torch.testing.assert_close(masked[1], without[1])
    torch.testing.assert_close(masked[2], network(x, t, context=context)[2])
    other = context.clone()
    other[0, 2:] = 7.0  # where nobody looks
    torch.testing.assert_close(network(x, t, context=other, context_mask=context_mask), masked)
    both = network(x, t, normal(3, 4, seed=2), context=context, context_mask=context_mask)
    assert (
        torch.pdist(torch.stack([both[0], masked[0], network(x, t, normal(3, 4, seed=2))[0]]).flatten(1)).min() > 1e-3
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_classes_of_any_integers(dtype):
    network, x, t = awake(FULL), normal(3, 2, 4, 4), torch.tensor([1, 5, 9])
    classes = torch.tensor([0, 1, 2])
    assert torch.equal(network(x, t, classes.to(dtype)), network(x, t, classes))


def test_an_image_does_not_depend_on_its_neighbours():
    network, x = awake(FULL), normal(4, 2, 8, 4)
    t, c = torch.tensor([1, 20, 300, 4]), torch.tensor([0, 1, 2, 0])
    together = network(x, t, c)
    for i in range(4):
        torch.testing.assert_close(network(x[i : i + 1], t[i : i + 1], c[i : i + 1]), together[i : i + 1])
    assert network(x[:0], t[:0], c[:0]).shape == (0, 2, 8, 4)


def test_dropout_only_while_training():
    network = awake(dataclasses.replace(TINY, dropout=0.3))
    x, t = normal(2, 1, 4, 4), torch.tensor([1, 2])
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))


# How it computes


def test_devices_agree(device):
    network, x = awake(FULL), normal(2, 2, 8, 8)
    t, c, condition_mask = torch.tensor([3, 400]), torch.tensor([1, 2]), torch.tensor([True, False])
    expected = network(x, t, c, condition_mask).float()
    found = network.float().to(device)(x.float().to(device), *(y.to(device) for y in (t, c, condition_mask)))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_the_memory_format_changes_nothing():
    network, x, t = awake(FULL), normal(3, 2, 8, 8), torch.tensor([1, 2, 3])
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last), t), network(x, t))
    torch.testing.assert_close(network(x.transpose(2, 3).transpose(2, 3), t), network(x, t))
    assert all(
        layer.weight.is_contiguous(memory_format=torch.channels_last)
        for layer in UNet(FULL).modules()
        if isinstance(layer, nn.Conv2d)
    )


def test_compiled_is_the_same():
    network = awake(dataclasses.replace(FULL, blocks=1)).float()
    x, t, c = normal(2, 2, 8, 8).float(), torch.tensor([3, 400]), torch.tensor([1, 2])
    try:
        compiled = torch.compile(network, backend="aot_eager")  # torch's own tracing, without a C++ compiler
    except RuntimeError as reason:  # an older torch on a newer Python
        pytest.skip(str(reason))
    found, expected = compiled(x, t, c), network(x, t, c)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    slopes = [torch.autograd.grad(y.square().sum(), network.first.weight)[0] for y in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", [FULL, dataclasses.replace(TINY, patch=2, vector=4, channels=2)])
def test_bfloat16_is_nearly_the_same(config):
    """Under autocast, forwards and backwards; and as a network of bfloat16, whose times keep their digits."""
    network, x = awake(config).float(), normal(4, 2, 16, 16).float()
    t = torch.tensor([1, 20, 998, 1000])
    condition = torch.tensor([0, 1, 2, 0]) if config.classes else normal(4, 4).float()
    condition_mask = torch.tensor([True, True, False, True])
    expected = network(x, t, condition, condition_mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(x, t, condition, condition_mask)
    assert found.dtype == torch.bfloat16
    parameters = list(network.parameters())
    exact, rounded = (torch.autograd.grad(y.float().square().sum(), parameters) for y in (expected, found))
    assert (found.float() - expected).norm() < 0.04 * expected.norm()
    for a, b in zip(exact, rounded, strict=True):
        assert (a - b).norm() < 0.1 * a.norm()
    found = network.bfloat16()(x.bfloat16(), t, condition, condition_mask)
    assert (found.float() - expected).norm() < 0.04 * expected.norm()


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "numbers from 1"),
        ({"multipliers": ()}, "at least one level"),
        ({"multipliers": (1, 0)}, "numbers from 1"),
        ({"blocks": 0}, "numbers from 1"),
        ({"groups": 0}, "numbers from 1"),
        ({"patch": 0}, "numbers from 1"),
        ({"out_channels": 0}, "numbers from 1"),
        ({"classes": 0}, "numbers from 1"),
        ({"vector": -1}, "numbers from 1"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\)"),
        ({"width": 12}, r"the widths \(12, 24\) must be multiples of groups = 8"),
        ({"width": 3, "groups": 1}, "with time even"),
        ({"attention": (2,)}, "attention names levels 0 … 1; got"),
        ({"classes": 3, "vector": 3}, "either classes or a vector"),
        ({"classes": 3, "time": False}, "a condition needs time=True"),
        ({"context": 0, "attention": (1,)}, "numbers from 1"),
        ({"context": 3}, "a context needs levels with attention"),
    ],
)
def test_config_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"width": 8, "multipliers": (1, 2)} | changes)


def test_config_of_odd_width_without_time():
    assert UNet(Config(width=3, groups=1, time=False))(torch.zeros(1, 1, 4, 4)).shape == (1, 1, 4, 4)


X, T, C = torch.zeros(2, 2, 4, 4), torch.tensor([1, 2]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], T), ValueError, r"expected images \(B, 2, H, W\), got \(2, 4, 4\)"),
        ((X[:, :1], T), ValueError, r"expected images \(B, 2, H, W\), got \(2, 1, 4, 4\)"),
        ((X.long(), T), TypeError, "expected images of floats, got torch.int64"),
        ((X[..., :3], T), ValueError, "multiples of 2, got 4×3"),
        ((X[:, :, :0], T), ValueError, "got 0×4"),
        ((X,), ValueError, r"expected t \(2,\), got none"),
        ((X, T[:1]), ValueError, r"expected t \(2,\), got \(1,\)"),
        ((X, T[:, None]), ValueError, r"expected t \(2,\), got \(2, 1\)"),
        ((X, torch.tensor(1)), ValueError, r"expected t \(2,\), got \(\)"),
        ((X, T, C[:1]), ValueError, r"expected a condition \(2,\), got \(1,\)"),
        ((X, T, torch.eye(3)[:2]), ValueError, r"expected a condition \(2,\), got \(2, 3\)"),
        ((X, T, C.float()), TypeError, "expected classes as integers, got torch.float32"),
        ((X, T, C.bool()), TypeError, "expected classes as integers, got torch.bool"),
        ((X, T, C + 2), ValueError, "expected classes 0 … 2, got 2 … 3"),
        ((X, T, C - 1), ValueError, "expected classes 0 … 2, got -1 … 0"),
        ((X, T, C, C[:1].bool()), ValueError, r"expected condition_mask \(2,\) bool, got \(1,\)"),
        ((X, T, C, C), ValueError, r"expected condition_mask \(2,\) bool, got \(2,\) torch.int64"),
        ((X, T, None, C.bool()), ValueError, "condition_mask needs a condition"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        UNet(FULL)(*arguments)


@pytest.mark.parametrize(
    ("context", "context_mask", "message"),
    [
        (torch.zeros(1, 5, 6), None, r"expected a context \(2, L, 6\), got \(1, 5, 6\)"),
        (torch.zeros(2, 5, 7), None, r"got \(2, 5, 7\)"),
        (torch.zeros(2, 6), None, r"got \(2, 6\)"),
        (None, torch.ones(2, 5).bool(), "context_mask needs a context"),
        (torch.zeros(2, 5, 6), torch.ones(2, 4).bool(), r"expected context_mask \(2, 5\) bool, got \(2, 4\)"),
        (torch.zeros(2, 5, 6), torch.ones(2, 5), "got .* torch.float32"),
    ],
)
def test_refuses_a_context(context, context_mask, message):
    with pytest.raises(ValueError, match=message):
        UNet(WORDS)(X[:, :1], T, context=context, context_mask=context_mask)


def test_refuses_what_it_was_not_built_for():
    with pytest.raises(ValueError, match=r"expected a condition None, got \(2,\)"):
        UNet(TINY)(X[:, :1], T, C)
    with pytest.raises(ValueError, match=r"expected no context, got \(2, 5, 6\)"):
        UNet(TINY)(X[:, :1], T, context=torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match=r"expected no t, got \(2,\)"):
        UNet(dataclasses.replace(TINY, time=False))(X[:, :1], T)
    with pytest.raises(ValueError, match=r"expected a condition \(2, 5\), got \(2,\)"):
        UNet(dataclasses.replace(TINY, vector=5))(X[:, :1], T, C)
    with pytest.raises(ValueError, match="multiples of 8, got 4×4"):
        UNet(dataclasses.replace(TINY, patch=4))(X[:, :1], T)
