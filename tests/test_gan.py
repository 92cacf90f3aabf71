"""Losses against closed forms in float64, networks against torch's own layers, training against known optima."""

import copy
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HostReads, normal, rng
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

from course_lib import gan
from course_lib.base import checkpoints, datasets, metrics, zoo
from course_lib.gan import losses
from recipes import common

ROOT = Path(__file__).resolve().parents[1]
drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
small = st.integers(1, 5)
logits = st.lists(st.floats(-30, 30), min_size=1, max_size=8)
SIZES = [(1, 8), (1, 28), (3, 32)]
sizes = pytest.mark.parametrize(("channels", "size"), SIZES)


def script(folder: str):
    """A recipe or a benchmark as a module."""
    return importlib.import_module(f"{folder}.gan")


# Losses


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@drawn
@given(real=logits, fake=logits)
def test_losses_are_the_slides_objectives(real, fake):
    """Against logarithms of probabilities, which float64 still resolves at ±30."""
    r, f = (torch.tensor(x, dtype=torch.float64) for x in (real, fake))
    D_x, D_z = sigma(np.array(real)), sigma(np.array(fake))
    game = np.log(D_x).mean() + np.log(sigma(-np.array(fake))).mean()  # 1 − σ(l) = σ(−l)
    assert gan.discriminator_loss(r, f).item() == pytest.approx(-game)
    assert gan.generator_loss(f).item() == pytest.approx(-np.log(D_z).mean())
    assert gan.saturating_generator_loss(f).item() == pytest.approx(np.log(sigma(-np.array(fake))).mean())


