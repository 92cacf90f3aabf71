"""Style transfer by optimising the image itself: Gatys, Ecker & Bethge, CVPR 2016 (lecture: «Перенос стиля»).

With p the content image, a the style image, x the image sought, and at a layer l of a fixed network the features
F, P of x and p and the Gram matrices G, A of x and a:

    L_content = mean over channels and positions of (F − P)²            (paper eq. 1)
    E_l       = mean over channel pairs (i, j) of (G_ij − A_ij)²        (paper eq. 4)
    L_style   = mean of E_l over the style layers                       (paper eq. 5, equal weights w_l)
    L_total   = α L_content + β L_style                                 (paper eq. 7)

Departure from the paper: where it sums we take means, and a Gram matrix is divided by the number of positions. The
terms, and so the effect of α/β, then do not depend on the size of the image; and as the activations of our networks
are about one on average (`features.normalise`), the ratios of the lecture, 1e-4 … 1e-1, lead from style to content.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base import images, runtime
from course_lib.base.features import VGG

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT_LAYERS = ("relu3_1",)


def gram_matrix(features: Tensor) -> Tensor:
    """G_ij = Σ_k F_ik F_jk / M: how often two filters fire together, over the M = H·W positions k.

    Args:
        features: (B, C, H, W).

    Returns:
        (B, C, C), symmetric and positive semi-definite; in float32 where the features are of half precision.
    """
    if features.ndim != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must be (B, C, H, W) with H, W ≥ 1, got {tuple(features.shape)}")
    B, C, H, W = features.shape
    if features.dtype in (torch.float16, torch.bfloat16):
        features = features.float()  # a sum over thousands of positions needs more than 8 bits
    return _Gram.apply(features.permute(0, 2, 3, 1).reshape(B, H * W, C)) / (H * W)


class _Gram(torch.autograd.Function):
    """FᵀF of (B, M, C), with a gradient in one product and in the memory layout of the features.

    Autograd would take two products and add them across layouts: a step of style transfer took 1.8 times as long.
    """

    @staticmethod
    def forward(ctx, F: Tensor) -> Tensor:
        ctx.save_for_backward(F)
        return F.mT @ F

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (F,) = ctx.saved_tensors
        return F @ (gradient + gradient.mT)


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """L_content: the mean squared difference of two feature maps (B, C, H, W); a scalar."""
    if features.shape != target.shape:
        raise ValueError(f"features {tuple(features.shape)} and target {tuple(target.shape)} differ in shape")
    return (features.to(target.dtype) - target).square().mean()


def style_loss(gram: Tensor, target: Tensor) -> Tensor:
    """E_l: the mean squared difference of two Gram matrices (B, C, C); a scalar."""
    if gram.shape != target.shape:
        raise ValueError(f"Gram matrices {tuple(gram.shape)} and {tuple(target.shape)} differ in shape")
    return (gram - target).square().mean()


def total_variation(image: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels (B, C, H, W), a scalar (Mahendran & Vedaldi 2015, β = 2)."""
    return image.diff(dim=-2).square().mean() + image.diff(dim=-1).square().mean()


@dataclass(frozen=True)
class Weights:
    """What counts how much in L_total, and at which layers it is measured."""

    alpha: float = 0.05  # of the content
    beta: float = 1.0  # of the style
    tv: float = 0.0  # of the total variation
    content_layers: tuple[str, ...] = CONTENT_LAYERS
    style_layers: tuple[str, ...] = STYLE_LAYERS

    def __post_init__(self) -> None:
        values = (self.alpha, self.beta, self.tv)
        if not all(math.isfinite(v) and v >= 0 for v in values) or self.alpha + self.beta == 0:
            raise ValueError(f"alpha, beta, tv must be ≥ 0, finite, and alpha + beta > 0; got {values}")


