"""Unpaired translation: the pool against a slow one, losses against a loop, a step by hand, an invertible toy."""

import copy
import importlib
import json
from pathlib import Path

import pytest
import torch
from conftest import normal, rng, uniform
from torch import nn
from torch.utils.data import TensorDataset

from course_lib import scenes
from course_lib.base import checkpoints, zoo
from course_lib.base.loop import Loop
from course_lib.editing import paired, unpaired

SIDES = ("day", "night")


class Invert(nn.Module):
    """x → −x, so in [0, 1] x → 1 − x; its own inverse."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(-torch.ones(1))

    def forward(self, x):
        return self.weight.to(x) * x


class Permute(nn.Module):
    """Channels in another order."""

    def __init__(self, order):
        super().__init__()
        self.order, self.weight = order, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight.to(x) * x[:, self.order]


def tiny(seed=0, width=8):
    """Both generators, with random last layers, so that they are not the identity."""
    torch.manual_seed(seed)
    networks = unpaired.generators(width)
    for network in networks.values():
        nn.init.normal_(network.unet.last.weight, std=0.1)
    return networks


# --- images


def test_a_scene_is_the_same_by_day_and_by_night():
    day, night = (unpaired.scenes_by(light, 4, seed=5) for light in SIDES)
    assert day.shape == (4, 3, 64, 64) and day.dtype == torch.uint8
    drawn = scenes.Scenes(4, 64, 5)
    seen = set()
    for i in range(4):
        light = drawn.scene(i).light
        if light in SIDES:
            seen.add(light)
            expected = (255 * drawn[i].image).round().byte()
            assert torch.equal({"day": day, "night": night}[light][i], expected)
    assert seen and not torch.equal(day, night)
    assert day.float().mean() > night.float().mean() + 40
    assert not torch.equal(day, unpaired.scenes_by("day", 4, seed=6))


def test_half_of_the_images_are_mirrored_each_side_on_its_own():
    batch = tuple((255 * uniform(16, 3, 4, 6, seed=s)).byte() for s in (1, 2))
    turned = [
        [torch.equal(255 * y, x.flip(2).float()) for x, y in zip(*both, strict=True)]
        for both in zip(batch, unpaired.mirrored(batch, rng(3)), strict=True)
    ]
    assert all(0 < sum(turn) < 16 for turn in turned) and turned[0] != turned[1]
    for before, after in zip(batch, unpaired.mirrored(batch, rng(4)), strict=True):
        assert after.dtype == torch.float32 and after.max() <= 1
        torch.testing.assert_close(after.mean((2, 3)), before.float().mean((2, 3)) / 255)


# --- the pool


def slow_pool(kept, new, size, chance):
    """Shrivastava et al. (2017), section 2.3, in lists of numbers: `chance` has (swap, where) of each image."""
    answer = []
    for number, (swap, where) in zip(new, chance, strict=True):
        if len(kept) < size:
            kept.append(number)
            answer.append(number)
        elif swap < 0.5:
            place = int(where * size)
            answer.append(kept[place])
            kept[place] = number
        else:
            answer.append(number)
    return answer


@pytest.mark.parametrize(("size", "B"), [(1, 3), (5, 2), (50, 4), (7, 12)])
def test_the_pool_is_the_slow_one(size, B):
    pool, kept, draws, again = unpaired.ImagePool((1, 2, 2), size), [], rng(4), rng(4)
    for call in range(40):
        new = torch.arange(B * call, B * call + B)
        found = pool(new[:, None, None, None].expand(B, 1, 2, 2).float(), draws)
        expected = slow_pool(kept, new.tolist(), size, torch.rand(2, B, generator=again).T.tolist())
        assert found[:, 0, 1, 1].tolist() == expected
        assert pool.images[: len(kept), 0, 0, 0].tolist() == kept and int(pool.filled) == len(kept)


def test_half_of_what_a_full_pool_gives_is_old_and_nothing_is_lost():
    pool, draws = unpaired.ImagePool((1, 1, 1), 50), rng()
    new = torch.arange(4000.0)[:, None, None, None]
    given = torch.cat([pool(x, draws) for x in new.split(4)]).flatten()
    assert torch.equal(given[:50], torch.arange(50.0))
    old = given[50:] < torch.arange(50.0, 4000)
    assert old.float().mean().item() == pytest.approx(0.5, abs=0.03)
    # each image is given at once, or is kept and given later, or is in the pool still
    once_kept = torch.cat([given[50:], pool.images.flatten()])
    assert torch.equal(once_kept.sort().values, torch.arange(4000.0))


def test_the_pool_keeps_its_own_images_without_gradients_and_goes_on_from_its_state():
    pool = unpaired.ImagePool((2, 3, 3), 3)
    new = normal(3, 2, 3, 3, dtype=torch.bfloat16).requires_grad_()
    found = pool(new, rng())
    assert found.dtype == torch.bfloat16 and not found.requires_grad and torch.equal(found, new)
    found.zero_()
    torch.testing.assert_close(pool.images, new.detach().float())
    other = unpaired.ImagePool((2, 3, 3), 3)
    other.load_state_dict(pool.state_dict())
    x = normal(4, 2, 3, 3, seed=1, dtype=torch.float32)
    assert torch.equal(pool(x, rng(2)), other(x, rng(2))) and torch.equal(pool.images, other.images)


# --- losses


def test_least_squares_are_those_of_a_loop():
    real, fake = normal(2, 1, 3, 4, seed=1), normal(3, 1, 2, 2, seed=2)
    d = (
        sum((x - 1) ** 2 for x in real.flatten().tolist()) / 24 / 2
        + sum(x**2 for x in fake.flatten().tolist()) / 12 / 2
    )
    assert unpaired.discriminator_loss(real, fake).item() == pytest.approx(d, rel=1e-12)
    g = sum((x - 1) ** 2 for x in fake.flatten().tolist()) / 12
    assert unpaired.generator_loss(fake).item() == pytest.approx(g, rel=1e-12)


def test_the_best_discriminator_is_p_over_p_plus_q():
    """Where p of real and q of generated patches are alike, least squares are smallest at p/(p + q)."""
    p, q = 30, 10
    grid = torch.linspace(0, 1, 401, dtype=torch.float64)
    real = torch.cat([grid.expand(p, 401), torch.ones(10, 401)])  # of 40 patches; D is sure of the others
    fake = torch.cat([grid.expand(q, 401), torch.zeros(30, 401)])
    losses = torch.stack([unpaired.discriminator_loss(x, y) for x, y in zip(real.T, fake.T, strict=True)])
    assert grid[losses.argmin()].item() == pytest.approx(p / (p + q), abs=2e-3)


@pytest.mark.parametrize("make", [Invert, lambda: Permute([2, 1, 0])])
def test_the_cycle_of_an_inverse_costs_nothing(make):
    """1 − x, and a swap of two channels, are their own inverse: there and back is exact; what lies between is known."""
    networks = nn.ModuleDict({side: make() for side in SIDES})
    x = {side: 2 * uniform(2, 3, 4, 4, seed=s) - 1 for s, side in enumerate(SIDES)}
    loss, answers = unpaired.cycle_loss(networks, x)
    assert loss.item() == 0
    assert torch.equal(answers["night"], networks["night"](x["day"]))
    assert torch.equal(answers["day"], networks["day"](x["night"]))


def test_the_cycle_of_another_order_costs_what_a_loop_says():
    """A rotation of three channels is not its own inverse: its square moves each by two."""
    networks = nn.ModuleDict({side: Permute([1, 2, 0]) for side in SIDES})
    x = {side: normal(2, 3, 3, 5, seed=s) for s, side in enumerate(SIDES)}
    expected = 0.0
    for images in x.values():
        values = images.tolist()
        expected += sum(
            abs(values[b][(c + 2) % 3][i][j] - values[b][c][i][j])
            for b in range(2) for c in range(3) for i in range(3) for j in range(5)
        ) / 90  # fmt: skip
    loss, _ = unpaired.cycle_loss(networks, x)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for side in SIDES:
        networks[side] = Permute([1, 2, 0] if side == "day" else [2, 0, 1])
    assert unpaired.cycle_loss(networks, x)[0].item() == 0


def test_half_precision_has_its_losses_in_float32():
    networks = tiny().bfloat16()
    x = {side: 2 * uniform(2, 3, 16, 16, seed=s, dtype=torch.bfloat16) - 1 for s, side in enumerate(SIDES)}
    loss, answers = unpaired.cycle_loss(networks, x)
    exact, _ = unpaired.cycle_loss(networks.float(), {side: images.float() for side, images in x.items()})
    assert loss.dtype == torch.float32 and answers["day"].dtype == torch.bfloat16
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


# --- the step


class Judge(nn.Module):
    """A discriminator of one convolution."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 3)

    def forward(self, x):
        return self.layer(x)