def test_losses_equal_the_frameworks_cross_entropy_with_its_gradients():
    real, fake = (normal(7, seed=s).mul(5).requires_grad_() for s in (1, 2))
    bce = F.binary_cross_entropy_with_logits
    theirs = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
    ours = gan.discriminator_loss(real, fake)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(ours, (real, fake)), torch.autograd.grad(theirs, (real, fake)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_extreme_logits_neither_overflow_nor_lose_their_gradient(dtype):
    sure = torch.tensor([1e4], dtype=dtype, requires_grad=True)
    big = sure.item()  # rounded to the dtype
    assert gan.discriminator_loss(sure, -sure).item() == 0
    assert gan.discriminator_loss(-sure, sure).item() == pytest.approx(2 * big)
    assert gan.generator_loss(-sure).item() == pytest.approx(big)
    assert gan.saturating_generator_loss(sure).item() == pytest.approx(-big)
    (gradient,) = torch.autograd.grad(gan.generator_loss(-sure), sure)
    assert gradient.item() == 1  # of softplus(l) at l = 10⁴


@pytest.mark.parametrize("logit", [-12.0, -3.0, 0.0, 3.0])
def test_the_saturating_gradient_vanishes_where_the_other_is_largest(logit):
    x = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    D = sigma(np.array(logit))
    slopes = [torch.autograd.grad(f(x), x)[0].item() for f in (gan.generator_loss, gan.saturating_generator_loss)]
    assert slopes == pytest.approx([-(1 - D), -D])
    if logit == -12:  # the discriminator is sure of the fake
        assert abs(slopes[0]) > 0.99 and abs(slopes[1]) < 1e-5


class Quadratic(nn.Module):
    """l(x) = xᵀAx + bᵀx + y, so ∇l = (A + Aᵀ)x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.b = nn.Parameter(normal(6, 6, seed=3)), nn.Parameter(normal(6, seed=4))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        x = x.flatten(1)
        return (x @ self.A * x).sum(1) + x @ self.b + (0 if labels is None else labels)


def test_r1_of_a_quadratic_discriminator_and_its_gradients():
    D, x = Quadratic().double(), normal(5, 1, 2, 3, seed=5)
    by_hand = ((x.flatten(1) @ (D.A + D.A.T) + D.b) ** 2).sum() / 5
    for labels in (None, torch.arange(5)):  # a constant of each label changes no slope
        penalty = gan.r1_penalty(D, x, labels)
        assert penalty.item() == pytest.approx(by_hand.item(), rel=1e-12)
    found, expected = (torch.autograd.grad(p, (D.A, D.b), retain_graph=True) for p in (penalty, by_hand))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_r1_wants_each_images_own_logit():
    D = gan.Discriminator(size=8, width=4)
    with pytest.raises(ValueError, match="without batch normalisation"):
        gan.r1_penalty(D, torch.zeros(2, 1, 8, 8))
    gan.r1_penalty(D.eval(), torch.zeros(2, 1, 8, 8))  # its statistics are constants now
    with pytest.raises(ValueError, match="B ≥ 1; got"):
        gan.r1_penalty(D, torch.zeros(0, 1, 8, 8))


# What the theory says of the optimum


GRID = torch.linspace(-12, 12, 4001, dtype=torch.float64)
CELL = (GRID[1] - GRID[0]).item()


def densities(mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(stats.norm.pdf(GRID.numpy(), mean, std))


def test_optimal_discriminator_of_gaussians_is_a_logistic_function():
    """For N(0, 1) against N(m, 1), log p/q is linear: D* = σ(m²/2 − m x)."""
    m = 1.5
    D = gan.optimal_discriminator(densities(), densities(m))
    torch.testing.assert_close(D, torch.sigmoid(m**2 / 2 - m * GRID), rtol=1e-9, atol=1e-12)
    nowhere = torch.zeros(2, dtype=torch.float64)
    assert gan.optimal_discriminator(nowhere, nowhere).tolist() == [0.5, 0.5]


def test_no_discriminator_has_a_higher_value_than_the_optimal_one():
    p, q = densities(), densities(1.0, 1.5)
    D, best = gan.optimal_discriminator(p, q), gan.best_value(p, q, CELL).item()
    for seed in range(5):
        other = (D.clamp(1e-6, 1 - 1e-6).logit() + 0.1 * normal(len(D), seed=seed)).sigmoid()
        assert (((p * other.log() + q * (1 - other).log()) * CELL).sum()).item() < best


def test_value_at_equilibrium_is_minus_log_4():
    p = densities()
    assert pytest.approx(-1.3862943611198906) == gan.losses.EQUILIBRIUM
    assert gan.best_value(p, p, CELL).item() == pytest.approx(-math.log(4), rel=1e-9)
    assert gan.discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(4))
    assert gan.jensen_shannon(p, p, CELL).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (2.0, 0.5), (4.0, 1.0)])
def test_jensen_shannon_against_quadrature_and_as_the_value_of_the_game(mean, std):
    p, q = stats.norm(0, 1).pdf, stats.norm(mean, std).pdf

    def integrand(x: float) -> float:
        a, b = p(x), q(x)
        m = (a + b) / 2
        return (a * math.log(a / m) + b * math.log(b / m)) / 2 if min(a, b) > 0 else 0.0

    exact = integrate.quad(integrand, -10, 12, limit=200)[0]
    grids = densities(), densities(mean, std)
    assert gan.jensen_shannon(*grids, CELL).item() == pytest.approx(exact, rel=1e-6)
    assert gan.best_value(*grids, CELL).item() == pytest.approx(2 * exact - math.log(4), rel=1e-6)


def test_jensen_shannon_of_strangers_is_log_2():
    p = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert gan.jensen_shannon(p, p.flip(0), 0.5).item() == pytest.approx(math.log(2))


def test_training_finds_the_optimal_discriminator():
    """Logistic regression on features 1, x, x² can express D* of two Gaussians, and descends to it."""
    n, m, s = 20_000, 1.0, 1.5
    real, fake = normal(n, seed=1), m + s * normal(n, seed=2)
    D = nn.Linear(3, 1).double()

    def features(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.ones_like(x), x, x * x], 1)

    optimiser = torch.optim.LBFGS(D.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = gan.discriminator_loss(D(features(real)), D(features(fake)))
        loss.backward()
        return loss

    optimiser.step(closure)
    x = torch.linspace(-2, 3, 50, dtype=torch.float64)
    p, q = (torch.from_numpy(stats.norm.pdf(x.numpy(), a, b)) for a, b in ((0, 1), (m, s)))
    found = D(features(x)).sigmoid().squeeze(1)
    assert (found - gan.optimal_discriminator(p, q)).abs().max() < 0.02
    best = gan.best_value(densities(), densities(m, s), CELL).item()
    assert -closure().item() == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_densities_are_numbers_and_not_negative(bad):
    p, q = torch.tensor([0.5, bad]), torch.tensor([0.5, 0.5])
    for function in (gan.optimal_discriminator, lambda p, q: gan.jensen_shannon(p, q, 1.0)):
        for pair in ((p, q), (q, p)):
            with pytest.raises(ValueError, match="densities must be numbers ≥ 0"):
                function(*pair)


# Networks


@drawn
@given(B=st.integers(1, 3), thin=st.integers(1, 4), other=small, H=st.integers(1, 6), W=st.integers(1, 6), bias=...)
def test_sub_pixel_forms_equal_torchs_strided_layers(B: int, thin: int, other: int, H: int, W: int, bias: bool):
    """Values and all gradients, in float64."""
    assert thin <= gan.networks.THIN
    cases = [
        (gan.Upsampling(other, thin, bias), F.conv_transpose2d, (B, other, H, W)),
        (gan.Downsampling(thin, other, bias), F.conv2d, (B, thin, 2 * H, 2 * W)),
    ]
    for layer, theirs, shape in cases:
        x = normal(*shape).requires_grad_()
        inputs = [x, *layer.double().parameters()]  # weight and, where there is one, bias
        a, b = layer(x), theirs(*inputs, stride=2, padding=1)
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        cotangent = normal(*b.shape, seed=9)
        pairs = zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (a, b)), strict=True)
        for mine, reference in pairs:
            torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("channels", [1, 4, 5, 12])
def test_layers_are_torchs_layers_thin_or_wide(channels, device):
    up, down = gan.Upsampling(6, channels).to(device), gan.Downsampling(channels, 6).to(device)
    x, y = (normal(2, c, 4, 4, dtype=torch.float32).to(device) for c in (6, channels))
    torch.testing.assert_close(up(x), F.conv_transpose2d(x, up.weight, up.bias, 2, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(down(y), F.conv2d(y, down.weight, down.bias, 2, 1), rtol=1e-4, atol=1e-5)


def networks(channels: int, size: int, classes: int | None = None, width: int = 8, **options):
    torch.manual_seed(0)
    return (
        gan.Generator(6, channels, size, width, classes),
        gan.Discriminator(channels, size, width, classes, **options),
    )


PAIRS = {
    "2014": lambda: (gan.FullyConnectedGenerator(6, 16), gan.MaxoutDiscriminator(hidden=8)),
    **{f"{c}x{s}": lambda c=c, s=s: networks(c, s) for c, s in SIZES},
    "classes": lambda: networks(1, 28, 10),
    "without BatchNorm": lambda: networks(3, 32, normalise=False),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_shapes_ranges_and_gradients_reach_every_parameter(make, device):
    G, D = (network.to(device) for network in make())
    labels = torch.arange(5, device=device) * 2 if G.classes else None
    given_ = () if labels is None else (labels,)
    images = G(normal(5, 6, dtype=torch.float32).to(device), *given_)
    assert images.shape == (5, G.channels, G.size, G.size) and images.abs().max() <= 1
    scores = D(images, *given_)
    assert scores.shape == (5,) and scores.dtype == torch.float32
    scores.square().sum().backward()
    for network in (G, D):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_networks_work_in_the_dtype_of_their_weights(dtype):
    G, D = (network.to(dtype) for network in networks(1, 8, 3))
    labels = torch.tensor([0, 2])
    assert D(G(normal(2, 6, dtype=dtype), labels), labels).dtype == dtype


def test_dcgan_follows_its_guidelines():
    """Radford et al. 2016, section 3: strides, BatchNorm but at D's input and G's output, (leaky) ReLU."""
    G, D = networks(3, 32)
    kinds = [type(layer) for layer in G.layers]
    assert kinds == [nn.BatchNorm2d, nn.ReLU, *[gan.Upsampling, nn.BatchNorm2d, nn.ReLU] * 2, gan.Upsampling, nn.Tanh]
    kinds = [type(layer) for layer in D.layers]
    assert kinds == [gan.Downsampling, nn.LeakyReLU, *[gan.Downsampling, nn.BatchNorm2d, nn.LeakyReLU] * 2]
    assert {layer.negative_slope for layer in D.layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    weights = torch.cat([p.flatten() for n, p in gan.Generator(width=64).named_parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02) and abs(weights.mean().item()) < 1e-3


@sizes
def test_first_grids(channels, size):
    assert networks(channels, size)[0].side == {8: 2, 28: 7, 32: 4}[size]


def test_maxout_is_the_largest_of_its_pieces():
    layer, x = gan.networks.Maxout(3, 4, pieces=5).double(), normal(2, 3)
    slow = [
        [max((layer.weight[5 * j + k] @ row + layer.bias[5 * j + k]).item() for k in range(5)) for j in range(4)]
        for row in x
    ]
    torch.testing.assert_close(layer(x), torch.tensor(slow, dtype=torch.float64))


def test_projection_discriminator_is_the_papers_formula():
    """ψ(φ) + v_yᵀ φ, and the difference of two labels is (v_y − v_y')ᵀ φ (Miyato and Koyama 2018, equation 3)."""
    D = networks(1, 8, 10)[1].double().eval()
    x, y = normal(4, 1, 8, 8), torch.tensor([3, 1, 4, 1])
    phi, v = D.features(x), D.embedding.weight
    for i in range(4):
        expected = D.head.weight[0] @ phi[i] + D.head.bias[0] + v[y[i]] @ phi[i]
        assert D(x, y)[i].item() == pytest.approx(expected.item(), rel=1e-10)
        other = (D(x, (y + 1) % 10) - D(x, y))[i].item()
        assert other == pytest.approx(((v[(y[i] + 1) % 10] - v[y[i]]) @ phi[i]).item(), rel=1e-8)


def test_the_label_matters_to_the_generator():
    G = networks(1, 8, 10)[0].eval()
    z = normal(1, 6, dtype=torch.float32).expand(10, -1)
    images = G(z, torch.arange(10)).flatten(1)
    assert torch.pdist(images).min() > 0


@pytest.mark.parametrize("size", [0, 1, 6, 7, 9, 10, 30, 50])
def test_impossible_sizes_are_refused(size):
    for network in (gan.Generator, gan.Discriminator):
        with pytest.raises(ValueError, match="doubled twice or more"):
            network(size=size)


@pytest.mark.parametrize("size", [8, 12, 16, 20, 24, 28, 32, 64])
def test_possible_sizes(size):
    G, D = gan.Generator(size=size, width=2), gan.Discriminator(size=size, width=2)
    assert D(G(torch.zeros(2, 64))).shape == (2,)


def test_bad_input_of_the_networks():
    G, D = networks(1, 8)
    for z in (torch.zeros(2, 5), torch.zeros(6), torch.zeros(2, 6, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"z must be floats of shape \(B, 6\)"):
            G(z)
    for x in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 28, 28), torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8).byte()):
        with pytest.raises(ValueError, match=r"images must be floats of shape \(B, 1, 8, 8\)"):
            D(x)
    for network in (G, D):
        with pytest.raises(ValueError, match="without classes"):
            network(torch.zeros(2, *((6,) if network is G else (1, 8, 8))), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be floats of shape \(B, 1, 28, 28\)"):
        gan.MaxoutDiscriminator()(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"z must be floats of shape \(B, 64\)"):
        gan.FullyConnectedGenerator()(torch.zeros(2, 63))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels are missing"),
        (torch.tensor([1]), r"int64 and shape \(2,\).*got torch.int64 of \(1,\)"),
        (torch.tensor([0.0, 1.0]), "int64.*got torch.float32"),
        (np.array([0, 1]), "tensor of int64.*got ndarray"),
    ],
)
def test_bad_labels(labels, message):
    G, D = networks(1, 8, 10)
    for call in (lambda: G(torch.zeros(2, 6), labels), lambda: D(torch.zeros(2, 1, 8, 8), labels)):
        with pytest.raises(ValueError, match=message):
            call()
    if labels is not None:
        with pytest.raises(ValueError, match=message):
            make_step(G, D)((torch.rand(2, 1, 8, 8), labels))


