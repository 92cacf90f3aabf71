"""CLIP: images and captions in one space, where what belongs together points the same way (Radford et al. 2021).

    clip = zoo.load("clip_scenes")
    images, texts = clip.embed_images(images), clip.embed_text(Tokenizer()(captions))   # unit vectors (B, 128)
    images @ texts.T                                                                     # how well each fits each

With `twins` in training, captions with exchanged words are further wrong answers: without them CLIP learns which words
occur, not what belongs to what (NegCLIP, Yüksekgönül et al. 2023, arXiv 2210.01936). `clip_scenes` learned from twins
with exchanged colours, shapes and places.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import sampling, zoo
from course_lib.base.images import check_batch, check_range, once
from course_lib.base.layers import GroupNorm
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide
from course_lib.text_to_image.data import SIDE, Captioned, briefer, swap
from course_lib.text_to_image.text import Read, TextEncoder, Tokenizer

EMBEDDING = 128  # length of the vectors that images and captions share
COLDEST = math.log(100)  # the largest log of the scale 1/τ, as in the paper


class ImageEncoder(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] → features (B, dim): five convolutions, and all that is left in one layer.

    It does not average over places, as networks for classes do: captions also say where things are.

    Args:
        dim: of the features.
    """

    def __init__(self, dim: int = EMBEDDING) -> None:
        super().__init__()

        def stage(channels: int, out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), GroupNorm(8, out), nn.SiLU())

        self.body = nn.Sequential(
            stage(3, 32, 2), stage(32, 64, 2), stage(64, 64, 1), stage(64, 96, 2), stage(96, 96, 1)
        )
        self.last = nn.Linear(96 * (SIDE // 8) ** 2, dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, dim).

        Raises:
            ValueError: images of another shape.
            TypeError: images that are no floats.
        """
        check_batch(images)
        if images.shape[1:] != (3, SIDE, SIDE):
            raise ValueError(f"expected images (B, 3, {SIDE}, {SIDE}), got {tuple(images.shape)}")
        x = (2 * images - 1).to(self.last.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.last(self.body(x).flatten(1))


class CLIP(nn.Module):
    """An image encoder, a text encoder, and a temperature.

    Args:
        dim: length of the shared vectors.
    """

    def __init__(self, dim: int = EMBEDDING) -> None:
        super().__init__()
        self.image, self.text = ImageEncoder(dim), TextEncoder()
        self.projection = nn.Linear(self.text.dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """1/τ, at most 100: cosines times this are the logits."""
        return self.log_scale.clamp(max=COLDEST).exp()

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors (B, dim) of images (B, 3, 32, 32) in [0, 1]; the errors are those of `ImageEncoder`."""
        return F.normalize(wide(self.image(images)), dim=1)

    def embed_text(self, text: Tensor | Read) -> Tensor:
        """Unit vectors (B, dim) of tokens (B, L), or of what `self.text` read; errors are those of `TextEncoder`."""
        read = text if isinstance(text, Read) else self.text(text)
        return F.normalize(wide(self.projection(read.pooled)), dim=1)

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Logits (B, N): how well each of B images fits each of N captions."""
        return self.scale * self.embed_images(images) @ self.embed_text(tokens).T


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor | float, twins: Tensor | None = None) -> Tensor:
    """Which caption belongs to this image, which image to this caption? (Radford et al. 2021, figure 3)

    With s the scale and B pairs: ½ (mean of −log softmax_j(s xᵢ·yⱼ) at j = i, and the same of −log softmax_i at i = j).

    Args:
        images: x, unit vectors (B, D).
        texts: y, unit vectors (B, D), the i-th of the i-th image.
        scale: s = 1/τ.
        twins: unit vectors (K, D) of captions that belong to no image: further wrong answers to the first question.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes that do not fit.
    """
    if images.ndim != 2 or images.shape != texts.shape or (twins is not None and twins.shape[1:] != texts.shape[1:]):
        given = [tuple(t.shape) for t in (images, texts, twins) if t is not None]
        raise ValueError(f"expected images and texts (B, D), and twins (K, D); got {given}")
    own = torch.arange(len(images), device=images.device)
    offered = texts if twins is None else torch.cat([texts, twins])
    to_text = F.cross_entropy(scale * images @ offered.T, own)
    to_image = F.cross_entropy(scale * texts @ images.T, own)
    return (to_text + to_image) / 2


class Pairs:
    """Captioned scenes as batches for `clip_step`: images, tokens of their captions, and of their twins.

    Args:
        data: the scenes.
        brief: proportion of captions that say less, each without a random half of PARTS, so that short sentences are
            understood, too; which, is drawn once.
        swaps: which twins, of colour, shape and place; see `swap`.
        seed: of what is drawn.
    """

    def __init__(
        self, data: Captioned, brief: float = 0.25, *, swaps: Sequence[str] = ("colour",), seed: int = 0
    ) -> None:
        captions = briefer(data.captions, brief, seed)
        self.data, twins = data, [swap(caption, what) for what in swaps for caption in captions]
        both = Tokenizer()([*captions, *(twin or "" for twin in twins)])
        self.tokens, self.twins = both[: len(data)], both[len(data) :].unflatten(0, (len(swaps), len(data)))
        self.has_twin = torch.tensor([twin is not None for twin in twins], dtype=torch.bool).view(len(swaps), len(data))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, 32, 32) in [0, 1], tokens (B, L), and tokens of the twins (K ≤ len(swaps) · B, L)."""
        twins = self.twins[:, indices][self.has_twin[:, indices]]
        return self.data.floats(indices), self.tokens[indices], twins


def clip_step(clip: CLIP, optimiser: torch.optim.Optimizer, *, twins: bool = False, clip_norm: float = 1.0) -> Step:
    """A step on the contrastive loss; a batch is (images, tokens, tokens of twins) as of `Pairs`.

    Args:
        clip: is trained.
        optimiser: of its weights.
        twins: whether the twins count.
        clip_norm: longest gradient.

    Returns:
        batch → `loss`, and `top1`: the proportion of images nearest to their own caption, of the batch's.
    """
    check_images = once(check_range)

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        images, tokens, other = batch
        check_images(images)
        x = clip.embed_images(images)
        asked = torch.cat([tokens, other]) if twins else tokens
        y, negatives = clip.embed_text(asked).split([len(tokens), len(asked) - len(tokens)])
        loss = contrastive_loss(x, y, clip.scale, negatives if twins else None)
        descend(loss, optimiser, clip_norm)
        with torch.no_grad():
            clip.log_scale.clamp_(max=COLDEST)
            top1 = ((x @ y.T).argmax(1) == torch.arange(len(x), device=x.device)).float().mean()
        return {"loss": loss.detach(), "top1": top1}

    return step


def embed(clip: CLIP, images: Tensor, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit vectors of images (B, 3, 32, 32) in [0, 1] and of captions, (B, D) and (N, D), on the device of `clip`."""
    device = clip.log_scale.device
    tokens = Tokenizer()(captions).to(device)
    x = sampling.in_batches(clip, clip.embed_images, images.to(device), batch_size=500)
    return x, sampling.in_batches(clip, clip.embed_text, tokens, batch_size=500)


def retrieval(clip: CLIP, data: Captioned) -> Tensor:
    """bool (N,): whether each image is nearest to its own caption, among all N of the data."""
    images, texts = embed(clip, data.floats(), data.captions)
    return (images @ texts.T).argmax(1) == torch.arange(len(data), device=images.device)


def tells_apart(clip: CLIP, data: Captioned, what: str) -> Tensor:
    """bool (K,): whether the caption fits better than its twin, for the K images that have one; `what` as for `swap`.

    Chance is one half.

    Raises:
        ValueError: another `what`, or no image with a twin.
    """
    twins = [swap(caption, what) for caption in data.captions]
    own = [i for i, twin in enumerate(twins) if twin]
    if not own:
        raise ValueError("none of these captions has a twin: that takes two objects that differ")
    images, texts = embed(clip, data.floats(own), [data.captions[i] for i in own])
    _, others = embed(clip, data.floats(own[:1]), [twins[i] for i in own])
    return (images * texts).sum(1) > (images * others).sum(1)


def classify(clip: CLIP, images: Tensor, captions: Sequence[str]) -> Tensor:
    """Zero-shot classification: int64 (B,), which of the captions fits each image (B, 3, 32, 32) best."""
    x, texts = embed(clip, images, captions)
    return (x @ texts.T).argmax(1)


zoo.register("clip_scenes", CLIP)
