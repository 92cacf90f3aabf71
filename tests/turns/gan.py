"""Answers to the turns of 03_gan: `_other` is right and written differently, `_wrong_1` and `_wrong_2` are not."""

import torch
import torch.nn.functional as F
from torch import nn


def discriminator_loss_other(real, fake):
    bce = F.binary_cross_entropy_with_logits
    return bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))


def discriminator_loss_wrong_1(real, fake):
    """The formula as it stands: infinite at logits of 200."""
    return -(torch.sigmoid(real).log().mean() + (1 - torch.sigmoid(fake)).log().mean())


def discriminator_loss_wrong_2(real, fake):
    """One mean over both batches."""
    return F.softplus(torch.cat([-real, fake])).mean()


def generator_loss(fake):
    return F.softplus(-fake).mean()


def training_step_other(G, D, for_G, for_D, real, z, loss_of_G=generator_loss):
    """Gradients by hand instead of `backward`; G draws its pictures a second time."""
    with torch.no_grad():
        fake = G(z)
    on_real, on_fake = D(real), D(fake)
    loss_D = discriminator_loss_other(on_real, on_fake)
    for weight, slope in zip(D.parameters(), torch.autograd.grad(loss_D, list(D.parameters())), strict=True):
        weight.grad = slope
    for_D.step()
    loss_G = loss_of_G(D(G(z)))
    for weight, slope in zip(G.parameters(), torch.autograd.grad(loss_G, list(G.parameters())), strict=True):
        weight.grad = slope
    for_G.step()
    return {
        "G": loss_G.item(),
        "D": loss_D.item(),
        "D(x)": on_real.sigmoid().mean().item(),
        "D(G(z))": on_fake.sigmoid().mean().item(),
    }


def training_step_wrong_1(G, D, for_G, for_D, real, z, loss_of_G=generator_loss):
    """Gradients are never cleared, so D's second step has those of G's loss, too."""
    fake = G(z)
    on_real, on_fake = D(real), D(fake.detach())
    loss_D = discriminator_loss_other(on_real, on_fake)
    loss_D.backward()
    for_D.step()
    loss_G = loss_of_G(D(fake))
    loss_G.backward()
    for_G.step()
    return {"D": loss_D, "G": loss_G, "D(x)": on_real.sigmoid().mean(), "D(G(z))": on_fake.sigmoid().mean()}


def training_step_wrong_2(G, D, for_G, for_D, real, z, loss_of_G=generator_loss):
    """Detached once and for all: G never learns."""
    fake = G(z).detach()
    on_real, on_fake = D(real), D(fake)
    loss_D = discriminator_loss_other(on_real, on_fake)
    for_D.zero_grad()
    loss_D.backward()
    for_D.step()
    loss_G = loss_of_G(D(fake))
    for_G.zero_grad()
    loss_G.backward()
    for_G.step()
    return {"D": loss_D, "G": loss_G, "D(x)": on_real.sigmoid().mean(), "D(G(z))": on_fake.sigmoid().mean()}


def mode_proportions_other(samples, centres, std):
    """Each centre by itself, in float64."""
    counts = [((samples - c).square().sum(1) <= 9 * std**2).sum() for c in centres]
    return torch.tensor(counts, dtype=torch.float64) / len(samples)


def mode_proportions_wrong_1(samples, centres, std):
    """Every sample goes to its nearest centre, however far."""
    nearest = torch.cdist(samples, centres).argmin(1)
    return nearest.bincount(minlength=len(centres)) / len(samples)


def mode_proportions_wrong_2(samples, centres, std):
    """Of the samples at a mode, instead of all."""
    counts = (torch.cdist(samples, centres) <= 3 * std).sum(0).float()
    return counts / counts.sum().clamp_min(1)


class _Generator(nn.Module):
    def __init__(self, z_dim, channels, width):
        super().__init__()
        self.width = width
        self.project = nn.Linear(z_dim, 8 * width, bias=False)
        self.first, self.up = nn.BatchNorm2d(2 * width), nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False)
        self.second, self.last = nn.BatchNorm2d(width), nn.ConvTranspose2d(width, channels, 4, 2, 1)

    def forward(self, z):
        x = self.project(z).reshape(len(z), 2 * self.width, 2, 2)
        x = self.up(torch.relu(self.first(x)))
        return torch.tanh(self.last(torch.relu(self.second(x))))


def make_generator_other(z_dim=16, channels=1, width=32):
    """A module with names."""
    return _Generator(z_dim, channels, width)


def _layers(z_dim, channels, width, last, bias):
    return nn.Sequential(
        nn.Linear(z_dim, 8 * width, bias=False),
        nn.Unflatten(1, (2 * width, 2, 2)),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=bias),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        last,
    )


def make_generator_wrong_1(z_dim=16, channels=1, width=32):
    """A sigmoid for pictures in [0, 1]."""
    return _layers(z_dim, channels, width, nn.Sigmoid(), bias=False)


def make_generator_wrong_2(z_dim=16, channels=1, width=32):
    """A bias that the normalisation takes away again."""
    return _layers(z_dim, channels, width, nn.Tanh(), bias=True)


def slerp_other(a, b, t):
    """With Ω from the cross ratio of the unit vectors' sum and difference."""
    u, v = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    omega = 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))
    return (torch.sin(omega - t * omega) / torch.sin(omega)) * a + (torch.sin(t * omega) / torch.sin(omega)) * b


def slerp_wrong_1(a, b, t):
    """The straight line."""
    return (1 - t) * a + t * b


def slerp_wrong_2(a, b, t):
    """One angle for the whole batch."""
    omega = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    return (torch.sin((1 - t) * omega) * a + torch.sin(t * omega) * b) / torch.sin(omega)