@pytest.mark.parametrize(("labels", "found"), [([0, 10], "0 to 10"), ([-1, 0], "-1 to 0")])
def test_labels_out_of_range_are_refused_at_the_entry(labels, found):
    G, D = networks(1, 8, 10)
    with pytest.raises(ValueError, match=rf"\[0, 10\); got {found}"):
        gan.sample(G, 2, torch.tensor(labels))
    with pytest.raises(ValueError, match=rf"\[0, 10\); got {found}"):
        make_step(G, D)((torch.rand(2, 1, 8, 8), torch.tensor(labels)))


ALL = {
    "FullyConnectedGenerator": (lambda: gan.FullyConnectedGenerator(6, 16), (6,)),
    "MaxoutDiscriminator": (lambda: gan.MaxoutDiscriminator(size=8, hidden=8), (1, 8, 8)),
    "Generator": (lambda: networks(1, 8)[0], (6,)),
    "Discriminator": (lambda: networks(1, 8)[1], (1, 8, 8)),
    "PointGenerator": (lambda: gan.PointGenerator(6), (6,)),
    "PointDiscriminator": (lambda: gan.PointDiscriminator(), (2,)),
}


@pytest.mark.parametrize(("make", "shape"), ALL.values(), ids=ALL)
def test_networks_refuse_an_empty_batch_and_convert_doubles(make, shape):
    network = make()
    with pytest.raises(ValueError, match="B ≥ 1; got"):
        network(torch.zeros(0, *shape))
    x = normal(3, *shape, seed=1)
    network.eval()
    found = network(x)
    assert found.dtype == torch.float32 and torch.equal(found, network(x.float()))


