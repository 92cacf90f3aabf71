"""base/datasets.py: names, images, data sets, and downloads from a server on this machine that misbehaves."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import socket
import struct
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from course_lib.base import datasets
from course_lib.base.datasets import DownloadError, ImageSet, OfflineError

pytestmark = pytest.mark.usefixtures("cache")

COURSE_DATA = os.environ.get("COURSE_DATA")
with_data = pytest.mark.skipif(not COURSE_DATA, reason="COURSE_DATA names no folder with the larger sets")


@pytest.fixture
def nothing_at_hand(cache, monkeypatch):
    """Neither COURSE_DATA nor a cache; downloads allowed."""
    monkeypatch.delenv("COURSE_DATA", raising=False)
    return cache


@pytest.fixture
def site(tmp_path):
    """A folder that a server on this machine shows: (folder, address)."""
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """MNIST's own format: two zero bytes, the type (8 is uint8), the number of axes, their lengths, the numbers."""
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


@pytest.fixture
def small_mnist(site, monkeypatch):
    """The server offers MNIST's four files with 7 and 3 images; returns what they hold."""
    folder, address = site
    rng = np.random.default_rng(0)
    arrays, resources = {}, []
    for part, count in (("train", 7), ("t10k", 3)):
        arrays[part] = rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count).astype(np.uint8)
        for array, kind in zip(arrays[part], ("images-idx3-ubyte", "labels-idx1-ubyte"), strict=True):
            content = idx(array)
            (folder / f"{part}-{kind}.gz").write_bytes(content)
            resources.append((f"{part}-{kind}.gz", md5(content)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", resources)
    return arrays


def test_digits_are_scikit_learns():
    train, test = datasets.load("digits"), datasets.load("digits", "test")
    assert (len(train), len(test)) == (1500, 297)
    assert train.images.shape == (1500, 1, 8, 8) and train.classes == tuple("0123456789")
    ours = sorted(
        zip(torch.cat([train.images, test.images]).flatten(1).tolist(), [*train.labels, *test.labels], strict=True)
    )
    found = load_digits()
    theirs = sorted(zip((found.data * 255 / 16 + 1e-9).round().astype(int).tolist(), found.target, strict=True))
    assert ours == theirs, "each image once, with its label"
    assert torch.equal(train.images, datasets.load("digits").images), "the same split each time"


def test_the_test_digits_are_like_the_others():
    """No writer or class was left out of one part: a classifier of one knows the other, all classes are there."""
    train, test = datasets.load("digits"), datasets.load("digits", "test")
    judge = KNeighborsClassifier(3).fit(train.images.flatten(1), train.labels)
    assert judge.score(test.images.flatten(1), test.labels) > 0.97
    assert test.labels.bincount(minlength=10).min() >= 28


def test_indexing():
    data = datasets.load("digits")
    image, label = data[4]
    assert image.shape == (1, 8, 8) and image.dtype == torch.float32 and label.ndim == 0
    assert torch.equal(image, data.images[4].float() / 255)
    for index in (slice(2, 5), torch.tensor([2, 3, 4])):
        found, labels = data[index]
        assert found.shape == (3, 1, 8, 8) and torch.equal(labels, data.labels[2:5])
        assert found.min() >= 0 and found.max() <= 1
    assert len(list(data)) == len(data), "iteration ends"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_downloaded_once(name, nothing_at_hand, small_mnist, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", torchvision.datasets.MNIST.mirrors)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", torchvision.datasets.MNIST.resources)
    assert not datasets.is_available(name)
    for split, part in (("train", "train"), ("test", "t10k")):
        data = datasets.load(name, split)
        images, labels = small_mnist[part]
        assert np.array_equal(data.images[:, 0].numpy(), images) and np.array_equal(data.labels.numpy(), labels)
    assert datasets.is_available(name)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert len(datasets.load(name)) == 7, "from the cache"


def test_faces_of_cats_from_archives_and_folders(nothing_at_hand, monkeypatch, tmp_path):
    for load in (lambda: datasets.load("cat_faces"), lambda: datasets.load("cat_faces", "test")):
        with pytest.raises(DownloadError, match=r"archive.org.*recipes/cat_faces.py.*COURSE_DATA"):
            load()
    assert not datasets.is_available("cat_faces")
    folder = tmp_path / "cat_faces"
    (folder / "test").mkdir(parents=True)
    colours = [(255, 0, 0), (0, 0, 255)]
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        archive.writestr("readme.txt", "no image")
        for k, colour in reversed(list(enumerate(colours))):
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), colour).save(stream, "PNG")
            archive.writestr(f"{k}.png", stream.getvalue())
    wide = Image.new("L", (200, 100))
    wide.paste(255, (50, 0, 150, 100))  # the middle square
    wide.save(folder / "test" / "a.png")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert datasets.is_available("cat_faces")
    train, test = datasets.load("cat_faces"), datasets.load("cat_faces", "test")
    assert train.images.shape == (2, 3, 64, 64) and train.images[:, :, 5, 9].tolist() == [list(c) for c in colours]
    assert test.images.shape == (1, 3, 64, 64) and test.images[0, :, :, 2:-2].eq(255).all() and test.classes == ("cat",)
    (folder / "train.zip").write_bytes((folder / "train.zip").read_bytes()[:-9])
    with pytest.raises(DownloadError, match="train.zip is damaged.*archive.org"):
        datasets.load("cat_faces")


