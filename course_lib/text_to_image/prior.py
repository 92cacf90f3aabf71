"""The prior of unCLIP: from a caption's embedding to that of an image (Ramesh et al. 2022, section 2.2).

A caption's vector is not an image's: CLIP only makes each caption nearer to its own image than to others, and captions
leave much open. So a small diffusion model draws an image's vector for a caption's: it predicts X_0 itself, as in the
paper, with an MLP where that has a transformer.

    prior = zoo.load("prior_scenes")
    vectors = draw_embeddings(prior, clip.embed_text(tokens))        # unit vectors (B, 128), one possible image each
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib import diffusion
from course_lib.base import sampling, zoo
from course_lib.base.layers import timestep_embedding
from course_lib.text_to_image.clip import EMBEDDING


class PriorNetwork(nn.Module):
    """(X_t, t, caption) → X_0: residual layers, whose inputs an embedding of t and caption scales and shifts.

    Args:
        dim: D, of the vectors, and of the captions' vectors.
        width: of the hidden layers, even.
        layers: how many.
    """

    def __init__(self, dim: int = EMBEDDING, width: int = 192, layers: int = 4) -> None:
        super().__init__()
        self.dim, self.width = dim, width
        self.time = nn.Linear(width, width)
        self.caption = nn.Linear(dim, width)
        self.nothing = nn.Parameter(torch.zeros(width))  # for "no caption"
        self.first = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.scale_shift = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, dim)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, condition_mask: Tensor | None = None
    ) -> Tensor:
        """X_0 (B, D).

        Args:
            x: X_t (B, D).
            t: (B,).
            condition: captions' vectors (B, D), of length √D, so that their numbers are about 1; None: no caption.
            condition_mask: bool (B,), whose captions count; None: all.

        Raises:
            ValueError: other shapes.
        """
        B = len(x)
        captions = (B, self.dim) if condition is None else condition.shape
        if x.shape != (B, self.dim) or t.shape != (B,) or captions != x.shape:
            given = ", ".join(str(tuple(s)) for s in (x.shape, t.shape, captions))
            raise ValueError(f"expected x (B, {self.dim}), t (B,) and captions (B, {self.dim}); got {given}")
        exact = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot tell 999 from 1000
        caption = self.nothing.expand(B, -1)
        if condition is not None:
            caption = self.caption(condition.to(x.dtype))
            if condition_mask is not None:
                caption = torch.where(condition_mask[:, None], caption, self.nothing.to(caption.dtype))
        e = self.time(timestep_embedding(t.to(exact), self.width).to(x.dtype)) + caption
        scale, shift = self.scale_shift(F.silu(e)).chunk(2, 1)
        h = self.first(x) + caption
        for layer in self.layers:
            h = h + layer(F.silu((1 + scale) * h + shift))
        return self.last(F.silu(h))


def scaled(vectors: Tensor) -> Tensor:
    """Unit vectors (B, D) at length √D: their numbers are then about 1, as diffusion expects of data."""
    return vectors * math.sqrt(vectors.shape[1])


@torch.no_grad()
def draw_vectors(
    denoiser: diffusion.Denoiser,
    condition: Tensor,
    *,
    steps: int = 20,
    guidance_scale: float = 1.0,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Vectors (B, D), one for each condition (B, …), by DPM-Solver++(2M) with so many steps.

    Args:
        denoiser: of vectors; its `shape` is (D,).
        condition: what its network takes.
        steps: of the sampler.
        guidance_scale: see `diffusion.guided`.
        rng: draws X_T; None: torch's own.

    Raises:
        ValueError: no condition, and what the network refuses.
    """
    x = sampling.starting_noise(len(condition), denoiser.shape, denoiser, rng)
    x = x.to(torch.promote_types(next(denoiser.parameters()).dtype, torch.float32))
    model = diffusion.guided(denoiser, guidance_scale)
    times = denoiser.schedule.times(steps)
    with sampling.evaluating(denoiser):
        return diffusion.last(diffusion.dpm_solver(model, x, denoiser.schedule, times, condition.to(x.device)))


def draw_embeddings(
    prior: diffusion.Denoiser,
    texts: Tensor,
    *,
    candidates: int = 2,
    steps: int = 20,
    guidance_scale: float = 1.0,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Images' unit vectors (B, D) for captions' unit vectors (B, D).

    Args:
        prior: as `zoo.load("prior_scenes")`.
        texts: as of `CLIP.embed_text`.
        candidates: so many are drawn for each caption, and the one nearest to it is taken (two in the paper).
        steps: of the sampler.
        guidance_scale: see `diffusion.guided`.
        rng: draws the noise.

    Raises:
        ValueError: no captions, candidates below 1, or vectors of another length.
    """
    if candidates < 1:
        raise ValueError(f"expected at least one candidate; got {candidates}")
    several = texts.repeat_interleave(candidates, 0)
    drawn = draw_vectors(prior, scaled(several), steps=steps, guidance_scale=guidance_scale, rng=rng)
    drawn = F.normalize(drawn, dim=1).unflatten(0, (len(texts), candidates))
    best = (drawn * texts[:, None].to(drawn)).sum(2).argmax(1)
    return drawn[torch.arange(len(texts), device=best.device), best]


def _build() -> diffusion.Denoiser:
    return diffusion.Denoiser(PriorNetwork(), diffusion.cosine(), "x0", shape=(EMBEDDING,))


zoo.register("prior_scenes", _build)
