"""Pictures by name: those inside scikit-image's and scikit-learn's wheels, and a few paintings to download.

`download` fetches any file once, checks its SHA-256 and keeps it in the cache: the folder `COURSE_CACHE`,
else the operating system's cache folder. `COURSE_OFFLINE=1` forbids it the network.
"""

import difflib
import importlib.util
import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

import pooch
import requests
from torch import Tensor

from course_lib.base import images, runtime

KINDS = ("built-in", "download")


class DownloadError(ConnectionError):
    """A file could not be downloaded; the message says which, from where, why, and what to do."""


class OfflineError(DownloadError):
    """There is no connection, or `COURSE_OFFLINE` forbids one."""


class _Picture(NamedTuple):
    description: str
    credit: str
    file: str  # "package/path/inside/it", or an address
    sha256: str | None = None  # for an address

    @property
    def kind(self) -> str:
        return KINDS[self.sha256 is not None]


def _skimage(file: str, description: str, credit: str) -> _Picture:
    return _Picture(description, credit, f"skimage/data/{file}")


_GATYS = "https://raw.githubusercontent.com/leongatys/PytorchNeuralStyleTransfer/master/Images/"
_EXAMPLES = "https://raw.githubusercontent.com/pytorch/examples/main/fast_neural_style/images/style-images/"
_UNSTATED = "scikit-image; no author stated"
_CC0_TEXTURES = "CC0 Textures, CC0"
_MIDDLEBURY = "Middlebury 2014 stereo benchmark"
_STYLES = "PyTorch examples; no licence stated"

# Credits as scikit-image's and scikit-learn's own documentation states them. Only files that lie inside the
# wheels: skimage.data would download the others.
_PICTURES = {
    "astronaut": _skimage("astronaut.png", "Eileen Collins, astronaut", "NASA, public domain"),
    "brick": _skimage("brick.png", "texture: a brick wall", _CC0_TEXTURES),
    "camera": _skimage("camera.png", "a man with a camera, grey", "Lav Varshney, CC0"),
    "cat": _skimage("chelsea.png", "Chelsea the cat, face", "Stefan van der Walt, CC0"),
    "cell": _skimage("cell.png", "a cell in saline, phase image", "Paul Müller et al., CC0"),
    "checkerboard": _skimage("chessboard_GRAY.png", "a checkerboard", _UNSTATED),
    "chelsea": _skimage("chelsea.png", "the same as cat", "Stefan van der Walt, CC0"),
    "china": _Picture("a Chinese palace", "danielbuechele, CC BY 2.0", "sklearn/datasets/images/china.jpg"),
    "clock": _skimage("clock_motion.png", "a motion-blurred clock", "Stefan van der Walt, public domain"),
    "coffee": _skimage("coffee.png", "a cup of coffee on wood", "Rachel Michetti, CC0"),
    "coins": _skimage("coins.png", "Greek coins from Pompeii", "Brooklyn Museum, no known restrictions"),
    "colorwheel": _skimage("color.png", "a colour wheel", _UNSTATED),
    "flower": _Picture("a flower, close up", "vultilion, CC BY 2.0", "sklearn/datasets/images/flower.jpg"),
    "grass": _skimage("grass.png", "texture: grass", "linolafett, CC0"),
    "gravel": _skimage("gravel.png", "texture: gravel", _CC0_TEXTURES),
    "horse": _skimage("horse.png", "a horse's silhouette", "Andreas Preuss (marauder), CC0"),
    "hubble_deep_field": _skimage("hubble_deep_field.jpg", "distant galaxies", "NASA, public domain"),
    "immunohistochemistry": _skimage("ihc.png", "stained tissue", "CMMI, no known restrictions"),
    "logo": _skimage("logo.png", "scikit-image's logo", _UNSTATED),
    "microaneurysms": _skimage("microaneurysms.png", "a detail of a retina", "Andreas Maier, CC0"),
    "moon": _skimage("moon.png", "the Moon's surface, low contrast", _UNSTATED),
    "motorcycle_left": _skimage("motorcycle_left.png", "rectified stereo pair, left", _MIDDLEBURY),
    "motorcycle_right": _skimage("motorcycle_right.png", "rectified stereo pair, right", _MIDDLEBURY),
    "page": _skimage("page.png", "a scanned page, uneven light", _UNSTATED),
    "phantom": _skimage("phantom.png", "the Shepp–Logan phantom", "Shepp & Logan 1974"),
    "retina": _skimage("retina.jpg", "a human retina", "Mikael Häggström, CC0"),
    "rocket": _skimage("rocket.jpg", "launch of a Falcon 9", "SpaceX, public domain"),
    "text": _skimage("text.png", "a handwritten formula", "Wikipedia, public domain"),
    "candy": _Picture(
        "style: candy-coloured swirls",
        _STYLES,
        _EXAMPLES + "candy.jpg",
        "1af09b2c18a6674b7d88849cb87564dd77e1ce04d1517bb085449b614cc0c8d8",
    ),
    "mosaic": _Picture(
        "style: a mosaic",
        _STYLES,
        _EXAMPLES + "mosaic.jpg",
        "17698add60e1ce8618103c04e6cdddc5ac21b82181a37b7517413f36a5b785a4",
    ),
    "rain_princess": _Picture(
        "style: a walk in the rain",
        "Leonid Afremov; " + _STYLES,
        _EXAMPLES + "rain-princess.jpg",
        "edc860681275f663ff23b28ade7436b34bf8ea28ae60be773f3e1c39b938e5d3",
    ),
    "starry_night": _Picture(
        "style: The Starry Night",
        "Vincent van Gogh 1889, public domain",
        _GATYS + "vangogh_starry_night.jpg",
        "228bebf0dd424ea4f740d8d88a67f2960424c166e638086c1ec529260d2e3832",
    ),
    "tuebingen": _Picture(
        "Tübingen, the Neckar front",
        "Andreas Praefcke",
        _GATYS + "Tuebingen_Neckarfront.jpg",
        "e67d1869f01fd805385c681a80d9ebcf0f70ea4a5fe6127f0606bb1c7f4bf506",
    ),
    "udnie": _Picture(
        "style: Udnie",
        "Francis Picabia 1913; " + _STYLES,
        _EXAMPLES + "udnie.jpg",
        "270be68e7c6c282c9edb62ab7bcd345b1fb6b6cebb5d1f10d9a2d21915f69a8a",
    ),
}


