"""Scenes in the formats of COCO, as its evaluators read them (Lin et al. 2014; Kirillov et al. 2019, panoptic)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.base.scenes.rendering import Picture
from course_lib.base.scenes.shapes import KEYPOINTS, SKELETON
from course_lib.base.scenes.world import CLASSES, THINGS

CATEGORY = 1  # COCO counts from one: a category's id is its class id + CATEGORY


def to_coco(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Instances, keypoints, captions and panoptic segments of some pictures in one dictionary, ready for `json.dump`.

    Returns:
        `images` with ids from 1, `categories`, `annotations` (`bbox` as x, y, width, height; `segmentation` as
        uncompressed run lengths; figures with `keypoints`), `captions` (`image_id`, `caption`) and `panoptic`
        (`image_id`, `segments_info`, whose ids are those in `Picture.panoptic`).
    """
    annotations: list[dict[str, Any]] = []
    for image_id, picture in enumerate(pictures, 1):
        for n in range(len(picture.labels)):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_instance(picture, n)})
    numbered = list(enumerate(pictures, 1))
    return {
        "info": {"description": "Scenes of the toy world"},
        "images": [_image(i, picture) for i, picture in numbered],
        "categories": [_category(index) for index in range(len(CLASSES))],
        "annotations": annotations,
        "captions": [{"id": i, "image_id": i, "caption": picture.caption} for i, picture in numbered],
        "panoptic": [{"image_id": i, "segments_info": segments(picture)} for i, picture in numbered],
    }


def segments(picture: Picture) -> list[dict[str, Any]]:
    """COCO's `segments_info`: of each id in `picture.panoptic`, its category, area, and box (x, y, width, height)."""
    found = []
    for segment in picture.panoptic.unique().tolist():
        mask = picture.panoptic == segment
        category = int(picture.semantic[mask][0])
        found.append(
            {
                "id": segment,
                "category_id": category + CATEGORY,
                "isthing": int(category < len(THINGS)),
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": _box(mask),
            }
        )
    return found


def run_lengths(mask: Tensor) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (H, W) bool: zeros, ones, zeros …, down the columns."""
    pixels = mask.T.flatten().int()
    changes = torch.diff(pixels, prepend=pixels.new_zeros(1)).nonzero().flatten()
    ends = torch.cat([changes, changes.new_tensor([len(pixels)])])
    return {"size": list(mask.shape), "counts": torch.diff(ends, prepend=ends.new_zeros(1)).tolist()}


def _image(image_id: int, picture: Picture) -> dict[str, Any]:
    _, height, width = picture.image.shape
    return {"id": image_id, "width": width, "height": height, "file_name": f"{image_id:06d}.png"}


def _category(index: int) -> dict[str, Any]:
    is_thing = index < len(THINGS)
    entry = {
        "id": index + CATEGORY,
        "name": CLASSES[index],
        "supercategory": "thing" if is_thing else "stuff",
        "isthing": int(is_thing),
    }
    if CLASSES[index] == "figure":
        entry |= {"keypoints": list(KEYPOINTS), "skeleton": [[a + 1, b + 1] for a, b in SKELETON]}
    return entry


def _instance(picture: Picture, n: int) -> dict[str, Any]:
    x0, y0, x1, y1 = picture.boxes[n].tolist()
    entry = {
        "category_id": int(picture.labels[n]) + CATEGORY,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(picture.masks[n].sum()),
        "iscrowd": 0,
        "segmentation": run_lengths(picture.masks[n]),
    }
    if THINGS[int(picture.labels[n])] == "figure":
        keypoints = picture.keypoints[n]
        entry |= {"keypoints": keypoints.flatten().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    return entry


def _box(mask: Tensor) -> list[int]:
    rows, columns = (mask.any(axis).nonzero().flatten() for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
