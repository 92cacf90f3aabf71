"""Images and data sets by name: what scikit-image's and scikit-learn's wheels hold, and what can be downloaded.

`load_image` gives a photograph or a painting, `load` a labelled data set, whole in memory: the digits of
scikit-learn's wheel, MNIST, Fashion-MNIST and CIFAR-10's cats. The larger sets are read from the folder `COURSE_DATA`
(in torchvision's layouts; the cats also as `cifar10_cats.npz`), else downloaded once by torchvision.

Downloads are checked against their hashes and kept in the cache: the folder `COURSE_CACHE`, else the operating
system's cache folder. `COURSE_OFFLINE=1` forbids the network.
"""

import difflib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pooch
import requests
import torch
from torch import Tensor
from torch.utils.data import Dataset

from course_lib.base import images, runtime

KINDS = ("built-in", "download")


class DownloadError(ConnectionError):
    """A file could not be downloaded; the message says which, from where, why, and what to do."""


class OfflineError(DownloadError):
    """There is no connection, or `COURSE_OFFLINE` forbids one."""


class _Image(NamedTuple):
    description: str
    credit: str
    file: str  # "package/path/inside/it", or an address
    sha256: str | None = None  # for an address

    @property
    def kind(self) -> str:
        return KINDS[self.sha256 is not None]


def _skimage(file: str, description: str, credit: str) -> _Image:
    return _Image(description, credit, f"skimage/data/{file}")


_GATYS = "https://raw.githubusercontent.com/leongatys/PytorchNeuralStyleTransfer/master/Images/"
_EXAMPLES = "https://raw.githubusercontent.com/pytorch/examples/main/fast_neural_style/images/style-images/"
_UNSTATED = "scikit-image; no author stated"
_CC0_TEXTURES = "CC0 Textures, CC0"
_MIDDLEBURY = "Middlebury 2014 stereo benchmark"
_STYLES = "PyTorch examples; no licence stated"

# Credits as scikit-image's and scikit-learn's own documentation states them. Only files that lie inside the
# wheels: skimage.data would download the others.
_IMAGES = {
    "astronaut": _skimage("astronaut.png", "Eileen Collins, astronaut", "NASA, public domain"),
    "brick": _skimage("brick.png", "texture: a brick wall", _CC0_TEXTURES),
    "camera": _skimage("camera.png", "a man with a camera, grey", "Lav Varshney, CC0"),
    "cat": _skimage("chelsea.png", "Chelsea the cat, face", "Stefan van der Walt, CC0"),
    "china": _Image("a Chinese palace", "danielbuechele, CC BY 2.0", "sklearn/datasets/images/china.jpg"),
    "coffee": _skimage("coffee.png", "a cup of coffee on wood", "Rachel Michetti, CC0"),
    "coins": _skimage("coins.png", "Greek coins from Pompeii", "Brooklyn Museum, no known restrictions"),
    "colorwheel": _skimage("color.png", "a colour wheel", _UNSTATED),
    "flower": _Image("a flower, close up", "vultilion, CC BY 2.0", "sklearn/datasets/images/flower.jpg"),
    "grass": _skimage("grass.png", "texture: grass", "linolafett, CC0"),
    "gravel": _skimage("gravel.png", "texture: gravel", _CC0_TEXTURES),
    "hubble_deep_field": _skimage("hubble_deep_field.jpg", "distant galaxies", "NASA, public domain"),
    "immunohistochemistry": _skimage("ihc.png", "stained tissue", "CMMI, no known restrictions"),
    "logo": _skimage("logo.png", "scikit-image's logo", _UNSTATED),
    "motorcycle_left": _skimage("motorcycle_left.png", "rectified stereo pair, left", _MIDDLEBURY),
    "motorcycle_right": _skimage("motorcycle_right.png", "rectified stereo pair, right", _MIDDLEBURY),
    "page": _skimage("page.png", "a scanned page, uneven light", _UNSTATED),
    "retina": _skimage("retina.jpg", "a human retina", "Mikael Häggström, CC0"),
    "rocket": _skimage("rocket.jpg", "launch of a Falcon 9", "SpaceX, public domain"),
    "candy": _Image(
        "style: candy-coloured swirls",
        _STYLES,
        _EXAMPLES + "candy.jpg",
        "1af09b2c18a6674b7d88849cb87564dd77e1ce04d1517bb085449b614cc0c8d8",
    ),
    "rain_princess": _Image(
        "style: a walk in the rain",
        "Leonid Afremov; " + _STYLES,
        _EXAMPLES + "rain-princess.jpg",
        "edc860681275f663ff23b28ade7436b34bf8ea28ae60be773f3e1c39b938e5d3",
    ),
    "starry_night": _Image(
        "style: The Starry Night",
        "Vincent van Gogh 1889, public domain",
        _GATYS + "vangogh_starry_night.jpg",
        "228bebf0dd424ea4f740d8d88a67f2960424c166e638086c1ec529260d2e3832",
    ),
    "tuebingen": _Image(
        "Tübingen, the Neckar front",
        "Andreas Praefcke",
        _GATYS + "Tuebingen_Neckarfront.jpg",
        "e67d1869f01fd805385c681a80d9ebcf0f70ea4a5fe6127f0606bb1c7f4bf506",
    ),
}