# Sampling


def test_sample_gives_images_and_leaves_the_generator_as_it_was():
    G = networks(1, 8)[0]
    before = copy.deepcopy(G.state_dict())
    z = normal(300, 6, dtype=torch.float32)  # more than one batch
    images = gan.sample(G, z)
    assert G.training and all(torch.equal(before[k], v) for k, v in G.state_dict().items())
    with torch.no_grad():
        expected = (G.eval()(z) + 1) / 2
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(gan.sample(G, 5, rng=rng(3)), gan.sample(G, 5, rng=rng(3)))
    torch.testing.assert_close(gan.sample(G, z[:1]), images[:1], rtol=1e-4, atol=1e-5)  # no neighbours needed
    assert not gan.sample(G, 2).requires_grad


def test_sample_gives_a_frozen_batch_norm_its_mode_back():
    G = networks(1, 8)[0]
    G.layers[0].eval()
    before = [module.training for module in G.modules()]
    gan.sample(G, 2)
    assert [module.training for module in G.modules()] == before


def test_sample_takes_numpys_labels_and_one_for_all():
    G, z = networks(1, 8, 10)[0], normal(3, 6, dtype=torch.float32)
    assert torch.equal(gan.sample(G, z.numpy(), np.array([7, 1, 4])), gan.sample(G, z, torch.tensor([7, 1, 4])))
    assert torch.equal(gan.sample(G, z, torch.tensor([7])), gan.sample(G, z, torch.tensor([7, 7, 7])))


def test_sample_clamps_and_draws_labels_in_turn():
    class Wild(nn.Module):
        z_dim, classes = 1, 3

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, z, labels):
            return (labels.float() - 1)[:, None, None, None] * 5 * self.weight

    assert gan.sample(Wild(), 4).flatten().tolist() == [0, 0.5, 1, 0]


def test_bad_requests_to_sample():
    G = networks(1, 8, 10)[0]
    with pytest.raises(ValueError, match="at least one image"):
        gan.sample(G, 0)
    with pytest.raises(ValueError, match=r"labels.* for 3 images; got \(2,\)"):
        gan.sample(G, 3, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"z must be floats of shape \(B, 6\)"):
        gan.sample(G, torch.zeros(2, 7))
    with pytest.raises(ValueError, match="without classes"):
        gan.sample(networks(1, 8)[0], 2, torch.tensor([0, 1]))
    assert G.training, "a refusal leaves the mode as it was"


