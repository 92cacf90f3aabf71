"""Images and data sets by name: what ships with the course or in the wheels of others, and what can be downloaded.

`load_image` gives a photograph or a painting, `load` a labelled data set, whole in memory: the digits of
scikit-learn's wheel, MNIST, Fashion-MNIST and faces of cats. The larger sets are read from the folder `COURSE_DATA`
(in torchvision's layout; the faces as `cat_faces/train.zip` and `test.zip`), else downloaded once. The faces come in an
archive that has to be cropped first; `load` says how.

Downloads are checked against their hashes and kept in the cache: the folder `COURSE_CACHE`, else the operating
system's cache folder. A file appears there only when it is whole, so several processes may download at once.
`COURSE_OFFLINE=1` forbids the network.
"""

import difflib
import gzip
import importlib.util
import io
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pooch
import requests
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from course_lib.base import checkpoints, images, runtime

SPLITS = ("train", "test")
FACE = 64  # side of a cat's face, px
TIMEOUT = (10, 30)  # s without a connection, and without a byte
ADVICE = "set COURSE_DATA to a folder that has the set in torchvision's layout"


class DownloadError(ConnectionError):
    """A file could not be downloaded; the message says which, from where, why, and what to do."""


class OfflineError(DownloadError):
    """There is no connection, or `COURSE_OFFLINE` forbids one."""


# --- data sets by name


@dataclass(frozen=True)
class ImageSet(Dataset):
    """Labelled images of one size. `images, labels = data[index]` takes a number, a slice or a tensor of indices.

    Images come out as float32 in [0, 1], (C, H, W) for a number and (B, C, H, W) otherwise, labels as int64.

    Attributes:
        name: what `load` calls it, and the split.
        images: (N, C, H, W) uint8, as they are stored.
        labels: (N,) int64, indices into `classes`.
        classes: the names of the classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
            raise ValueError(f"expected images (N, C, H, W) torch.uint8, got {tuple(images.shape)} {images.dtype}")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            raise ValueError(f"expected {len(images)} labels torch.int64, got {tuple(labels.shape)} {labels.dtype}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index].float() / 255, self.labels[index]


def load(name: str, split: str = "train", may_download: bool = True) -> ImageSet:
    """A data set by its name; downloaded where it must be. A damaged file is named in a warning and fetched again.

    | name | images | train / test |
    |---|---|---|
    | `digits` | handwritten digits, 1×8×8 (Alpaydin & Kaynak 1998; in scikit-learn) | 1,500 / 297, stratified |
    | `mnist` | handwritten digits, 1×28×28 (LeCun et al. 1998) | 60,000 / 10,000 |
    | `fashion_mnist` | clothes, 1×28×28 (Xiao et al. 2017) | 60,000 / 10,000 |
    | `cat_faces` | faces of cats, eyes at the same place, 3×64×64 (Zhang, Sun & Tang 2008) | 7,999 / 838 |

    Args:
        name: see above.
        split: "train" or "test".
        may_download: False takes only what is at hand.

    Raises:
        ValueError: an unknown name or split.
        FileNotFoundError: the set is not at hand, or damaged, and must not be downloaded.
        OfflineError: the set is neither in `COURSE_DATA` nor in the cache, or damaged there, and there is no
            connection or `COURSE_OFFLINE` forbids one.
        DownloadError: it could not be downloaded.
    """
    if name not in _READERS:
        raise ValueError(f"expected a data set of {', '.join(sorted(_READERS))}; got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"expected a split of {', '.join(SPLITS)}; got {split!r}")
    return _READERS[name](split, may_download)


def is_available(name: str) -> bool:
    """Whether `load(name)` needs no network, for neither split: the set is built in, or at hand and not damaged.

    Raises:
        ValueError: an unknown name.
    """
    try:
        return all(load(name, split, may_download=False) for split in SPLITS)
    except FileNotFoundError:
        return False


def _digits(split: str, may_download: bool) -> ImageSet:
    from sklearn.datasets import load_digits  # an import of a second, for this set alone
    from sklearn.model_selection import train_test_split

    found = load_digits()
    parts = train_test_split(range(len(found.target)), test_size=297, stratify=found.target, random_state=0)
    chosen = torch.tensor(parts[SPLITS.index(split)])
    greys = torch.from_numpy(found.images)[chosen, None]  # 0 … 16
    labels = torch.from_numpy(found.target)[chosen].long()
    return ImageSet(f"digits {split}", (greys * 255 / 16).round().byte(), labels, tuple("0123456789"))


def _mnist(name: str, kind: str, split: str, may_download: bool) -> ImageSet:
    """One of torchvision's sets in MNIST's format."""
    import torchvision.datasets

    dataset = getattr(torchvision.datasets, kind)
    folders = [root / kind / "raw" for root in (data_folder(), cache_folder() / "torchvision")]

    def array(content: str) -> Tensor:
        file = f"{'train' if split == 'train' else 't10k'}-{content}-ubyte"
        paths = [folder / (file + suffix) for folder in folders for suffix in ("", ".gz")]
        return _read_or_fetch(paths, _read_idx, partial(_fetch_idx, dataset, paths[-1]), may_download)

    classes = tuple(label.split(" - ")[0] for label in dataset.classes)  # MNIST's are "0 - zero" and so on
    return ImageSet(f"{name} {split}", array("images-idx3")[:, None], array("labels-idx1").long(), classes)


def _read_idx(path: Path) -> Tensor:
    """The array in a file of MNIST's format: 0, 0, 8 for uint8, the number of axes, their lengths, the numbers."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"expected it to begin with 0, 0, 8; got {list(content[:3])}")
    axes = content[3]
    shape = struct.unpack_from(f">{axes}I", content, 4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def _fetch_idx(dataset: type[Dataset], path: Path) -> Path:
    """Download a file of MNIST from the first of torchvision's mirrors that has it."""
    for mirror in dataset.mirrors:
        try:
            return fetch(mirror + path.name, path, f"md5:{dict(dataset.resources)[path.name]}", ADVICE)
        except DownloadError as error:
            failed = error
    raise failed


def _cat_faces(split: str, may_download: bool) -> ImageSet:
    """Faces of cats: for each split a zip archive of images, or a folder of them."""
    paths = [root / "cat_faces" / (split + end) for root in (data_folder(), cache_folder()) for end in (".zip", "")]
    images = _read_or_fetch(paths, _read_images, _explain_cat_faces, may_download)
    return ImageSet(f"cat_faces {split}", images, torch.zeros(len(images), dtype=torch.int64), ("cat",))


def _read_images(path: Path) -> Tensor:
    """(N, 3, 64, 64) uint8: the images of an archive or a folder by name, their middle squares."""
    files = zipfile.Path(path) if path.suffix == ".zip" else path
    found = []
    for file in sorted(files.iterdir(), key=lambda file: file.name):
        if file.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")):
            with Image.open(io.BytesIO(file.read_bytes())) as image:
                square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (FACE, FACE))
            found.append(torch.from_numpy(np.array(square)))
    return torch.stack(found).permute(0, 3, 1, 2).contiguous()


