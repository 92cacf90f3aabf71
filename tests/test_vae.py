"""The VAE's terms against torch.distributions and sampling, its bound where log p(x) is known, and the shipped one."""

import importlib
import math
from pathlib import Path

import pytest
import torch
from conftest import HostReads, normal, rng, uniform
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from course_lib import vae
from course_lib.base import checkpoints, datasets, metrics, zoo
from course_lib.base.loop import Loop

ROOT = Path(__file__).resolve().parents[1]
drawn = settings(max_examples=60, deadline=None, derandomize=True, database=None)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def tiny(seed: int = 0, **changes) -> vae.VAE:
    torch.manual_seed(seed)
    return vae.VAE(**{"channels": 1, "size": 4, "hidden": 12, "z_dim": 3} | changes).double()


# The terms


@drawn
@given(shape=shapes, seed=st.integers(0, 999))
def test_kl_equals_torch(shape, seed):
    mu, log_var = normal(*shape, seed=seed), 2 * normal(*shape, seed=seed + 1)
    expected = kl_divergence(Normal(mu, (log_var / 2).exp()), Normal(torch.zeros_like(mu), 1.0)).sum(-1)
    torch.testing.assert_close(vae.kl_divergence(mu, log_var), expected)


def test_kl_equals_its_sampled_definition():
    """E_q [log q(z) − log p(z)] over a million draws."""
    mu, log_var = torch.tensor([0.7, -1.2], dtype=torch.float64), torch.tensor([0.4, -1.5], dtype=torch.float64)
    z = vae.reparameterise(mu, log_var, normal(1_000_000, 2))
    zero = torch.zeros_like(mu)
    difference = vae.gaussian_log_density(z, mu, log_var) - vae.gaussian_log_density(z, zero, zero)
    error = float(difference.std()) / 1000
    assert abs(float(difference.mean() - vae.kl_divergence(mu, log_var))) < 4 * error < 0.02


def test_kl_is_zero_at_the_prior_alone():
    assert float(vae.kl_divergence(torch.zeros(4), torch.zeros(4))) == 0
    assert (vae.kl_divergence(normal(100, 4), normal(100, 4, seed=1)) > 0).all()


