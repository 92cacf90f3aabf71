"""Any number of scenes as a data set, and their export to the formats of COCO.

The i-th scene depends on the seed and on i alone. COCO's formats are written as its evaluators read them (Lin et al.
2014; Kirillov et al. 2019, panoptic).
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_lib.scenes.generation import draw_scene
from course_lib.scenes.rendering import Rendering, render, tight_boxes
from course_lib.scenes.world import CLASSES, KEYPOINTS, SKELETON, TEXTURES, THINGS, Scene

T = TypeVar("T")


class Scenes(Dataset):
    """`n` images, drawn whenever they are asked for.

    With torch's DataLoader and its worker processes give a `collate_fn`, such as `list`: images have different
    numbers of objects, so torch cannot stack their labels.

    Args:
        n: how many.
        size: of the images, 32 to 256 pixels.
        seed: other seeds give other scenes: take one for training and another for tests.
        objects: the least and the most objects; fewer where there is no room.
        things, textures, near: see `draw_scene`.

    Raises:
        ValueError: n below 1, or what `draw_scene` refuses.
    """

    def __init__(
        self,
        n: int,
        size: int = 64,
        seed: int = 0,
        *,
        objects: tuple[int, int] = (1, 5),
        things: Sequence[str] = THINGS,
        textures: Sequence[str] = TEXTURES,
        near: bool = False,
    ) -> None:
        n = operator.index(n)
        if n < 1:
            raise ValueError(f"expected at least one scene; got {n}")
        self.n, self.size, self.seed = n, size, seed
        self._settings = {"objects": objects, "things": tuple(things), "textures": tuple(textures), "near": near}
        self._start = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.scene(0)  # refuses bad settings now

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> Scene:
        """The description of the image at `index`; IndexError beyond the last."""
        i = operator.index(index)
        if not -self.n <= i < self.n:
            raise IndexError(f"expected an index below {self.n}; got {i}")
        # torch's generator takes 32 bits. Counting on from a random start, no two scenes of a set share theirs.
        rng = torch.Generator().manual_seed((self._start + i % self.n) % 2**32)
        return draw_scene(rng, self.size, **self._settings)

    def __getitem__(self, index: int) -> Rendering:
        return render(self.scene(index))

    def render_all(self, keep: Callable[[Rendering], T] = lambda image: image) -> list[T]:
        """All images, or what `keep` takes from each; with a progress bar if it takes more than 2 s.

        An image of 64×64 with all its labels takes 0.15 MB.
        """
        return [keep(self[i]) for i in tqdm(range(self.n), "scenes", unit="scene", delay=2, leave=False)]


CATEGORY = 1  # COCO counts from one: a category's id is its class id + CATEGORY


def to_coco(images: Sequence[Rendering]) -> dict[str, Any]:
    """Instances, keypoints, captions and panoptic segments of some images in one dictionary, ready for `json.dump`.

    Returns:
        `images` with ids from 1, `categories`, `annotations` (`bbox` as x, y, width, height; `segmentation` as
        uncompressed run lengths; figures with `keypoints`), `captions` (`image_id`, `caption`) and `panoptic`
        (`image_id`, `segments_info`, whose ids are those in `Rendering.panoptic`).
    """
    numbered = list(enumerate(images, 1))
    found = [{"image_id": i, **_instance(image, n)} for i, image in numbered for n in range(len(image.labels))]
    return {
        "info": {"description": "Scenes of the toy world"},
        "images": [
            {"id": i, "width": image.image.shape[2], "height": image.image.shape[1], "file_name": f"{i:06d}.png"}
            for i, image in numbered
        ],
        "categories": [_category(index) for index in range(len(CLASSES))],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(found, 1)],
        "captions": [{"id": i, "image_id": i, "caption": image.caption} for i, image in numbered],
        "panoptic": [{"image_id": i, "segments_info": segments(image)} for i, image in numbered],
    }


def segments(image: Rendering) -> list[dict[str, Any]]:
    """COCO's `segments_info`: of each id in `image.panoptic`, its category, area, and box (x, y, width, height)."""
    found = []
    for segment in image.panoptic.unique().tolist():
        mask = image.panoptic == segment
        category = int(image.semantic[mask][0])
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
    """int64 (R,): lengths of the runs of 0, 1, 0, … of a mask (H, W), down the columns as COCO has them.

    The first is 0 where the mask begins with a 1. Every value but 0 counts as 1.
    """
    pixels = mask.T.flatten().bool().int()
    # A mask begins as if a 0 stood before it: then every change, the one at its start too, ends a run.
    changes = torch.diff(pixels, prepend=pixels.new_zeros(1)).nonzero().flatten()
    ends = torch.cat([changes, changes.new_tensor([len(pixels)])])
    return torch.diff(ends, prepend=ends.new_zeros(1))


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


def _instance(image: Rendering, n: int) -> dict[str, Any]:
    entry = {
        "category_id": int(image.labels[n]) + CATEGORY,
        "bbox": _box(image.masks[n]),
        "area": int(image.masks[n].sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(image.masks[n].shape), "counts": run_lengths(image.masks[n]).tolist()},
    }
    if THINGS[int(image.labels[n])] == "figure":
        keypoints = image.keypoints[n]
        entry |= {"keypoints": keypoints.flatten().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum())}
    return entry


def _box(mask: Tensor) -> list[int]:
    x0, y0, x1, y1 = map(int, tight_boxes(mask[None])[0].tolist())
    return [x0, y0, x1 - x0, y1 - y0]
