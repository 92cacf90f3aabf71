"""Real faces with 68 points, and what the points tell: whether an eye is open, and where the head looks.

The layout is that of 300-W (Sagonas et al. 2013). The data: crops from the YouTube Faces (Wolf, Hassner and Maoz 2011),
for research and teaching, in the folder `faces` of `COURSE_DATA`. Their points were placed by a program, in steps of
about 2 px: do not expect to agree with them better than that.
"""

import io
import json
import zipfile
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from course_lib.base import datasets, images

SIDE = 128  # pixels, of a crop
ASTRONAUT = (141.0, 42.0, 308.0, 209.0)  # xyxy: the face in the built-in photograph, marked by hand as the crops are
# Indices into the 68 points. Left and right are those of the picture.
PARTS = {
    "jaw": range(17),
    "left brow": range(17, 22),
    "right brow": range(22, 27),
    "nose": range(27, 36),
    "left eye": range(36, 42),
    "right eye": range(42, 48),
    "lips": range(48, 60),
    "mouth": range(60, 68),
}
CLOSED = ("left eye", "right eye", "lips", "mouth")  # parts whose last point is joined to the first
OUTER_CORNERS = (36, 45)  # of the eyes
# Where each point lies after left and right were exchanged.
MIRRORED = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip


def face_lines() -> tuple[tuple[int, int], ...]:
    """The pairs of points that a drawing joins."""
    lines = []
    for part, points in PARTS.items():
        lines += list(pairwise(points))
        lines += [(points[-1], points[0])] if part in CLOSED else []
    return tuple(lines)


@dataclass(frozen=True)
class Faces:
    """Faces with their points.

    Attributes:
        images: (N, 3, H, H) uint8; 128 pixels a side as they are loaded.
        keypoints: (N, 68, 3) float32: x, y in pixels of the crop, and 2, seen.
        person: (N,) int64, a number for whose face it is.
    """

    images: Tensor
    keypoints: Tensor
    person: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def resized(self, side: int) -> "Faces":
        """The same in squares of `side` pixels."""
        scale = side / self.images.shape[-1]
        small = [images.resize(part.float() / 255, side) for part in self.images.split(256)]
        keypoints = self.keypoints * self.keypoints.new_tensor([scale, scale, 1])
        return Faces((255 * torch.cat(small)).round().byte(), keypoints, self.person)


def load_faces(split: str = "train") -> Faces:
    """3,186 crops to learn from or 567 to be judged by; no person is in both.

    Raises:
        ValueError: another split.
        FileNotFoundError: they are not at hand, or files are missing or damaged; they cannot be downloaded.
    """
    if split not in datasets.SPLITS:
        raise ValueError(f"expected a split of {', '.join(datasets.SPLITS)}; got {split!r}")
    folder = datasets.data_folder() / "faces"
    packed, listed = folder / f"{split}.zip", folder / f"{split}.json"
    if not (packed.is_file() and listed.is_file()):
        raise FileNotFoundError(
            f"expected faces/{split}.zip and faces/{split}.json in COURSE_DATA: crops of {SIDE} × {SIDE} px and a list "
            "with file, person and keypoints of each"
        )
    try:
        faces = json.loads(listed.read_text(encoding="utf-8"))
        with zipfile.ZipFile(packed) as archive:
            pixels = [np.array(Image.open(io.BytesIO(archive.read(face["file"]))).convert("RGB")) for face in faces]
        stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        points = torch.tensor([face["keypoints"] for face in faces], dtype=torch.float32)
        person = torch.tensor([face["person"] for face in faces])
        if points.shape != (len(faces), len(MIRRORED), 2):
            raise ValueError(f"expected {len(MIRRORED)} points (x, y) of each face, got {tuple(points.shape)}")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:  # JSON's errors are ValueErrors
        raise FileNotFoundError(f"faces/{split} in COURSE_DATA is damaged or incomplete: {error}") from error
    return Faces(stacked, torch.cat([points, torch.full_like(points[..., :1], 2)], -1), person)


def eye_opening(points: Tensor) -> Tensor:
    """How far each eye is open: its height by its width, the eye aspect ratio of Soukupová and Čech (2016, eq. 1).

    Args:
        points: (..., 68, 2) xy.

    Returns:
        (..., 2): the eye on the picture's left, and the one on its right; about 0.3 when open, below 0.2 when shut.
    """
    eyes = torch.stack([points[..., 36:42, :], points[..., 42:48, :]], -3)  # (..., 2, 6, 2)
    height = (eyes[..., 1, :] - eyes[..., 5, :]).norm(dim=-1) + (eyes[..., 2, :] - eyes[..., 4, :]).norm(dim=-1)
    return height / (2 * (eyes[..., 0, :] - eyes[..., 3, :]).norm(dim=-1).clamp(min=1e-6))


def head_turn(points: Tensor) -> Tensor:
    """Where the head looks, from −1, to the picture's left, over 0, ahead, to 1: the nose's tip between the cheeks.

    Args:
        points: (..., 68, 2) xy.

    Returns:
        (...), the tip's place on the line from the first to the last point of the jaw, −1 and 1 at its ends.
    """
    first, last, tip = points[..., 0, :], points[..., 16, :], points[..., 30, :]
    across = last - first
    along = ((tip - first) * across).sum(-1) / across.square().sum(-1).clamp(min=1e-6)
    return 2 * along - 1


def eye_distance(points: Tensor) -> Tensor:
    """(...): the distance of the eyes' outer corners, by which errors on faces are divided, of points (..., 68, 2)."""
    left, right = OUTER_CORNERS
    return (points[..., left, :] - points[..., right, :]).norm(dim=-1)