@drawn
@given(t=st.floats(0, 1), seed=st.integers(0, 2**31), dim=st.integers(2, 200))
def test_slerp_keeps_to_the_sphere_and_the_plane(t, seed, dim):
    a, b = normal(2, dim, seed=seed)
    b = b * (a.norm() / b.norm())
    x = gan.slerp(a, b, t)
    assert x.norm().item() == pytest.approx(a.norm().item(), rel=1e-6)
    whole = torch.arccos(torch.cosine_similarity(a, b, 0)).item()
    assert torch.arccos(torch.cosine_similarity(a, x, 0).clamp(-1, 1)).item() == pytest.approx(t * whole, abs=1e-6)
    basis = torch.linalg.qr(torch.stack([a, b], 1)).Q
    torch.testing.assert_close(basis @ (basis.T @ x), x, rtol=0, atol=1e-6 * dim)


def test_slerp_ends_where_it_should_and_keeps_noise_normal():
    a, b = normal(20_000, 64, seed=1), normal(20_000, 64, seed=2)
    torch.testing.assert_close(gan.slerp(a, b, 0.0), a)
    torch.testing.assert_close(gan.slerp(a, b, 1.0), b)
    middle, straight = gan.slerp(a, b, 0.5), (a + b) / 2
    # ‖z‖² of N(0, I) has the mean d; the straight line loses half of it.
    assert middle.square().sum(1).mean().item() == pytest.approx(64, rel=0.01)
    assert straight.square().sum(1).mean().item() == pytest.approx(32, rel=0.01)
    path = gan.slerp(a[:1], b[:1], torch.linspace(0, 1, 5)[:, None])
    assert path.shape == (5, 64) and path.dtype == torch.float64


def test_slerp_in_half_precision_is_the_exact_one_rounded():
    a = normal(200, 64).bfloat16()
    b = (a.double() + 0.1 * normal(200, 64, seed=1)).bfloat16()  # angles of about 6°
    found = gan.slerp(a, b, 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), gan.slerp(a.double(), b.double(), 0.3), rtol=2**-8, atol=1e-4)


def test_slerp_of_parallel_and_opposite_directions_is_straight():
    a = normal(1, 8)
    for b in (a, 3 * a, -a):
        torch.testing.assert_close(gan.slerp(a, b, 0.25), 0.75 * a + 0.25 * b)
    with pytest.raises(ValueError, match="same z_dim"):
        gan.slerp(a, normal(1, 7), 0.5)


# The ring


def test_ring_has_its_moments():
    x = gan.ring(40_000, rng=rng())
    centres = gan.ring_centres()
    assert x.shape == (40_000, 2) and centres.shape == (8, 2)
    torch.testing.assert_close(centres.norm(dim=1), torch.full((8,), 2.0))
    distance, which = torch.cdist(x, centres).min(1)
    assert which.bincount().min() > 4700  # 5000 ± 4.5 σ
    assert distance.square().mean().item() / 2 == pytest.approx(0.02**2, rel=0.03)


def test_mode_proportions_of_known_sets():
    centres = gan.ring_centres()
    everything = gan.mode_proportions(gan.ring(20_000, rng=rng()), centres)
    assert everything.shape == (8,) and everything.sum().item() == pytest.approx(1 - math.exp(-4.5), abs=0.003)
    assert everything.numpy() == pytest.approx(0.989 / 8, abs=0.012)  # 5 σ
    alone = gan.mode_proportions(gan.ring(500, modes=1, rng=rng()), centres)
    assert alone[0] > 0.95 and not alone[1:].any()
    samples = torch.cat([centres[[0, 2, 2, 5]], torch.zeros(1, 2)])
    assert gan.mode_proportions(samples, centres).tolist() == [0.2, 0, 0.4, 0, 0, 0.2, 0, 0]
    noise = gan.mode_proportions(6 * torch.rand(100_000, 2, generator=rng()) - 3, centres)
    assert noise.sum().item() == pytest.approx(8 * math.pi * 0.06**2 / 36, rel=0.2)  # the circles' part of the area
    on_the_edge = centres + torch.tensor([0.0599, 0.0])
    assert gan.mode_proportions(on_the_edge, centres).tolist() == [1 / 8] * 8
    assert not gan.mode_proportions(on_the_edge + torch.tensor([0.0003, 0.0]), centres).any()
    between = torch.tensor([[0.4, 0.0], [0.6, 0.0]])  # within 3 std of both centres: each to the nearer one
    assert gan.mode_proportions(between, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), 0.25).tolist() == [0.5, 0.5]


def test_bad_input_of_the_ring():
    centres = gan.ring_centres()
    for bad in (torch.zeros(0, 2), torch.zeros(3, 3), torch.full((2, 2), math.nan)):
        with pytest.raises(ValueError, match="finite points"):
            gan.mode_proportions(bad, centres)
    with pytest.raises(ValueError, match="at least one mode"):
        gan.ring_centres(0)
    with pytest.raises(ValueError, match="n ≥ 1"):
        gan.ring(0)
    with pytest.raises(ValueError, match=r"z must be floats of shape \(B, 16\)"):
        gan.PointGenerator()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"points must be floats of shape \(B, 2\)"):
        gan.PointDiscriminator()(torch.zeros(2, 3))


# The step


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def make_step(G: nn.Module, D: nn.Module, lr: tuple[float, float] = (1e-2, 1e-2), **options):
    optimisers = [torch.optim.SGD(network.parameters(), rate) for network, rate in zip((G, D), lr, strict=True)]
    return gan.adversarial_step(G, D, *optimisers, rng(1), **options)


