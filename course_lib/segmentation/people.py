"""People in photographs: read with their masks, cut into squares to learn from, and found by a trained network.

The photographs are those of Penn-Fudan (`detection.load_pedestrians`) and of any folder in COCO's layout. A map of ids
says of each pixel whose it is: 0 nobody's, 1 … N a person's, `IGNORED` where nobody knows, as in a crowd.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.base import images, runtime
from course_lib.base.images import check_batch
from course_lib.base.runtime import wide
from course_lib.detection import coco
from course_lib.detection.coco import Objects
from course_lib.detection.pedestrians import annotated_streets
from course_lib.detection.training import recoloured
from course_lib.segmentation import rle
from course_lib.segmentation.instance import Instances, centre_targets, instances, mask_iou
from course_lib.segmentation.model import Maps
from course_lib.segmentation.panoptic import Panoptic, mean_quality, merge, panoptic_quality, predict
from course_lib.segmentation.semantic import confusion_matrix, iou_per_class
from course_lib.segmentation.training import THING_WEIGHT, Batch

CLASSES = ("person", "background")
PEOPLE_SIDE = 160  # pixels: the shorter side of photographs that `find_people` looks at
THRESHOLD, WINDOW, LEAST_AREA = 0.1, 25, 40  # of centres' heights, around them in pixels; of people in pixels
IGNORED = 255  # the id of a pixel of which nobody knows whose it is
ATTRIBUTION = 4  # the number of the Attribution licence in COCO's files
_PERSON = 1  # the number of the class in COCO's files


@dataclass(frozen=True)
class People:
    """A photograph with the people in it.

    Attributes:
        image: (3, H, W) float32 in [0, 1].
        masks: (N, H, W) bool, disjoint.
        ignored: (H, W) bool, where there are people whom nobody separated.
    """

    image: Tensor
    masks: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, image: Tensor, masks: Tensor, crowd: Tensor) -> "People":
        """Of masks (N, H, W) bool that may overlap, of which some, crowd (N,) bool, are groups of people.

        Where masks overlap, the smaller one is in front.
        """
        ids = torch.zeros(image.shape[1:], dtype=torch.int64)
        order = masks.flatten(1).sum(1).argsort(descending=True).tolist()
        for index in sorted(order, key=lambda i: not crowd[i]):  # crowds first, and so behind everybody
            ids[masks[index]] = IGNORED if crowd[index] else index + 1
        return cls.of_ids(image, ids)

    @classmethod
    def of_ids(cls, image: Tensor, ids: Tensor) -> "People":
        """Of a map of ids (H, W)."""
        return cls(image, _masks(ids), ids == IGNORED)

    @property
    def ids(self) -> Tensor:
        """The map of ids, uint8 (H, W); there is room for 254 people."""
        numbers = torch.arange(1, len(self.masks) + 1)[:, None, None]
        return ((self.masks * numbers).sum(0) + IGNORED * self.ignored).byte()

    def resized(self, shorter: int) -> "People":
        """The same with a shorter side of so many pixels, without people of whom no pixel is left."""
        image = images.resize(self.image[None], shorter)[0]
        ids = F.interpolate(self.ids[None, None].float(), image.shape[1:], mode="nearest-exact")[0, 0].long()
        return People.of_ids(image, ids)

    def panoptic(self) -> Panoptic:
        """People, and the rest as background; what is ignored is void."""
        people = {number: 0 for number in range(1, len(self.masks) + 1)}
        return Panoptic(self.ids.long(), people | {0: 1})

    def objects(self) -> Objects:
        """For `detection.coco.evaluate` with `mask_iou`; what is ignored is a crowd."""
        crowds = self.ignored[None][: int(self.ignored.any())]
        shapes = torch.cat([self.masks, crowds])
        crowd = torch.arange(len(shapes)) >= len(self.masks)
        return Objects(shapes, torch.zeros(len(shapes), dtype=torch.int64), areas=shapes.sum((1, 2)), crowd=crowd)


def load_coco_people(folder: Path) -> dict[str, list[People]]:
    """The photographs of a folder in COCO's layout, with the people's masks; photographs without people too.

    Args:
        folder: with annotations/instances_SPLIT.json and the images in SPLIT/; or as the panoptic annotations come,
            with panoptic/panoptic_SPLIT.json, maps in panoptic/SPLIT/ and the images in images/SPLIT/.

    Returns:
        "attribution": those whose licence lets them be shown, and "others".

    Raises:
        FileNotFoundError: no such annotations, or an image is missing.
    """
    found: dict[str, list[People]] = {"attribution": [], "others": []}
    files = sorted([*folder.glob("annotations/instances_*.json"), *folder.glob("panoptic/panoptic_*.json")])
    if not files:
        raise FileNotFoundError(f"expected {folder}/annotations/instances_….json or {folder}/panoptic/panoptic_….json")
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, split = file.stem.split("_", 1)
        place, read = (folder / split, _instances) if kind == "instances" else (folder / "images" / split, _panoptic)
        for entry in tqdm(content["images"], split, unit="image", delay=2, leave=False):
            image = images.load(place / entry["file_name"])[0]
            own = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
            people = read(image, own, file.with_name(split))
            found["attribution" if entry["license"] == ATTRIBUTION else "others"].append(people)
    return found


def _masks(ids: Tensor) -> Tensor:
    """The people's masks (N, H, W) of a map of ids (H, W)."""
    people = ids.unique()
    return ids == people[(people > 0) & (people != IGNORED)][:, None, None]


