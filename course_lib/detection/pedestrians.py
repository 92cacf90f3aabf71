"""Real images with people in them: the Penn-Fudan pedestrians (Wang et al. 2007), and photographs that ship.

Penn-Fudan has 170 photographs of 423 people. It is read from the folder `pennfudan` in `COURSE_DATA`, else downloaded
once from the authors into the course's cache. They publish no checksum: the archive's own are checked, and the numbers
of images, masks and people. The folder appears in the cache when all of it is right, so a download that is cut short is
never taken for the whole.
"""

import json
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from course_lib import scenes
from course_lib.base import checkpoints, datasets, images
from course_lib.detection.coco import Objects
from course_lib.detection.model import PEDESTRIAN_SIDE, Detector, detect
from course_lib.detection.training import DetectionDataset

URL = "https://www.cis.upenn.edu/~jshi/ped_html/PennFudanPed.zip"
NAMES = (*(f"FudanPed{n:05d}" for n in range(1, 75)), *(f"PennPed{n:05d}" for n in range(1, 97)))
# The last fifth of either city: neighbouring numbers show the same street, perhaps the same people, and stay together.
HELD_OUT = (*NAMES[59:74], *NAMES[150:])
PEOPLE = 423


@dataclass(frozen=True)
class Photograph:
    """A street with the people who walk there. (Some who are small or much hidden are not marked, the authors say.)

    Attributes:
        name: of the file.
        image: (3, H, W) float32 in [0, 1].
        boxes: (N, 4) float32 xyxy in pixels, tight around the masks.
        masks: (N, H, W) bool.
    """

    name: str
    image: Tensor
    boxes: Tensor
    masks: Tensor

    @property
    def objects(self) -> Objects:
        """Boxes, all of the one class 0, with the areas of the masks, as COCO has it."""
        labels = torch.zeros(len(self.boxes), dtype=torch.int64)
        return Objects(self.boxes, labels, areas=self.masks.flatten(1).sum(1).float())

    def resized(self, shorter: int) -> "Photograph":
        """The same with a shorter side of so many pixels, without people of whom no pixel is left."""
        _, H, W = self.image.shape
        image = images.resize(self.image[None], shorter)[0]
        h, w = image.shape[1:]
        masks = F.interpolate(self.masks[:, None].float(), (h, w), mode="area")[:, 0] >= 0.5
        boxes, seen = self.boxes * torch.tensor([w / W, h / H, w / W, h / H]), masks.any(-1).any(-1)
        return Photograph(self.name, image, boxes[seen], masks[seen])


def load_pedestrians(split: str = "train") -> list[Photograph]:
    """135 photographs to learn from or 35 to be judged by, the last fifth of those from either city.

    Raises:
        ValueError: another split.
        OfflineError: they are not at hand, and there is no connection, or `COURSE_OFFLINE` forbids one.
        DownloadError: the download failed, or is damaged the second time too.
        FileNotFoundError: an image or a mask is missing in a folder of your own.
    """
    if split not in datasets.SPLITS:
        raise ValueError(f"expected a split of {', '.join(datasets.SPLITS)}; got {split!r}")
    folder = _folder()
    names = [name for name in NAMES if (name in HELD_OUT) == (split == "test")]
    return [_read(folder, name) for name in tqdm(names, "pedestrians", unit="image", delay=2, leave=False)]


def _folder() -> Path:
    """Where the images are, downloaded if they must be; a damaged archive is fetched once more."""
    own, folder = datasets.data_folder() / "pennfudan", datasets.cache_folder() / "PennFudanPed"
    if own.is_dir():
        return own
    advice = f"put the unpacked archive at {folder} yourself, or set COURSE_DATA to a folder that has it as pennfudan/"
    damaged_before = False
    while not folder.is_dir():
        try:
            _download(folder, advice)
        except zipfile.BadZipFile as error:
            if damaged_before:
                raise datasets.DownloadError(f"cannot use {URL}: {error}; try again later, or {advice}") from error
            damaged_before = True
    return folder