def test_a_step_is_the_two_updates_written_out():
    """D by the gradient of its loss at fixed fakes, then G through the new D; in float64."""
    G, D = (network.double() for network in networks(1, 8, normalise=False))
    G2, D2 = copy.deepcopy(G), copy.deepcopy(D)
    images = torch.rand(4, 1, 8, 8, generator=rng(), dtype=torch.float64)
    named = make_step(G, D, r1=0.5)((images, torch.arange(4)))  # labels that an unconditional network ignores

    z = torch.randn(4, 6, generator=rng(1)).double()
    real, fake = 2 * images - 1, G2(z)
    with torch.no_grad():
        fixed = fake.clone()
    real = real.requires_grad_()
    on_real, on_fake = D2(real), D2(fixed)
    slope = torch.autograd.grad(on_real.sum(), real, create_graph=True)[0]
    loss = -torch.log(torch.sigmoid(on_real)).mean() - torch.log(1 - torch.sigmoid(on_fake)).mean()
    loss_D = loss + 0.25 * slope.square().sum() / 4
    for p, g in zip(D2.parameters(), torch.autograd.grad(loss_D, list(D2.parameters())), strict=True):
        p.data -= 1e-2 * g
    loss_G = -torch.log(torch.sigmoid(D2(fake))).mean()
    for p, g in zip(G2.parameters(), torch.autograd.grad(loss_G, list(G2.parameters())), strict=True):
        p.data -= 1e-2 * g

    torch.testing.assert_close(weights(D), weights(D2), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(weights(G), weights(G2), rtol=1e-6, atol=1e-8)
    assert named["D"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert named["G"].item() == pytest.approx(loss_G.item(), rel=1e-6)
    assert named["D(x)"].item() == pytest.approx(on_real.sigmoid().mean().item(), rel=1e-6)


@pytest.mark.parametrize("moves", [0, 1], ids=["G", "D"])
def test_each_optimiser_moves_only_its_own_network(moves):
    pair = networks(1, 8)
    before = [weights(network) for network in pair]
    make_step(*pair, lr=(1e-2, 0.0) if moves == 0 else (0.0, 1e-2))(torch.rand(4, 1, 8, 8))
    changed = [not torch.equal(a, weights(network)) for a, network in zip(before, pair, strict=True)]
    assert changed == [moves == 0, moves == 1]
    assert all(p.requires_grad for network in pair for p in network.parameters()), "D is thawed again"


def test_frozen_restores_every_flag_also_after_an_error():
    D = networks(1, 8)[1]
    D.head.bias.requires_grad_(False)
    with pytest.raises(KeyError), gan.frozen(D):
        assert not any(p.requires_grad for p in D.parameters())
        raise KeyError
    assert [n for n, p in D.named_parameters() if not p.requires_grad] == ["head.bias"]


def test_generated_images_take_the_labels_of_the_real_ones():
    G, D = networks(1, 8, 10)
    seen = []
    for network in (G, D):
        network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].tolist()))
    make_step(G, D)((torch.rand(3, 1, 8, 8), torch.tensor([7, 1, 4])))
    assert seen == [[7, 1, 4]] * 4  # G once, D three times
    with pytest.raises(ValueError, match="labels are missing"):
        make_step(G, D)(torch.rand(3, 1, 8, 8))


def test_r1_looks_at_the_real_images():
    G, D = networks(1, 8, normalise=False)
    images = torch.rand(6, 1, 8, 8, generator=rng())
    expected = gan.r1_penalty(D, 2 * images - 1).item()
    assert make_step(G, D, r1=1.0)(images)["R1"].item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="expected r1 ≥ 0"):
        make_step(G, D, r1=-1.0)


def test_mixed_precision_changes_little():
    results = []
    for enabled in (False, True):
        G, D = networks(1, 28, normalise=False)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(make_step(G, D, r1=0.1)(torch.rand(8, 1, 28, 28, generator=rng())))
    for name, exact in results[0].items():
        assert results[1][name].dtype == torch.float32
        assert results[1][name].item() == pytest.approx(exact.item(), rel=0.03), name


def test_augmentation_is_differentiable_and_moves_images_whole():
    x = normal(6, 3, 8, 8).requires_grad_()
    y = gan.augment(x, rng())
    assert y.shape == x.shape and y.dtype == x.dtype
    assert torch.autograd.grad(y.square().sum(), x)[0].abs().sum((1, 2, 3)).min() > 0
    assert torch.autograd.gradcheck(lambda x: gan.augment(x, rng(1)), (x[:2].detach().requires_grad_(),))
    assert torch.equal(gan.augment(x, rng(2)), gan.augment(x, rng(2)))
    assert not torch.equal(y[0], gan.augment(x, rng(3))[0])


