"""Alternating training, D then G, as a step for the loop of the course; augmentation; sampling; `slerp`."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from course_lib.base import runtime, sampling
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from course_lib.gan import losses
from course_lib.gan.networks import check_classes


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


def adversarial_step(
    generator: nn.Module,
    discriminator: nn.Module,
    generator_optimiser: torch.optim.Optimizer,
    discriminator_optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    r1: float | Callable[[], float] = 0.0,
    generate: Callable[[Tensor], Tensor] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Step:
    """One step of D and one of G a batch (Goodfellow et al. 2014, algorithm 1 with k = 1).

    The generator runs once: D learns from its images without their graph, then G from the same images with it,
    where the algorithm draws new noise for G.

    Args:
        generator: (z[, labels]) → images (B, C, H, W) in [-1, 1], with attributes `z_dim` and `classes`.
        discriminator: (images[, labels]) → logits (B,).
        generator_optimiser: of the generator's weights.
        discriminator_optimiser: of the discriminator's weights.
        rng: draws z and the augmentation, on its own device; give it to the loop as stateful, so that a run resumes.
        r1: γ of the penalty γ/2 E ‖∇D‖² at the real images, 0 for none; or a function that gives it for each step.
        generate: real images → as many generated ones; None: the generator's, of z ~ N(0, I).
        augment: (images in [-1, 1], rng) → the same, differentiable; real and generated alike go through it, so
            that D cannot tell them by it (Zhao et al. 2020).

    Returns:
        batch → named losses. A batch is images in [0, 1], or a tuple (images, labels); generated images take the
        labels of the real ones. D(x) and D(G(z)) are mean probabilities, for display. Of the first batch the step
        looks at the values, of later ones it does not. It raises ValueError or TypeError for images that are not
        floats (B, C, H, W) in [0, 1], and for labels that are missing or out of range.

    Raises:
        ValueError: a negative r1.
    """
    if not callable(r1) and r1 < 0:
        raise ValueError(f"expected r1 ≥ 0; got {r1}")
    conditional = getattr(generator, "classes", None) is not None
    check_images, check_labels = once(check_range), once(check_classes)

    def vary(x: Tensor) -> Tensor:
        return x if augment is None else augment(x, rng)

    def step(batch: Tensor | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch if isinstance(batch, tuple | list) else (batch, None)
        check_images(images)
        if conditional:
            check_labels(labels, generator.classes, len(images))
        given = (labels,) if conditional else ()
        real = vary(2 * images - 1)
        if generate is None:
            z = torch.randn(len(real), generator.z_dim, generator=rng, device=rng.device).to(real)
            fake = generator(z, *given)
        else:
            fake = generate(real)

        on_real = discriminator(real, *given).float()
        on_fake = discriminator(vary(fake.detach()), *given).float()
        named = {"D": losses.discriminator_loss(on_real, on_fake)}
        loss = named["D"]
        gamma = float(r1() if callable(r1) else r1)
        if gamma:
            named["R1"] = losses.r1_penalty(discriminator, real, *given)
            loss = loss + gamma / 2 * named["R1"]
        descend(loss, discriminator_optimiser)

        with frozen(discriminator):
            named["G"] = losses.generator_loss(discriminator(vary(fake), *given).float())
            descend(named["G"], generator_optimiser)
        named["D(x)"], named["D(G(z))"] = on_real.sigmoid().mean(), on_fake.sigmoid().mean()
        return {name: tensor.detach() for name, tensor in named.items()}

    return step


def augment(images: Tensor, rng: torch.Generator, *, shift: float = 0.125) -> Tensor:
    """Mirror half of the images left to right, and shift each by some pixels, differentiably.

    Shifting is one of the changes of Zhao et al. 2020 ("Differentiable Augmentation"); theirs of colours and by cutting
    out are left out. Mirroring is not among them: it leaks into what G draws, which no cat minds, but digits would.
    Both are 0-1 matrices, P X Qᵀ, so their gradient is a matrix product, too.

    Args:
        images: floats (B, C, H, W).
        rng: draws the changes, on its own device.
        shift: up to this proportion of a side, each way; grey 0 comes in.

    Returns:
        (B, C, H, W), in the dtype of the images, also under autocast: no value changes, it only moves.

    Raises:
        ValueError: not four dimensions, or a proportion outside [0, 1].
    """
    if images.ndim != 4 or not 0 <= shift <= 1:
        raise ValueError(f"expected (B, C, H, W) and a proportion in [0, 1]; got {tuple(images.shape)} and {shift}")
    B, _, H, W = images.shape
    # Positions are whole numbers, never of the images' dtype: bfloat16 cannot tell 256 from 257.
    down, right, mirror = torch.rand(3, B, 1, generator=rng, device=rng.device).to(images.device)
    rows, columns = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
    wanted_rows = rows - torch.round((2 * down - 1) * shift * H).long()
    wanted_columns = columns - torch.round((2 * right - 1) * shift * W).long()
    wanted_columns = torch.where(mirror < 0.5, W - 1 - wanted_columns, wanted_columns)
    P, Q = ((wanted[..., None] == n).to(images) for wanted, n in ((wanted_rows, rows), (wanted_columns, columns)))
    with runtime.no_autocast(images.device):
        return P[:, None] @ images @ Q[:, None].mT


def sample(
    generator: nn.Module, z: Tensor | int, labels: Tensor | None = None, rng: torch.Generator | None = None
) -> Tensor:
    """Images (B, C, H, W) in [0, 1], clamped, from a generator whose images lie around [-1, 1].

    The generator works in evaluation mode (batch normalisation with its running statistics, so that an image does
    not depend on its neighbours); then each of its layers is in its own mode again.

    Args:
        generator: (z[, labels]) → images, with attributes `z_dim` and `classes`.
        z: noise (B, z_dim), or how many to draw from N(0, I).
        labels: integers (B,) for a generator with classes, or (1,) for all images; None: 0, 1, …, one after the other.
        rng: draws z, on its own device; None: torch's own.

    Raises:
        ValueError: no images asked for; z of another shape; labels of another number, not wanted or out of range.
    """
    z = sampling.starting_noise(z, (generator.z_dim,), generator, rng).to(next(generator.parameters()).dtype)
    if generator.classes is None:
        if labels is not None:
            raise ValueError("got labels, but this generator was made without classes")
        images = sampling.in_batches(generator, generator, z)
    else:
        labels = torch.arange(len(z)) % generator.classes if labels is None else torch.as_tensor(labels)
        if not labels.is_floating_point() and labels.dtype != torch.bool:
            labels = labels.long()  # NumPy's integers have 32 bits on some systems
        check_classes(labels, generator.classes, labels.numel())
        images = sampling.in_batches(generator, generator, z, labels)
    return ((images + 1) / 2).clamp(0, 1).contiguous()


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """The way from noise a to noise b along the sphere: sin((1 − t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b (White 2016).

    The right way for Gaussian z. In d dimensions nearly all of N(0, I) lies at distance √d from 0, and two draws
    are nearly at right angles; the middle of the straight line between them, (a + b)/2, has length √(d/2), where
    the generator has never been. With Ω = 90° the two weights are cos and sin, and the result is N(0, I) again.

    Args:
        a: noise (..., z_dim).
        b: noise of a shape that broadcasts with it.
        t: from 0 (a) to 1 (b), a number or a tensor that broadcasts, such as (n, 1).

    Returns:
        (..., z_dim). Of equal or opposite directions, where no arc is the shortest, the straight line.

    Raises:
        ValueError: the last dimensions differ.
        TypeError: noise that is no floats.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a and b must have the same z_dim; got {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"expected noise as floats; got {dtype}")
    a, b = (runtime.wide(x.to(dtype)) for x in (a, b))  # half is too coarse for small angles
    t = torch.as_tensor(t, dtype=a.dtype, device=a.device)
    cosine = torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1)[..., None]
    omega = torch.arccos(cosine)
    sine = torch.sin(omega)
    parallel = sine < 1e-4
    sine = torch.where(parallel, 1, sine)
    weights = [torch.sin(s * omega) / sine for s in (1 - t, t)]
    return torch.where(parallel, torch.lerp(a, b, t), weights[0] * a + weights[1] * b).to(dtype)
