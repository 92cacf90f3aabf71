"""Answers to the turns of lesson 9: two wrong ones of the kind students give, and a right one written differently."""

import itertools
import math

import torch


def psnr_y_wrong_1(y, x, r):
    """Compares all three colours instead of the brightness."""
    return -10 * (y - x)[..., r:-r, r:-r].square().mean((1, 2, 3)).log10()


def psnr_y_wrong_2(y, x, r):
    """Forgets to cut the border."""
    weights = torch.tensor([65.481, 128.553, 24.966]).to(x) / 255
    return -10 * ((y - x) * weights[:, None, None]).sum(1).square().mean((1, 2)).log10()


def psnr_y_other(y, x, r):
    """Each Y first, by an einsum; 20 log₁₀ of the root; a loop over the images."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=x.dtype)
    a, b = (torch.einsum("c,bchw->bhw", weights, z) + 16 for z in (y, x))
    H, W = a.shape[1:]
    errors = [(p - q)[r : H - r, r : W - r].pow(2).mean().sqrt() for p, q in zip(a, b, strict=True)]
    return torch.stack([20 * torch.log10(255 / error) for error in errors])


def replace_wrong_1(x, known, mask, s, noise, schedule):
    """Puts the clean image there, whatever the time."""
    return torch.where(mask, known, x)


def replace_wrong_2(x, known, mask, s, noise, schedule):
    """Takes the mask for what is missing."""
    a = schedule.alpha_bar[s].item()
    return torch.where(mask, x, math.sqrt(a) * known + math.sqrt(1 - a) * noise)


def replace_other(x, known, mask, s, noise, schedule):
    """By the library's q_sample, and assignment into a copy."""
    from course_lib import diffusion

    found, there = x.clone(), mask.expand(x.shape)
    found[there] = diffusion.q_sample(known, s, noise, schedule)[there]
    return found


def walk_wrong_1(times, n):
    """One jump too many: n steps up instead of n − 1."""
    found = [times[0]]
    for t, s in itertools.pairwise(times):
        found += [s] + [t, s] * n
    return found


def walk_wrong_2(times, n):
    """Walks the whole way n times, instead of each step."""
    return list(times) * n


def walk_other(times, n):
    """Recursion, from the end."""
    if len(times) == 1:
        return list(times)
    return [times[0], times[1]] * (n - 1) + [times[0], *walk_other(times[1:], n)]


def translation_loss_wrong_1(logits, answer, x, weight=100.0):
    """Takes the logarithm of a rounded probability: infinite for a logit of −200."""
    return -logits.sigmoid().log().mean() + weight * (answer - x).abs().mean()


def translation_loss_wrong_2(logits, answer, x, weight=100.0):
    """Squares the error, as for a mean instead of a median."""
    return torch.nn.functional.softplus(-logits).mean() + weight * (answer - x).square().mean()


def translation_loss_other(logits, answer, x, weight=100.0):
    """By the framework's losses, and λ last."""
    from torch.nn import functional as F

    real = torch.ones_like(logits)
    return F.l1_loss(answer, x) * weight + F.binary_cross_entropy_with_logits(logits, real)


def cycle_loss_wrong_1(to_night, to_day, day, night):
    """Compares with the other side's image, as if these were pairs."""
    return (to_night(day) - night).abs().mean() + (to_day(night) - day).abs().mean()


def cycle_loss_wrong_2(to_night, to_day, day, night):
    """Only the way that begins by day."""
    return (to_day(to_night(day)) - day).abs().mean()


def cycle_loss_other(to_night, to_day, day, night):
    """A loop over both ways, by the framework's loss."""
    ways = (day, (to_night, to_day)), (night, (to_day, to_night))
    loss = 0
    for start, (there, back) in ways:
        loss = loss + torch.nn.functional.l1_loss(back(there(start)), start)
    return loss
