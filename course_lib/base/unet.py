"""One U-Net for the course (Ronneberger et al. 2015; as in DDPM, Ho et al. 2020, appendix B).

On the way down the image becomes small and wide in channels, on the way up large and narrow again; over the skips each
level on the way up also gets the maps of its twin on the way down. With `time`, an embedding e of the time t, and of a
condition where there is one, goes to every residual block: sinusoidal features through a small MLP. Without, it is a
U-Net for other tasks, such as segmentation.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base.layers import (
    CrossAttention,
    Downsample,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    Upsample,
    timestep_embedding,
)


@dataclass(frozen=True)
class Config:
    """What distinguishes one U-Net from another. Numbers that do not fit together raise ValueError.

    Attributes:
        channels: of the images that go in.
        out_channels: of the maps that come out; None: as many as go in.
        width: channels, times `multipliers`; even with `time`.
        multipliers: of each level's channels, from the finest.
        blocks: residual blocks of a level on the way down; on the way up there is one more.
        attention: the levels, 0 being the finest, with self-attention after each block.
        time: whether the network is told t.
        classes: how many, for a class condition; only with `time`.
        vector: length of a vector condition, such as a caption's embedding; only with `time`, and without `classes`.
        context: length of each row of a context, such as the features of a caption's words, to which the levels with
            attention attend; beside a vector or classes, or without.
        groups: of the group normalisation; every width is a multiple.
        dropout: probability, in the residual blocks.
        patch: pixels of patch × patch become channels before the first level, and back after the last. 2 makes a
            network four times faster that looks at single pixels less closely; a departure from the paper.
    """

    channels: int = 1
    out_channels: int | None = None
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 1
    attention: tuple[int, ...] = ()
    time: bool = True
    classes: int | None = None
    vector: int | None = None
    context: int | None = None
    groups: int = 8
    dropout: float = 0.0
    patch: int = 1

    def __post_init__(self) -> None:
        numbers = (self.channels, self.width, *self.multipliers, self.blocks, self.groups, self.patch)
        optional = [n for n in (self.out_channels, self.classes, self.vector, self.context) if n is not None]
        if not self.multipliers or min(*numbers, *optional) < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"expected numbers from 1, at least one level and dropout in [0, 1); got {self}")
        if any(width % self.groups for width in self.widths) or (self.time and self.width % 2):
            raise ValueError(
                f"the widths {self.widths} must be multiples of groups = {self.groups}, and with time even"
            )
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(f"attention names levels 0 … {len(self.multipliers) - 1}; got {self.attention}")
        if self.context is not None and not self.attention:
            raise ValueError("a context needs levels with attention")
        if self.conditional and (not self.time or (self.classes is not None and self.vector is not None)):
            raise ValueError("a condition needs time=True, and is either classes or a vector")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def conditional(self) -> bool:
        """Whether the network takes a condition."""
        return self.classes is not None or self.vector is not None

    @property
    def divisor(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Embedding(nn.Module):
    """e of time and condition: sinusoidal features through an MLP, plus the condition's own vector.

    What stands for "no condition" is learned too: a row of the table of classes, or a vector.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, size = config, 4 * config.width
        self.mlp = nn.Sequential(nn.Linear(config.width, size), nn.SiLU(), nn.Linear(size, size))
        if config.conditional:
            self.condition = nn.Linear(config.vector, size) if config.vector else nn.Embedding(config.classes, size)
            self.nothing = nn.Parameter(torch.zeros(size))

    def forward(self, t: Tensor, condition: Tensor | None, condition_mask: Tensor | None) -> Tensor:
        """e (B, 4 · width); arguments as for `UNet.forward`, already checked."""
        weight = self.mlp[0].weight
        exact = torch.promote_types(weight.dtype, torch.float32)  # bfloat16 cannot tell 999 from 1000
        e = self.mlp(timestep_embedding(t.to(exact), self.config.width).to(weight.dtype))
        if not self.config.conditional:
            return e
        nothing = self.nothing.to(e.dtype)
        if condition is None:
            return e + nothing
        c = self.condition(condition.long() if self.config.classes else condition.to(weight.dtype))
        return e + (c if condition_mask is None else torch.where(condition_mask[:, None], c, nothing))


