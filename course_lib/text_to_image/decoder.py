"""The decoder: a U-Net that draws what a caption says, told in one of three ways.

    images = generate(["A red star on the left, on sand by day."])            # (1, 3, 32, 32)
    others = variations(images, guidance_scale=2.0)                            # from their own vectors

| way | what the network is given | as in |
|---|---|---|
| `text` | CLIP's vector of the caption | GLIDE's ablation, and unCLIP without its prior |
| `image` | CLIP's vector of an image, which a prior draws for the caption | unCLIP (Ramesh et al. 2022, section 2.1) |
| `tokens` | all words, to which pixels attend | latent diffusion (Rombach et al. 2022, section 3.3) |

One network learns all three: in training each image comes with one of them, or with nothing. So they differ in nothing
but what is told.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib import diffusion, scenes
from course_lib.base import runtime, zoo
from course_lib.base.loop import Step, descend
from course_lib.base.runtime import wide
from course_lib.base.unet import Config, UNet
from course_lib.text_to_image.clip import CLIP, EMBEDDING, embed
from course_lib.text_to_image.data import SIDE, Captioned, briefer
from course_lib.text_to_image.prior import draw_embeddings, scaled
from course_lib.text_to_image.text import TextEncoder, Tokenizer
from course_lib.text_to_image.upsampler import upsample

WAYS = ("text", "image", "tokens")
GUIDANCE = 3.0
LATE = 0.7  # times are drawn as u^LATE: below 1, more of them late
ROWS = 8  # that a vector becomes, for pixels to attend to; unCLIP has four
EDGES = 4.0  # how much more a pixel counts where its neighbourhood goes from black to white


class Decoder(nn.Module):
    """A U-Net at 32×32 that takes captions as tokens or CLIP's vectors; a network for a `diffusion.Denoiser`.

    Its text encoder is its own, trained with it. A vector goes beside the time, and a small network makes rows of it
    that pixels attend to like words: both as in unCLIP (section 2.1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.text = TextEncoder()
        dim = self.text.dim
        self.rows = nn.Sequential(nn.Linear(2 * EMBEDDING, dim), nn.GELU(), nn.Linear(dim, ROWS * dim))
        config = Config(
            channels=3,
            width=40,
            multipliers=(1, 2),
            attention=(1,),
            patch=2,
            vector=2 * EMBEDDING,
            context=dim,
        )
        self.unet = UNet(config)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | None = None, condition_mask: Tensor | None = None
    ) -> Tensor:
        """Predictions (B, 3, H, W) at X_t = x.

        Args:
            x: (B, 3, H, W), around [-1, 1].
            t: (B,).
            condition: tokens, int64 (B, L) as of a `Tokenizer`; or vectors, floats (B, 2 · EMBEDDING) as of `placed`;
                None: no condition.
            condition_mask: bool (B,), whose conditions count; None: all.

        Raises:
            ValueError: shapes that do not fit.
        """
        if condition is None:
            return self.unet(x, t, None, condition_mask)
        if condition.is_floating_point():
            rows = self.as_rows(condition)
            mask = None if condition_mask is None else condition_mask[:, None].expand(rows.shape[:2])
            return self.unet(x, t, condition, condition_mask, rows, mask)
        read = self.text(condition)
        mask = read.mask if condition_mask is None else read.mask & condition_mask[:, None]
        return self.unet(x, t, context=read.tokens, context_mask=mask)

    def as_rows(self, vectors: Tensor) -> Tensor:
        """Rows of context (B, ROWS, D) of vectors (B, 2 · EMBEDDING) as of `placed`."""
        return self.rows(vectors.to(self.rows[0].weight.dtype)).unflatten(1, (ROWS, -1))


def placed(vectors: Tensor, way: str) -> Tensor:
    """CLIP's unit vectors (B, EMBEDDING) as the decoder expects them: of length √EMBEDDING, in (B, 2 · EMBEDDING): a
    text's in the first half, an image's in the second, zeros in the other. So the first layer has a matrix for each.

    Raises:
        ValueError: another shape, or a way that is neither `text` nor `image`.
    """
    if vectors.ndim != 2 or vectors.shape[1] != EMBEDDING or way not in WAYS[:2]:
        raise ValueError(f"expected vectors (B, {EMBEDDING}) of a text or an image; got {tuple(vectors.shape)}, {way}")
    return F.pad(scaled(vectors), (0, EMBEDDING) if way == "text" else (EMBEDDING, 0))


