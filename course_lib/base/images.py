"""Images as tensors: `(B, C, H, W)`, float32, RGB, in [0, 1]. Load, save, resize, crop, lay out in a grid.

Files are decoded by Pillow and resampled by torch's antialiased bicubic filter.
"""

import io
import operator
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import center_crop
from torchvision.utils import make_grid

from course_lib.base.checkpoints import write_atomically

Source = str | os.PathLike | bytes | np.ndarray | Image.Image
Size = int | tuple[int, int]

MIN_SIDE = 16  # the deepest feature layer halves four times
MAX_SIDE = 4096  # a longer side is scaled down to this on load
MAX_PIXELS = 80_000_000  # more are refused undecoded: they would take gigabytes as float32

_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def load(source: Source, size: int | None = None) -> Tensor:
    """Read one image as RGB.

    Grey, palette, CMYK and 1-bit images become RGB, transparent ones are laid over white, EXIF rotation is
    obeyed (other metadata is ignored, unreadable metadata too), of an animation the first frame is taken. An image
    whose longer side exceeds `MAX_SIDE` (4096 px) is scaled down to that, antialiased.

    Args:
        source: a path, the bytes of an image file, a `PIL.Image.Image`, or an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) of uint8, uint16, bool, or floats in [0, 1].
        size: the shorter side of the result in pixels; `None` keeps the image's own.

    Returns:
        (1, 3, H, W) float32 in [0, 1], on the CPU; both sides at least `MIN_SIDE` (16 px).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not an image, a damaged one, one too small or too large, or array values out of range.
        TypeError: a source or an array of another type.
    """
    name, array = _read(source)
    image = _from_array(array, name)
    H, W = image.shape[2:]
    scale = min(1.0, MAX_SIDE / max(H, W, 1))
    shape = H, W = max(1, round(H * scale)), max(1, round(W * scale))
    if min(shape) < MIN_SIDE:
        raise ValueError(f"{name} is too small: {W}×{H} px, expected at least {MIN_SIDE} px a side")
    if size is not None:
        shape = H, W = _shape(size, H, W)
        if min(shape) < MIN_SIDE or max(shape) > MAX_SIDE:
            raise ValueError(f"size={size} makes {name} {W}×{H} px; expected {MIN_SIDE} to {MAX_SIDE} px a side")
    return image if image.shape[2:] == shape else resize(image, shape)


def _read(source: Source) -> tuple[str, np.ndarray]:
    """The source's name for messages, and its pixels as an array."""
    if isinstance(source, np.ndarray):
        return "the array", source
    if isinstance(source, Image.Image):
        return "the image", _decode(source, "the image")
    if isinstance(source, bytes):
        return "the bytes", _decode(io.BytesIO(source), "the bytes")
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"expected a path, bytes, a NumPy array or a PIL image; got {type(source).__name__}")
    name = os.fspath(source)
    if re.match(r"[a-z]{2,}://", name, re.IGNORECASE):
        raise ValueError(f"{name} is an address, not a path: fetch it first with datasets.fetch")
    if os.path.isdir(name):
        raise ValueError(f"{name} is a folder, expected an image file")
    with open(name, "rb") as stream:
        return name, _decode(stream, name)


def _decode(source: BinaryIO | Image.Image, name: str) -> np.ndarray:
    """The pixels of an image, whatever Pillow raises turned into one kind of error."""
    try:
        return _pixels(source if isinstance(source, Image.Image) else Image.open(source))
    except Exception as error:  # damaged files surface as OSError, SyntaxError, EOFError, zlib's and others
        raise ValueError(f"cannot read {name} as an image: {error}") from error


def _pixels(image: Image.Image) -> np.ndarray:
    """Upright pixels: (H, W, 3) or (H, W, 4) uint8, or (H, W) uint16 or float32 where 8 bits would lose some."""
    W, H = image.size
    if W * H > MAX_PIXELS:
        raise ValueError(f"{W}×{H} px, expected at most {MAX_PIXELS:,} in all")
    image = _upright(image)
    if image.mode == "F":
        return np.asarray(image)
    if image.mode.startswith("I"):  # 16-bit grey: modes I;16 and I;16B, or I in older releases of Pillow
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"expected 16-bit grey, got values from {pixels.min()} to {pixels.max()}")
        return pixels.astype(np.uint16)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image)


def _upright(image: Image.Image) -> Image.Image:
    """The image, turned as EXIF says. Pillow is shown the orientation only, for it fails where other tags are odd."""
    image.load()  # in a PNG the metadata may follow the pixels
    turned, exif, tag = image.copy(), Image.Exif(), ExifTags.Base.Orientation
    try:
        exif[tag] = image.getexif()[tag]
        turned.info = {**image.info, "exif": exif.tobytes(), "xmp": b""}
        return ImageOps.exif_transpose(turned)
    except Exception:  # no orientation, or unreadable metadata, in as many types of error as a damaged image
        return image


