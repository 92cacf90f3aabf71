import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from course_lib.base import images

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (24, 32), dtype=np.uint8)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def tensor(array: np.ndarray) -> torch.Tensor:
    """The image that an RGB array in [0, 255] should become."""
    return torch.from_numpy(array.astype(np.float64) / 255).permute(2, 0, 1)[None].float()


def png_claiming(width: int, height: int) -> bytes:
    """A well-formed PNG header for an image of any size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header) - 4) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", 0)


# --- load: the same image through every door


def test_load_takes_a_path_bytes_an_array_and_an_image(tmp_path):
    path = tmp_path / "snímek 1.png"
    path.write_bytes(encode(Image.fromarray(RGB)))
    for source in (path, str(path), path.read_bytes(), RGB, Image.fromarray(RGB)):
        picture = images.load(source)
        assert picture.shape == (1, 3, 24, 32)
        assert picture.dtype == torch.float32
        assert picture.is_contiguous()
        torch.testing.assert_close(picture, tensor(RGB))


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        GREY[..., None],
        np.stack([GREY] * 3, axis=2),
        GREY.astype(np.uint16) * 257,
        (GREY.astype(np.uint16) * 257).astype(">u2"),
        GREY / 255,
        (GREY / 255).astype(np.float32),
        np.ascontiguousarray(GREY[::-1, ::-1])[::-1, ::-1],
    ],
)
def test_load_takes_grey_arrays_of_every_layout_and_dtype(array):
    torch.testing.assert_close(images.load(array), tensor(np.stack([GREY] * 3, axis=2)))


def test_load_takes_masks():
    mask = GREY > 100
    assert torch.equal(images.load(mask)[0, 1], torch.from_numpy(mask).float())


def test_load_does_not_share_memory_with_its_array():
    array = (RGB / 255).astype(np.float32)
    images.load(array).zero_()
    assert array.max() > 0


def test_load_lays_transparency_over_white():
    alpha = RNG.integers(0, 256, (24, 32, 1), dtype=np.uint8)
    rgba = np.concatenate([RGB, alpha], axis=2)
    share = alpha / 255
    expected = torch.from_numpy(RGB / 255 * share + 1 - share).permute(2, 0, 1)[None].float()
    torch.testing.assert_close(images.load(rgba), expected)
    decoded = images.load(encode(Image.fromarray(rgba)))
    torch.testing.assert_close(decoded, expected, atol=1.01 / 255, rtol=0)  # Pillow composites in 8 bits
    grey_alpha = encode(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])]))
    expected = torch.from_numpy(GREY / 255 * share[..., 0] + 1 - share[..., 0]).float()
    torch.testing.assert_close(images.load(grey_alpha)[0, 2], expected, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_load_lays_a_transparent_palette_over_white(format):
    image = Image.new("P", (20, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 10, 16))
    picture = images.load(encode(image, format, transparency=1))
    assert picture[0, :, 0, 0].tolist() == [1, 0, 0]
    assert picture[0, :, 0, 19].tolist() == [1, 1, 1]


def test_load_lays_a_transparent_grey_value_over_white():
    image = Image.new("L", (20, 16), 7)
    image.paste(0, (0, 0, 10, 16))
    picture = images.load(encode(image, transparency=7))
    assert picture[0, :, 0, 0].tolist() == [0, 0, 0]
    assert picture[0, :, 0, 19].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("format", "order"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_load_keeps_16_bits_of_grey(format, order):
    deep = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 80
    mode = "I;16B" if order == ">u2" else "I;16"
    image = Image.frombytes(mode, (32, 24), deep.astype(order).tobytes())
    expected = torch.from_numpy(deep.astype(np.float64) / 65535).float()
    torch.testing.assert_close(images.load(encode(image, format))[0, 0], expected)


def test_load_reads_16_bits_held_in_32_and_refuses_more():
    wide = Image.fromarray(np.full((16, 16), 65535, np.int32))
    assert images.load(wide).min() == 1
    with pytest.raises(ValueError, match="16-bit grey"):
        images.load(Image.fromarray(np.full((16, 16), 65536, np.int32)))


def test_load_reads_float_tiffs_and_refuses_other_ranges():
    image = Image.fromarray(np.full((16, 16), 0.25, np.float32))
    assert (images.load(encode(image, "TIFF")) == 0.25).all()
    with pytest.raises(ValueError, match="0, 1"):
        images.load(Image.fromarray(np.full((16, 16), 2.5, np.float32)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "RGB"])
def test_load_makes_every_mode_rgb(mode):
    white_left = Image.new("RGB", (32, 16), "black")
    white_left.paste("white", (0, 0, 16, 16))
    # Packed: Pillow's raw decoder takes YCbCr for four bytes a pixel, and passes the end of a file of three.
    picture = images.load(encode(white_left.convert(mode), "TIFF", compression="tiff_lzw"))
    assert picture[..., :16].min() > 0.98
    assert picture[..., 16:].max() < 0.02


def test_load_reads_cmyk_jpegs():
    picture = images.load(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    torch.testing.assert_close(picture[0, :, 8, 8], torch.tensor([1.0, 0, 0]), atol=0.03, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_load_obeys_exif_rotation(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255  # the corner that tells all eight apart, since the sides differ
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}
    stored = Image.fromarray(upright)
    for step in undo.get(orientation, []):
        stored = stored.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = images.load(encode(stored, exif=exif))
    torch.testing.assert_close(picture, tensor(upright))


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of entries (tag, type, count, value), written by hand, because Pillow writes no odd ones."""
    values, offset = b"", 8 + 2 + 12 * len(entries) + 4
    table = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        where = value.ljust(4, b"\0")
        if len(value) > 4:
            where, values = struct.pack("<I", offset + len(values)), values + value
        table += struct.pack("<HHI", tag, kind, count) + where
    return table + struct.pack("<I", 0) + values


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_load_ignores_unreadable_metadata(format):
    plain = encode(Image.fromarray(RGB), format)
    for odd in (b"\0" * 12, b"Exif\0\0" + b"\xff" * 40, exif((0x0112, 3, 1, b"\x09\0"))):
        assert torch.equal(images.load(encode(Image.fromarray(RGB), format, exif=odd)), images.load(plain))