def image_names(kind: str | None = None) -> list[str]:
    """The names that `load_image` knows, sorted: all of them, or one kind, "built-in" or "download".

    Raises:
        ValueError: another kind.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"expected a kind of {KINDS} or None, got {kind!r}")
    return sorted(name for name, image in _IMAGES.items() if kind in (None, image.kind))


def describe_images() -> str:
    """A table to print: each image's name, kind, content and credit."""
    rows = [(name, _IMAGES[name]) for name in image_names()]
    return "\n".join(f"{name:21}{p.kind:10}{p.description:34}{p.credit}" for name, p in rows)


def _find_image(name: str) -> _Image:
    """The table's entry, or an error with the names that come close."""
    if name in _IMAGES:
        return _IMAGES[name]
    close = difflib.get_close_matches(str(name), _IMAGES) or image_names()
    raise ValueError(f"no image {name!r}; did you mean {', '.join(close)}? datasets.describe_images() lists all")


def _built_in(file: str) -> Path:
    """The path of a file inside an installed package, found without importing the package."""
    package, _, inside = file.partition("/")
    return Path(importlib.util.find_spec(package).origin).parent / inside


def load_image(name: str, size: int | None = None) -> Tensor:
    """An image by its name, (1, 3, H, W) float32 RGB in [0, 1] on the CPU; downloaded where it must be.

    Args:
        name: one of `image_names()`.
        size: the shorter side of the result in pixels; `None` keeps the image's own.

    Raises:
        ValueError: an unknown name, with the closest ones in the message.
        DownloadError: the image is neither built in nor cached and could not be fetched.
    """
    image = _find_image(name)
    if image.sha256 is None:
        return images.load(_built_in(image.file), size)
    return images.load(download(image.file, image.sha256, _cached_name(name)), size)


def _cached_name(name: str) -> str:
    return f"{name}.jpg"


def cache_folder() -> Path:
    """Where downloads are kept: `COURSE_CACHE`, else the operating system's cache folder."""
    return Path(os.environ.get("COURSE_CACHE") or pooch.os_cache("generative-cv-course")).expanduser()


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and pooch.file_hash(path) == sha256


def download(url: str, sha256: str, filename: str | None = None) -> Path:
    """Fetch a file into the cache, or find it there; with a progress bar.

    A file appears under its final name only when whole, so a cut download leaves nothing behind. A cached
    file that no longer matches is fetched again. A transfer that breaks is tried three times.

    Args:
        url: http or https.
        sha256: of the file's content, 64 hexadecimal digits.
        filename: its path inside `cache_folder()`; by default made of the hash and the address.

    Raises:
        OfflineError: there is no connection, or `COURSE_OFFLINE` forbids one.
        DownloadError: the server refused, or the transfer broke each time.
        ValueError: the content has another hash (the message states both), or hash or address is malformed.
    """
    sha256 = sha256.lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"expected a SHA-256 of 64 hexadecimal digits, got {sha256!r}")
    path = cache_folder() / (filename or f"{sha256[:16]}-{PurePosixPath(urlsplit(url).path).name}")
    if not _is_whole(path, sha256):
        if runtime.is_offline():
            raise OfflineError(_advice(url, path, "COURSE_OFFLINE forbids it; unset it"))
        _fetch(url, sha256, path)
    return path


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Download with pooch, which checks the hash before it moves the file to `path`."""
    pooch.get_logger().setLevel(logging.WARNING)  # its notes would print this machine's paths into notebooks
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=(10, 30))  # s: connect, read
    for attempts_left in (2, 1, 0):
        try:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=get)
            return
        except ValueError:  # a wrong hash, or requests' word on a malformed address
            raise
        except requests.ConnectionError as error:
            raise OfflineError(_advice(url, path, f"no connection ({error}); check it")) from error
        except requests.RequestException as error:
            refused = error.response is not None and error.response.status_code < 500
            if refused or not attempts_left:
                raise DownloadError(_advice(url, path, f"{error}; try again later")) from error


def _advice(url: str, path: Path, reason: str) -> str:
    return f"cannot download {url}: {reason}, or put the file at {path} yourself"


SPLITS = ("train", "test")
CAT = 3  # the cats' label in CIFAR-10


@dataclass(frozen=True)
class ImageSet(Dataset):
    """Labelled images of one size. `images, labels = data[index]` takes a number, a slice or a tensor of indices.

    Images come out as float32 in [0, 1], (C, H, W) for a number and (B, C, H, W) otherwise, labels as int64.

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