def test_a_step_is_the_papers_by_hand():
    """Equations 1 to 3, the identity loss, then D on the pool's images; with SGD, to the last weight."""
    torch.manual_seed(0)
    G = nn.ModuleDict({side: nn.Conv2d(3, 3, 3, padding=1) for side in SIDES}).double()
    D = nn.ModuleDict({side: Judge() for side in SIDES}).double()
    pools = nn.ModuleDict({side: unpaired.ImagePool((3, 5, 5), 2).double() for side in SIDES})
    for pool in pools.values():
        pool(normal(2, 3, 5, 5, seed=8), rng())
    by_hand, their_pools, draws = copy.deepcopy((G, D)), copy.deepcopy(pools), rng(7)
    optimisers = [torch.optim.SGD(n.parameters(), 0.1) for n in (G, D)]
    step = unpaired.cycle_step(G, D, *optimisers, pools, rng(7), cycle=3.0, identity=0.25)
    batch = uniform(4, 3, 5, 5, seed=1), uniform(4, 3, 5, 5, seed=2)
    losses = step(batch)

    F, E = by_hand
    x, y = (2 * images - 1 for images in batch)
    night, day = F["night"](x), F["day"](y)
    cycle = (F["day"](night) - x).abs().mean() + (F["night"](day) - y).abs().mean()
    same = (F["night"](y) - y).abs().mean() + (F["day"](x) - x).abs().mean()
    fool = (E["night"](night) - 1).pow(2).mean() + (E["day"](day) - 1).pow(2).mean()
    parameters = list(F.parameters())
    for p, g in zip(parameters, torch.autograd.grad(fool + 3 * (cycle + 0.25 * same), parameters), strict=True):
        p.data -= 0.1 * g
    old = {side: their_pools[side](z.detach(), draws) for side, z in (("day", day), ("night", night))}
    assert not torch.equal(old["night"], night)
    d = sum(((E[s](z) - 1).pow(2).mean() + E[s](old[s]).pow(2).mean()) / 2 for s, z in (("day", x), ("night", y)))
    parameters = list(E.parameters())
    for p, g in zip(parameters, torch.autograd.grad(d, parameters), strict=True):
        p.data -= 0.1 * g
    for mine, theirs in zip((G, D), by_hand, strict=True):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
    expected = {"cycle": cycle, "identity": same, "G": fool, "D": d}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-6
    )
    assert all(p.requires_grad for p in D.parameters())


