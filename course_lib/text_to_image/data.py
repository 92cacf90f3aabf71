"""Captioned scenes for text to image, sentences that say less, and sentences that say something slightly different.

training = draw_captioned(16_000, seed=0, folder="build")       # 32×32, one or two objects, no held-out pair
held_out = draw_captioned(500, seed=1, held_out=True)           # an object in a colour it never had in training
"""

import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from course_lib import scenes
from course_lib.scenes.world import COLOURS, SIZES, TEXTURES, THINGS, Scene

# Colour and class that never come together in training; each colour is seen on other things, each thing in others.
HELD_OUT = frozenset(
    {
        ("red", "heart"),
        ("orange", "tree"),
        ("yellow", "disc"),
        ("green", "ring"),
        ("blue", "star"),
        ("purple", "square"),
        ("pink", "triangle"),
    }
)
SIDE = 32
LOWEST = 9 / 32  # height of the smallest object, as a part of the image's: below, a star and a heart are the same blob
PARTS = ("size", "texture", "place", "setting")  # what `shorten` can leave out

_PLACE = "(?:on the left|in the middle|on the right)"
_TWO = re.compile(rf"a (.+?)( {_PLACE}) and a (.+?)( {_PLACE})(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Captioned:
    """Images with their captions.

    Attributes:
        images: uint8 (N, 3, size, size).
        captions: N sentences, as of `scenes.describe`.
    """

    images: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def floats(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Images (B, 3, size, size), float32 in [0, 1]."""
        return self.images[indices].float() / 255


def is_held_out(caption: str) -> bool:
    """Whether a caption speaks of a colour and a class that never come together in training.

    Raises:
        ValueError: a caption that `scenes.parse` refuses.
    """
    return any((m.colour, m.name) in HELD_OUT for m in scenes.parse(caption).objects)


def draw_captioned(
    n: int,
    seed: int,
    *,
    held_out: bool = False,
    objects: tuple[int, int] = (1, 2),
    size: int = SIDE,
    plain: bool = False,
    folder: Path | str | None = None,
) -> Captioned:
    """Scenes drawn at random, none of whose objects is lower than LOWEST; a progress bar beyond 2 s.

    Args:
        n: how many.
        seed: other seeds give other scenes; training and test take different ones.
        held_out: True: every scene has an object of the pairs HELD_OUT; False: none has.
        objects: the least and the most objects.
        size: of the images, 32 to 256 pixels.
        plain: near objects without texture: simpler, for networks that learn to draw on one core.
        folder: where to keep what is drawn, and to look for it first; drawing takes 5 ms an image. None: nowhere.

    Raises:
        ValueError: n below 1, and what `scenes.draw_scene` refuses.
    """
    if n < 1:
        raise ValueError(f"expected at least one scene; got {n}")
    kind = "held_out" if held_out else "seen"
    least, most = objects
    kind += "_plain" if plain else ""
    path = None if folder is None else Path(folder) / f"scenes_{kind}_{size}_{least}-{most}_{n}_{seed}.npz"
    if path is not None and path.exists():
        with np.load(path) as kept:
            return Captioned(torch.from_numpy(kept["images"]), tuple(json.loads(str(kept["captions"]))))
    simpler = {"textures": TEXTURES[:1], "near": True} if plain else {}
    endless = scenes.Scenes(2**31, size, seed, objects=objects, **simpler)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    captions: list[str] = []
    candidates = map(endless.scene, itertools.count())
    with tqdm(total=n, desc="scenes", unit="scene", delay=2, leave=False) as bar:
        while len(captions) < n:
            scene = next(candidates)
            caption = scenes.describe(scene)
            spoken = len(scenes.parse(caption).objects)
            if spoken < least or not _is_large(scene) or is_held_out(caption) != held_out:
                continue
            images[len(captions)] = (scenes.render(scene).image * 255).round().byte()
            captions.append(caption)
            bar.update()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (neighbour := path.with_suffix(".tmp")).open("wb") as file:
            np.savez(file, images=images.numpy(), captions=np.array(json.dumps(captions)))
        neighbour.replace(path)
    return Captioned(images, tuple(captions))


def _is_large(scene: Scene) -> bool:
    camera = scene.camera
    return all(camera.focal * thing.height / (thing.z - camera.z) >= LOWEST for thing in scene.things)


def swap(caption: str, what: Literal["colour", "shape", "place"]) -> str | None:
    """The caption's twin: the same words, but two objects have exchanged their colours, shapes or places.

    "A red star on the left and a blue disc on the right" becomes "A blue star on the left and a red disc on the
    right" (colour), "A red disc … and a blue star …" (shape) or "A blue disc on the left and a red star on the right"
    (place): whoever only counts words cannot tell it from the caption.

    Returns:
        The twin; None where there is none: with other than two objects, or two that agree in what would be exchanged
        (of colours and shapes also: in both, for then the twin may say the same).

    Raises:
        ValueError: another `what`.
    """
    if what == "place":
        found = _TWO.fullmatch(caption)
        if found is None or found[2] == found[4] or found[1].lower() == found[3].lower():
            return None
        return f"{caption[0]} {found[3]}{found[2]} and a {found[1]}{found[4]}{found[5]}"
    words = {"colour": COLOURS, "shape": THINGS}.get(what)
    if words is None:
        raise ValueError(f"expected colour, shape or place; got {what!r}")
    colours, shapes = (re.findall(rf"\b(?:{'|'.join(w)})\b", caption) for w in (COLOURS, THINGS))
    if any(len(pair) != 2 or pair[0] == pair[1] for pair in (colours, shapes)):
        return None
    exchange = colours if what == "colour" else shapes
    other = dict(zip(exchange, exchange[::-1], strict=True))
    return re.sub(rf"\b(?:{'|'.join(exchange)})\b", lambda match: other[match[0]], caption)


def shorten(caption: str, without: Collection[str]) -> str:
    """The caption without some of PARTS: people seldom say all. "A large red star on the left, on sand by day."
    without size and setting is "A red star on the left."

    Raises:
        ValueError: a part that is not of PARTS.
    """
    if unknown := set(without) - set(PARTS):
        raise ValueError(f"expected parts of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    text = caption.removesuffix(".")
    if "setting" in without:
        text = text.rpartition(", ")[0] or text
    drop = [SIZES] * ("size" in without) + [TEXTURES] * ("texture" in without)
    for words in drop:
        text = re.sub(rf"\b(?:{'|'.join(words)}) ", "", text)
    if "place" in without:
        text = re.sub(f" {_PLACE}", "", text)
    return f"{text}."


def briefer(captions: Sequence[str], proportion: float, seed: int = 0) -> list[str]:
    """The captions, a random `proportion` of them without a random half of PARTS."""
    rng = torch.Generator().manual_seed(seed)
    shortened = (torch.rand(len(captions), generator=rng) < proportion).tolist()
    without = (torch.rand(len(captions), len(PARTS), generator=rng) < 0.5).tolist()
    return [
        shorten(caption, [part for part, out in zip(PARTS, parts, strict=True) if out]) if short else caption
        for caption, short, parts in zip(captions, shortened, without, strict=True)
    ]
