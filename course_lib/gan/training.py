"""Alternating training, D then G, as a step for `base.training.Loop`, and the augmentation that small data needs."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.base.training import Step, descend
from course_lib.gan import losses


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's weights inside the block: they still pass through it, a third cheaper."""
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def signed(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] in the range of the generators, [-1, 1]."""
    return 2 * pictures - 1


def adversarial_step(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_optimiser: torch.optim.Optimizer,
    discriminator_optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    discriminator_loss: Callable[[Tensor, Tensor], Tensor] = losses.discriminator_loss,
    generator_loss: Callable[[Tensor], Tensor] = losses.generator_loss,
    r1: float = 0.0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Step:
    """One step of D and one of G a batch (Goodfellow et al. 2014, algorithm 1 with k = 1).

    The generator runs once: D learns from its pictures without their graph, then G from the same pictures with it,
    where the algorithm draws new noise for G.

    Args:
        generator: (z[, labels]) → (B, ...), with `z_dim` and `classes`; discriminator: (x[, labels]) → logits (B,).
        rng: draws z and the augmentation, on its own device; give it to the loop as a part, so that a run resumes.
        discriminator_loss, generator_loss: of `losses`, on logits, to be minimised.
        r1: γ of the penalty γ/2 E ‖∇D‖² at the real pictures, 0 for none.
        augment: (pictures in [-1, 1], rng) → the same, differentiable; real and generated alike go through it, so
            that D cannot tell them by it (Zhao et al. 2020).

    Returns:
        batch → named losses. A batch is pictures in [0, 1], or a tuple (pictures, labels); generated pictures take
        the labels of the real ones. D(x) and D(G(z)) are given as mean probabilities, for display.

    Raises:
        ValueError: a negative r1.
    """
    if r1 < 0:
        raise ValueError(f"expected r1 ≥ 0; got {r1}")
    conditional = getattr(generator, "classes", None) is not None

    def vary(x: Tensor) -> Tensor:
        return x if augment is None else augment(x, rng)

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pictures, labels = batch if isinstance(batch, tuple | list) else (batch, None)
        if conditional and labels is None:
            raise ValueError(f"the generator has {generator.classes} classes; the data must give (pictures, labels)")
        given = (labels,) if conditional else ()
        real = vary(signed(pictures))
        z = torch.randn(len(real), generator.z_dim, generator=rng, device=rng.device).to(real)
        fake = generator(z, *given)

        on_real = discriminator(real, *given)
        on_fake = discriminator(vary(fake.detach()), *given)
        named = {"D": discriminator_loss(on_real.float(), on_fake.float())}
        loss = named["D"]
        if r1:
            named["R1"] = losses.r1_penalty(discriminator, real, *given)
            loss = loss + r1 / 2 * named["R1"]
        descend(loss, discriminator_optimiser)

        with frozen(discriminator):
            named["G"] = generator_loss(discriminator(vary(fake), *given).float())
            descend(named["G"], generator_optimiser)
        named["D(x)"], named["D(G(z))"] = on_real.float().sigmoid().mean(), on_fake.float().sigmoid().mean()
        return {name: tensor.detach() for name, tensor in named.items()}

    return step


def augment(pictures: Tensor, rng: torch.Generator, *, shift: float = 0.125) -> Tensor:
    """Mirror half of the pictures left to right, and shift each by some pixels, differentiably.

    Shifting is one of the changes of Zhao et al. 2020 ("Differentiable Augmentation"); theirs of colours and by cutting
    out are left out. Mirroring is not among them: it leaks into what G draws, which no cat minds, but digits would.
    Both are 0-1 matrices, P X Qᵀ, so their gradient is a matrix product, too.

    Args:
        pictures: (B, C, H, W). rng: draws the changes, on its own device.
        shift: up to this share of a side, each way; grey 0 comes in.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: not four dimensions, or a share outside [0, 1].
    """
    if pictures.ndim != 4 or not 0 <= shift <= 1:
        raise ValueError(f"expected (B, C, H, W) and a share in [0, 1]; got {tuple(pictures.shape)} and {shift}")
    B, _, H, W = pictures.shape
    down, right, mirror = torch.rand(3, B, 1, generator=rng, device=rng.device).to(pictures)
    rows, columns = torch.arange(H, device=pictures.device), torch.arange(W, device=pictures.device)
    wanted_rows = rows - torch.round((2 * down - 1) * shift * H)
    wanted_columns = columns - torch.round((2 * right - 1) * shift * W)
    wanted_columns = torch.where(mirror < 0.5, W - 1 - wanted_columns, wanted_columns)
    P, Q = ((wanted[..., None] == n).to(pictures) for wanted, n in ((wanted_rows, rows), (wanted_columns, columns)))
    return P[:, None] @ pictures @ Q[:, None].mT