class Recolour(nn.Module):
    """A generator that sees one pixel."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 16, 1), nn.SiLU(), nn.Conv2d(16, 3, 1))

    def forward(self, x):
        return x + self.layers(x)


def training(steps, resume_from=None):
    """Unpaired tones: one side is dark, the other one light; they are 1 − x of each other."""
    torch.manual_seed(0)
    networks = nn.ModuleDict({side: Recolour() for side in SIDES})
    discriminators = nn.ModuleDict({side: paired.PatchDiscriminator(3, 8) for side in SIDES})
    pools = nn.ModuleDict({side: unpaired.ImagePool((3, 16, 16), 10) for side in SIDES})
    rates = ((networks, 1e-2), (discriminators, 1e-3))
    optimisers = [torch.optim.Adam(network.parameters(), rate, (0.5, 0.99)) for network, rate in rates]
    draws = rng(1)
    step = unpaired.cycle_step(networks, discriminators, *optimisers, pools, draws, cycle=1.0, identity=0.0)
    stateful = {"networks": networks, "discriminators": discriminators, "pools": pools, "rng": draws}
    stateful |= {"generator_optimiser": optimisers[0], "discriminator_optimiser": optimisers[1]}
    data = TensorDataset(tones(64, seed=1), 1 - tones(64, seed=2))
    return Loop(step, data, steps=steps, batch_size=4, stateful=stateful, save_every=5, resume_from=resume_from)


def tones(n, seed):
    """Two dark tones in each image, (n, 3, 16, 16) in [0, 0.4]."""
    tone = 0.4 * uniform(n, 3, 1, 2, seed=seed, dtype=torch.float32)
    return tone.repeat_interleave(16, 2).repeat_interleave(8, 3)


def test_it_learns_the_other_side_of_images_that_have_no_partner():
    """The mean of each side is what no image alone says: dark tones must come out light, and the other way round."""
    loop = training(80)
    loop.run()
    dark = tones(16, seed=9)
    found = unpaired.evaluate(loop.stateful["networks"], {"day": dark, "night": 1 - dark})
    for side in SIDES:
        assert found[f"error to {side}"] < 0.5 * found[f"error to {side}, nothing"]
        assert found[f"error of {side} there and back"] < 0.25 * found[f"error to {side}, nothing"]


def test_a_resumed_training_is_the_uninterrupted_one_pools_and_all(tmp_path):
    whole = training(12, tmp_path / "whole.pt")
    whole.run()
    training(5, tmp_path / "parts.pt").run()
    parts = training(12, tmp_path / "parts.pt")
    parts.run()
    for name in ("networks", "discriminators", "pools"):
        for key, tensor in whole.stateful[name].state_dict().items():
            assert torch.equal(parts.stateful[name].state_dict()[key], tensor), key
    assert int(whole.stateful["pools"]["day"].filled) == 10


# --- what comes out


def test_untrained_generators_change_nothing():
    x = uniform(2, 3, 24, 16, dtype=torch.float32)
    for side in SIDES:
        torch.testing.assert_close(unpaired.translate(unpaired.generators(8), x, side), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_answers_are_images_in_float32_and_do_not_depend_on_their_neighbours(dtype):
    networks, x = tiny(), uniform(3, 3, 16, 24).to(dtype)
    found = unpaired.translate(networks, x.to(memory_format=torch.channels_last), "night")
    assert found.shape == x.shape and found.dtype == torch.float32 and 0 <= found.min() <= found.max() <= 1
    torch.testing.assert_close(found[1:2], unpaired.translate(networks, x[1:2], "night"))
    torch.testing.assert_close(found, ((networks["night"](2 * x.float() - 1) + 1) / 2).clamp(0, 1).detach())
    halves = unpaired.translate(tiny().to(torch.bfloat16), x, "night")
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, found, rtol=0, atol=0.03)


def test_colour_transfer_gives_mean_and_deviation_of_the_others():
    x, like = 0.4 + 0.2 * uniform(5, 3, 6, 8), 0.3 + 0.3 * uniform(4, 3, 5, 5, seed=1) ** 2
    found = unpaired.colour_transfer(x, like)
    for c in range(3):
        assert found[:, c].mean().item() == pytest.approx(like[:, c].mean().item(), rel=1e-9)
        assert found[:, c].std(correction=0).item() == pytest.approx(like[:, c].std(correction=0).item(), rel=1e-9)
    assert torch.equal(found[0, 0].flatten().argsort(), x[0, 0].flatten().argsort())
    torch.testing.assert_close(unpaired.colour_transfer(x, 0.5 * x + 0.1), 0.5 * x + 0.1)
    flat = unpaired.colour_transfer(torch.full((1, 3, 4, 4), 0.2), like.float())
    torch.testing.assert_close(flat.mean((0, 2, 3)), like.float().mean((0, 2, 3)))


def test_the_scores_of_a_known_inverse():
    """By day x, by night 1 − x: an inverter is right and comes back; doing nothing is wrong by |1 − 2x|."""
    x = uniform(3, 3, 8, 8)
    networks = nn.ModuleDict({side: Invert().double() for side in SIDES})
    found = unpaired.evaluate(networks, {"day": x, "night": 1 - x})
    wrong = (1 - 2 * x).abs().mean().item()
    for side in SIDES:
        assert found[f"error to {side}"] < 1e-6 and found[f"error of {side} there and back"] < 1e-6
        assert found[f"error to {side}, nothing"] == pytest.approx(wrong, rel=1e-6)
        assert found[f"error to {side}, colour transfer"] > 0.1  # it keeps what is light light


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: unpaired.scenes_by("noon", 1), ValueError, "day, dusk, night; got 'noon'"),
        (lambda: unpaired.scenes_by("day", 0), ValueError, "at least one scene"),
        (lambda: unpaired.ImagePool((3, 4, 4), 2)(normal(1, 3, 4, 5), rng()), ValueError, r"\(B, 3, 4, 4\)"),
        (lambda: unpaired.translate(tiny(), uniform(1, 3, 16, 16), "noon"), ValueError, "day, night; got 'noon'"),
        (lambda: unpaired.translate(tiny(), 2 * uniform(1, 3, 16, 16) - 1, "day"), ValueError, r"\(x \+ 1\) / 2"),
        (lambda: unpaired.translate(tiny(), torch.ones(1, 3, 16, 16).byte(), "day"), TypeError, "floating-point"),
        (lambda: unpaired.translate(tiny(), uniform(3, 16, 16), "day"), ValueError, r"\(B, C, H, W\)"),
        (lambda: unpaired.translate(tiny(), uniform(1, 1, 16, 16), "day"), ValueError, r"\(B, 3, H, W\)"),
        (lambda: unpaired.translate(tiny(), uniform(1, 3, 16, 20), "day"), ValueError, "multiples of 8"),
        (lambda: unpaired.cycle_loss(tiny(), {"day": normal(1, 3, 8, 8)}), ValueError, "sides day, night; got day"),
        (lambda: unpaired.colour_transfer(uniform(1, 3, 4, 4), uniform(1, 1, 4, 4)), ValueError, "got 3 and 1"),
        (lambda: unpaired.colour_transfer(uniform(1, 3, 4, 4), 9 * uniform(1, 3, 4, 4)), ValueError, "x / 255"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_words(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_step_refuses_images_out_of_range_on_either_side(wrong):
    networks, pools = tiny(), nn.ModuleDict({side: unpaired.ImagePool((3, 16, 16)) for side in SIDES})
    discriminators = nn.ModuleDict({side: paired.PatchDiscriminator(3, 8) for side in SIDES})
    optimisers = [torch.optim.Adam(n.parameters()) for n in (networks, discriminators)]
    batch = [torch.ones(1, 3, 16, 16), torch.ones(1, 3, 16, 16)]
    batch[wrong] = -batch[wrong]
    with pytest.raises(ValueError, match="values from"):
        unpaired.cycle_step(networks, discriminators, *optimisers, pools, rng())(tuple(batch))


# --- what ships


@pytest.fixture(scope="module")
def truth():
    """Scenes of which the recipe has seen none, by day and by night."""
    return {side: unpaired.scenes_by(side, 60, seed=77) / 255 for side in SIDES}


def test_the_shipped_networks_have_the_scores_of_their_header(truth):
    score = json.loads(checkpoints.load("cycle_day_night")[1]["score"])
    found = unpaired.evaluate(zoo.load("cycle_day_night", "cpu"), truth)
    assert found.keys() <= score.keys()
    for name, value in found.items():
        assert value == pytest.approx(score[name], rel=0.15), name  # of other scenes


def test_the_shipped_networks_beat_what_needs_no_learning(truth):
    found = unpaired.evaluate(zoo.load("cycle_day_night", "cpu"), truth)
    for side in SIDES:
        assert found[f"error to {side}"] < 0.5 * found[f"error to {side}, colour transfer"]
        assert found[f"error to {side}, colour transfer"] < found[f"error to {side}, nothing"]


def test_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = importlib.import_module("recipes.editing").main(["--quick", "--steps", "2", "--model", "cycle_day_night"])
    metadata = checkpoints.restore(
        zoo.build("cycle_day_night"), tmp_path / "build" / "cycle_day_night_quick.safetensors"
    )
    assert metadata["recipe"].startswith("python recipes/editing.py --steps 2")
    assert scores["error to night"] < 1 and not list(Path("data").glob("*"))
