"""Data sets by name, whole in memory: the digits of scikit-learn's wheel, and MNIST, Fashion-MNIST and CIFAR-10's cats.

The larger ones are read from the folder `COURSE_DATA` (in torchvision's layouts; the cats also as `cifar10_cats.npz`),
else downloaded once by torchvision, which checks their hashes, into the course's cache.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from course_lib.base import pictures, runtime

SPLITS = ("train", "test")
CAT = 3  # the cats' label in CIFAR-10


@dataclass(frozen=True)
class PictureSet(Dataset):
    """Labelled pictures of one size. `pictures, labels = data[index]` takes a number, a slice or a tensor of indices.

    Pictures come out as float32 in [0, 1], (C, H, W) for a number and (B, C, H, W) otherwise, labels as int64.

    Attributes:
        name: as `load` knows it, and the split.
        images: (N, C, H, W) uint8, as they are stored.
        labels: (N,) int64, indices into `classes`.
        classes: the names of the classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8 or len(self.images) == 0:
            raise ValueError(f"expected images (N, C, H, W) uint8, got {tuple(self.images.shape)} {self.images.dtype}")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != torch.int64:
            raise ValueError(f"expected {len(self.images)} labels int64, got {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index].float() / 255, self.labels[index]


def names() -> list[str]:
    """The names that `load` knows."""
    return sorted(_READERS)


def load(name: str, split: str = "train") -> PictureSet:
    """A data set by its name; downloaded where it must be.

    | name | pictures | train / test |
    |---|---|---|
    | `digits` | handwritten digits, 1×8×8 (Alpaydin & Kaynak 1998; in scikit-learn) | 1,500 / 297, stratified |
    | `mnist` | handwritten digits, 1×28×28 (LeCun et al. 1998) | 60,000 / 10,000 |
    | `fashion_mnist` | clothes, 1×28×28 (Xiao et al. 2017) | 60,000 / 10,000 |
    | `cats` | CIFAR-10's cats, 3×32×32 (Krizhevsky 2009) | 5,000 / 1,000; 103 in `cifar10_cats.npz` |

    Raises:
        ValueError: an unknown name or split.
        OfflineError: the set is neither in `COURSE_DATA` nor in the cache, and `COURSE_OFFLINE` forbids a download.
        DownloadError: it could not be downloaded.
    """
    _check(name, split)
    return _READERS[name](split)


def is_available(name: str) -> bool:
    """Whether `load(name)` needs no network.

    Raises:
        ValueError: an unknown name.
    """
    _check(name, "train")
    try:
        for split in SPLITS:
            _READERS[name](split, download=False)
    except FileNotFoundError:
        return False
    return True


def _check(name: str, split: str) -> None:
    if name not in _READERS:
        raise ValueError(f"expected a data set of {', '.join(names())}; got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}; got {split!r}")


def _digits(split: str, download: bool = True) -> PictureSet:
    from sklearn.datasets import load_digits  # an import of a second, for this set alone
    from sklearn.model_selection import train_test_split

    found = load_digits()
    parts = train_test_split(range(len(found.target)), test_size=297, stratify=found.target, random_state=0)
    chosen = torch.tensor(parts[SPLITS.index(split)])
    greys = torch.from_numpy(found.images)[chosen, None]  # 0 … 16
    labels = torch.from_numpy(found.target)[chosen].long()
    return PictureSet(f"digits {split}", (greys * 255 / 16).round().byte(), labels, tuple("0123456789"))


def _mnist(split: str, download: bool = True) -> PictureSet:
    return _from_torchvision("MNIST", f"mnist {split}", split, download, tuple("0123456789"))


def _fashion_mnist(split: str, download: bool = True) -> PictureSet:
    return _from_torchvision("FashionMNIST", f"fashion_mnist {split}", split, download)


def _cats(split: str, download: bool = True) -> PictureSet:
    packed = _folder() / "cifar10_cats.npz"
    if packed.is_file():
        images = torch.from_numpy(np.load(packed)[split]).permute(0, 3, 1, 2).contiguous()
    else:
        cifar = _from_torchvision("CIFAR10", "cifar10", split, download)
        images = cifar.images[cifar.labels == CAT]
    return PictureSet(f"cats {split}", images, torch.zeros(len(images), dtype=torch.int64), ("cat",))


_READERS: dict[str, Callable[..., PictureSet]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cats": _cats,
}


def _folder() -> Path:
    """The folder with the user's own copies; one that does not exist where `COURSE_DATA` is not set."""
    return Path(os.environ.get("COURSE_DATA") or os.devnull)


def _from_torchvision(
    kind: str, name: str, split: str, download: bool, classes: tuple[str, ...] | None = None
) -> PictureSet:
    """One of torchvision's data sets; FileNotFoundError where it is not at hand and `download` is False."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    cache = pictures.cache_folder() / "torchvision"
    for root in (_folder(), cache):
        try:
            return _whole(dataset(root, train=split == "train", download=False), name, classes)
        except RuntimeError:  # "not found or corrupted"
            continue
    advice = f"put it into {cache} yourself, or set COURSE_DATA to a folder that has it in torchvision's layout"
    if not download:
        raise FileNotFoundError(f"{name} is not at hand; {advice}")
    if runtime.is_offline():
        raise pictures.OfflineError(f"cannot download {kind}: COURSE_OFFLINE forbids it; unset it, or {advice}")
    try:
        return _whole(dataset(cache, train=split == "train", download=True), name, classes)
    except (OSError, RuntimeError) as error:  # no connection; a wrong hash
        raise pictures.DownloadError(f"cannot download {kind}: {error}; try again, or {advice}") from error


def _whole(found: Dataset, name: str, classes: tuple[str, ...] | None) -> PictureSet:
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return PictureSet(name, images, torch.as_tensor(found.targets).long(), classes or tuple(found.classes))