def _from_array(array: np.ndarray, name: str) -> Tensor:
    """(1, 3, H, W) in [0, 1] from an array of any layout and dtype that `load` accepts."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"expected an array (H, W) or (H, W, C) with C of 1, 3 or 4; {name} is {array.shape}")
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if kind not in "bf" and not (kind == "u" and itemsize <= 2):
        raise TypeError(f"expected uint8, uint16, bool or floats in [0, 1]; {name} is {array.dtype}")
    # 1e-6 forgives rounding; the condition is written so that NaN fails it too.
    if kind == "f" and not ((array >= -1e-6) & (array <= 1 + 1e-6)).all():
        raise ValueError(f"expected floats in [0, 1]; {name} spans {array.min():.3g} to {array.max():.3g}")
    pixels = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if array.ndim == 2:
        pixels = pixels[..., None]
    if kind == "u":
        pixels /= np.iinfo(array.dtype).max
    pixels = pixels.permute(2, 0, 1)[None]
    if pixels.shape[1] == 4:
        colour, alpha = pixels.split([3, 1], dim=1)
        pixels = colour * alpha + (1 - alpha)  # over white
    return pixels.expand(-1, 3, -1, -1).clamp(0, 1).contiguous()


def _shape(size: Size, H: int, W: int) -> tuple[int, int]:
    """The shape (H, W) that `size` asks of images of shape (H, W)."""
    try:
        if isinstance(size, tuple | list):
            height, width = map(operator.index, size)
        else:
            shorter = operator.index(size)
            height, width = round(H * shorter / min(H, W)), round(W * shorter / min(H, W))
    except TypeError:
        raise TypeError(f"expected size as an int or as (H, W), got {size!r}") from None
    if min(height, width) < 1:
        raise ValueError(f"expected a size of at least 1 px, got {size!r}")
    return height, width


def check_batch(images: Tensor) -> None:
    """Refuse what is not a non-empty batch of floating-point images; values are not looked at.

    Raises:
        TypeError: not a tensor of floats.
        ValueError: not (B, C, H, W), or empty.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"expected a floating-point tensor (B, C, H, W) in [0, 1], got {given}")
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected a non-empty tensor (B, C, H, W), got shape {tuple(images.shape)}")


def check_range(images: Tensor) -> None:
    """Refuse what is not images in [0, 1]: other tutorials have [-1, 1], and bytes reach 255.

    It reads values, so a GPU waits for it: in a training step only at the first batch, by `once(check_range)`.

    Args:
        images: expected to be floats (B, C, H, W) in [0, 1], give or take 0.001 for rounding, without NaN.

    Raises:
        TypeError: no floats.
        ValueError: another shape, no images, NaN, or values outside of [0, 1].
    """
    check_batch(images)
    low, high = (value.item() for value in images.aminmax())
    if not -1e-3 <= low <= high <= 1 + 1e-3:  # written so that NaN fails, too
        missing = "x / 255" if high > 2 else "(x + 1) / 2" if low < 0 else "x.clamp(0, 1)"
        given = f"values from {low:.3g} to {high:.3g}; is it {missing} that is missing?"
        raise ValueError(f"expected images in [0, 1], without NaN; got {given}")


def once(check: Callable[..., None]) -> Callable[..., None]:
    """The check, which does nothing more once something has passed it: for the first batch of a training step."""
    passed = False

    def checked(*arguments: object) -> None:
        nonlocal passed
        if not passed:
            check(*arguments)
            passed = True

    return checked


def resize(images: Tensor, size: Size) -> Tensor:
    """Resample (B, C, H, W) in [0, 1] with an antialiased bicubic filter; differentiable.

    Args:
        images: any floating dtype, any device.
        size: an int makes the shorter side that long and keeps the aspect; (H, W) is taken exactly.

    Returns:
        (B, C, H', W'), clamped to [0, 1], because a bicubic filter overshoots at edges.

    Raises:
        TypeError: images that are not floats, or a size that is not of ints.
        ValueError: images of another shape, or a size below 1 px.
    """
    check_batch(images)
    _, _, H, W = images.shape
    shape = height, width = _shape(size, H, W)
    if width == 1 < height:  # torch (2.14, on the CPU) fills such columns with their first value
        return resize(images.mT, (1, height)).mT
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # CPUs lack the filter for halves
    resampled = F.interpolate(exact, shape, mode="bicubic", antialias=True, align_corners=False)
    return resampled.clamp(0, 1).to(images.dtype)