def test_augmentation_mirrors_and_shifts():
    """A bright column in a dark image shows where each image went: shifted at most, mirrored or not."""
    x = torch.zeros(400, 1, 8, 8)
    x[..., 1] = 1.0

    def columns(shift: float) -> torch.Tensor:
        return gan.augment(x, rng(), shift=shift).amax(2).argmax(2).flatten().bincount(minlength=8)

    unmoved = columns(0.0)
    assert unmoved.nonzero().flatten().tolist() == [1, 6] and 150 < unmoved[1] < 250
    assert columns(0.125).nonzero().flatten().tolist() == [0, 1, 2, 5, 6, 7]
    for bad in (x[0], x[:, 0]):
        with pytest.raises(ValueError, match=r"expected \(B, C, H, W\)"):
            gan.augment(bad, rng())
    with pytest.raises(ValueError, match=r"in \[0, 1\]; got .* and 1.5"):
        gan.augment(x, rng(), shift=1.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_augmentation_moves_wide_images_in_half_precision_as_in_single(dtype):
    """Positions beyond 256 have no bfloat16 of their own; beyond 2048 no float16."""
    x = torch.rand(2, 1, 4, 2100, generator=rng(5)).to(dtype)
    assert gan.augment(torch.ones_like(x), rng()).max() == 1
    moved = gan.augment(x, rng())
    assert moved.dtype == dtype and torch.equal(moved.float(), gan.augment(x.float(), rng()))


def test_augmentation_changes_no_value_under_autocast():
    x = torch.rand(4, 3, 8, 300, generator=rng(5))
    with torch.autocast("cpu", torch.bfloat16):
        moved = gan.augment(x, rng())
    assert torch.equal(moved, gan.augment(x, rng()))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            2 * torch.rand(4, 1, 8, 8, generator=rng()).round() - 1,
            ValueError,
            r"in \[0, 1\].*; got values from -1 to 1",
        ),
        (255 * torch.rand(4, 1, 8, 8, generator=rng()).round(), ValueError, r"in \[0, 1\].*; got values from 0 to 255"),
        (torch.full((4, 1, 8, 8), math.nan), ValueError, "without NaN; got values from nan"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), TypeError, "floating-point.* got torch.uint8"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"non-empty.*got shape \(0, 1, 8, 8\)"),
    ],
    ids=["[-1, 1]", "[0, 255]", "NaN", "bytes", "none"],
)
def test_a_step_refuses_a_first_batch_of_another_range(images, error, message):
    G, D = networks(1, 8)
    before = weights(D)
    step = make_step(G, D)
    for _ in range(2):  # also a second time: nothing has passed yet
        with pytest.raises(error, match=message):
            step(images)
    assert torch.equal(weights(D), before)


def test_a_step_does_not_wait_for_the_device():
    G, D = networks(1, 8, 10, normalise=False)
    step, batch = make_step(G, D, r1=0.5, augment=gan.augment), (torch.rand(4, 1, 8, 8), torch.arange(4))
    with HostReads() as reads:
        step(batch)
        first = reads.count
        step(batch)
    assert first > 0 and reads.count == first, "values are read at the first batch only"


def test_a_step_takes_doubles_and_numpys_numbers():
    results = []
    for dtype, r1 in ((torch.float32, 0.5), (torch.float64, np.float32(0.5))):
        G, D = networks(1, 8, normalise=False)
        results.append(make_step(G, D, r1=r1)(torch.rand(4, 1, 8, 8, generator=rng()).to(dtype)))
    for name, loss in results[0].items():
        torch.testing.assert_close(results[1][name], loss, check_dtype=False, rtol=1e-4, atol=1e-6)


