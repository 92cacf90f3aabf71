"""Style transfer by optimising the image itself: Gatys, Ecker & Bethge, CVPR 2016 (lecture: «Перенос стиля»).

With p the content image, a the style image, x the image sought, and at a layer l of a fixed network the features
F, P of x and p and the Gram matrices G, A of x and a:

    L_content = mean over channels and positions of (F − P)²            (paper eq. 1)
    E_l       = mean over channel pairs (i, j) of (G_ij − A_ij)²        (paper eq. 4)
    L_style   = mean of E_l over the style layers                       (paper eq. 5, equal weights w_l)
    L_total   = α L_content + β L_style                                 (paper eq. 7)

Departure from the paper: where it sums we take means, and a Gram matrix is divided by the number of positions. The
terms, and so the effect of α/β, then do not depend on the size of the image; and as the mean square of the activations
is a few at every layer of our networks (`features.normalise`), no layer outshouts the others, and the ratios of the
lecture, 1e-4 … 1e-1, lead from style to content.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib.base import images, runtime
from course_lib.base.features import VGG

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")  # the paper adds relu5_1, which only VGG-19 has here
CONTENT_LAYERS = ("relu3_1",)


def gram_matrix(features: Tensor) -> Tensor:
    """G_ij = Σ_k F_ik F_jk / M: how often two filters fire together, over the M = H·W positions k.

    Args:
        features: (B, C, H, W).

    Returns:
        (B, C, C), symmetric and positive semi-definite; in float32 where the features are of half precision.

    Raises:
        ValueError: another shape, or no positions.
    """
    if features.ndim != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must be (B, C, H, W) with H, W ≥ 1, got {tuple(features.shape)}")
    B, C, H, W = features.shape
    return _Gram.apply(runtime.wide(features).permute(0, 2, 3, 1).reshape(B, H * W, C)) / (H * W)


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
    """L_content: the mean squared difference of two feature maps (Gatys et al. 2016, eq. 1, as a mean).

    Args:
        features: F, of x, (B, C, H, W).
        target: P, of the content, of the same shape.

    Returns:
        A scalar ≥ 0; in float32 where the features are of half precision.

    Raises:
        ValueError: the shapes differ.
    """
    if features.shape != target.shape:
        raise ValueError(f"features {tuple(features.shape)} and target {tuple(target.shape)} differ in shape")
    return (runtime.wide(features) - runtime.wide(target)).square().mean()


def style_loss(gram: Tensor, target: Tensor) -> Tensor:
    """E_l: the mean squared difference of two Gram matrices (Gatys et al. 2016, eq. 4, as a mean).

    Args:
        gram: G, of x, (B, C, C).
        target: A, of the style, of the same shape.

    Returns:
        A scalar ≥ 0; in float32 where the matrices are of half precision.

    Raises:
        ValueError: the shapes differ.
    """
    if gram.shape != target.shape:
        raise ValueError(f"Gram matrices {tuple(gram.shape)} and {tuple(target.shape)} differ in shape")
    return (runtime.wide(gram) - runtime.wide(target)).square().mean()


def total_variation(image: Tensor) -> Tensor:
    """The mean squared difference of neighbouring pixels (Mahendran & Vedaldi 2015, section 3, β = 2, as a mean).

    Args:
        image: (B, C, H, W), any range.

    Returns:
        A scalar ≥ 0: the mean over vertical neighbours plus that over horizontal ones; in float32 where the image is
        of half precision.

    Raises:
        ValueError: a side of 1 px has no neighbours.
    """
    if min(image.shape[-2:]) < 2:
        raise ValueError(f"total variation needs sides of 2 px or more, got {tuple(image.shape)}")
    image = runtime.wide(image)
    return image.diff(dim=-2).square().mean() + image.diff(dim=-1).square().mean()


@dataclass(frozen=True)
class Weights:
    """What counts how much in L_total, and at which layers it is measured.

    Args:
        alpha: α ≥ 0, of the content.
        beta: β ≥ 0, of the style; α + β > 0.
        tv: ≥ 0, of the total variation.
        content_layers: where L_content is measured, names such as "relu3_1".
        style_layers: where E_l is measured.

    Raises:
        ValueError: a weight that is negative or not finite, nothing to lower, or a term without layers.
    """

    alpha: float = 0.05
    beta: float = 1.0
    tv: float = 0.0
    content_layers: tuple[str, ...] = CONTENT_LAYERS
    style_layers: tuple[str, ...] = STYLE_LAYERS

    def __post_init__(self) -> None:
        values = (self.alpha, self.beta, self.tv)
        if not all(math.isfinite(v) and v >= 0 for v in values) or self.alpha + self.beta == 0:
            raise ValueError(f"alpha, beta, tv must be ≥ 0, finite, and alpha + beta > 0; got {values}")
        if (self.alpha and not self.content_layers) or (self.beta and not self.style_layers):
            raise ValueError("alpha > 0 needs content_layers, beta > 0 needs style_layers; got none")


class Objective:
    """L_total of an image for fixed content and style: `objective(x)` returns the named losses, `total` among them.

    Args:
        network: the feature network, float32 or float64, which is then the dtype of the losses too.
        content: p, (1, 3, H, W) in [0, 1]; the images that the objective judges must have this size.
        styles: images a, each (1, 3, H', W') in [0, 1].
        weights: α, β and the layers.
        style_weights: the weight of each style; equal by default. They are divided by their sum.
        gram: features (B, C, H, W) to Gram matrices (B, C, C).

    Raises:
        TypeError: a network of half precision, or images that `VGG.extract` refuses.
        ValueError: weights that do not fit the styles, or images that `VGG.extract` refuses.
    """

    def __init__(
        self,
        network: VGG,
        content: Tensor,
        styles: Sequence[Tensor],
        weights: Weights,
        style_weights: Sequence[float] | None = None,
        gram: Callable[[Tensor], Tensor] = gram_matrix,
    ) -> None:
        self.network, self.weights, self.gram = network, weights, gram
        self.dtype = next(network.parameters()).dtype
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"network must be float32 or float64, got {self.dtype}: half precision overflows")
        mix = list(style_weights) if style_weights is not None else [1.0] * len(styles)
        if not styles or len(mix) != len(styles) or not (min(mix) >= 0 and 0 < sum(mix) < math.inf):
            raise ValueError(f"{len(styles)} styles need as many weights ≥ 0, not all 0; got {mix}")
        with torch.no_grad():
            self.content = self._features(content, weights.content_layers if weights.alpha else ())
            # Σ_s w_s (G − A_s)² and (G − Σ_s w_s A_s)² differ by a constant: one mean target serves all styles.
            self.grams: dict[str, Tensor] = {}
            for style, weight in zip(styles, mix, strict=True):
                features = self._features(style, weights.style_layers if weights.beta else ())
                for layer, F in features.items():
                    self.grams[layer] = self.grams.get(layer, 0) + gram(F) * (weight / sum(mix))

    def _features(self, image: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        if not layers:
            return {}
        with runtime.autocast(image.device):
            features = self.network.extract(image, layers)
        return {layer: F.to(self.dtype) for layer, F in features.items()}

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        image = image.to(self.dtype)
        features = self._features(image, [*self.content, *self.grams])
        content = sum(content_loss(features[layer], P) for layer, P in self.content.items())
        style = sum(style_loss(self.gram(features[layer]), A) for layer, A in self.grams.items())
        w, zero = self.weights, image.new_zeros(())
        losses = {
            "content": zero + content / max(1, len(self.content)),
            "style": zero + style / max(1, len(self.grams)),
            "tv": total_variation(image) if w.tv else zero,
        }
        losses["total"] = w.alpha * losses["content"] + w.beta * losses["style"] + w.tv * losses["tv"]
        return losses


@dataclass
class Result:
    """What a transfer leaves.

    Args:
        image: the image of the lowest total loss, (1, 3, H, W) in [0, 1].
        history: for each evaluation its step, size (shorter side, px) and losses.
        interrupted: whether a KeyboardInterrupt ended it.
    """

    image: Tensor
    history: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False


Callback = Callable[[int, Tensor, dict[str, float]], None]


class ProjectedLBFGS:
    """L-BFGS for pixels, which the box [0, 1] bounds, with one evaluation of the loss a step.

    The direction is d = −H g, with H the inverse Hessian that L-BFGS guesses from its last moves (Nocedal & Wright
    2006, algorithm 7.4) and g the gradient without the pixels that it would push out of the box (projected gradient).
    Along clamp(x + t d), t = 1, 1/2, 1/4, … is tried until the loss falls (Armijo's condition; Bertsekas 1982,
    "Projected Newton Methods"). `torch.optim.LBFGS` knows nothing of bounds: a clamp between its steps falsifies the
    moves that it learns from, and from the content image it leaps away again and again.

    Departure: to fall means below the highest of the last three losses accepted (Grippo, Lampariello & Lucidi 1986),
    as the losses of mixed precision are noisy: below the last one alone, the search stops too early.

    Args:
        x: the image, (1, 3, H, W) in [0, 1], float32 or float64; is changed in place.
        memory: how many moves H is guessed from.
    """

    FIRST = 0.03  # mean change of a pixel where H is not known yet; Adam's first step has the same size
    ARMIJO = 1e-4  # of the fall that the slope promises; Nocedal & Wright, section 3.1

    def __init__(self, x: Tensor, memory: int = 10) -> None:
        self.x, self.moves, self.rate = x, deque(maxlen=memory), 1.0
        self.point, self.losses = x.detach().clone(), deque(maxlen=3)  # of the points accepted
        self.gradient = self.direction = torch.zeros_like(self.point)

    def step(self, closure: Callable[[], Tensor]) -> None:
        """Judge x and move it on: from here where the loss has fallen enough, else nearer to the last point.

        Args:
            closure: returns the loss of x, a scalar, and leaves its gradient in `x.grad`; called once.
        """
        loss = float(closure())
        x, gradient = self.x.detach(), self.x.grad.clone()  # x shares the pixels of self.x
        s, y = (x - self.point).flatten(), (gradient - self.gradient).flatten()
        if loss <= max(self.losses, default=math.inf) + self.ARMIJO * float(self.gradient.flatten() @ s):
            if s @ y > 1e-6 * s.norm() * y.norm():  # beyond rounding, so that H stays positive definite
                self.moves.append((s, y, s @ y))
            self.point, self.gradient, self.rate = x.clone(), gradient, 1.0
            self.losses.append(loss)
            self.direction = self._direction()
        else:
            self.rate /= 2
        x.copy_((self.point + self.rate * self.direction).clamp(0, 1))

    def _direction(self) -> Tensor:
        """d, (1, 3, H, W): downhill, and zero at the pixels that g would push out of the box."""
        x, g = self.point, self.gradient
        outwards = ((x <= 0) & (g > 0)) | ((x >= 1) & (g < 0))
        g = g.masked_fill(outwards, 0)
        d = self._times_inverse_hessian(-g).masked_fill(outwards, 0)
        if d.flatten() @ g.flatten() > 0:  # the mask may turn d uphill: forget the moves, and descend steepest
            self.moves.clear()
            d = self._times_inverse_hessian(-g)
        return d

    def _times_inverse_hessian(self, v: Tensor) -> Tensor:
        """H v by the two-loop recursion over the moves s and the changes y of the gradient that they made."""
        if not self.moves:
            return v * (self.FIRST / v.abs().mean().clamp_min(torch.finfo(v.dtype).tiny))
        d, weights = v.flatten(), []
        for s, y, sy in reversed(self.moves):
            weights.append(s @ d / sy)
            d = d - weights[-1] * y
        s, y, sy = self.moves[-1]
        d = d * (sy / (y @ y))
        for (s, y, sy), weight in zip(self.moves, reversed(weights), strict=True):
            d = d + (weight - y @ d / sy) * s
        return d.view_as(v)


class _Evaluation:
    """The closure of an optimiser: one gradient of the objective at x, recorded in `result`."""

    def __init__(self, x: Tensor, objective: Objective, callback: Callback | None) -> None:
        self.x, self.objective, self.callback = x, objective, callback
        self.result, self.lowest = Result(x.detach().clone()), math.inf

    def __call__(self) -> Tensor:
        x, step = self.x, len(self.result.history)
        # Only then is the loss that of an image: values beyond [0, 1] lower it, and clamping them at the end alone
        # would raise it again (on rocket + hubble_deep_field from 0.008 to 0.36).
        x.data.clamp_(0, 1)
        losses = self.objective(x)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not math.isfinite(values["total"]):
            bad = [name for name, value in values.items() if not math.isfinite(value)]
            advice = "lower alpha, beta and tv, or set COURSE_PRECISION=float32"
            raise FloatingPointError(f"{', '.join(bad)} not finite at step {step}: {advice}")
        self.result.history.append({"step": step, "size": min(x.shape[-2:]), **values})
        if values["total"] < self.lowest:
            self.lowest, self.result.image = values["total"], x.detach().clone()
        if self.callback is not None:
            self.callback(step, x.detach().clone(), values)
        x.grad = None
        # The part of one pixel in a mean falls with the size of the image; the sum keeps gradients of one size.
        scaled = losses["total"] * x[0, 0].numel()
        scaled.backward()
        return scaled.detach()


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
        image: the start, (1, 3, H, W), of any floating dtype; clamped to [0, 1].
        objective: what to lower; called once a step.
        steps: how many gradients to take.
        optimiser: "lbfgs", as in the paper, here with bounds (`ProjectedLBFGS`), or "adam".
        callback: gets step, image (a copy, in [0, 1]) and losses, after each evaluation.
        progress: whether to show a bar.

    Returns:
        The image of the lowest total loss seen, in float32 where the start is of half precision; on
        KeyboardInterrupt the best until then.

    Raises:
        ValueError: an option out of range.
        FloatingPointError: a loss is not finite; says at which step, and what to change.
    """
    if steps < 1 or optimiser not in ("lbfgs", "adam"):
        raise ValueError(f"steps must be 1 or more, optimiser 'lbfgs' or 'adam'; got {steps}, {optimiser!r}")
    # Half precision would lose the small moves of the pixels, and its gradients overflow.
    x = runtime.wide(image.detach()).clamp(0, 1).requires_grad_()
    engine = ProjectedLBFGS(x) if optimiser == "lbfgs" else torch.optim.Adam([x], lr=0.03)
    evaluation = _Evaluation(x, objective, callback)
    try:
        with tqdm(range(steps), desc=f"{x.shape[-1]}×{x.shape[-2]} px", disable=not progress, leave=False) as bar:
            for _ in bar:
                engine.step(evaluation)
                bar.set_postfix(loss=f"{evaluation.lowest:.4g}", refresh=False)
    except KeyboardInterrupt:
        evaluation.result.interrupted = True
    return evaluation.result