def test_gaussian_log_density_equals_torch():
    x, mu, log_var = normal(5, 1, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    expected = Normal(mu, (log_var / 2).exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.gaussian_log_density(x, mu, log_var), expected)


def test_bernoulli_log_likelihood_equals_torch():
    logits = 3 * normal(5, 2, 1, 4, 4)
    coins = (uniform(2, 1, 4, 4) < 0.5).double()
    found = vae.bernoulli_log_likelihood(logits, coins)
    torch.testing.assert_close(found, Bernoulli(logits=logits).log_prob(coins).sum((-3, -2, -1)))
    # Of a grey: between black's and white's, in proportion.
    black, white = torch.zeros_like(coins), torch.ones_like(coins)
    grey = vae.bernoulli_log_likelihood(logits, black + 0.3)
    expected = 0.7 * vae.bernoulli_log_likelihood(logits, black) + 0.3 * vae.bernoulli_log_likelihood(logits, white)
    torch.testing.assert_close(grey, expected)
    assert vae.bernoulli_log_likelihood(torch.full((1, 1, 1), 1e4), torch.ones(1, 1, 1)) == 0  # not NaN


def test_reparameterised_draws_have_mean_and_variance_and_pass_gradients():
    mu, log_var = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, -1.0]).double()
    z = vae.reparameterise(mu, log_var, normal(200_000, 2))
    assert (z.mean(0) - mu).abs().max() < 0.02 and (z.var(0) / log_var.exp() - 1).abs().max() < 0.02
    inputs = [normal(2, 3, seed=seed).requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(vae.reparameterise, inputs)
    assert torch.autograd.gradcheck(vae.kl_divergence, inputs[:2])


# The bound, where log p(x) is known


def linear(seed: int = 0) -> tuple[vae.LinearGaussian, torch.Tensor]:
    model = vae.LinearGaussian(normal(5, 2, seed=seed), normal(5, seed=seed + 1), 0.6)
    z, noise = normal(7, 2, seed=seed + 2), normal(7, 5, seed=seed + 3)
    return model, z @ model.W.T + model.b + model.s * noise


def test_exact_likelihood_and_posterior_equal_scipy_and_bayes():
    model, x = linear()
    covariance = model.W @ model.W.T + model.s**2 * torch.eye(5).double()
    expected = torch.from_numpy(stats.multivariate_normal(model.b.numpy(), covariance.numpy()).logpdf(x.numpy()))
    torch.testing.assert_close(model.log_likelihood(x), expected)
    mean, posterior = model.posterior(x)
    # Bayes: p(z|x) p(x) = p(x|z) p(z), at any z.
    z = normal(7, 2, seed=9)
    joint = Normal(z @ model.W.T + model.b, model.s).log_prob(x).sum(1) + Normal(0.0, 1.0).log_prob(z).sum(1)
    given_x = MultivariateNormal(mean, posterior).log_prob(z)
    torch.testing.assert_close(joint - given_x, model.log_likelihood(x))


@drawn
@given(seed=st.integers(0, 999), far=st.floats(0, 2))
def test_the_elbo_is_below_the_likelihood_by_the_divergence_from_the_posterior(seed, far):
    model, x = linear(seed)
    mean, posterior = model.posterior(x)
    L = torch.linalg.cholesky(posterior) + far * normal(2, 2, seed=seed + 7).tril()
    mu, covariance = mean + far * normal(7, 2, seed=seed + 8), L @ L.T + 1e-6 * torch.eye(2)
    bound, exact = model.elbo(x, mu, covariance), model.log_likelihood(x)
    assert (bound <= exact + 1e-9).all()
    gap = kl_divergence(MultivariateNormal(mu, covariance), MultivariateNormal(mean, posterior))
    torch.testing.assert_close(exact - bound, gap, rtol=1e-6, atol=1e-6)


def test_the_elbo_is_the_likelihood_at_the_posterior():
    model, x = linear()
    torch.testing.assert_close(model.elbo(x, *model.posterior(x)), model.log_likelihood(x))


def test_the_elbo_equals_its_sampled_definition():
    model, x = linear()
    mu, log_var = normal(7, 2, seed=4), -1 + 0.3 * normal(7, 2, seed=5)
    variance = log_var[0].exp()  # one covariance for all images
    z = vae.reparameterise(mu, log_var[0], normal(40_000, 7, 2, seed=6))
    likelihood = Normal(z @ model.W.T + model.b, model.s).log_prob(x).sum(-1)
    sampled = likelihood - vae.kl_divergence(mu, log_var[0].expand_as(mu))
    error = sampled.std(0) / 200
    difference = sampled.mean(0) - model.elbo(x, mu, variance.diag())
    assert (difference.abs() < 4.5 * error).all()


def test_importance_bound_rises_from_the_elbo_to_the_likelihood():
    model, x = linear()
    mean, posterior = model.posterior(x)
    log_var = (2 * posterior.diagonal()).log().expand_as(mean)  # a q that is not the posterior
    noise = normal(64 * 200, 7, 2, seed=6)
    z = vae.reparameterise(mean, log_var, noise)
    zero = torch.zeros_like(mean)
    log_joint = Normal(z @ model.W.T + model.b, model.s).log_prob(x).sum(-1) + vae.gaussian_log_density(z, zero, zero)
    log_q = vae.gaussian_log_density(z, mean, log_var)
    bounds = [
        torch.stack(
            [vae.importance_bound(*pair) for pair in zip(log_joint.split(K), log_q.split(K), strict=True)]
        ).mean(0)
        for K in (1, 8, 64)
    ]
    exact = model.log_likelihood(x)
    assert (bounds[0] < bounds[1]).all() and (bounds[1] < bounds[2]).all() and (bounds[2] < exact + 0.02).all()
    assert (exact - bounds[2] < 0.1).all()
    q_is_posterior = MultivariateNormal(mean, posterior)
    draws = q_is_posterior.rsample((3,))
    joint = Normal(draws @ model.W.T + model.b, model.s).log_prob(x).sum(-1)
    joint = joint + vae.gaussian_log_density(draws, zero, zero)
    torch.testing.assert_close(vae.importance_bound(joint, q_is_posterior.log_prob(draws)), exact)


# The network


@pytest.mark.parametrize(("channels", "size", "z_dim"), [(1, 8, 2), (3, 5, 4)])
def test_shapes(channels, size, z_dim):
    network = tiny(channels=channels, size=size, z_dim=z_dim)
    images, noise = uniform(6, channels, size, size), normal(6, z_dim)
    logits, mu, log_var = network(images, noise)
    assert logits.shape == images.shape and mu.shape == log_var.shape == (6, z_dim)
    assert [term.shape for term in vae.elbo(network, images, noise)] == [(6,), (6,)]
    assert vae.log_likelihood(network, images, normal(4, 6, z_dim)).shape == (6,)
    assert network.decode(normal(2, 3, z_dim)).shape == (2, 3, channels, size, size)


def test_the_elbo_is_made_of_its_terms():
    network, images, noise = tiny(), uniform(6, 1, 4, 4), normal(6, 3)
    likelihood, divergence = vae.elbo(network, images, noise)
    mu, log_var = network.encode(images)
    logits = network.decode(mu + (log_var / 2).exp() * noise)
    expected = (images * logits.sigmoid().log() + (1 - images) * (1 - logits.sigmoid()).log()).sum((1, 2, 3))
    torch.testing.assert_close(likelihood, expected)
    torch.testing.assert_close(divergence, kl_divergence(Normal(mu, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1))


def test_log_likelihood_equals_a_sum_over_the_plane():
    """With z in two dimensions the integral of p(x|z) p(z) can be summed on a grid."""
    network, images = tiny(z_dim=2), (uniform(3, 1, 4, 4) < 0.4).double()
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    logits = network.decode(z)[:, None]
    log_joint = vae.bernoulli_log_likelihood(logits, images) + Normal(0.0, 1.0).log_prob(z).sum(1)[:, None]
    exact = torch.logsumexp(log_joint, 0) + 2 * math.log(0.05)
    noise = normal(4000, 3, 2)
    found = vae.log_likelihood(network, images, noise)
    assert (found - exact).abs().max() < 0.02
    likelihood, divergence = (torch.stack([vae.elbo(network, images, n)[i] for n in noise[:300]]) for i in (0, 1))
    assert ((likelihood - divergence).mean(0) < exact).all()


def test_an_image_does_not_depend_on_its_neighbours():
    network, images, noise = tiny(), uniform(5, 1, 4, 4), normal(5, 3)
    together = network(images, noise)
    for i in range(5):
        alone = network(images[i : i + 1], noise[i : i + 1])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[i])


def test_sampling_gives_the_means(device):
    network = tiny().float().to(device)
    z = normal(4, 3).float().to(device)
    images = vae.sample(network, z)
    assert images.device.type == device.type and images.min() >= 0 and images.max() <= 1
    torch.testing.assert_close(images, network.decode(z).sigmoid().detach())
    one, two = (vae.sample(network, 5, rng()) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (5, 1, 4, 4)


# Training


def test_gradients_reach_every_parameter():
    network = tiny().float()
    step = vae.vae_step(network, torch.optim.Adam(network.parameters()), rng())
    before = [parameter.clone() for parameter in network.parameters()]
    losses = step((torch.rand(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)))
    assert set(losses) == {"reconstruction", "KL"} and not any(loss.requires_grad for loss in losses.values())
    for (name, parameter), old in zip(network.named_parameters(), before, strict=True):
        assert parameter.grad.abs().max() > 0 and not torch.equal(parameter, old), name


def test_training_approaches_the_entropy_of_a_known_source():
    """Two images, equally frequent: no model beats −log 2 nats, and a VAE with one bit of z gets near."""
    data = torch.zeros(64, 1, 4, 4)
    data[::2, :, :2], data[1::2, :, 2:] = 1, 1
    torch.manual_seed(0)
    network, noise_source = vae.VAE(1, 4, 32, 2), rng()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    parts = {"vae": network, "optimiser": optimiser, "rng": noise_source}
    Loop(vae.vae_step(network, optimiser, noise_source), data, steps=500, batch_size=32, stateful=parts).run()
    likelihood, divergence = vae.elbo(network, data, torch.randn(64, 2, generator=noise_source))
    found = float((likelihood - divergence).mean().detach())
    assert (
        -2.2 < found < -math.log(2) + 0.15
    )  # from −11; one draw of z each, so the estimate may exceed the bound a little
    noise = torch.randn(2000, 64, 2, generator=noise_source)
    assert -2.0 < float(vae.log_likelihood(network, data, noise).mean().detach()) < -math.log(2) + 0.01


def test_a_step_does_not_wait_for_the_device():
    network = tiny()
    step = vae.vae_step(network, torch.optim.SGD(network.parameters(), 1e-3), rng())
    with HostReads() as reads:
        step(uniform(8, 1, 4, 4))
        first = reads.count
        step(uniform(8, 1, 4, 4))
    assert first > 0 and reads.count == first, "values are read at the first batch only"


def test_works_on_images_of_other_dtypes():
    """Doubles are as good as floats, and sums over the pixels of half-precision images are not rounded to half."""
    network, images, noise = tiny(size=28).float(), uniform(4, 1, 28, 28).bfloat16(), normal(4, 3)
    single = torch.stack(vae.elbo(network, images.float(), noise.float()))
    for dtype in (torch.float64, torch.bfloat16):
        found = torch.stack(vae.elbo(network, images.to(dtype), noise.to(dtype)))
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        rtol = 1e-5 if dtype == torch.float64 else 2e-3  # the noise is rounded
        torch.testing.assert_close(found, single, check_dtype=False, rtol=rtol, atol=0)
        bound = vae.log_likelihood(network, images.to(dtype), noise.expand(5, -1, -1).to(dtype))
        torch.testing.assert_close(bound, single[0] - single[1], check_dtype=False, rtol=1e-1, atol=0)
    assert vae.sample(network, normal(2, 3)).dtype == torch.float32
    step = vae.vae_step(network, torch.optim.SGD(network.parameters(), 1e-3), rng())
    assert step(uniform(8, 1, 28, 28))["KL"] > 0


# Bad input


def test_refuses_bad_input():
    network = tiny()
    with pytest.raises(ValueError, match=r"\(B, 1, 4, 4\); got .*\(2, 3, 4, 4\)"):
        network.encode(uniform(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"got .*\(0, 1, 4, 4\)"):
        network.encode(uniform(0, 1, 4, 4))
    with pytest.raises(ValueError, match=r"floats.*got torch.uint8"):
        network.encode(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    signed, nothing = 2 * uniform(2, 1, 4, 4).round() - 1, uniform(2, 1, 4, 4) * math.nan
    for images, message in (
        (signed, r"in \[0, 1\], without NaN; got values from -1 to"),
        (nothing, "without NaN; got values from nan"),
    ):
        with pytest.raises(ValueError, match=message):
            vae.vae_step(network, torch.optim.SGD(network.parameters()), rng())(images)
        with pytest.raises(ValueError, match=message):
            vae.log_likelihood(network, images, normal(4, 2, 3))
    with pytest.raises(ValueError, match=r"z \(\.\.\., 3\), got \(2, 4\)"):
        network.decode(normal(2, 4))
    with pytest.raises(ValueError, match="at least one image; got 0"):
        vae.sample(network, 0)
    with pytest.raises(ValueError, match=r"W \(d, z_dim\) and b \(d,\), got \(5, 2\) and \(4,\)"):
        vae.LinearGaussian(normal(5, 2), normal(4), 1.0)
    with pytest.raises(ValueError, match="s > 0, got -1"):
        vae.LinearGaussian(normal(5, 2), normal(5), -1.0)
    with pytest.raises(ValueError, match=r"noise \(2, 3\), got \(3, 3\)"):
        network(uniform(2, 1, 4, 4), normal(3, 3))
    with pytest.raises(ValueError, match=r"noise \(K, 2, 3\), got \(2, 3\)"):
        vae.log_likelihood(network, uniform(2, 1, 4, 4), normal(2, 3))


# What ships


def test_the_recipe(tmp_path, monkeypatch):
    if not datasets.is_available("mnist"):
        pytest.skip("needs MNIST, in COURSE_DATA or the cache")
    monkeypatch.chdir(tmp_path)
    recipe = importlib.import_module("recipes.vae")
    scores = recipe.main(["--quick"])
    assert scores["ELBO, nats"] < 0 and float(scores["Fréchet distance"]) > 0
    metadata = checkpoints.restore(vae.VAE(), tmp_path / "build" / "vae_mnist_quick.safetensors")
    assert metadata["recipe"].startswith("python recipes/vae.py --steps 20")
    assert list(Path("build").glob("*.png"))


def test_the_shipped_vae():
    network = zoo.load("vae_mnist")
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    images = vae.sample(network, 2000, rng(1))
    kinds = zoo.load("classifier_mnist")(images).argmax(1).bincount(minlength=10)
    assert kinds.min() > 60 and kinds.max() < 500


def test_the_shipped_vae_on_held_out_digits():
    if not datasets.is_available("mnist"):
        pytest.skip("needs MNIST, in COURSE_DATA or the cache")
    network, held_out = zoo.load("vae_mnist"), datasets.load("mnist", "test")[:][0]
    images = vae.sample(network, 2000, rng(1))
    with torch.no_grad():
        terms = vae.elbo(network, held_out, torch.randn(len(held_out), network.z_dim, generator=rng()))
    assert float((terms[0] - terms[1]).mean()) > -102
    features = metrics.extractor("mnist")
    assert metrics.frechet_distance(features(held_out), features(images)) < 10


def test_terms_in_half_precision_do_not_overflow():
    half = {"dtype": torch.float16}
    assert float(vae.kl_divergence(torch.full((1, 1), 300.0, **half), torch.zeros(1, 1, **half))) == 45000
    density = vae.gaussian_log_density(
        torch.full((1, 4), 0.01, **half), torch.zeros(1, 4, **half), torch.full((1, 4), -18.0, **half)
    )
    assert float(density) == pytest.approx(-13105, rel=1e-2)
    likelihood = vae.bernoulli_log_likelihood(torch.zeros(1, 1, 320, 320, **half), torch.zeros(1, 1, 320, 320, **half))
    assert float(likelihood) == pytest.approx(-320 * 320 * math.log(2), rel=1e-5)
    ratios = [float(vae.importance_bound(torch.tensor([[1001.0, 1000]], **half), torch.tensor([[0.25, 0]], **half))[k])
              for k in (0, 1)]  # fmt: skip
    assert ratios == [1000.75, 1000.0]


def test_integers_are_no_images_but_booleans_are():
    logits, coins = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1) > 0
    assert torch.equal(
        vae.bernoulli_log_likelihood(logits, coins), vae.bernoulli_log_likelihood(logits, coins.double())
    )
    with pytest.raises(TypeError, match="floats in .0, 1. or booleans; got torch.uint8"):
        vae.bernoulli_log_likelihood(logits, 255 * coins.byte())
