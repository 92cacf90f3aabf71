"""Scenes in the formats of COCO, as its evaluators read them (Lin et al. 2014; Kirillov et al. 2019, panoptic)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from course_lib.base.scenes.rendering import Picture, tight_boxes
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


def run_lengths(mask: Tensor) -> Tensor:
    """int64 (R,): lengths of the runs of 0, 1, 0, … of a mask (H, W) bool, down the columns as COCO has them.

    The first is 0 where the mask begins with a 1.
    """
    pixels = mask.T.flatten().int()
    # A mask begins as if a 0 stood before it: then every change, the one at its start too, ends a run.
    changes = torch.diff(pixels, prepend=pixels.new_zeros(1)).nonzero().flatten()
    ends = torch.cat([changes, changes.new_tensor([len(pixels)])])
    return torch.diff(ends, prepend=ends.new_zeros(1))


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
    entry = {
        "category_id": int(picture.labels[n]) + CATEGORY,
        "bbox": _box(picture.masks[n]),
        "area": int(picture.masks[n].sum()),
        "iscrowd": 0,
        "segmentation": {
            "size": list(picture.masks[n].shape),
            "counts": run_lengths(picture.masks[n]).tolist(),
        },
    }
    if THINGS[int(picture.labels[n])] == "figure":
        keypoints = picture.keypoints[n]
        entry |= {"keypoints": keypoints.flatten().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    return entry


def _box(mask: Tensor) -> list[int]:
    x0, y0, x1, y1 = map(int, tight_boxes(mask[None])[0].tolist())
    return [x0, y0, x1 - x0, y1 - y0]