class Objective:
    """L_total of an image for fixed content and style: `objective(x)` returns the named losses, `total` among them.

    Args:
        network: the feature network.
        content: p, (1, 3, H, W) in [0, 1]; the images that the objective judges must have this size.
        styles: images a, each (1, 3, H', W') in [0, 1].
        weights: α, β and the layers.
        style_weights: the share of each style; equal by default. They are divided by their sum.
    """

    def __init__(
        self,
        network: VGG,
        content: Tensor,
        styles: Sequence[Tensor],
        weights: Weights,
        style_weights: Sequence[float] | None = None,
    ) -> None:
        self.network, self.weights = network, weights
        shares = list(style_weights) if style_weights is not None else [1.0] * len(styles)
        if not styles or len(shares) != len(styles) or min(shares) < 0 or sum(shares) == 0:
            raise ValueError(f"{len(styles)} styles need as many weights ≥ 0, not all 0; got {shares}")
        with torch.no_grad():
            self.content = self._features(content, weights.content_layers if weights.alpha else ())
            # Σ_s w_s (G − A_s)² and (G − Σ_s w_s A_s)² differ by a constant: one mean target serves all styles.
            self.grams: dict[str, Tensor] = {}
            for style, share in zip(styles, shares, strict=True):
                features = self._features(style, weights.style_layers if weights.beta else ())
                for layer, F in features.items():
                    self.grams[layer] = self.grams.get(layer, 0) + gram_matrix(F) * (share / sum(shares))

    def _features(self, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if not layers:
            return {}
        with runtime.autocast(image.device):
            features = self.network.extract(image, layers)
        return {layer: F.to(image.dtype) for layer, F in features.items()}

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        features = self._features(image, [*self.content, *self.grams])
        content = sum(content_loss(features[layer], P) for layer, P in self.content.items())
        style = sum(style_loss(gram_matrix(features[layer]), A) for layer, A in self.grams.items())
        losses = {
            "content": image.new_zeros(()) + content / max(1, len(self.content)),
            "style": image.new_zeros(()) + style / max(1, len(self.grams)),
            "tv": total_variation(image) if self.weights.tv else image.new_zeros(()),
        }
        w = self.weights
        losses["total"] = w.alpha * losses["content"] + w.beta * losses["style"] + w.tv * losses["tv"]
        return losses


@dataclass
class Result:
    """What a transfer leaves: the image (1, 3, H, W) in [0, 1], and what happened on the way."""

    image: Tensor
    history: list[dict[str, float]] = field(default_factory=list)  # a step: step, size (shorter side, px), losses
    interrupted: bool = False


Callback = Callable[[int, Tensor, dict[str, float]], None]


def optimise(
    image: Tensor,
    objective: Objective,
    steps: int,
    optimiser: str = "lbfgs",
    callback: Callback | None = None,
    progress: bool = True,
) -> Result:
    """Descend the objective from an image, whose pixels are the only parameters.

    Args:
        image: the start, (1, 3, H, W).
        objective: what to lower; called once a step.
        steps: how many gradients to take.
        optimiser: "lbfgs", as in the paper, or "adam".
        callback: gets step, image (a copy, in [0, 1]) and losses, after each evaluation.

    Returns:
        The image of the lowest total loss seen; on KeyboardInterrupt the best until then.
    Raises:
        FloatingPointError: a loss is not finite; says at which step, and what to change.
    """
    if steps < 1 or optimiser not in ("lbfgs", "adam"):
        raise ValueError(f"steps must be 1 or more, optimiser 'lbfgs' or 'adam'; got {steps}, {optimiser!r}")
    x = image.detach().clone().requires_grad_()
    engine, rate = _engine(optimiser, x, 1.0), 1.0
    result, lowest = Result(image), math.inf

    def closure() -> Tensor:
        nonlocal lowest
        # Only then is the loss that of an image: values beyond [0, 1] lower it, and clamping them at the end alone
        # would raise it again (on rocket + hubble_deep_field from 0.008 to 0.36).
        x.data.clamp_(0, 1)
        losses = objective(x)
        values, step = {name: float(value.detach()) for name, value in losses.items()}, len(result.history)
        if not math.isfinite(values["total"]):
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            advice = "lower alpha, beta and tv, try optimiser='adam', or set COURSE_PRECISION=float32"
            raise FloatingPointError(f"{', '.join(bad)} not finite at step {step}: {advice}")
        result.history.append({"step": step, "size": min(x.shape[-2:]), **values})
        if values["total"] < lowest:
            lowest, result.image = values["total"], x.detach().clone()
        if callback is not None:
            callback(step, x.detach().clone(), values)
        x.grad = None
        # A pixel's share of a mean falls with the size of the image; the sum keeps gradients of one size.
        scaled = losses["total"] * x[0, 0].numel()
        scaled.backward()
        return scaled.detach()

    try:
        with tqdm(range(steps), desc=f"{x.shape[-1]}×{x.shape[-2]} px", disable=not progress, leave=False) as bar:
            for _ in bar:
                engine.step(closure)
                if result.history[-1]["total"] > 3 * lowest:
                    # L-BFGS learns the curvature from moves that the clamp may have shortened, and then, rarely, leaps
                    # away: back to the best image, without its memory, and on in smaller steps.
                    x.data.copy_(result.image)
                    rate /= 2
                    engine = _engine(optimiser, x, rate)
                bar.set_postfix(loss=f"{result.history[-1]['total']:.4g}", refresh=False)
    except KeyboardInterrupt:
        result.interrupted = True
    return result


def _engine(optimiser: str, x: Tensor, rate: float) -> torch.optim.Optimizer:
    if optimiser == "adam":
        return torch.optim.Adam([x], lr=0.03 * rate)
    # One evaluation a call; no early stop, as the tolerances are absolute and know nothing of our scales.
    return torch.optim.LBFGS([x], lr=rate, max_iter=1, history_size=10, tolerance_grad=0, tolerance_change=0)


def level_sizes(height: int, width: int, coarsest: int | None) -> list[tuple[int, int]]:
    """The (H, W) of the coarse-to-fine levels: halved while both sides stay at `coarsest` px or more; None: never."""
    sizes = [(height, width)]
    while coarsest and min(sizes[0]) // 2 >= coarsest:
        sizes.insert(0, (round(sizes[0][0] / 2), round(sizes[0][1] / 2)))
    return sizes


def transfer(
    content: Tensor,
    styles: Tensor | Sequence[Tensor],
    network: VGG,
    weights: Weights | None = None,
    *,
    style_weights: Sequence[float] | None = None,
    start: str | Tensor = "noise",
    steps: int = 100,
    coarsest: int | None = 32,
    optimiser: str = "lbfgs",
    keep_colours: bool = False,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> Result:
    """Paint the content in the style, coarse to fine (Gatys et al. 2017, "Controlling Perceptual Factors").

    The image is first painted small, where a step costs little and a filter sees much of it, then enlarged and
    painted on. Styles are scaled like the content, so that a brush stroke keeps its share of the image.

    Args:
        content: p, (1, 3, H, W) in [0, 1]; the result has its size.
        styles: one image a, or several, each (1, 3, H', W') in [0, 1]; their sizes set that of the strokes.
        network: from `zoo.load`, on the device of the images.
        weights: α, β and layers; `Weights()` by default.
        style_weights: the share of each style in the mix.
        start: "noise", x ~ N(1/2, 1/4²) as in the lecture; "content"; or an image of the content's shape.
        steps: gradients taken at each level.
        coarsest: the least side of the smallest level, px (16 or more); None paints at full size only.
        optimiser: "lbfgs" or "adam".
        keep_colours: give the result the content's colours (`with_colours_of`).
        generator: draws the noise, on its own device; torch's global one by default.
        callback: see `optimise`; its steps count from 0 at each level.
        progress: whether to show a bar.

    Raises:
        ValueError, TypeError: images of wrong shape, range or dtype, or options out of range.
        FloatingPointError: a loss is not finite.
    """
    styles = [styles] if isinstance(styles, Tensor) else list(styles)
    for name, image in [("content", content), *((f"style {n}", style) for n, style in enumerate(styles))]:
        _check_image(image, name)
    H, W = content.shape[-2:]
    if coarsest is not None and coarsest < 16:
        raise ValueError(f"coarsest must be 16 px or more, or None; got {coarsest}")
    sizes = level_sizes(H, W, coarsest)
    x = _start(start, content, sizes[0], generator)
    history: list[dict[str, float]] = []
    for size in sizes:
        scaled = [images.resize(a, tuple(max(16, side * size[0] // H) for side in a.shape[-2:])) for a in styles]
        objective = Objective(network, images.resize(content, size), scaled, weights or Weights(), style_weights)
        level = optimise(images.resize(x, size), objective, steps, optimiser, callback, progress)
        x, history = level.image, history + level.history
        if level.interrupted:
            break
    x = images.resize(x, (H, W))  # an interrupted one may still be small
    return Result(with_colours_of(content, x) if keep_colours else x, history, level.interrupted)


def _check_image(image: Tensor, name: str) -> None:
    if not isinstance(image, Tensor) or not image.is_floating_point():
        given = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {given}")
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"{name} must be one RGB image (1, 3, H, W), got {tuple(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):  # also true of NaN
        raise ValueError(f"{name} must have values in [0, 1], got {image.min():.3g} … {image.max():.3g}")


def _start(start: str | Tensor, content: Tensor, size: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """The image to start from, (1, 3, *size), of the content's device and dtype."""
    if isinstance(start, Tensor):
        if start.shape != content.shape:
            raise ValueError(f"start must have the content's shape {tuple(content.shape)}, got {tuple(start.shape)}")
        return images.resize(start.to(content), size)
    if start == "content":
        return images.resize(content, size)
    if start != "noise":
        raise ValueError(f"start must be 'noise', 'content' or an image, got {start!r}")
    device = generator.device if generator is not None else "cpu"
    noise = torch.randn(1, 3, *size, generator=generator, device=device, dtype=content.dtype)
    return 0.5 + 0.25 * noise.to(content.device)


def with_colours_of(content: Tensor, image: Tensor) -> Tensor:
    """An image's luminance with the content's chrominance, both (B, 3, H, W) in [0, 1] (Gatys et al. 2017, 5.1)."""
    if content.shape != image.shape:
        raise ValueError(f"content {tuple(content.shape)} and image {tuple(image.shape)} differ in shape")
    luminance = content.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as in YIQ
    # I and Q are linear and vanish on greys: keeping them is adding the difference in luminance to R, G and B.
    return (content + ((image - content) * luminance).sum(dim=1, keepdim=True)).clamp(0, 1)