RATIONAL = struct.pack("<ii", -2, 0)


@pytest.mark.parametrize(
    "odd",
    [
        (0x9204, 10, 1, RATIONAL),  # exposure bias −2/0
        (0x011A, 10, 1, RATIONAL),  # resolution −2/0
        (0x010E, 5, 1, RATIONAL),  # a description that is a fraction
        (0x0131, 12, 1, RATIONAL),  # a program that is a number
        (0x0132, 4, 2, RATIONAL),  # a date of two numbers
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_load_needs_only_the_orientation(odd, orientation):
    metadata = exif((0x0112, 3, 1, struct.pack("<H", orientation)), odd)
    found = images.load(encode(Image.fromarray(RGB), "JPEG", exif=metadata))
    plain = images.load(encode(Image.fromarray(RGB), "JPEG"))
    assert torch.equal(found, plain.rot90(-1, (2, 3)) if orientation == 6 else plain)


def test_load_leaves_the_image_it_is_given_as_it_was():
    data = encode(Image.linear_gradient("L").resize((9000, 300)), "JPEG", exif=exif((0x0112, 3, 1, b"\x06\0")))
    with Image.open(io.BytesIO(data)) as image:
        assert images.load(image).shape[2] == images.MAX_SIDE
        assert image.size == (9000, 300) and image.getexif()[0x0112] == 6


def test_load_takes_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert images.load(data)[0, :, 0, 0].tolist() == [1, 0, 0]


# --- load: sizes


def test_load_resizes_the_shorter_side():
    assert images.load(RGB, 48).shape == (1, 3, 48, 64)
    assert images.load(RGB.transpose(1, 0, 2), 18).shape == (1, 3, 24, 18)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_load_scales_long_pictures_down(format):
    image = Image.linear_gradient("L").resize((9000, 300)).convert("RGB")
    picture = images.load(encode(image, format))
    _, _, H, W = picture.shape
    assert W == images.MAX_SIDE
    assert abs(H - 300 * W / 9000) < 1
    expected = torch.linspace(0, 1, H).expand(3, W, H).transpose(1, 2)
    torch.testing.assert_close(picture[0], expected, atol=0.03, rtol=0)


def test_load_scales_long_arrays_down_without_aliasing():
    stripes = np.zeros((32, 2 * images.MAX_SIDE), np.uint8)
    stripes[:, ::2] = 255
    picture = images.load(stripes)
    assert picture.shape == (1, 3, 16, images.MAX_SIDE)
    assert (picture[..., 8:-8] - 0.5).abs().max() < 0.02  # plain subsampling would give 0 or 1


@pytest.mark.parametrize("shape", [(1, 1), (15, 100), (100, 15), (0, 0), (20, 20000)])
def test_load_refuses_small_pictures(shape):
    with pytest.raises(ValueError, match="at least 16 px"):
        images.load(np.zeros(shape, np.uint8))


def test_load_refuses_a_single_pixel_file_by_name(tmp_path):
    path = tmp_path / "dot.png"
    path.write_bytes(encode(Image.new("RGB", (1, 1))))
    with pytest.raises(ValueError, match=r"dot\.png is too small: 1×1 px"):
        images.load(path)


@pytest.mark.parametrize(("width", "height"), [(10_000, 8_001), (60_000, 60_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_load_refuses_huge_pictures_before_decoding(width, height):
    with pytest.raises(ValueError, match=r"80,000,000|exceeds limit"):
        images.load(png_claiming(width, height))


@pytest.mark.parametrize("size", [15, 4097, 0, -1])
def test_load_refuses_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="size"):
        images.load(RGB, size)


def test_load_refuses_to_blow_a_strip_up():
    with pytest.raises(ValueError, match="4096"):
        images.load(np.zeros((16, 4000), np.uint8), 1024)


# --- load: what is no image


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_load_refuses_what_is_no_image(data, tmp_path):
    path = tmp_path / "wrong.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"wrong\.png as an image"):
        images.load(path)
    with pytest.raises(ValueError, match="the bytes as an image"):
        images.load(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@given(share=st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_load_refuses_cut_files(format, share):
    data = encode(Image.fromarray(RGB), format)
    with pytest.raises(ValueError, match="as an image"):
        images.load(data[: int(share * len(data))])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_load_of_a_damaged_file_is_a_picture_or_a_value_error(data):
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
    damaged = bytearray(encode(Image.fromarray(RGB), format))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = images.load(bytes(damaged))
    except ValueError:
        return
    assert picture.shape[:2] == (1, 3)
    assert 0 <= picture.min() <= picture.max() <= 1


def test_load_refuses_a_missing_file_a_folder_and_an_address(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        images.load(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="folder"):
        images.load(tmp_path)
    with pytest.raises(ValueError, match=r"datasets\.fetch"):
        images.load("https://example.org/cat.jpg")


@pytest.mark.parametrize("source", [None, 3, torch.zeros(1, 3, 16, 16), [[0.0]]])
def test_load_refuses_other_types(source):
    with pytest.raises(TypeError, match="expected a path"):
        images.load(source)


@pytest.mark.parametrize("shape", [(16,), (3, 16, 16), (16, 16, 2), (16, 16, 5), (1, 16, 16, 3)])
def test_load_refuses_arrays_of_other_shapes(shape):
    with pytest.raises(ValueError, match="expected an array"):
        images.load(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint32, object, complex, "U1"])
def test_load_refuses_arrays_of_other_dtypes(dtype):
    with pytest.raises(TypeError, match="expected uint8"):
        images.load(np.zeros((16, 16), dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01, 255.0, 1e300])
def test_load_refuses_floats_out_of_range(value):
    array = np.zeros((16, 16))
    array[3, 4] = value
    with pytest.raises(ValueError, match="floats in"):
        images.load(array)


def test_load_forgives_rounding():
    picture = images.load(np.full((16, 16), 1 + 1e-7))
    assert picture.max() == 1


# --- values in training steps


def test_check_range_forgives_rounding_and_nothing_else():
    inside = torch.tensor([-1e-4, 0.0, 0.5, 1.0005]).expand(2, 1, 1, 4)
    images.check_range(inside)
    images.check_range(inside.bfloat16())
    for bad, message in (
        (2 * inside - 1, r"from -1 to 1; is it \(x \+ 1\) / 2 that is missing"),
        (255 * inside, "from -0.0255 to 255; is it x / 255 that is missing"),
        (inside + 0.5, r"from 0.5 to 1.5; is it x.clamp\(0, 1\) that is missing"),
        (inside * torch.nan, "from nan to nan"),
        (inside[0], "got shape"),
        (inside[:0], "got shape"),
    ):
        with pytest.raises(ValueError, match=f"expected .*got.*{message.removeprefix('got')}"):
            images.check_range(bad)
    with pytest.raises(TypeError, match="torch.uint8"):
        images.check_range(inside.byte())


def test_once_looks_until_something_has_passed():
    check, inside = images.once(images.check_range), torch.rand(2, 1, 4, 4)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            check(inside + 1)
    check(inside)
    check(inside + 1)


# --- save


@pytest.mark.parametrize("suffix", [".png", ".webp", ".PNG"])
def test_save_then_load_returns_the_same_picture(suffix, tmp_path):
    path = tmp_path / "new" / f"image{suffix}"
    images.save(tensor(RGB), path)
    assert torch.equal(images.load(path), tensor(RGB))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_save_writes_jpegs(suffix, tmp_path):
    smooth = images.resize(tensor(RGB)[..., :4, :4], 64)
    images.save(smooth, tmp_path / f"image{suffix}")
    torch.testing.assert_close(images.load(tmp_path / f"image{suffix}"), smooth, atol=0.1, rtol=0)


def test_save_clamps_rounds_and_takes_other_layouts(tmp_path, device):
    path = tmp_path / "image.png"
    picture = torch.full((1, 16, 16), 0.5, device=device, requires_grad=True)
    images.save(picture, path)
    assert (images.load(path) == 128 / 255).all()
    images.save(torch.tensor([-1.0, 0.998, 2.0], device=device).view(3, 1, 1).expand(3, 16, 16), path)
    torch.testing.assert_close(images.load(path)[0, :, 0, 0], torch.tensor([0, 254 / 255, 1]))


@pytest.mark.parametrize("name", ["image", "image.xyz", "image.png.bak"])
def test_save_refuses_other_suffixes(name, tmp_path):
    with pytest.raises(ValueError, match="ending in"):
        images.save(tensor(RGB), tmp_path / name)


def test_save_keeps_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "image.png"
    images.save(tensor(RGB), path)
    with pytest.raises(ValueError, match="finite"):
        images.save(torch.full((3, 16, 16), torch.nan), path)
    assert torch.equal(images.load(path), tensor(RGB))
    assert list(tmp_path.iterdir()) == [path]


# --- resize and crop


@given(
    B=st.integers(1, 2),
    C=st.sampled_from([1, 3]),
    H=st.integers(1, 40),
    W=st.integers(1, 40),
    size=st.one_of(st.integers(1, 30), st.tuples(st.integers(1, 30), st.integers(1, 30))),
)
@settings(max_examples=60, deadline=None)
def test_resize_agrees_with_pillow_and_keeps_the_range(B, C, H, W, size):
    pictures = torch.rand(B, C, H, W, generator=torch.Generator().manual_seed(H * 41 + W))
    pictures = pictures.round()  # black and white: the filter overshoots
    result = images.resize(pictures, size)
    height, width = shape = result.shape[-2:]
    if isinstance(size, int):
        assert min(shape) == size
        assert abs(max(shape) - size * max(H, W) / min(H, W)) <= 0.5
    else:
        assert shape == size
    for channel, plane in zip(result.flatten(0, 1), pictures.flatten(0, 1), strict=True):
        expected = Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(channel, np.asarray(expected).clip(0, 1), atol=1e-5)


def test_resize_to_the_same_size_changes_nothing():
    torch.testing.assert_close(images.resize(tensor(RGB), 24), tensor(RGB))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_resize_keeps_dtype_device_and_constants(dtype, device):
    result = images.resize(torch.full((2, 3, 9, 7), 0.5, dtype=dtype, device=device), (20, 4))
    assert result.dtype == dtype
    assert result.device.type == device.type
    torch.testing.assert_close(result, torch.full_like(result, 0.5))


def test_resize_has_a_gradient():
    pictures = (torch.rand(1, 2, 5, 6, dtype=torch.float64) * 0.2 + 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: images.resize(x, (3, 8)), pictures)


@given(H=st.integers(1, 30), W=st.integers(1, 30), margin=st.integers(0, 15), enlarge=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_centre_crop_keeps_the_largest_centred_region(H, W, margin, enlarge):
    wide = torch.rand(1, 3, H, W + 2 * margin, dtype=torch.float64)
    kept = images.resize(wide[..., margin : margin + W], (H * enlarge, W * enlarge))
    torch.testing.assert_close(images.centre_crop(wide, (H * enlarge, W * enlarge)), kept)
    torch.testing.assert_close(images.centre_crop(wide.mT, (W * enlarge, H * enlarge)), kept.mT)


def test_centre_crop_takes_a_square():
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., 10:20] = 1
    assert (images.centre_crop(wide, 5) == 1).all()
    assert (images.centre_crop(wide.transpose(2, 3), 5) == 1).all()


def no_pictures():
    return [torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8), torch.zeros(1, 3, 0, 8)]


@pytest.mark.parametrize("operation", [images.resize, images.centre_crop, images.grid])
def test_operations_refuse_what_is_no_batch(operation):
    for pictures in no_pictures():
        with pytest.raises(ValueError, match="non-empty"):
            operation(pictures, 4)
    for pictures in (np.zeros((1, 3, 8, 8)), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(TypeError, match="floating-point"):
            operation(pictures, 4)


@pytest.mark.parametrize("operation", [images.resize, images.centre_crop])
def test_operations_refuse_bad_sizes(operation):
    for size in (0, -3, (4, 0)):
        with pytest.raises(ValueError, match="size"):
            operation(torch.zeros(1, 3, 8, 8), size)
    for size in (4.0, "4", None, (4.0, 4)):
        with pytest.raises(TypeError, match="size"):
            operation(torch.zeros(1, 3, 8, 8), size)
    for size in ((4, 4, 4), (4,)):
        with pytest.raises(ValueError, match=r"size|unpack"):
            operation(torch.zeros(1, 3, 8, 8), size)


# --- grid and arrays


@given(B=st.integers(1, 7), columns=st.integers(1, 8), padding=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_grid_puts_each_picture_in_its_place(B, columns, padding):
    H, W = 4, 5
    pictures = torch.rand(B, 3, H, W)
    result = images.grid(pictures, columns, padding, value=0.25)
    across, down = min(B, columns), -(-B // columns)
    expected = torch.full((1, 3, down * (H + padding) + padding, across * (W + padding) + padding), 0.25)
    for index, picture in enumerate(pictures):
        top = padding + index // columns * (H + padding)
        left = padding + index % columns * (W + padding)
        expected[0, :, top : top + H, left : left + W] = picture
    assert torch.equal(result, expected)


@pytest.mark.parametrize("B", [1, 2])
def test_grid_makes_grey_rgb(B, device):
    result = images.grid(torch.rand(B, 1, 4, 4, device=device, requires_grad=True), 2)
    assert result.shape[1] == 3
    assert not result.requires_grad
    assert result.device.type == device.type
    assert torch.equal(result[:, 0], result[:, 2])


def test_grid_refuses_bad_layouts():
    for columns, padding in ((0, 2), (1, -1)):
        with pytest.raises(ValueError, match="columns"):
            images.grid(torch.zeros(2, 3, 4, 4), columns, padding)


def test_to_array_is_what_matplotlib_expects(device):
    picture = tensor(RGB).to(device)
    for given_picture in (picture, picture[0], picture.requires_grad_()):
        array = images.to_array(given_picture)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, RGB / 255, rtol=1e-6)


def test_to_array_makes_grey_rgb_and_clamps():
    array = images.to_array(torch.tensor([[-1.0, 0.5, 3.0]]).view(1, 1, 3))
    np.testing.assert_array_equal(array[0], [[0, 0, 0], [0.5] * 3, [1, 1, 1]])
    array[0, 0, 0] = 1  # no channel is a view of another
    assert array[0, 0, 1] == 0


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 4, 8, 8), (8, 8), (2, 8, 8)])
def test_to_array_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="expected"):
        images.to_array(torch.zeros(shape))


def test_to_array_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="finite"):
        images.to_array(torch.full((3, 4, 4), torch.inf))


def test_gif_plays_its_frames_and_holds_the_last():
    greys = [torch.full((1, 1, 8, 12), level) for level in (0.0, 0.5, 1.0)]
    coloured = [torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(seed)).round() for seed in range(3)]
    for frames in (greys, coloured):
        with Image.open(io.BytesIO(images.gif(frames, seconds=0.1, hold=2.0))) as animation:
            assert animation.format == "GIF" and animation.n_frames == 3 and animation.info["loop"] == 0
            for i, frame in enumerate(frames):
                animation.seek(i)
                assert animation.info["duration"] == (2000 if i == 2 else 100)
                shown = np.asarray(animation.convert("RGB")) / 255
                assert np.abs(shown - images.to_array(frame)).max() < 1 / 255


def test_gif_refuses_what_does_not_move():
    with pytest.raises(ValueError, match="two frames or more of one size"):
        images.gif([torch.zeros(3, 8, 8)])
    with pytest.raises(ValueError, match="two frames or more of one size"):
        images.gif([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)])
