"""Several pictures of one object with their cameras: the turntable's, and real data from the folder `COURSE_DATA`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.base import datasets, images
from course_lib.reconstruction.cameras import Camera
from course_lib.reconstruction.turntable import BOX, draw_views, turntable_cameras

Box = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Views:
    """Pictures of one object.

    Attributes:
        images: (N, 3, H, W) float32 in [0, 1].
        masks: (N, H, W) float32 in [0, 1], the proportion of each pixel that the object covers.
        cameras: N of them, for images of this size.
        box: two opposite corners around the object, least and largest x, y, z.

    Raises:
        ValueError: other shapes, or cameras of other numbers or sizes.
    """

    images: Tensor
    masks: Tensor
    cameras: list[Camera]
    box: Box

    def __post_init__(self) -> None:
        images.check_batch(self.images)
        N, C, H, W = self.images.shape
        if C != 3 or self.masks.shape != (N, H, W) or len(self.cameras) != N:
            raise ValueError(
                f"expected images (N, 3, H, W), masks (N, H, W) and N cameras; got {tuple(self.images.shape)}, "
                f"{tuple(self.masks.shape)} and {len(self.cameras)}"
            )
        for number, camera in enumerate(self.cameras):
            if (camera.height, camera.width) != (H, W):
                raise ValueError(
                    f"camera {number} is for {camera.height}×{camera.width} pixels, the images are {H}×{W}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice) -> "Views":
        return Views(self.images[index], self.masks[index], self.cameras[index], self.box)

    def shrunk(self, factor: int) -> "Views":
        """The same with a whole number of times fewer pixels a side, each their mean."""
        small = F.avg_pool2d(self.images, factor)
        H, W = small.shape[2:]
        cameras = [camera.resized(H, W) for camera in self.cameras]
        return Views(small, F.avg_pool2d(self.masks[:, None], factor)[:, 0], cameras, self.box)


def load_turntable(n: int, size: int, start: float = 0.0, samples: int = 2) -> Views:
    """n views of the toy on its turntable, drawn now; see `turntable_cameras` and `draw_view`."""
    cameras = turntable_cameras(n, size, start=start)
    return Views(*draw_views(cameras, samples), cameras, BOX)


def load_lego() -> Views:
    """100 views of NeRF's lego at 100×100 on white, from `COURSE_DATA`/multiview/lego_100views_100px.npz.

    Mildenhall et al. 2020; for non-commercial teaching. Its cameras look along −Z with Y up, as OpenGL's.

    Raises:
        FileNotFoundError: it is not there.
    """
    with np.load(_file("lego_100views_100px.npz")) as arrays:
        rgba, poses, focal = (torch.from_numpy(arrays[name]) for name in ("images", "poses", "focal"))
    rgba = rgba.float().movedim(-1, 1) / 255
    H, W = rgba.shape[2:]
    f = float(focal)
    K = torch.tensor([[f, 0, W / 2], [0, f, H / 2], [0, 0, 1]])
    cameras = []
    for pose in poses:  # camera to world
        R = (pose[:3, :3] * torch.tensor([1.0, -1, -1])).T
        cameras.append(Camera(K, R, -R @ pose[:3, 3], H, W))
    colour, alpha = rgba[:, :3], rgba[:, 3:]
    return Views(colour * alpha + 1 - alpha, alpha[:, 0], cameras, ((-0.75, -1.25, -0.6), (0.75, 1.25, 1.1)))


def load_temple() -> Views:
    """16 views of Middlebury's temple (Seitz et al., CVPR 2006), 480×640, from `COURSE_DATA`/multiview.

    For research use; templeSparseRing.zip from https://vision.middlebury.edu/mview/data/. Masks: what is
    brighter than the black cloth behind it.

    Raises:
        FileNotFoundError: it is not there.
    """
    lines = _file("templeSparseRing/templeSR_par.txt").read_text().split("\n")[1:]
    pictures, cameras = [], []
    for line in filter(None, lines):
        name, *numbers = line.split()
        picture = images.load(_file(f"templeSparseRing/{name}"))
        values = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        K, R, t = values[:9].view(3, 3), values[9:18].view(3, 3), values[18:]
        K = K + torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # theirs count from the first pixel's centre
        cameras.append(Camera(K.float(), R.float(), t.float(), *picture.shape[2:]))
        pictures.append(picture)
    stacked = torch.cat(pictures)
    masks = (F.avg_pool2d(stacked.mean(1, keepdim=True), 3, stride=1, padding=1)[:, 0] > 0.15).float()
    return Views(stacked, masks, cameras, ((-0.073568, 0.021728, -0.012445), (0.028855, 0.181892, 0.062736)))


def _file(name: str) -> Path:
    path = datasets.data_folder() / "multiview" / name
    if not path.is_file():
        raise FileNotFoundError(f"expected multiview/{name} in the folder COURSE_DATA")
    return path