def _explain_cat_faces() -> Path:
    raise DownloadError(
        "the faces of cats are not downloaded by themselves: get the CAT data set (Zhang, Sun & Tang 2008; "
        "https://archive.org/details/CAT_DATASET), unpack it, and let `python recipes/cat_faces.py FOLDER` cut "
        "the faces out; or put images of your own into cat_faces/train and cat_faces/test of the folder COURSE_DATA"
    )


_READERS: dict[str, Callable[..., ImageSet]] = {
    "digits": _digits,
    "mnist": partial(_mnist, "mnist", "MNIST"),
    "fashion_mnist": partial(_mnist, "fashion_mnist", "FashionMNIST"),
    "cat_faces": _cat_faces,
}


def _read_or_fetch(
    paths: list[Path], read: Callable[[Path], Tensor], fetch_it: Callable[[], Path], may_download: bool
) -> Tensor:
    """What the first whole file of those at hand holds, else the one that `fetch_it` brings.

    Raises:
        FileNotFoundError: there is none, and it must not be downloaded.
        DownloadError: it could not be downloaded.
    """
    damaged = []
    for path in paths:
        if path.exists():
            try:
                return read(path)
            except Exception as error:  # a damaged file surfaces in many types of error
                damaged.append(f"{path} is damaged ({error or type(error).__name__})")
    if not may_download:
        raise FileNotFoundError(f"expected one of {', '.join(map(str, paths))}")
    try:
        found = read(fetch_it())
    except DownloadError as error:
        raise type(error)("; ".join([*damaged, str(error)])) from error
    if damaged:
        warnings.warn(f"{'; '.join(damaged)}; it was downloaded again", stacklevel=2)
    return found