def centre_crop(images: Tensor, size: Size) -> Tensor:
    """Cut the largest centred region of the wanted aspect out of (B, C, H, W), then `resize` it.

    Args:
        images: any floating dtype, any device, in [0, 1].
        size: an int for a square, or (H, W).

    Raises:
        TypeError: images that are not floats, or a size that is not of ints.
        ValueError: images of another shape, or a size below 1 px.
    """
    check_batch(images)
    _, _, H, W = images.shape
    height, width = _shape(size, 1, 1)
    scale = min(H / height, W / width)
    region = [max(1, round(height * scale)), max(1, round(width * scale))]
    return resize(center_crop(images, region), (height, width))


def grid(images: Tensor, columns: int, padding: int = 2, value: float = 1.0) -> Tensor:
    """Lay a batch out row by row as one image, framed and separated by `padding` pixels of `value`.

    Args:
        images: (B, C, H, W); one channel becomes three.
        columns: images in a row; with fewer than that, one row of B. The last row is filled with `value`.

    Returns:
        (1, C, H', W') with `H' = rows · (H + padding) + padding`, `W'` likewise; no gradient.

    Raises:
        TypeError: images that are not floats.
        ValueError: images of another shape, no columns, or a negative padding.
    """
    check_batch(images)
    if columns < 1 or padding < 0:
        raise ValueError(f"expected columns ≥ 1 and padding ≥ 0, got {columns} and {padding}")
    if len(images) > 1:
        return make_grid(images, columns, padding, pad_value=value)[None]
    # make_grid returns a lone image unframed.
    lone = images.detach().expand(-1, max(3, images.shape[1]), -1, -1)
    return F.pad(lone, [padding] * 4, value=value)


def to_array(image: Tensor) -> np.ndarray:
    """One image as an array (H, W, 3), float32, clamped to [0, 1], for matplotlib.

    Args:
        image: (1, C, H, W) or (C, H, W), C of 1 or 3, on any device.

    Raises:
        TypeError: an image that is not of floats.
        ValueError: one of another shape, or with pixels that are not finite.
    """
    batch = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
    check_batch(batch)
    B, C, H, W = batch.shape
    if B != 1 or C not in (1, 3):
        raise ValueError(f"expected one image, (1, C, H, W) or (C, H, W) with C of 1 or 3; got {tuple(image.shape)}")
    if not batch.isfinite().all():
        raise ValueError("expected an image in [0, 1]; some pixels are not finite")
    return batch[0].detach().float().cpu().clamp(0, 1).expand(3, H, W).permute(1, 2, 0).contiguous().numpy()


def save(image: Tensor, path: str | os.PathLike) -> None:
    """Write one image with 8 bits a channel; an older file is replaced only by a whole one.

    Args:
        image: (1, C, H, W) or (C, H, W), C of 1 or 3; clamped to [0, 1].
        path: ends in .png, .webp (lossless), .jpg or .jpeg (quality 95); its folder is created if missing.

    Raises:
        TypeError: an image that is not of floats.
        ValueError: another suffix, or an image that `to_array` refuses.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"expected a name ending in {', '.join(_SUFFIXES)}; got {os.fspath(path)!r}")
    encoded = io.BytesIO()
    Image.fromarray(_to_bytes(image)).save(encoded, Image.registered_extensions()[suffix], quality=95, lossless=True)
    write_atomically(path, encoded.getvalue())


def _to_bytes(image: Tensor) -> np.ndarray:
    """The array (H, W, 3) with 8 bits a channel."""
    return np.rint(to_array(image) * 255).astype(np.uint8)


def gif(frames: Sequence[Tensor], seconds: float = 0.08, hold: float = 1.5) -> bytes:
    """An animation that any browser shows in a loop, for `IPython.display.Image(data=…)`.

    Args:
        frames: images (1, C, H, W) or (C, H, W) of one size, C of 1 or 3, in [0, 1]; each keeps 256 greys or colours.
        seconds: how long a frame is shown.
        hold: how long the last one is shown, in seconds.

    Raises:
        TypeError: frames that are not of floats.
        ValueError: fewer than two frames, frames of different sizes, or one that `to_array` refuses.
    """
    images = [_to_bytes(frame) for frame in frames]
    if len(images) < 2 or len({image.shape for image in images}) > 1:
        raise ValueError(f"expected two frames or more of one size; got {[image.shape for image in images[:4]]}")
    grey = all(np.ptp(image, axis=2).max() == 0 for image in images)
    first, *others = [Image.fromarray(image[..., 0] if grey else image) for image in images]
    durations = [round(1000 * seconds)] * len(others) + [round(1000 * hold)]
    encoded = io.BytesIO()
    first.save(encoded, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return encoded.getvalue()
