"""Answers to the turns of 06_diffusion: `_other` is right, written differently; `_wrong_1` and `_wrong_2` are not."""

import torch
from torch.distributions import Normal


def q_sample_other(x0, t, noise, alpha_bar):
    """Picture by picture."""
    pictures = zip(x0, t.tolist(), noise, strict=True)
    return torch.stack([alpha_bar[k] ** 0.5 * x + (1 - alpha_bar[k]) ** 0.5 * e for x, k, e in pictures])


def q_sample_wrong_1(x0, t, noise, alpha_bar):
    """Factors (B,) along the last axis: of one picture each column is faded otherwise, or shapes do not fit."""
    a = alpha_bar[t]
    return (a.sqrt() * x0.transpose(0, -1)).transpose(0, -1) + (1 - a).sqrt().mean() * noise


def q_sample_wrong_2(x0, t, noise, alpha_bar):
    """The variance of the noise instead of its standard deviation."""
    a = alpha_bar[t].view(-1, *[1] * (x0.ndim - 1))
    return a.sqrt() * x0 + (1 - a) * noise


def posterior_other(x0, x, t, alpha_bar):
    """Precisions and what they weigh add up, as in any product of Gaussians."""
    if t == 1:
        return x0, 0.0
    alpha_t = alpha_bar[t] / alpha_bar[t - 1]
    of_x0, of_xt = 1 / (1 - alpha_bar[t - 1]), alpha_t / (1 - alpha_t)
    variance = 1 / (of_x0 + of_xt)
    return variance * (of_x0 * alpha_bar[t - 1].sqrt() * x0 + of_xt * x / alpha_t.sqrt()), variance


def posterior_wrong_1(x0, x, t, alpha_bar):
    """ᾱ_t for ᾱ_{t−1} in the weight of X_0."""
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    mean = now.sqrt() * beta / (1 - now) * x0 + (now / before).sqrt() * (1 - before) / (1 - now) * x
    return mean, (1 - before) / (1 - now) * beta


def posterior_wrong_2(x0, x, t, alpha_bar):
    """β_t, the variance of the step forward, for that of the step back."""
    now, before = alpha_bar[t], alpha_bar[t - 1]
    beta = 1 - now / before
    mean = before.sqrt() * beta / (1 - now) * x0 + (now / before).sqrt() * (1 - before) / (1 - now) * x
    return mean, beta


def training_loss_other(network, x0, t, noise, c, alpha_bar):
    """Up to constants the log density of the noise under a Gaussian around the network's answer."""
    answer = network(q_sample_other(x0, t, noise, alpha_bar), t, c)
    constant = Normal(0.0, 1.0).log_prob(torch.zeros(()))
    return 2 * (constant - Normal(answer, 1.0).log_prob(noise)).mean()


def training_loss_wrong_1(network, x0, t, noise, c, alpha_bar):
    """The network sees the clean picture."""
    return (noise - network(x0, t, c)).square().mean()


def training_loss_wrong_2(network, x0, t, noise, c, alpha_bar):
    """A sum over pixels: its size, and so the learning rate, depends on the size of the pictures."""
    error = noise - network(q_sample_other(x0, t, noise, alpha_bar), t, c)
    return error.square().flatten(1).sum(1).mean()


def ancestral_other(network, x, c, noises, alpha_bar):
    """A generator; each step through X̂_0 and the posterior."""
    yield x
    for t in reversed(range(1, len(alpha_bar))):
        epsilon = network(x, torch.full_like(c, t), c)
        x0 = (x - (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_bar[t].sqrt()
        mean, variance = posterior_other(x0, x, t, alpha_bar)
        x = mean + variance**0.5 * noises[t]
        yield x


def ancestral_wrong_1(network, x, c, noises, alpha_bar):
    """β_t as the standard deviation, and noise in the last step, too."""
    states = [x]
    for t in range(len(alpha_bar) - 1, 0, -1):
        alpha_t = alpha_bar[t] / alpha_bar[t - 1]
        epsilon = network(x, torch.full((len(x),), t), c)
        x = (x - (1 - alpha_t) / (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_t.sqrt() + (1 - alpha_t) * noises[t]
        states.append(x)
    return states


def ancestral_wrong_2(network, x, c, noises, alpha_bar):
    """The loop counts upwards, as that of the forward process does."""
    states = [x]
    for t in range(1, len(alpha_bar)):
        alpha_t = alpha_bar[t] / alpha_bar[t - 1]
        epsilon = network(x, torch.full((len(x),), t), c)
        mean = (x - (1 - alpha_t) / (1 - alpha_bar[t]).sqrt() * epsilon) / alpha_t.sqrt()
        states.append(x := mean + posterior_other(x, x, t, alpha_bar)[1] ** 0.5 * noises[t])
    return states