def level_sizes(height: int, width: int, coarsest: int | None) -> list[tuple[int, int]]:
    """The sizes of the coarse-to-fine levels, each half of the next.

    Args:
        height: H of the finest level, px.
        width: W of the finest level, px.
        coarsest: sides are halved while both stay at so many px or more; None: never.

    Returns:
        (H, W) of every level, the coarsest first.
    """
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
    coarsest: int | None = 64,
    optimiser: str = "lbfgs",
    keep_colours: bool = False,
    rng: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = True,
) -> Result:
    """Paint the content in the style, coarse to fine (Gatys et al. 2017, "Controlling Perceptual Factors").

    The image is first painted small, where a step costs little and a filter sees much of it, then enlarged and
    painted on. Styles are scaled like the content, so that a brush stroke keeps its proportion of the image. The
    smallest level must not be too small: the Gram matrices of `STYLE_LAYERS` hold 29,392 numbers, more than an image of
    98 px has, and what is painted at 48 px by them alone is a copy of the style image, its layout included.

    Args:
        content: p, (1, 3, H, W) in [0, 1]; the result has its size.
        styles: one image a, or several, each (1, 3, H', W') in [0, 1]; their sizes set that of the strokes.
        network: from `zoo.load`, float32 or float64, on the device of the images.
        weights: α, β and layers; `Weights()` by default.
        style_weights: the weight of each style in the mix, see `Objective`.
        start: "noise", x ~ N(1/2, 1/4²) as in the lecture; "content"; or an image of the content's shape.
        steps: gradients taken at each level.
        coarsest: the least side of the smallest level, px (16 or more); None paints at full size only.
        optimiser: "lbfgs" or "adam".
        keep_colours: give the result the content's colours (`with_colours_of`).
        rng: draws the noise, on its own device; torch's global one by default.
        callback: see `optimise`; its steps count from 0 at each level.
        progress: whether to show a bar.

    Returns:
        The result; its image has the content's size and dtype, but float32 for a content of half precision.

    Raises:
        TypeError: images that are no floats, or a network of half precision.
        ValueError: images of wrong shape or range, or options out of range.
        FloatingPointError: a loss is not finite.
    """
    styles = [styles] if isinstance(styles, Tensor) else list(styles)
    for name, image in [("content", content), *((f"style {n}", style) for n, style in enumerate(styles))]:
        _check_image(image, name)
    H, W = content.shape[-2:]
    if coarsest is not None and coarsest < 16:
        raise ValueError(f"coarsest must be 16 px or more, or None; got {coarsest}")
    sizes = level_sizes(H, W, coarsest)
    x = _start(start, content, sizes[0], rng)
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
    if image.ndim != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
        raise ValueError(f"{name} must be one RGB image (1, 3, H, W), got {tuple(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):  # also true of NaN
        raise ValueError(f"{name} must have values in [0, 1], got {image.min():.3g} … {image.max():.3g}")


def _start(start: str | Tensor, content: Tensor, size: tuple[int, int], rng: torch.Generator | None) -> Tensor:
    """The image to start from, (1, 3, *size), of the content's device and dtype."""
    if isinstance(start, Tensor):
        _check_image(start, "start")
        if start.shape != content.shape:
            raise ValueError(f"start must have the content's shape {tuple(content.shape)}, got {tuple(start.shape)}")
        return images.resize(start.to(content), size)
    if start == "content":
        return images.resize(content, size)
    if start != "noise":
        raise ValueError(f"start must be 'noise', 'content' or an image, got {start!r}")
    device = rng.device if rng is not None else "cpu"
    noise = torch.randn(1, 3, *size, generator=rng, device=device, dtype=content.dtype)
    return 0.5 + 0.25 * noise.to(content.device)


def with_colours_of(content: Tensor, image: Tensor) -> Tensor:
    """An image's luminance with the content's chrominance (Gatys et al. 2017, section 5.1).

    Args:
        content: gives the colours, (B, 3, H, W), RGB in [0, 1].
        image: gives the luminance, of the same shape and range.

    Returns:
        (B, 3, H, W) in [0, 1]; clamped, where a colour cannot be as bright or dark.

    Raises:
        ValueError: the shapes differ.
    """
    if content.shape != image.shape:
        raise ValueError(f"content {tuple(content.shape)} and image {tuple(image.shape)} differ in shape")
    luminance = content.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as in YIQ
    # I and Q are linear and vanish on greys: keeping them is adding the difference in luminance to R, G and B.
    return (content + ((image - content) * luminance).sum(dim=1, keepdim=True)).clamp(0, 1)
