"""Answers to the turns of 07_samplers: `_other` is right and written differently, `_wrong_1` and `_wrong_2` are not."""

from itertools import pairwise

import torch
import torch.nn.functional as F


def ddim_step_other(x, epsilon, a, a_s):
    """As one line in x and ε, without X̂_0."""
    fade = (a_s / a).sqrt()
    return fade * x + ((1 - a_s).sqrt() - fade * (1 - a).sqrt()) * epsilon


def ddim_step_wrong_1(x, epsilon, a, a_s):
    """The estimate is not scaled up: √ᾱ_t X_0 is taken for X_0."""
    return a_s.sqrt() * (x - (1 - a).sqrt() * epsilon) + (1 - a_s).sqrt() * epsilon


def ddim_step_wrong_2(x, epsilon, a, a_s):
    """Fresh noise instead of the same one."""
    x0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
    return a_s.sqrt() * x0 + (1 - a_s).sqrt() * torch.randn_like(x)


def ddim_loop_other(model, x, schedule, times):
    """Into a tensor that is there from the start, by a count."""
    path = x.new_empty(len(times), *x.shape)
    path[0] = x
    for k in range(len(times) - 1):
        t = torch.tensor([times[k]] * len(x))
        a, a_s = schedule.alpha_bar[times[k]], schedule.alpha_bar[times[k + 1]]
        path[k + 1] = ddim_step_other(path[k], model(path[k], t), a, a_s)
    return path


def ddim_loop_wrong_1(model, x, schedule, times):
    """Asks at the time where the step ends."""
    path = [x]
    for t, s in pairwise(times):
        epsilon = model(path[-1], torch.full((len(x),), s))
        path.append(ddim_step_other(path[-1], epsilon, schedule.alpha_bar[t], schedule.alpha_bar[s]))
    return torch.stack(path)


def ddim_loop_wrong_2(model, x, schedule, times):
    """Always asks about the noise that it began with."""
    path = [x]
    for t, s in pairwise(times):
        epsilon = model(x, torch.full((len(x),), t))
        path.append(ddim_step_other(path[-1], epsilon, schedule.alpha_bar[t], schedule.alpha_bar[s]))
    return torch.stack(path)


def look_ahead_other(x0, x0_before, h, h_before):
    """Lu et al.'s own form, with r = h'/h."""
    r = h_before / h
    return (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before


def look_ahead_wrong_1(x0, x0_before, h, h_before):
    """To the end of the step."""
    return x0 + h / h_before * (x0 - x0_before)


def look_ahead_wrong_2(x0, x0_before, h, h_before):
    """The ratio upside down: right for equal steps only."""
    return x0 + h_before / (2 * h) * (x0 - x0_before)


def flow_loss_other(network, x0, noise, s):
    """By torch's own functions."""
    z = torch.lerp(x0, noise, s[(...,) + (None,) * (x0.ndim - 1)])
    return F.mse_loss(network(z, s), noise - x0)


def flow_loss_wrong_1(network, x0, noise, s):
    """From noise to data: the velocity has the other sign."""
    each = s.view(-1, *[1] * (x0.ndim - 1))
    return (network((1 - each) * x0 + each * noise, s) - (x0 - noise)).square().mean()


def flow_loss_wrong_2(network, x0, noise, s):
    """The times run along the last axis, instead of the first."""
    each = s if x0.shape[-1] == len(s) else s.view(-1, *[1] * (x0.ndim - 1))
    return (network((1 - each) * x0 + each * noise, s) - (noise - x0)).square().mean()


def guide_other(without, with_class, w):
    return torch.lerp(without, with_class, w)


def guide_wrong_1(without, with_class, w):
    """Ho and Salimans' own w, which is 0 where this one is 1."""
    return (1 + w) * with_class - w * without


def guide_wrong_2(without, with_class, w):
    """From the class away from it."""
    return with_class + w * (without - with_class)