def shipped_people() -> dict[str, People]:
    """The four photographs of COCO that ship with the course, by their names in `datasets.load_image`.

    None of the course's networks has learned from them.
    """
    return {name: _instances(image[0], people, Path()) for name, image, people in annotated_streets()}


def _instances(image: Tensor, annotations: list[dict], _: Path) -> People:
    size = tuple(image.shape[1:])
    own = [a for a in annotations if a["category_id"] == _PERSON]
    masks = [rle.decode(rle.from_coco(a["segmentation"], size)) for a in own]
    crowd = torch.tensor([bool(a["iscrowd"]) for a in own], dtype=torch.bool)
    return People.of(image, torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool), crowd)


def _panoptic(image: Tensor, annotations: list[dict], maps: Path) -> People:
    (annotation,) = annotations
    # A segment's id stands in the three bytes of its pixels' colour.
    coded = np.array(Image.open(maps / annotation["file_name"]).convert("RGB")).astype(np.int64) @ (1, 256, 65536)
    coded, ids = torch.from_numpy(coded), torch.zeros(image.shape[1:], dtype=torch.int64)
    for number, segment in enumerate((s for s in annotation["segments_info"] if s["category_id"] == _PERSON), start=1):
        ids[coded == segment["id"]] = IGNORED if segment["iscrowd"] else number
    return People.of_ids(image, ids)


class PeopleDataset:
    """Photographs on grey canvases of one size: `data[indices]` is images (B, 3, H, W) in [0, 1] and ids (B, H, W).

    The canvas is as large as the largest photograph, at the top left of which each lies; around it nobody knows.

    Args:
        photographs: to learn from, scaled to one shorter side.
        shorter: of it, in pixels.
    """

    def __init__(self, photographs: Sequence[People], shorter: int) -> None:
        small = [photograph.resized(shorter) for photograph in photographs]
        H, W = (max(p.image.shape[axis] for p in small) for axis in (1, 2))
        around = [(0, W - p.image.shape[2], 0, H - p.image.shape[1]) for p in small]
        pairs = list(zip(small, around, strict=True))
        self.images = torch.stack([(255 * F.pad(p.image, a, value=0.5)).round().byte() for p, a in pairs])
        self.ids = torch.stack([F.pad(p.ids, a, value=IGNORED) for p, a in pairs])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices].float() / 255, self.ids[indices]


