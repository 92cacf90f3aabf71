"""From a sentence to numbers: a tokeniser for the captions of scenes, and a small transformer with its attention.

    tokens = Tokenizer()(["A red star on the left, on sand by day."])   # int64 (1, 12): START and 11 words
    read = TextEncoder()(tokens)                                        # what each token means here, and the sentence

Transformer: Vaswani et al. 2017 (arXiv 1706.03762), its blocks in the order of GPT-2 and CLIP, normalisation first.
"""

import difflib
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from course_lib.scenes.world import BACKDROPS, COLOURS, GROUNDS, LIGHTS, SIZES, TEXTURES, THINGS

PADDING, START = 0, 1  # token numbers that are no words
# The words of `scenes.describe`; a plain texture has no word.
VOCABULARY = tuple(
    dict.fromkeys(
        (
            *("<padding>", "<start>", ",", "a", "and", "at", "before", "by", "in", "on", "the"),
            *("left", "middle", "right"),
            *(*SIZES, *TEXTURES[1:], *COLOURS, *THINGS, *GROUNDS, *BACKDROPS, *LIGHTS),
        )
    )
)
_NUMBERS = {word: number for number, word in enumerate(VOCABULARY)}
_SAME = {"an": "a"}
LONGEST = 32  # tokens of a caption: the start, and what scenes of one and two objects need (27), with some to spare


class Tokenizer:
    """Captions to numbers: each word of a closed vocabulary is one token, and so is a comma.

    Upper case and the final dot do not matter, "an" is "a", and "plain" is not worth a word. Large language models cut
    rare words into pieces (byte pair encoding); for a world of forty words that is not needed.
    """

    def __call__(self, captions: str | Sequence[str]) -> Tensor:
        """Tokens int64 (B, L) on the CPU: START, the caption's words, and PADDING up to the longest of the captions.

        Args:
            captions: one, or several; an empty one says nothing, and is START alone.

        Raises:
            ValueError: unknown words, which the message names, with the nearest known ones; more than LONGEST tokens;
                no captions.
            TypeError: captions that are no text.
        """
        captions = [captions] if isinstance(captions, str) else list(captions)
        if not captions:
            raise ValueError("expected a caption or more, got none")
        rows = [self._row(caption) for caption in captions]
        L = max(map(len, rows))
        return torch.tensor([row + [PADDING] * (L - len(row)) for row in rows])

    def _row(self, caption: str) -> list[int]:
        if not isinstance(caption, str):
            raise TypeError(f"expected captions as text, got {type(caption).__name__}")
        spoken = re.findall(r"\w+|[^\w\s]", caption.strip().removesuffix(".").lower())
        words = [_SAME.get(word, word) for word in spoken if word != TEXTURES[0]]
        unknown = list(dict.fromkeys(word for word in words if word not in _NUMBERS))
        if unknown:
            raise ValueError(_explain(unknown))
        if len(words) >= LONGEST:
            raise ValueError(f"expected a caption of at most {LONGEST - 1} words and commas, got {len(words)}")
        return [START, *(_NUMBERS[word] for word in words)]

    def decode(self, tokens: Tensor) -> list[str]:
        """The words of tokens (B, L), without START and PADDING.

        Raises:
            ValueError: tokens of another shape, or out of range.
        """
        check_tokens(tokens)
        rows = ([VOCABULARY[n] for n in row if n not in (PADDING, START)] for row in tokens.tolist())
        return [" ".join(row).replace(" ,", ",") for row in rows]


def _explain(unknown: list[str], most: int = 5) -> str:
    """Which words are not known, and which might be meant."""
    known = VOCABULARY[2:]
    near = {word: difflib.get_close_matches(word, known, n=2, cutoff=0.6) for word in unknown[:most]}
    named = ", ".join(f"{word!r}" + (f" ({' or '.join(near[word])}?)" if near[word] else "") for word in near)
    more = f" and {len(unknown) - most} more" if len(unknown) > most else ""
    return f"unknown words: {named}{more}. The toy world's words are: {' '.join(known)}"


def check_tokens(tokens: Tensor) -> None:
    """Raises ValueError for tokens that are not (B, L), too many or out of range, TypeError for what is no integers."""
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        given = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"expected tokens as a tensor of integers, as of a Tokenizer; got {given}")
    if tokens.ndim != 2 or not 1 <= tokens.shape[1] <= LONGEST:
        raise ValueError(f"expected tokens (B, L) with L of 1 to {LONGEST}, got {tuple(tokens.shape)}")
    if tokens.device.type == "cpu" and len(tokens):  # elsewhere the look would wait for the GPU
        low, high = tokens.aminmax()
        if low < 0 or high >= len(VOCABULARY):
            raise ValueError(f"expected tokens 0 … {len(VOCABULARY) - 1}, got {int(low)} … {int(high)}")


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d) V: each query takes the mean of the values, weighted by how well their keys agree with it.

    Args:
        q: queries (…, L, d).
        k: keys (…, S, d).
        v: values (…, S, e).
        mask: bool, broadcastable to (…, L, S): which keys a query may look at, at least one each. None: all.

    Returns:
        (…, L, e). Vaswani et al. 2017, equation 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v


class MultiHeadAttention(nn.Module):
    """Self-attention with several heads: each looks for something else, in its own slice of the D features.

    Args:
        dim: D, a multiple of heads.
        heads: how many.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) of x (B, L, D); mask bool (B, L): the tokens that may be looked at, None: all."""
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))
        mixed = attention(q, k, v, None if mask is None else mask[:, None, None])  # (B, heads, L, D / heads)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block: tokens exchange what they know, then each thinks on its own. x + Attention, x + MLP.

    Args:
        dim: D, a multiple of heads.
        heads: of the attention.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, D) of x (B, L, D); mask as for `MultiHeadAttention`."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Read(NamedTuple):
    """What a text encoder makes of captions.

    Attributes:
        tokens: features (B, L, D), one vector for each token; those of padding mean nothing.
        mask: bool (B, L), which tokens are no padding; the first always is none.
        pooled: (B, D), of the whole caption: the features of its START.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor


class TextEncoder(nn.Module):
    """A small transformer that reads captions. All tokens see all others; padding is not seen.

    CLIP's own (Radford et al. 2021, section 2.4) is causal, and reads the caption at its last token.

    Args:
        dim: D, the length of the features, a multiple of heads.
        layers: how many blocks.
        heads: of each attention.

    Raises:
        ValueError: numbers below 1, or D that is no multiple of heads.
    """

    def __init__(self, dim: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if min(dim, layers, heads) < 1 or dim % heads:
            raise ValueError(f"expected numbers from 1, dim a multiple of heads; got {dim}, {layers}, {heads}")
        self.dim = dim
        self.words = nn.Embedding(len(VOCABULARY), dim)
        self.places = nn.Parameter(torch.empty(LONGEST, dim))  # without them, a caption would be a bag of words
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.words.weight, std=0.3)
        nn.init.normal_(self.places, std=0.3)

    def forward(self, tokens: Tensor) -> Read:
        """Features of tokens, int64 (B, L) as of a `Tokenizer`; see `Read`.

        Raises:
            ValueError: tokens of another shape, or out of range (on a GPU, torch's own error).
            TypeError: tokens that are no integers.
        """
        check_tokens(tokens)
        mask = tokens != PADDING
        mask[:, 0] = True  # so that there is always something to look at
        x = self.words(tokens.long()) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Read(x, mask, x[:, 0])
