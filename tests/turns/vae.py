"""Answers to the turns of the VAE's lesson: right ones written differently, and wrong ones as students give them."""

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence


def reparameterise_other(mu, log_var, noise):
    return torch.addcmul(mu, log_var.exp().sqrt(), noise)


def reparameterise_wrong_1(mu, log_var, noise):
    """σ² for σ."""
    return mu + log_var.exp() * noise


def reparameterise_wrong_2(mu, log_var, noise):
    """Its own dice."""
    return mu + torch.exp(0.5 * log_var) * torch.randn_like(mu)


def divergence_other(mu, log_var):
    return kl_divergence(Normal(mu, torch.exp(log_var / 2)), Normal(torch.zeros_like(mu), 1.0)).sum(-1)


def divergence_wrong_1(mu, log_var):
    """A mean over the dimensions."""
    return 0.5 * (mu**2 + log_var.exp() - 1 - log_var).mean(-1)


def divergence_wrong_2(mu, log_var):
    """σ for σ²."""
    sigma = torch.exp(0.5 * log_var)
    return 0.5 * (mu**2 + sigma - 1 - log_var).sum(-1)


def log_likelihood_other(logits, x):
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def log_likelihood_wrong_1(logits, x):
    """Logarithms of rounded probabilities."""
    y = logits.sigmoid()
    return (x * y.log() + (1 - x) * (1 - y).log()).sum((1, 2, 3))


def log_likelihood_wrong_2(logits, x):
    """Only the white pixels."""
    return (x * F.logsigmoid(logits)).sum((1, 2, 3))


def _terms(network, x, z, mu, log_var):
    return log_likelihood_other(network.decode(z), x), divergence_other(mu, log_var)


def elbo_other(network, x, noise):
    mu, log_var = network.encode(x)
    return _terms(network, x, mu + log_var.exp() ** 0.5 * noise, mu, log_var)


def elbo_wrong_1(network, x, noise):
    """Decodes the middle of the cloud."""
    mu, log_var = network.encode(x)
    return _terms(network, x, mu, mu, log_var)


def elbo_wrong_2(network, x, noise):
    """One number for the whole batch."""
    return tuple(term.mean() for term in elbo_other(network, x, noise))