def names(kind: str | None = None) -> list[str]:
    """The names that `load` knows, sorted: all of them, or one kind, "built-in" or "download".

    Raises:
        ValueError: another kind.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"expected a kind of {KINDS} or None, got {kind!r}")
    return sorted(name for name, picture in _PICTURES.items() if kind in (None, picture.kind))


def describe() -> str:
    """A table to print: each picture's name, kind, content and credit."""
    rows = [(name, _PICTURES[name]) for name in names()]
    return "\n".join(f"{name:21}{p.kind:10}{p.description:34}{p.credit}" for name, p in rows)


def _find(name: str) -> _Picture:
    """The table's entry, or an error with the names that come close."""
    if name in _PICTURES:
        return _PICTURES[name]
    close = difflib.get_close_matches(str(name), _PICTURES) or names()
    raise ValueError(f"no picture {name!r}; did you mean {', '.join(close)}? pictures.describe() lists all")


def _built_in(file: str) -> Path:
    """The path of a file inside an installed package, found without importing the package."""
    package, _, inside = file.partition("/")
    return Path(importlib.util.find_spec(package).origin).parent / inside


def is_available(name: str) -> bool:
    """Whether `load(name)` needs no network: the picture is built in, or already in the cache.

    Raises:
        ValueError: an unknown name.
    """
    picture = _find(name)
    if picture.sha256 is None:
        return _built_in(picture.file).is_file()
    return _is_whole(cache_folder() / _cached_name(name), picture.sha256)


def load(name: str, size: int | None = None) -> Tensor:
    """A picture by its name, (1, 3, H, W) float32 RGB in [0, 1] on the CPU; downloaded where it must be.

    Args:
        name: one of `names()`.
        size: the shorter side of the result in pixels; `None` keeps the picture's own.

    Raises:
        ValueError: an unknown name, with the closest ones in the message.
        DownloadError: the picture is neither built in nor cached and could not be fetched.
    """
    picture = _find(name)
    if picture.sha256 is None:
        return images.load(_built_in(picture.file), size)
    return images.load(download(picture.file, picture.sha256, _cached_name(name)), size)


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