def load(name: str, split: str = "train") -> ImageSet:
    """A data set by its name; downloaded where it must be.

    | name | images | train / test |
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
    """Whether `load(name)`, or `load_image(name)`, needs no network: it is built in, or at hand.

    Raises:
        ValueError: a name that neither of them knows.
    """
    if name not in _READERS:
        image = _find_image(name)
        path = _built_in(image.file) if image.sha256 is None else cache_folder() / _cached_name(name)
        return path.is_file() if image.sha256 is None else _is_whole(path, image.sha256)
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


def _digits(split: str, download: bool = True) -> ImageSet:
    from sklearn.datasets import load_digits  # an import of a second, for this set alone
    from sklearn.model_selection import train_test_split

    found = load_digits()
    parts = train_test_split(range(len(found.target)), test_size=297, stratify=found.target, random_state=0)
    chosen = torch.tensor(parts[SPLITS.index(split)])
    greys = torch.from_numpy(found.images)[chosen, None]  # 0 … 16
    labels = torch.from_numpy(found.target)[chosen].long()
    return ImageSet(f"digits {split}", (greys * 255 / 16).round().byte(), labels, tuple("0123456789"))


def _mnist(split: str, download: bool = True) -> ImageSet:
    return _from_torchvision("MNIST", f"mnist {split}", split, download, tuple("0123456789"))


def _fashion_mnist(split: str, download: bool = True) -> ImageSet:
    return _from_torchvision("FashionMNIST", f"fashion_mnist {split}", split, download)


def _cats(split: str, download: bool = True) -> ImageSet:
    packed = _folder() / "cifar10_cats.npz"
    if packed.is_file():
        images = torch.from_numpy(np.load(packed)[split]).permute(0, 3, 1, 2).contiguous()
    else:
        cifar = _from_torchvision("CIFAR10", "cifar10", split, download)
        images = cifar.images[cifar.labels == CAT]
    return ImageSet(f"cats {split}", images, torch.zeros(len(images), dtype=torch.int64), ("cat",))


_READERS: dict[str, Callable[..., ImageSet]] = {
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
) -> ImageSet:
    """One of torchvision's data sets; FileNotFoundError where it is not at hand and `download` is False."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    cache = cache_folder() / "torchvision"
    for root in (_folder(), cache):
        try:
            return _whole(dataset(root, train=split == "train", download=False), name, classes)
        except RuntimeError:  # "not found or corrupted"
            continue
    advice = f"put it into {cache} yourself, or set COURSE_DATA to a folder that has it in torchvision's layout"
    if not download:
        raise FileNotFoundError(f"{name} is not at hand; {advice}")
    if runtime.is_offline():
        raise OfflineError(f"cannot download {kind}: COURSE_OFFLINE forbids it; unset it, or {advice}")
    try:
        return _whole(dataset(cache, train=split == "train", download=True), name, classes)
    except (OSError, RuntimeError) as error:  # no connection; a wrong hash
        raise DownloadError(f"cannot download {kind}: {error}; try again, or {advice}") from error


def _whole(found: Dataset, name: str, classes: tuple[str, ...] | None) -> ImageSet:
    images = torch.as_tensor(found.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ImageSet(name, images, torch.as_tensor(found.targets).long(), classes or tuple(found.classes))