class DecoderData:
    """Scenes as batches for `decoder_step`: images, tokens, and CLIP's vectors of both.

    Args:
        data: the scenes.
        clip: gives the vectors; None: zeros, for a decoder that is told tokens alone.
        brief: proportion of captions that say less, see `briefer`.
    """

    def __init__(self, data: Captioned, clip: CLIP | None = None, brief: float = 0.25) -> None:
        self.data, captions = data, briefer(data.captions, brief)
        self.tokens = Tokenizer()(captions)
        self.vectors = (torch.zeros(1, EMBEDDING).expand(len(data), -1),) * 2
        if clip is not None:
            parts = range(0, len(data), 2000)  # not all images at once in float32
            found = [embed(clip, data.floats(slice(i, i + 2000)), captions[i : i + 2000]) for i in parts]
            self.vectors = tuple(torch.cat(each).cpu() for each in zip(*found, strict=True))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, 32, 32) in [0, 1], tokens (B, L), vectors of the captions and of the images (B, EMBEDDING)."""
        images, texts = self.vectors
        return self.data.floats(indices), self.tokens[indices], texts[indices], images[indices]


def mirrored(data: Captioned) -> Captioned:
    """The scenes in a mirror, and what is then said of them: left is right, and the last object comes first."""
    other = {"left": "right", "middle": "middle", "right": "left"}
    captions = []
    for caption in data.captions:
        facts = scenes.parse(caption)
        seen = tuple(scenes.Mention(m.size, m.texture, m.colour, m.name, other[m.place]) for m in facts.objects[::-1])
        captions.append(scenes.say(scenes.Facts(seen, facts.ground, facts.backdrop, facts.light)))
    return Captioned(data.images.flip(3), tuple(captions))


def decoder_step(
    denoiser: diffusion.Denoiser,
    optimiser: torch.optim.Optimizer,
    rng: torch.Generator,
    *,
    ways: Sequence[str] = WAYS,
    drop: float = 0.1,
    edges: float = EDGES,
    clip: float = 1.0,
) -> Step:
    """A step of the decoder's training: each image is told in one of the ways, drawn for it, or not at all.

    Departures from the papers: pixels near edges count more in the loss (see `edge_weight`), for shapes are edges, and
    the rest of a scene is learned soon; and times are drawn more often late, where shapes are decided.

    Args:
        denoiser: of a `Decoder`, which is trained.
        optimiser: of its weights.
        rng: draws times, noise and ways, on its own device.
        ways: of WAYS; one that is named twice comes twice as often.
        drop: how often nothing is told.
        edges: see `edge_weight`; 0: all pixels count alike.
        clip: longest gradient.

    Returns:
        batch → `loss`; a batch as of `DecoderData`.

    Raises:
        ValueError: unknown ways, or drop outside [0, 1].
    """
    if not ways or not set(ways) <= set(WAYS) or not 0 <= drop <= 1:
        raise ValueError(f"expected ways of {', '.join(WAYS)} and drop in [0, 1]; got {tuple(ways)} and {drop}")
    decoder, schedule = denoiser.network, denoiser.schedule
    odds = torch.tensor([(1 - drop) / len(ways) * ways.count(way) for way in WAYS] + [drop])

    def step(batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        images, tokens, texts, pictures = batch
        x0, device = 2 * images - 1, images.device
        u = diffusion.draw_times(len(x0), schedule.T, rng) - torch.rand(len(x0), generator=rng, device=rng.device)
        t = (schedule.T * (u / schedule.T) ** LATE).ceil().long().clamp(1, schedule.T).to(device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(device)
        way = odds.to(rng.device).multinomial(len(x0), replacement=True, generator=rng).to(device)
        vectors = torch.where((way == 0)[:, None], placed(texts, "text"), placed(pictures, "image"))
        read, rows = decoder.text(tokens), decoder.as_rows(vectors)
        seen = torch.cat([read.mask & (way == 2)[:, None], (way < 2)[:, None].expand(rows.shape[:2])], 1)
        x = diffusion.q_sample(x0, t, noise, schedule)
        prediction = decoder.unet(x, t, vectors, way < 2, torch.cat([read.tokens, rows], 1), seen)
        error = wide(prediction) - diffusion.target(denoiser.prediction_type, x0, noise, t, schedule)
        loss = (edge_weight(images, edges) * error.square()).mean()
        descend(loss, optimiser, clip)
        return {"loss": loss.detach()}

    return step


def edge_weight(images: Tensor, edges: float) -> Tensor:
    """(B, 1, H, W): 1 + edges · (brightest − darkest of the 3×3 pixels around), with a mean of 1 over all.

    Args:
        images: (B, C, H, W) in [0, 1].
        edges: 0 or more.
    """
    range_ = F.max_pool2d(images, 3, 1, 1) + F.max_pool2d(-images, 3, 1, 1)
    weight = 1 + edges * range_.amax(1, keepdim=True)
    return weight / weight.mean()


def generate(
    captions: str | Sequence[str],
    *,
    way: str = "tokens",
    guidance_scale: float = GUIDANCE,
    steps: int = 20,
    rng: torch.Generator | None = None,
    large: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """From captions to images, by the shipped networks.

    Args:
        captions: one or several, of the words a `Tokenizer` knows.
        way: of WAYS: `text`, `image` (CLIP, then the prior, then the decoder) or `tokens`.
        guidance_scale: see `diffusion.guided`.
        steps: of the sampler.
        rng: draws all noise; None: torch's own.
        large: whether the upsampler doubles the sides.
        device: by default `runtime.device()`.

    Returns:
        (B, 3, 32, 32), with `large` (B, 3, 64, 64), in [0, 1].

    Raises:
        ValueError: an unknown way, unknown words (which the message names), no captions.
        TypeError: captions that are no text.
        FileNotFoundError, CheckpointError: see `zoo.load`.
    """
    device = runtime.device() if device is None else torch.device(device)
    clip, prior = (_network(f"{part}_scenes", device) for part in ("clip", "prior"))
    return _draw(conditions(captions, way, clip, prior, rng), guidance_scale, steps, rng, large)


@torch.no_grad()
def conditions(
    captions: str | Sequence[str],
    way: str,
    clip: CLIP,
    prior: diffusion.Denoiser,
    rng: torch.Generator | None = None,
) -> Tensor:
    """What the decoder is told of captions: tokens (B, L), or `placed` vectors, on the device of `clip`.

    Args:
        captions: one or several.
        way: of WAYS.
        clip: gives the captions' vectors.
        prior: gives an image's for each, for the way `image`.
        rng: the prior's; None: torch's own.

    Raises:
        ValueError: an unknown way, unknown words, no captions.
        TypeError: captions that are no text.
    """
    if way not in WAYS:
        raise ValueError(f"expected a way of {', '.join(WAYS)}; got {way!r}")
    tokens = Tokenizer()(captions).to(clip.log_scale.device)
    if way == "tokens":
        return tokens
    vectors = clip.embed_text(tokens)
    return placed(draw_embeddings(prior, vectors, rng=rng) if way == "image" else vectors, way)


def from_vectors(
    vectors: Tensor,
    *,
    guidance_scale: float = GUIDANCE,
    steps: int = 20,
    rng: torch.Generator | None = None,
    large: bool = False,
) -> Tensor:
    """Images (B, 3, 32, 32) of images' CLIP vectors (B, EMBEDDING), on their device; other arguments as for `generate`.

    Vectors between two images' give images between them; the same vector several times, variations.

    Raises:
        ValueError: vectors of another shape.
    """
    return _draw(placed(F.normalize(vectors, dim=1), "image"), guidance_scale, steps, rng, large)


def variations(images: Tensor, **options: object) -> Tensor:
    """Other images (B, 3, 32, 32) that mean the same to CLIP as images (B, 3, 32, 32) in [0, 1]: what unCLIP adds.

    Args:
        images: on the device to compute on.
        options: of `from_vectors`.

    Raises:
        ValueError: images of another shape.
        TypeError: images that are no floats.
    """
    with torch.no_grad():
        vectors = _network("clip_scenes", images.device).embed_images(images)
    return from_vectors(vectors, **options)


@functools.cache
def _network(name: str, device: torch.device) -> nn.Module:
    return zoo.load(name, device)


def _draw(condition: Tensor, guidance_scale: float, steps: int, rng: torch.Generator | None, large: bool) -> Tensor:
    denoiser = _network("decoder_scenes", condition.device)
    given = {"steps": steps, "guidance_scale": guidance_scale, "rng": rng}
    with runtime.autocast(condition.device):
        images = diffusion.sample(denoiser, len(condition), condition, **given)
    return upsample(_network("upsampler_scenes", condition.device), images) if large else images


def _build() -> diffusion.Denoiser:
    return diffusion.Denoiser(Decoder(), diffusion.cosine(), "v", shape=(3, SIDE, SIDE))


zoo.register("decoder_scenes", _build)
