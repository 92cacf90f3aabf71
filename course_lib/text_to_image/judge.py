"""Whether images show what their captions say. The judge is not CLIP, which would praise what it has taught.

The shipped detector looks for objects in the images, enlarged to the size it was trained on; the colour of each is
voted on by the pixels in its box. Its own mistakes are a ceiling: see what it says of real scenes, too.

    judge(images, captions)["class and colour"].float().mean()
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from course_lib import scenes
from course_lib.base import images as checks
from course_lib.base import metrics, zoo
from course_lib.scenes.rendering import PAINTS, SKIES
from course_lib.scenes.world import COLOURS, GROUNDS, LIGHTS, THINGS

SIDE = 64  # of the images that the detector knows
SURE = 0.4  # least score of an object
OVERLAP = 0.5  # IoU above which two objects are one, also of two classes
BATCH = 64  # images that the detector sees at once
QUESTIONS = ("count", "class", "colour", "place", "ground", "light", "class and colour", "all")


class Found(NamedTuple):
    """An object as the judge sees it: names of THINGS, COLOURS and PLACES; its box (x0, y0, x1, y1) in pixels."""

    name: str
    colour: str
    place: str
    box: tuple[float, float, float, float]
    score: float


class Reading(NamedTuple):
    """What the judge reads from an image: objects from left to right, and names of GROUNDS and LIGHTS."""

    objects: tuple[Found, ...]
    ground: str
    light: str

    def __str__(self) -> str:
        listed = ", ".join(f"{each.colour} {each.name} {each.place}" for each in self.objects) or "nothing"
        return f"{listed}; {self.ground}, {self.light}"


def read(images: Tensor, detector: torch.nn.Module | None = None) -> list[Reading]:
    """What is to be seen in images (B, 3, H, H) in [0, 1].

    Args:
        images: of scenes, of any size from 32.
        detector: in evaluation mode, on any device; None: the shipped `detector_scenes`.

    Raises:
        ValueError: images that are no RGB images in [0, 1], or not square.
        TypeError: images that are no floats.
    """
    checks.check_batch(images)
    checks.check_range(images)
    if images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected square images (B, 3, H, H), got {tuple(images.shape)}")
    detector = zoo.load("detector_scenes", images.device) if detector is None else detector
    large = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    scale = images.shape[3] / SIDE
    found = [each for part in large.split(BATCH) for each in _objects(detector, part)]
    return [_reading(image, *objects, scale) for image, objects in zip(large.cpu(), found, strict=True)]


@torch.no_grad()
def _objects(detector: torch.nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (N, 4) in pixels, labels and scores of each image's objects: peaks of the heatmap, none on another.

    As `detection.detect`; lesson 10 explains it. There boxes of two classes may overlap, here one thing is not two.
    """
    predicted, found = detector(images.to(next(detector.parameters()).device)), []
    heatmaps = predicted.heatmap.sigmoid()
    peaks = (heatmaps == F.max_pool2d(heatmaps, 3, 1, 1)) & (heatmaps >= SURE)
    for heatmap, boxes, peak in zip(heatmaps, predicted.boxes, peaks, strict=True):
        label, row, column = peak.nonzero(as_tuple=True)
        scores, corners = heatmap[label, row, column], boxes[:, row, column].T.clamp(0, SIDE)
        kept = nms(corners, scores, OVERLAP)
        found.append((corners[kept].cpu(), label[kept].cpu(), scores[kept].cpu()))
    return found


