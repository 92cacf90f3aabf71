"""Answers to the turns of 08_text_to_image: `_other` is right and written otherwise, the `_wrong`s are not."""

import math

import torch
import torch.nn.functional as F


def attention_other(q, k, v, mask):
    """One exponential after the other, without softmax."""
    scores = torch.einsum("...ld,...sd->...ls", q, k) * q.shape[-1] ** -0.5
    weights = torch.where(mask, (scores - scores.amax(-1, keepdim=True)).exp(), 0.0)
    return torch.einsum("...ls,...se->...le", weights / weights.sum(-1, keepdim=True), v)


def attention_wrong_1(q, k, v, mask):
    """Masked after the softmax: the weights no longer sum to 1."""
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights * mask) @ v


def attention_wrong_2(q, k, v, mask):
    """Without the square root of d."""
    return (q @ k.transpose(-2, -1)).masked_fill(~mask, -math.inf).softmax(-1) @ v


def attention_wrong_3(q, k, v, mask):
    """Exchanges dimensions 1 and 2, counted from the front: right for (B, L, d), but not with heads before L."""
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ v


def contrastive_other(x, y, scale):
    logits = scale * torch.einsum("id,jd->ij", x, y)
    own = logits.diagonal()
    return ((logits.logsumexp(1) - own).mean() + (logits.logsumexp(0) - own).mean()) / 2


def contrastive_wrong_1(x, y, scale):
    """Only pictures look for captions, not the other way round."""
    return F.cross_entropy(scale * x @ y.T, torch.arange(len(x)))


def contrastive_wrong_2(x, y, scale):
    """The temperature where its inverse belongs."""
    return (
        F.cross_entropy(x @ y.T / scale, torch.arange(len(x))) + F.cross_entropy(y @ x.T / scale, torch.arange(len(x)))
    ) / 2


def zero_shot_other(pictures, classes, scale):
    weights = torch.exp(scale * F.cosine_similarity(pictures[:, None], classes[None], dim=2))
    return weights / weights.sum(1, keepdim=True)


def zero_shot_wrong_1(pictures, classes, scale):
    """Longer vectors win."""
    return (scale * pictures @ classes.T).softmax(1)


def zero_shot_wrong_2(pictures, classes, scale):
    """Softmax over the pictures."""
    return (scale * F.normalize(pictures, dim=1) @ F.normalize(classes, dim=1).T).softmax(0)


def prior_loss_other(network, x0, t, y, noise, alpha_bar):
    signal = alpha_bar.sqrt().index_select(0, t).unsqueeze(1)
    rest = (1 - alpha_bar).sqrt().index_select(0, t).unsqueeze(1)
    return F.mse_loss(network(signal * x0 + rest * noise, t, y), x0)


def prior_loss_wrong_1(network, x0, t, y, noise, alpha_bar):
    """The noise as the target, as in lesson 6."""
    a = alpha_bar[t][:, None]
    return (network(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, y) - noise).square().mean()


def prior_loss_wrong_2(network, x0, t, y, noise, alpha_bar):
    """Without the square roots."""
    a = alpha_bar[t][:, None]
    return (network(a * x0 + (1 - a) * noise, t, y) - x0).square().mean()


def look_up_other(q, k, v, mask):
    """Pixels stay where they are: einsum over rows and columns at once."""
    scores = torch.einsum("...dhw,...sd->...shw", q, k) / math.sqrt(q.shape[-3])
    weights = scores.masked_fill(~mask[..., None, None], -math.inf).softmax(-3)
    return torch.einsum("...shw,...se->...ehw", weights, v)


def look_up_wrong_1(q, k, v, mask):
    """Cuts the map into rows by a reshape: a row is then no pixel."""
    rows = q.reshape(*q.shape[:-3], -1, q.shape[-3])
    found = attention_other(rows, k, v, mask[..., None, :])
    return found.transpose(-2, -1).unflatten(-1, q.shape[-2:])


def look_up_wrong_2(q, k, v, mask):
    """Every pixel looks at all words, also at padding."""
    found = attention_other(q.flatten(-2).transpose(-2, -1), k, v, torch.ones_like(mask)[..., None, :])
    return found.transpose(-2, -1).unflatten(-1, q.shape[-2:])