# --- images by name

_GATYS = "https://raw.githubusercontent.com/leongatys/PytorchNeuralStyleTransfer/master/Images/"
_UNSTATED = "scikit-image; no author stated"
_CC0_TEXTURES = "CC0 Textures, CC0"
_OWN = "data/images/"  # of this repository: paintings in the public domain, and photographs of COCO
_COCO = "COCO 2017, CC BY 2.0, Flickr "  # data/README.md has the addresses

# Credits as scikit-image's and scikit-learn's own documentation states them. Only files that lie inside the
# wheels: skimage.data would download the others.
_IMAGES = {  # name: content, credit, file in an installed package or in this repository, or address
    "astronaut": ("Eileen Collins, astronaut", "NASA, public domain", "skimage/data/astronaut.png"),
    "brick": ("texture: a brick wall", _CC0_TEXTURES, "skimage/data/brick.png"),
    "camera": ("a man with a camera, grey", "Lav Varshney, CC0", "skimage/data/camera.png"),
    "cat": ("Chelsea the cat, face", "Stefan van der Walt, CC0", "skimage/data/chelsea.png"),
    "china": ("a Chinese palace", "danielbuechele, CC BY 2.0", "sklearn/datasets/images/china.jpg"),
    "coffee": ("a cup of coffee on wood", "Rachel Michetti, CC0", "skimage/data/coffee.png"),
    "coins": ("Greek coins from Pompeii", "Brooklyn Museum, no known restrictions", "skimage/data/coins.png"),
    "colorwheel": ("a colour wheel", _UNSTATED, "skimage/data/color.png"),
    "flower": ("a flower, close up", "vultilion, CC BY 2.0", "sklearn/datasets/images/flower.jpg"),
    "grass": ("texture: grass", "linolafett, CC0", "skimage/data/grass.png"),
    "gravel": ("texture: gravel", _CC0_TEXTURES, "skimage/data/gravel.png"),
    "hubble_deep_field": ("distant galaxies", "NASA, public domain", "skimage/data/hubble_deep_field.jpg"),
    "immunohistochemistry": ("stained tissue", "CMMI, no known restrictions", "skimage/data/ihc.png"),
    "logo": ("scikit-image's logo", _UNSTATED, "skimage/data/logo.png"),
    "motorcycle_left": ("a motorcycle", "Middlebury 2014 stereo benchmark", "skimage/data/motorcycle_left.png"),
    "page": ("a scanned page, uneven light", _UNSTATED, "skimage/data/page.png"),
    "retina": ("a human retina", "Mikael Häggström, CC0", "skimage/data/retina.jpg"),
    "rocket": ("launch of a Falcon 9", "SpaceX, public domain", "skimage/data/rocket.jpg"),
    "great_wave": ("painting: The Great Wave", "Hokusai 1831, public domain", _OWN + "great_wave.jpg"),
    "starry_night": ("painting: The Starry Night", "van Gogh 1889, public domain", _OWN + "starry_night.jpg"),
    "the_scream": ("painting: The Scream", "Munch 1893, public domain", _OWN + "the_scream.jpg"),
    "crossing": ("people at a crossing", _COCO + "267588789", _OWN + "coco_183709.jpg"),
    "rider": ("a man on a motorcycle, in fog", _COCO + "7243537732", _OWN + "coco_165518.jpg"),
    "skatepark": ("a skater and those who watch", _COCO + "5438252538", _OWN + "coco_129648.jpg"),
    "street": ("a man leaning on a pole", _COCO + "5056705611", _OWN + "coco_234748.jpg"),
    "tuebingen": ("Tübingen, the Neckar front", "Andreas Praefcke", _GATYS + "Tuebingen_Neckarfront.jpg"),
}
# Of those that are downloaded.
_SHA256 = {"tuebingen": "e67d1869f01fd805385c681a80d9ebcf0f70ea4a5fe6127f0606bb1c7f4bf506"}


def image_names() -> list[str]:
    """The names that `load_image` knows, sorted."""
    return sorted(_IMAGES)


def describe_images() -> str:
    """A table to print: each image's name, kind, content and credit."""
    rows = [(name, "download" if name in _SHA256 else "built-in", *_IMAGES[name]) for name in image_names()]
    return "\n".join(f"{name:21}{kind:10}{content:34}{credit}" for name, kind, content, credit, _ in rows)