def test_offline_says_what_to_do(nothing_at_hand, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    for name in ("mnist", "fashion_mnist"):
        with pytest.raises(OfflineError, match="COURSE_OFFLINE forbids it.*COURSE_DATA"):
            datasets.load(name)


def test_a_changed_file_is_refused(nothing_at_hand, small_mnist, site):
    for file in site[0].iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match="expected md5:.* but got .*COURSE_DATA"):
        datasets.load("mnist")
    assert not datasets.is_available("mnist")


def test_an_unreachable_server_is_a_download_error(nothing_at_hand, small_mnist, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(OfflineError, match="cannot download http://127.0.0.1:9/train-images"):
        datasets.load("mnist")


DAMAGE = {
    "empty": lambda content: b"",
    "header cut": lambda content: content[:2],
    "body cut": lambda content: content[: len(content) // 2],
    "too long": lambda content: content + content,
    "another format": lambda content: b"<html>" + content,
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_mnist_is_named_and_fetched_again(damage, suffix, nothing_at_hand, small_mnist, site, monkeypatch):
    content = (site[0] / "train-images-idx3-ubyte.gz").read_bytes()
    path = nothing_at_hand / "torchvision" / "MNIST" / "raw" / f"train-images-idx3-ubyte{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGE[damage](content if suffix else gzip.decompress(content)))
    assert not datasets.is_available("mnist")
    with monkeypatch.context() as patch, pytest.raises(OfflineError, match=re.escape(f"{path} is damaged")):
        patch.setenv("COURSE_OFFLINE", "1")
        datasets.load("mnist")
    with pytest.warns(UserWarning, match=re.escape(f"{path} is damaged")):
        data = datasets.load("mnist")
    assert np.array_equal(data.images[:, 0].numpy(), small_mnist["train"][0])
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert len(datasets.load("mnist")) == 7, "healed"


def test_a_damaged_file_of_the_user_is_left_alone(nothing_at_hand, small_mnist, monkeypatch, tmp_path):
    path = tmp_path / "own" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "own"))
    with pytest.warns(UserWarning, match=re.escape(f"{path} is damaged")):
        assert len(datasets.load("mnist", "test")) == 3
    assert path.read_bytes() == b"half"


def test_course_data_may_begin_with_the_home_folder(nothing_at_hand, small_mnist, site, monkeypatch, tmp_path):
    raw = tmp_path / "x" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in site[0].iterdir():
        (raw / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setenv("COURSE_DATA", "~/x")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert datasets.data_folder() == tmp_path / "x"
    assert datasets.is_available("mnist") and len(datasets.load("mnist")) == 7


def test_bad_arguments():
    with pytest.raises(ValueError, match="cat_faces, digits, fashion_mnist, mnist; got 'dogs'"):
        datasets.load("dogs")
    with pytest.raises(ValueError, match="train, test; got 'val'"):
        datasets.load("digits", "val")
    with pytest.raises(ValueError, match="mnist; got 'dogs'"):
        datasets.is_available("dogs")
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    for bad in (images.float(), images[0], images[:0]):
        with pytest.raises(ValueError, match="expected images"):
            ImageSet("x", bad, labels[: len(bad)], ("a",))
    for bad in (labels.float(), labels[:1]):
        with pytest.raises(ValueError, match="expected 2 labels torch.int64"):
            ImageSet("x", images, bad, ("a",))


@with_data
def test_the_larger_sets_are_whole():
    counts = {"mnist": (60000, 10000), "fashion_mnist": (60000, 10000), "cat_faces": (7999, 838)}
    for name, expected in counts.items():
        parts = [datasets.load(name, split) for split in datasets.SPLITS]
        assert tuple(map(len, parts)) == expected
        assert all(part.labels.max() < len(part.classes) for part in parts)


# --- images: a server that answers as the path says


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    return stream.getvalue()


CONTENT = jpeg()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the path says; every request is noted in `server.requests`."""

    def do_GET(self):
        self.server.requests.append(self.path)
        behaviour = self.path.strip("/").split("/")[0]
        if behaviour.startswith("once-"):
            behaviour = behaviour.removeprefix("once-") if len(self.server.requests) == 1 else "ok"
        if behaviour == "dropped":
            return  # the connection ends without an answer
        status = {"missing": 404, "broken": 503}.get(behaviour, 200)
        body = CONTENT[::-1] if behaviour == "wrong" else CONTENT
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        half = len(body) // 2
        self.wfile.write(body[:half])
        if behaviour in ("stalled", "slow"):
            self.server.go_on.wait(10)
        if behaviour not in ("cut", "stalled"):
            self.wfile.write(body[half:])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server on this machine: `server.url` is its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.go_on = [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- images by name


PAINTINGS = ("great_wave", "starry_night", "the_scream")
BUILT_IN = [name for name in datasets.image_names() if name not in datasets._SHA256]


def test_names_are_sorted_and_of_two_kinds():
    assert datasets.image_names() == sorted([*BUILT_IN, "tuebingen"])
    assert {"astronaut", "cat", "china", "flower", *PAINTINGS} <= set(BUILT_IN)


def test_describe_gives_a_line_with_a_credit_to_each():
    lines = datasets.describe_images().splitlines()
    assert [line.split()[0] for line in lines] == datasets.image_names()
    assert [line.split()[0] for line in lines if line[21:].startswith("built-in ")] == BUILT_IN
    assert any("Praefcke" in line for line in lines)


def test_an_unknown_name_is_answered_with_close_ones():
    with pytest.raises(ValueError, match=r"'astronaute'.*did you mean astronaut"):
        datasets.load_image("astronaute")
    with pytest.raises(ValueError, match=r"astronaut.*tuebingen"):
        datasets.load_image("qqq")


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_images_load_without_a_network(name, monkeypatch, cache):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    image = datasets.load_image(name)
    B, C, H, W = image.shape
    assert (B, C) == (1, 3)
    assert 100 <= min(H, W) <= max(H, W) <= 1500
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert image.std() > 0.03
    assert not cache.exists()


def test_paintings_ship_small_with_their_credits():
    folder = Path(__file__).resolve().parents[1] / "data" / "images"
    lines = {line.split()[0]: line for line in datasets.describe_images().splitlines()}
    for name in PAINTINGS:
        assert (folder / f"{name}.jpg").stat().st_size <= 60_000
        assert max(datasets.load_image(name).shape[-2:]) == 384
        assert "public domain" in lines[name]
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in folder.iterdir() if path.stem not in page], "each file's provenance is told"


def test_photographs_of_coco_ship_small_with_their_instances():
    folder = Path(__file__).resolve().parents[1] / "data" / "images"
    lines = {line.split()[0]: line for line in datasets.describe_images().splitlines()}
    page = (folder.parent / "README.md").read_text(encoding="utf-8")
    coco = json.loads((folder / "coco_instances.json").read_text(encoding="utf-8"))
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    for image, name in zip(coco["images"], ("street", "rider", "crossing", "skatepark"), strict=True):
        assert (folder / image["file_name"]).stat().st_size <= 60_000
        assert datasets.load_image(name).shape[-2:] == sizes[image["id"]]
        assert image["license"] == 4 and image["flickr_url"] in page
        assert "CC BY 2.0" in lines[name] and lines[name].split()[-1] in image["flickr_url"]
    for each in coco["annotations"]:
        x, y, w, h = each["bbox"]
        H, W = sizes[each["image_id"]]
        assert min(x, y, w, h) >= 0 and x + w <= W + 0.02 and y + h <= H + 0.02
        assert each["segmentation"]["size"] == [H, W]


def test_load_resizes():
    assert datasets.load_image("china", 128).shape == (1, 3, 128, 192)


# --- downloads


def download(url: str):
    """The server's file, or what the address gives in its place, at its place in the cache."""
    return datasets.fetch(url, datasets.cache_folder() / "set" / "a.jpg", f"sha256:{SHA256}")


def test_a_download_is_kept(server, cache):
    path = download(f"{server.url}/ok/a.jpg?x=1")
    assert path.read_bytes() == CONTENT
    assert path == cache / "set" / "a.jpg"
    assert download(f"{server.url}/ok/a.jpg?x=1") == path
    assert len(server.requests) == 1
    assert files(cache) == [path.name]


def test_a_damaged_file_in_the_cache_is_replaced(server):
    path = download(f"{server.url}/ok")
    path.write_bytes(CONTENT[:-1])
    assert download(f"{server.url}/ok").read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        ("cut", 3),
        ("missing", 1),
        ("broken", 3),
        ("dropped", 3),
        ("stalled", 3),
        ("wrong", 1),
    ],
)
def test_a_failed_download_leaves_nothing_and_hinders_nothing(behaviour, requests, server, cache, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", (10, 0.3))
    with pytest.raises(DownloadError, match="cannot download") as raised:
        download(f"{server.url}/{behaviour}")
    assert not isinstance(raised.value, OfflineError)
    assert len(server.requests) == requests
    assert files(cache) == []
    download(f"{server.url}/ok")
    assert files(cache) == ["a.jpg"]


def test_a_wrong_hash_is_told_with_both_hashes(server):
    got = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(DownloadError, match=f"expected (sha256:)?{SHA256} but got {got}"):
        download(f"{server.url}/wrong")


@pytest.mark.parametrize("behaviour", ["cut", "stalled", "dropped", "broken"])
def test_a_transfer_that_fails_once_is_tried_again(behaviour, server, monkeypatch):
    monkeypatch.setattr(datasets, "TIMEOUT", (10, 0.3))
    assert download(f"{server.url}/once-{behaviour}").read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize("known_hash", [None, f"sha256:{SHA256}"])
def test_a_second_download_does_not_spoil_a_first_that_is_half_done(known_hash, server, cache):
    def fetch(behaviour):
        return datasets.fetch(f"{server.url}/{behaviour}", cache / "a.jpg", known_hash).read_bytes()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(fetch, "slow")
        while not server.requests:
            pass
        assert fetch("ok") == CONTENT
        server.go_on.set()
        assert first.result() == CONTENT
    assert files(cache) == ["a.jpg"]
    assert fetch("ok") == CONTENT and len(server.requests) == (2 if known_hash else 3), "trusted by its hash only"


def test_offline_says_what_is_wanted_and_what_to_do(server, cache, monkeypatch):
    url = f"{server.url}/ok"
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="COURSE_OFFLINE") as raised:
        download(url)
    assert url in str(raised.value)
    assert str(cache / "set" / "a.jpg") in str(raised.value)
    assert server.requests == []
    monkeypatch.delenv("COURSE_OFFLINE")
    download(url)
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert download(url).read_bytes() == CONTENT