def _download(folder: Path, advice: str) -> None:
    """Fetch and unpack in folders of this process's own; what is whole becomes `folder`, all else is deleted."""
    with tempfile.TemporaryDirectory() as fetched:
        archive = datasets.fetch(URL, Path(fetched, "archive.zip"), advice=advice)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.part") as partial:
            unpacked = unpack(archive, Path(partial))
            try:
                os.replace(unpacked, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and its folder is whole too
                    raise


def unpack(archive: Path, into: Path) -> Path:
    """Unpack the authors' archive into a folder; returns the folder of the data set in it.

    Raises:
        BadZipFile: a damaged archive, or one with another number of images, masks or people.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(into)  # which checks the archive's own checksums
    # Where bytes were changed, zipfile raises all of these; an OSError is the disk's.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise zipfile.BadZipFile(f"the archive is damaged ({error})") from error
    inside = into / "PennFudanPed"
    marked = "".join(path.read_text(errors="replace") for path in inside.glob("Annotation/*.txt"))
    found = (
        len(list(inside.glob("PNGImages/*.png"))),
        len(list(inside.glob("PedMasks/*.png"))),
        len(re.findall("^Bounding box", marked, re.MULTILINE)),
    )
    if found != (len(NAMES), len(NAMES), PEOPLE):
        raise zipfile.BadZipFile(f"expected {len(NAMES)} images, as many masks and {PEOPLE} people, got {found}")
    return inside


def _read(folder: Path, name: str) -> Photograph:
    path = next(folder.glob(f"*Images/{name}.*"), None)  # the authors' PNG in PNGImages, or a JPEG
    if path is None:
        raise FileNotFoundError(f"{folder} is not complete: no image {name} in PNGImages")
    mask = torch.from_numpy(np.array(Image.open(folder / "PedMasks" / f"{name}_mask.png")))
    people = mask.unique()
    masks = mask == people[people > 0][:, None, None]
    return Photograph(name, images.load(path)[0], scenes.tight_boxes(masks), masks)


def on_canvas(photographs: list[Photograph], shorter: int) -> DetectionDataset:
    """Photographs scaled to one shorter side and laid on grey canvases of one size, to learn from.

    The canvas is as large as the largest, at the top left of which each lies.
    """
    small = [photograph.resized(shorter) for photograph in photographs]
    H, W = (max(photograph.image.shape[axis] for photograph in small) for axis in (1, 2))
    canvases = [F.pad(p.image, (0, W - p.image.shape[2], 0, H - p.image.shape[1]), value=0.5) for p in small]
    return DetectionDataset(canvases, [p.objects for p in small])


def annotated_streets() -> Iterator[tuple[str, Tensor, list[dict[str, Any]]]]:
    """The photographs of COCO that ship with the course, with what its annotators noted (Lin et al. 2014, CC BY 4.0).

    None of the course's networks has learned from them.

    Yields:
        The name for `datasets.load_image`, the photograph (1, 3, H, W) in [0, 1], and COCO's entries of its people.
    """
    folder = checkpoints.folder().with_name("images")
    coco = json.loads((folder / "coco_instances.json").read_text(encoding="utf-8"))
    person = next(each["id"] for each in coco["categories"] if each["name"] == "person")
    for image in coco["images"]:
        people = [a for a in coco["annotations"] if a["image_id"] == image["id"] and a["category_id"] == person]
        yield image["name"], images.load(folder / image["file_name"]), people


def load_streets() -> dict[str, tuple[Tensor, Objects]]:
    """Those photographs by their names.

    Each is (1, 3, H, W) in [0, 1] with its people: boxes in pixels, all of class 0, the areas of the masks, and which
    boxes hold a crowd.
    """
    found = {}
    for name, photograph, people in annotated_streets():
        boxes = torch.tensor([each["bbox"] for each in people]).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # COCO's are x, y, width, height
        areas = torch.tensor([each["area"] for each in people])
        crowd = torch.tensor([bool(each["iscrowd"]) for each in people])
        objects = Objects(boxes, torch.zeros(len(people), dtype=torch.int64), areas=areas, crowd=crowd)
        found[name] = photograph, objects
    return found


def find_people(detector: Detector, image: Tensor, shorter: int = PEDESTRIAN_SIDE, **settings: float) -> Objects:
    """What a detector finds in a photograph that it looks at in the size it is made for.

    Args:
        detector: in eval mode.
        image: (1, 3, H, W) in [0, 1], of any size.
        shorter: the shorter side that the detector sees, in pixels.
        settings: `minimum`, `suppress` and `most` of `objects`.

    Returns:
        Boxes in pixels of the image as it was given.

    Raises:
        ValueError: more or fewer images than one, and what `detect` refuses.
        TypeError: an image that is no floats.
    """
    if image.ndim != 4 or len(image) != 1:
        raise ValueError(f"expected one image (1, 3, H, W), got {tuple(image.shape)}")
    small = images.resize(image, shorter)
    (found,) = detect(detector, small, **settings)
    H, W = image.shape[-2:]
    h, w = small.shape[-2:]
    boxes = found.shapes * found.shapes.new_tensor([W / w, H / h, W / w, H / h])
    return Objects(boxes, found.labels, found.scores)