def load_image(name: str, size: int | None = None) -> Tensor:
    """An image by its name, (1, 3, H, W) float32 RGB in [0, 1] on the CPU; downloaded where it must be.

    Args:
        name: one of `image_names()`.
        size: the shorter side of the result in pixels; `None` keeps the image's own.

    Raises:
        ValueError: an unknown name; the message has the closest ones. Or a size that `images.load` refuses.
        DownloadError: the image is neither built in nor cached and could not be fetched.
    """
    if name not in _IMAGES:
        close = difflib.get_close_matches(str(name), _IMAGES) or image_names()
        raise ValueError(f"no image {name!r}; did you mean {', '.join(close)}? datasets.describe_images() lists all")
    _, _, file = _IMAGES[name]
    if name in _SHA256:
        return images.load(fetch(file, cache_folder() / f"{name}.jpg", f"sha256:{_SHA256[name]}"), size)
    if file.startswith(_OWN):
        return images.load(checkpoints.folder().with_name("images") / file.removeprefix(_OWN), size)
    package, _, inside = file.partition("/")
    folder = Path(importlib.util.find_spec(package).origin).parent  # found without importing the package
    return images.load(folder / inside, size)


# --- folders and downloads


def data_folder() -> Path:
    """The user's own copies: `COURSE_DATA`; a path at which there is nothing where that is not set."""
    return Path(os.environ.get("COURSE_DATA") or os.devnull).expanduser()


def cache_folder() -> Path:
    """Where downloads are kept: `COURSE_CACHE`, else the operating system's cache folder."""
    return Path(os.environ.get("COURSE_CACHE") or pooch.os_cache("generative-cv-course")).expanduser()


def _is_whole(path: Path, known_hash: str) -> bool:
    algorithm, _, digest = known_hash.partition(":")
    return path.is_file() and pooch.file_hash(path, algorithm).startswith(digest)


def fetch(url: str, path: Path, known_hash: str | None = None, advice: str | None = None) -> Path:
    """Download a file, with a progress bar, unless the one that is there has the known hash.

    It gets the name `path` only when it is whole, so a cut download leaves nothing behind, and two processes do not
    disturb each other. A transfer that breaks or stalls is tried three times.

    Args:
        url: http or https.
        path: for the file; its folder is created if missing.
        known_hash: "sha256:…" or "md5:…", or how it begins; without it the file is downloaded in any case.
        advice: what else the user can do, for the error's message; by default to put the file at `path`.

    Returns:
        `path`.

    Raises:
        OfflineError: there is no connection, or `COURSE_OFFLINE` forbids one.
        DownloadError: the server refused, the transfer broke each time, or the content has another hash.
        ValueError: the address is malformed.
    """
    if known_hash and _is_whole(path, known_hash):
        return path

    def failed(reason: str) -> str:
        # A notebook may print it, and should not tell who runs it.
        shown = Path("~", path.relative_to(Path.home())) if path.is_relative_to(Path.home()) else path
        damaged = f"{shown} is damaged; " if path.exists() else ""
        return f"{damaged}cannot download {url}: {reason}, or {advice or f'put the file at {shown} yourself'}"

    if runtime.is_offline():
        raise OfflineError(failed("COURSE_OFFLINE forbids it; unset it"))
    path.parent.mkdir(parents=True, exist_ok=True)
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=2**16, timeout=TIMEOUT)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder, path.name)
        for attempts_left in (2, 1, 0):
            try:
                get(url, part, None)
                break
            except ValueError:  # requests' word on a malformed address
                raise
            except requests.RequestException as error:
                # requests has one type for "no connection" and for a stall later; only the first has a reason inside.
                if isinstance(error, requests.ConnectionError) and hasattr(error.args[0], "reason"):
                    raise OfflineError(failed(f"no connection ({error}); check it")) from error
                refused = error.response is not None and error.response.status_code < 500
                if refused or not attempts_left:
                    raise DownloadError(failed(f"{error}; try again later")) from error
        if known_hash and not _is_whole(part, known_hash):
            got = pooch.file_hash(part, known_hash.partition(":")[0])
            raise DownloadError(failed(f"expected {known_hash} but got {got}; try again later"))
        os.replace(part, path)
    return path