def test_no_connection_is_an_offline_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.jpg"
        with pytest.raises(OfflineError, match=re.escape(url)):
            download(url)
    assert issubclass(OfflineError, ConnectionError)


@pytest.mark.parametrize("url", ["a.jpg", "ftp://127.0.0.1/a.jpg", "http://"])
def test_a_malformed_address_is_refused(url):
    with pytest.raises(ValueError, match=r"(?i)url|adapter"):
        download(url)


def test_a_named_image_is_fetched_once(server, cache, monkeypatch):
    monkeypatch.setitem(datasets._IMAGES, "ramp", ("a ramp", "nobody", f"{server.url}/ok/ramp.jpg"))
    monkeypatch.setitem(datasets._SHA256, "ramp", SHA256)
    assert datasets.load_image("ramp").shape == (1, 3, 256, 256)
    assert datasets.load_image("ramp", 64).shape == (1, 3, 64, 64)
    assert len(server.requests) == 1
    assert files(cache) == ["ramp.jpg"]


def test_the_cache_is_the_systems_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("COURSE_CACHE")
    assert "generative-cv-course" in str(datasets.cache_folder())
    monkeypatch.setenv("COURSE_CACHE", "~/elsewhere")
    assert "~" not in str(datasets.cache_folder())


def test_a_message_does_not_tell_whose_folder_it_is(tmp_path, monkeypatch):
    """Lessons print such messages, and are committed with what they print."""
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(datasets.OfflineError, match="put the file at ~/cache/a.pth yourself"):
        datasets.fetch("https://example.org/a.pth", tmp_path / "cache" / "a.pth", f"sha256:{'0' * 64}")