def test_both_kinds_of_images_are_augmented():
    G, D = networks(1, 8)
    counted = []

    def note(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        counted.append((x.requires_grad, tuple(x.shape)))
        return x

    make_step(G, D, augment=note)(torch.rand(3, 1, 8, 8))
    assert counted == [(False, (3, 1, 8, 8)), (False, (3, 1, 8, 8)), (True, (3, 1, 8, 8))]


# Recipes, benchmark, shipped weights


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_runs(elsewhere):
    recipe = script("recipes")
    recipe.main(["--model", "dcgan_digits", "--quick", "--json", "scores.json"])
    assert json.loads((elsewhere / "scores.json").read_text())
    tensors, metadata = checkpoints.load(elsewhere / "build" / "dcgan_digits_quick.safetensors")
    assert "--model dcgan_digits" in metadata["recipe"] and tensors["project.weight"].dtype == torch.float16
    assert list((elsewhere / "build").glob("*.png"))


@pytest.mark.parametrize("model", ["gan_mnist", "dcgan_mnist", "dcgan_fashion_mnist", "dcgan_cats"])
def test_half_precision_generators_stay_small(model):
    recipe = script("recipes")
    preset = recipe.PRESETS[model]
    C, size, limit = (3, 64, common.MAX_BYTES_64) if preset.data == "cat_faces" else (1, 28, common.MAX_BYTES)
    classes = ("cat",) if preset.data == "cat_faces" else tuple("0123456789")
    one = datasets.ImageSet("x", torch.zeros(1, C, size, size).byte(), torch.zeros(1).long(), classes)
    generator, discriminator = preset.networks(one)
    assert sum(2 * t.numel() for t in generator.state_dict().values()) < limit - 1e5
    labels = (torch.zeros(2).long(),) if preset.conditional else ()
    assert discriminator(generator(torch.zeros(2, preset.z_dim), *labels), *labels).shape == (2,)


def test_the_benchmark_runs(elsewhere):
    script("benchmarks").main(["--quick", "--json", "speed.json"])
    report = json.loads((elsewhere / "speed.json").read_text())
    steps = {row["step"]: row for row in report["rows"]}
    assert steps["tutorial"]["ratio"] == 1 and all(row["size"] == 8 and row["ratio"] > 0 for row in steps.values())
    assert "ours, float32" in steps


@pytest.mark.parametrize("name", ["gan_mnist", "dcgan_mnist", "dcgan_fashion_mnist", "dcgan_cats"])
def test_load_builds_what_the_recipe_trains(name, tmp_path, monkeypatch):
    """A checkpoint in half precision of the preset's own generator, found by its name."""
    preset = script("recipes").PRESETS[name]
    C, size = (3, 64) if preset.data == "cat_faces" else (1, 28)
    shape = datasets.ImageSet("shape", torch.zeros(1, C, size, size).byte(), torch.zeros(1).long(), ("",) * 10)
    G = preset.networks(shape)[0].half()
    monkeypatch.setattr(checkpoints, "folder", lambda: tmp_path)
    checkpoints.save(tmp_path / f"{name}.safetensors", G.state_dict(), recipe="none", seed=0, score="none")
    loaded = zoo.load(name, "cpu")
    z, labels = normal(3, G.z_dim, dtype=torch.float32), torch.tensor([0, 1, 9])
    given_ = (labels,) if G.classes else ()
    assert torch.equal(loaded(z, *given_), G.float().eval()(z, *given_))
    assert (loaded.z_dim, loaded.classes) == (G.z_dim, G.classes)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    checkpoints.save(tmp_path / f"{name}.safetensors", {"x": z}, recipe="none", seed=0, score="none")
    with pytest.raises(checkpoints.CheckpointError, match="does not fit"):
        zoo.load(name)
    (tmp_path / f"{name}.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        zoo.load(name)


# What the shipped generators reach, with some room: 2,000 images of a fixed noise, seen by the classifier.
SHIPPED = {
    "gan_mnist": {"largest class": 0.22},
    "dcgan_mnist": {"largest class": 0.2},
    "dcgan_mnist_conditional": {"largest class": 0.11, "agreement": 0.99},
    "dcgan_fashion_mnist": {"largest class": 0.14, "agreement": 0.91},
}


@pytest.mark.parametrize("model", SHIPPED)
def test_shipped_generators_draw_all_classes_and_the_one_asked_for(model):
    """By the shipped classifier alone, so that the test needs no data."""
    generator, bars = zoo.load(model), SHIPPED[model]
    labels = torch.arange(2000) % 10
    images = gan.sample(generator, 2000, labels if generator.classes else None, rng())
    judge = zoo.load("classifier_fashion_mnist" if "fashion" in model else "classifier_mnist")
    with torch.no_grad():
        seen = torch.cat([judge(part).argmax(1) for part in images.split(500)])
    shares = seen.bincount(minlength=10) / 2000
    assert shares.min() > 0.005 and shares.max() < bars["largest class"], shares
    if "agreement" in bars:
        assert (seen == labels).float().mean() >= bars["agreement"]


def test_shipped_cats_are_varied_images():
    """No classifier knows them; at least no two are alike, and none is flat."""
    images = gan.sample(zoo.load("dcgan_cats"), 200, rng=rng())
    assert images.shape == (200, 3, 64, 64)
    assert torch.pdist(images.flatten(1)).min() > 1
    assert images.flatten(1).std(1).min() > 0.03


def test_held_out_images_are_the_floor_of_generated_ones():
    """Of training images passed off as generated, of the held-out ones themselves, and of noise."""
    training, held_out = (datasets.load("digits", split)[:][0] for split in datasets.SPLITS)
    real = metrics.extractor("digits")(training)
    found = common.beside_held_out(training, "digits")
    assert found["images"] == len(held_out) == 297
    assert found["generated"] == metrics.frechet_distance(real, real[:297])
    assert found["held-out"] == metrics.frechet_distance(real, metrics.extractor("digits")(held_out))
    few = common.beside_held_out(torch.rand(100, 1, 8, 8), "digits")
    assert few["images"] == 100 and few["generated"] > 5 * few["held-out"]


def test_theory_of_densities_in_bytes_and_halves():
    for p in (torch.tensor([200, 0], dtype=torch.uint8), torch.tensor([40000.0, 0]).half()):
        assert losses.optimal_discriminator(p, p).tolist() == [0.5, 0.5]
        assert float(losses.jensen_shannon(p, p, 1 / float(p.max()))) == pytest.approx(0, abs=1e-5)


def test_slerp_refuses_integers():
    with pytest.raises(TypeError, match="floats"):
        gan.slerp(torch.tensor([[1, 0]]), torch.tensor([[0, 1]]), 0.5)


def test_labels_of_any_integers_are_drawn():
    generator, z = gan.Generator(z_dim=4, size=8, width=4, classes=3), normal(2, 4, dtype=torch.float32)
    expected = gan.sample(generator, z, torch.tensor([2, 0]))
    for kind in (np.int32, np.uint8):
        assert torch.equal(gan.sample(generator, z, np.array([2, 0], kind)), expected)
    for wrong in ([2.0, 0.0], [True, False]):
        with pytest.raises(ValueError, match="labels must be a tensor of int64"):
            gan.sample(generator, z, torch.tensor(wrong))
