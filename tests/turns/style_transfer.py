"""Answers to the lesson's *Your turn*: right ones written differently, and mistakes that students make."""

import torch


def total_variation_other(x):
    vertical = (x[..., 1:, :] - x[..., :-1, :]).pow(2)
    horizontal = (x[..., :, 1:] - x[..., :, :-1]).pow(2)
    return vertical.sum() / vertical.numel() + horizontal.sum() / horizontal.numel()


def total_variation_wrong_1(x):  # rows and columns through one mean: another weight for each direction
    differences = torch.cat([x.diff(dim=-2).flatten(), x.diff(dim=-1).flatten()])
    return differences.square().mean()


def total_variation_wrong_2(x):  # the square of the mean: stripes cancel
    return x.diff(dim=-2).mean() ** 2 + x.diff(dim=-1).mean() ** 2


def descend_other(x, loss, steps):
    x = torch.nn.Parameter(x.detach().clone())
    optimiser, path = torch.optim.Adam([x], lr=0.03), [x.detach().clone()]
    for _ in range(steps):
        (x.grad,) = torch.autograd.grad(loss(x) * x[0, 0].numel(), x)
        optimiser.step()
        x.data = x.data.clip(0, 1)
        path.append(x.data.clone())
    return path


def descend_wrong_1(x, loss, steps):  # the bare mean, whose gradients drown in Adam's 1e-8
    x = x.clone().requires_grad_()
    optimiser, path = torch.optim.Adam([x], lr=0.03), [x.detach().clone()]
    for _ in range(steps):
        optimiser.zero_grad()
        loss(x).backward()
        optimiser.step()
        x.data.clamp_(0, 1)
        path.append(x.detach().clone())
    return path


def descend_wrong_2(x, loss, steps):  # keeps one tensor many times: all pictures of the path are the last one
    x = x.clone().requires_grad_()
    optimiser, path = torch.optim.Adam([x], lr=0.03), [x.detach()]
    for _ in range(steps):
        optimiser.zero_grad()
        (loss(x) * x[0, 0].numel()).backward()
        optimiser.step()
        x.data.clamp_(0, 1)
        path.append(x.detach())
    return path


def gram_other(F):
    return torch.einsum("bihw,bjhw->bij", F, F) / F[0, 0].numel()


def gram_wrong_1(F):  # the lecture's sum, without the division
    F = F.flatten(2)
    return F @ F.mT


def gram_wrong_2(F):  # (C, B·H·W): mixes the pictures of a batch
    B, C, H, W = F.shape
    rows = F.transpose(0, 1).reshape(C, B * H * W)
    return (rows @ rows.T / (B * H * W)).expand(B, C, C)


def style_loss_other(F, A):
    losses = []
    for layer, features in F.items():
        rows = features.flatten(2)
        G = rows @ rows.mT / rows.shape[-1]
        losses.append(torch.nn.functional.mse_loss(G, A[layer]))
    return torch.stack(losses).mean()


def style_loss_wrong_1(F, A):  # one mean over all entries: a layer of many filters counts more
    return torch.cat([(gram_other(F[layer]) - A[layer]).flatten() for layer in F]).square().mean()


def style_loss_wrong_2(F, A):  # the mean difference, in which signs cancel
    return sum((gram_other(F[layer]) - A[layer]).mean() ** 2 for layer in F) / len(F)