def random_squares(
    batch: tuple[Tensor, Tensor], rng: torch.Generator, *, size: int, zoom: tuple[float, float]
) -> Batch:
    """Squares of photographs in random colours, larger or smaller, near a person, mirrored or not, as a batch.

    Args:
        batch: of `PeopleDataset`.
        rng: on the CPU.
        size: side of the squares, in pixels.
        zoom: least and most enlargement.

    Returns:
        A batch for `segmentation_step`: images (B, 3, size, size), classes of `CLASSES`, or 255, heatmaps, offsets.
    """
    photographs, ids = batch
    B, _, H, W = photographs.shape
    chance = torch.rand(5, B, generator=rng)
    scale = zoom[0] * (zoom[1] / zoom[0]) ** chance[0]  # evenly over the octaves
    flip = torch.where(chance[4] < 0.5, -1.0, 1.0)
    theta = torch.zeros(B, 2, 3)
    for b, own in enumerate(ids.cpu()):
        people = ((own > 0) & (own != IGNORED)).nonzero()
        known = people if len(people) else (own != IGNORED).nonzero()
        middle = known[int(chance[1, b] * len(known))] + 0.6 * (chance[2:4, b] - 0.5) * size / scale[b]
        extent = size / scale[b]  # of the square in the photograph; affine_grid counts from −1 to 1 across it
        theta[b, 0] = torch.stack([flip[b] * extent / W, torch.tensor(0.0), 2 * middle[1] / W - 1])
        theta[b, 1] = torch.stack([torch.tensor(0.0), extent / H, 2 * middle[0] / H - 1])
    with runtime.no_autocast(photographs.device):  # bfloat16 knows a place only to within a pixel or two
        grid = F.affine_grid(theta.to(photographs), [B, 3, size, size], align_corners=False)
        squares = F.grid_sample(photographs - 0.5, grid, align_corners=False) + 0.5  # what is outside becomes grey
        whose = F.grid_sample(ids[:, None].float() - IGNORED, grid, mode="nearest", align_corners=False) + IGNORED
    whose = whose[:, 0].round().long()
    semantic = torch.where(whose == IGNORED, IGNORED, (whose == 0).long())
    targets = [_targets(own) for own in whose]
    return recoloured(squares, rng), semantic, *map(torch.stack, zip(*targets, strict=True))


def _targets(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Heatmap and offsets of a map of ids (H, W); the larger a person, the wider the hill."""
    masks = _masks(ids)
    return centre_targets(masks, (0.08 * masks.sum((1, 2)).sqrt()).clamp(min=2.0))


def find_people(network: nn.Module, photograph: Tensor, *, threshold: float = THRESHOLD) -> tuple[Tensor, Instances]:
    """The people in a photograph, as `panoptic_people` finds them in it and in its mirror image.

    Args:
        network: gives `Maps` of two classes, `CLASSES`.
        photograph: (1, 3, H, W) in [0, 1]; best with a shorter side of `PEOPLE_SIDE` pixels.
        threshold: of centres, see `instance.find_centres`.

    Returns:
        The probability (H, W) that a pixel is a person's, and the people.

    Raises:
        TypeError: a photograph that is no tensor of floats.
        ValueError: another shape, or values outside [0, 1].
    """
    check_batch(photograph)
    H, W = photograph.shape[-2:]
    filled = F.pad(photograph, (0, -W % network.divisor, 0, -H % network.divisor), value=0.5)
    there, back = predict(network, filled), predict(network, filled.flip(-1))
    turned = back.offsets.flip(-1) * torch.tensor([1.0, -1.0])[:, None, None]
    both = zip(there, Maps(back.logits.flip(-1), back.heatmap.flip(-1), turned), strict=True)
    logits, heatmap, offsets = (((a + b) / 2)[0, ..., :H, :W] for a, b in both)
    # The loss counts a person's pixel so many times, and the network's odds are as many times too high.
    odds = wide(logits) - torch.tensor([math.log(THING_WEIGHT), 0.0])[:, None, None]
    probabilities = odds.softmax(0)
    found = instances(probabilities, heatmap, offsets, [0], threshold=threshold, window=WINDOW, least_area=LEAST_AREA)
    return probabilities[0], found


def evaluate_people(
    network: nn.Module, photographs: Sequence[People], *, threshold: float = THRESHOLD
) -> dict[str, float]:
    """How well people are found in photographs: "IoU" of all people's pixels, "mask AP" and "mask AP50", "PQ".

    Panoptic quality is the mean of people's and the background's.
    """
    confusion, found, maps = torch.zeros(2, 2, dtype=torch.int64), [], []
    for photograph in tqdm(photographs, "photographs", unit="image", delay=2, leave=False):
        chance, people = find_people(network, photograph.image[None], threshold=threshold)
        classes = (chance < 0.5).long()
        truth = torch.where(photograph.ignored, IGNORED, (photograph.ids == 0).long())
        confusion += confusion_matrix(classes, truth, 2)
        found.append(people)
        maps.append(merge(classes, people.masks, people.labels, people.scores, [1]))
    ap = coco.evaluate([f.objects() for f in found], [p.objects() for p in photographs], mask_iou)
    quality = mean_quality(panoptic_quality(maps, [p.panoptic() for p in photographs]))
    iou = float(iou_per_class(confusion)[0])
    return {"IoU": iou, "mask AP": ap.mean_precision(), "mask AP50": ap.mean_precision(0.5), "PQ": quality.pq}