def _reading(image: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor, scale: float) -> Reading:
    light = _nearest_name(image[:, :6].flatten(1).mean(1), {name: SKIES[name][0].flatten() for name in LIGHTS})
    seen = []
    for box, label, score in zip(boxes, labels, scores, strict=True):
        place = scenes.PLACES[min(int(3 * (box[0] + box[2]) / 2 / SIDE), 2)]
        corners = tuple((scale * box).tolist())
        seen.append(Found(THINGS[int(label)], _colour(image, box), place, corners, float(score)))
    free = torch.ones(image.shape[1:], dtype=torch.bool)  # of objects
    free[: -SIDE // 4] = False
    for each in seen:
        x0, _, x1, _ = (int(side / scale) for side in each.box)
        free[:, max(x0 - 2, 0) : x1 + 2] = False
    below = image[:, free if free.any() else slice(-SIDE // 4, None)].flatten(1).T
    # Shadows are darker, but of the same hue.
    grounds = {name: _hue((PAINTS[name] * SKIES[light][2]).flatten()) for name in GROUNDS}
    ground = _nearest_name(_hue(below.median(0).values), grounds)
    return Reading(tuple(sorted(seen, key=lambda each: each.box[0] + each.box[2])), ground, light)


def _hue(colour: Tensor) -> Tensor:
    return colour / colour.sum().clamp_min(1e-3)


def _nearest_name(colour: Tensor, named: dict[str, Tensor]) -> str:
    return min(named, key=lambda name: float((colour - named[name]).square().sum()))


def _palette() -> tuple[Tensor, Tensor]:
    """Colours (N, 3) that pixels may have, and what each is: an index into COLOURS, or −1 for anything else."""
    colours, meaning = [], []
    on_objects = (*COLOURS, "wood", "skin", "trousers", "ink")
    for light in LIGHTS:
        full = SKIES[light][2]
        for name, paint in PAINTS.items():
            shine = (1 + full) / 2 if name in on_objects else full  # as `rendering.paint` lights objects
            for shade in (0.89, 1.0, 1.11) if name in COLOURS else (1.0,):  # lit from above
                colours.append((paint * shade * shine).flatten())
                meaning.append(COLOURS.index(name) if name in COLOURS else -1)
        colours += [SKIES[light][i].flatten() for i in (0, 1)]
        meaning += [-1, -1]
    return torch.stack(colours).clamp(0, 1), torch.tensor(meaning)


_COLOURS, _MEANING = _palette()


def _colour(image: Tensor, box: Tensor) -> str:
    """The colour most pixels of the box have: each votes for the nearest of the palette's, or for none."""
    x0, y0, x1, y1 = box.round().int().tolist()
    pixels = image[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].flatten(1).T  # (N, 3)
    meant = _MEANING[torch.cdist(pixels, _COLOURS).argmin(1)]
    votes = torch.bincount(meant + 1, minlength=len(COLOURS) + 1)  # the first: no colour of an object
    return COLOURS[int(votes[1:].argmax())]


def judge(images: Tensor, captions: Sequence[str], detector: torch.nn.Module | None = None) -> dict[str, Tensor]:
    """Answers to QUESTIONS, bool (B,) each: does the image show what its caption says?

    `count`: as many objects as asked. `class`, `colour`, `place`: the right ones, whatever belongs to what. `class and
    colour`: together, each object's. `all`: class, colour and place of each object, and ground and light.

    Args:
        images: (B, 3, H, H) in [0, 1].
        captions: B captions, as of `scenes.describe`.
        detector: see `read`.

    Raises:
        ValueError: another number of captions, or one that `scenes.parse` refuses; what `read` refuses.
    """
    if len(images) != len(captions):
        raise ValueError(f"expected a caption for each of {len(images)} images, got {len(captions)}")
    asked = [scenes.parse(caption) for caption in captions]
    readings = read(images, detector)
    answers = [_answer(facts, reading) for facts, reading in zip(asked, readings, strict=True)]
    return {question: torch.tensor([answer[question] for answer in answers]) for question in QUESTIONS}


def _answer(facts: scenes.Facts, reading: Reading) -> dict[str, bool]:
    def agree(*fields: str) -> bool:
        said, seen = (Counter(tuple(getattr(o, f) for f in fields) for o in side.objects) for side in (facts, reading))
        return said == seen

    ground, light = facts.ground == reading.ground, facts.light == reading.light
    return {
        "count": agree(),
        "class": agree("name"),
        "colour": agree("colour"),
        "place": agree("place"),
        "ground": ground,
        "light": light,
        "class and colour": agree("name", "colour"),
        "all": agree("name", "colour", "place") and ground and light,
    }


def by_objects(answers: dict[str, Tensor], captions: Sequence[str]) -> dict[str, dict[str, metrics.Score]]:
    """Proportions of right answers, of the captions with one object, and with two: `["one"]["class"]`, `["two"]…`."""
    counts = torch.tensor([len(scenes.parse(caption).objects) for caption in captions])
    asked = {name: counts == n for name, n in (("one", 1), ("two", 2)) if (counts == n).any()}
    return {
        name: {question: metrics.proportion(answer[those]) for question, answer in answers.items()}
        for name, those in asked.items()
    }