class UNet(nn.Module):
    """Images (B, channels, H, W) → maps (B, out_channels, H, W), for any sides that `config.divisor` divides.

    Args:
        config: sizes and conditions.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        widths, embedding = config.widths, 4 * config.width if config.time else None

        def block(inputs: int, level: int) -> nn.ModuleList:
            layers = [ResidualBlock(inputs, widths[level], embedding, config.groups, config.dropout)]
            if level in config.attention:
                layers.append(SelfAttention(widths[level], config.groups))
                if config.context:
                    layers.append(CrossAttention(widths[level], config.context, groups=config.groups))
            return nn.ModuleList(layers)

        self.embedding = Embedding(config) if config.time else None
        self.first = nn.Conv2d(config.channels * config.patch**2, widths[0], 3, padding=1)
        # The first convolution and each stage of the way down hand their maps to the way up; here, their channels.
        self.down, skips = nn.ModuleList(), [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(block(skips[-1], level))
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([Downsample(width)]))
                skips.append(width)
        bottom = len(widths) - 1
        self.middle = nn.ModuleList([*block(widths[-1], bottom), *block(widths[-1], bottom)[:1]])
        self.up, inputs = nn.ModuleList(), widths[-1]
        for level in reversed(range(len(widths))):
            for i in range(config.blocks + 1):
                stage = block(inputs + skips.pop(), level)
                if i == config.blocks and level:
                    stage.append(Upsample(widths[level]))
                self.up.append(stage)
                inputs = widths[level]
        self.norm = GroupNorm(config.groups, widths[0])
        self.last = nn.Conv2d(widths[0], (config.out_channels or config.channels) * config.patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)  # in this memory format convolutions run fastest

    def forward(
        self,
        x: Tensor,
        t: Tensor | None = None,
        condition: Tensor | None = None,
        condition_mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Maps (B, out_channels, H, W) of images.

        Args:
            x: (B, channels, H, W), best around [-1, 1].
            t: (B,) real numbers, for a network with time.
            condition: integers (B,) from 0 to classes − 1, or (B, vector); None: no condition, which the network also
                knows if it was trained with some left out.
            condition_mask: bool (B,), whose conditions count; the other images get "no condition". None: all.
            context: (B, L, config.context); None: no context, which the network also knows if it was trained so.
            context_mask: bool (B, L), which rows of the context count, of an image without context none; None: all.

        Raises:
            ValueError: other shapes, sides that `config.divisor` does not divide, t missing, t, a condition or a
                context given to a network without, classes out of range (on a GPU, torch's own error), a mask that is
                no bool or without what it masks.
            TypeError: images that are no floats, or classes that are no integers.
        """
        self._check(x, t, condition, condition_mask)
        self._check_context(len(x), context, context_mask)
        e = None if self.embedding is None else self.embedding(t, condition, condition_mask)
        x = F.pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        skips, given = [h], (e, context, context_mask)
        for stage in self.down:
            h = _run(stage, h, *given)
            skips.append(h)
        h = _run(self.middle, h, *given)
        for stage in self.up:
            h = _run(stage, torch.cat([h, skips.pop()], 1), *given)
        out = self.last(F.silu(self.norm(h)))
        return F.pixel_shuffle(out, self.config.patch) if self.config.patch > 1 else out

    def _check(self, x: Tensor, t: Tensor | None, condition: Tensor | None, condition_mask: Tensor | None) -> None:
        config = self.config
        if x.ndim != 4 or x.shape[1] != config.channels:
            raise ValueError(f"expected images (B, {config.channels}, H, W), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"expected images of floats, got {x.dtype}")
        B, _, H, W = x.shape
        if H % config.divisor or W % config.divisor or not H * W:
            raise ValueError(f"expected sides that are multiples of {config.divisor}, got {H}×{W}")
        if (t is None) == config.time or (t is not None and t.shape != (B,)):
            given = "none" if t is None else tuple(t.shape)
            raise ValueError(f"expected {f't ({B},)' if config.time else 'no t'}, got {given}")
        if condition is None:
            if condition_mask is not None:
                raise ValueError("condition_mask needs a condition; without both, no image has one")
            return
        expected = (B,) if config.classes else (B, config.vector) if config.vector else "None"
        if condition.shape != expected:
            raise ValueError(f"expected a condition {expected}, got {tuple(condition.shape)}")
        if condition_mask is not None and (condition_mask.shape != (B,) or condition_mask.dtype != torch.bool):
            given = f"{tuple(condition_mask.shape)} {condition_mask.dtype}"
            raise ValueError(f"expected condition_mask ({B},) bool, got {given}")
        if config.classes and (condition.is_floating_point() or condition.dtype == torch.bool):
            raise TypeError(f"expected classes as integers, got {condition.dtype}")
        if config.classes and condition.device.type == "cpu" and B:  # elsewhere the look would wait for the GPU
            low, high = condition.aminmax()
            if low < 0 or high >= config.classes:
                raise ValueError(f"expected classes 0 … {config.classes - 1}, got {int(low)} … {int(high)}")

    def _check_context(self, B: int, context: Tensor | None, context_mask: Tensor | None) -> None:
        size = self.config.context
        if context is None:
            if context_mask is not None:
                raise ValueError("context_mask needs a context; without both, no image has one")
            return
        if not size or context.ndim != 3 or len(context) != B or context.shape[2] != size:
            expected = f"a context ({B}, L, {size})" if size else "no context"
            raise ValueError(f"expected {expected}, got {tuple(context.shape)}")
        if context_mask is not None and (context_mask.shape != context.shape[:2] or context_mask.dtype != torch.bool):
            given = f"{tuple(context_mask.shape)} {context_mask.dtype}"
            raise ValueError(f"expected context_mask {tuple(context.shape[:2])} bool, got {given}")


def _run(
    stage: nn.ModuleList, h: Tensor, e: Tensor | None, context: Tensor | None, context_mask: Tensor | None
) -> Tensor:
    for layer in stage:
        if isinstance(layer, ResidualBlock):
            h = layer(h, e)
        else:
            h = layer(h, context, context_mask) if isinstance(layer, CrossAttention) else layer(h)
    return h
