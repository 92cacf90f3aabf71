import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading

import numpy as np
import pytest
import torch
import torchvision.datasets
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from course_lib.base import datasets
from course_lib.base.datasets import DownloadError, ImageSet, OfflineError

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


@pytest.fixture
def small_cifar(site, monkeypatch):
    """The server offers CIFAR-10 with two batches of training images; returns the batches."""
    folder, address = site
    rng = np.random.default_rng(1)

    def batch(labels):
        return {"data": rng.integers(0, 256, (len(labels), 3 * 32 * 32), np.uint8), "labels": labels}

    files = {"data_batch_1": batch([3, 0, 3]), "data_batch_2": batch([9, 3]), "test_batch": batch([1, 3])}
    files["batches.meta"] = {"label_names": [*"abcdefghij"]}
    sums, stream = {}, io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            data = pickle.dumps(content)
            sums[name] = md5(data)
            about = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    (folder / "cifar.tar.gz").write_bytes(stream.getvalue())
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "url", address + "cifar.tar.gz")
    monkeypatch.setattr(cifar, "tgz_md5", md5(stream.getvalue()))
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name in ("data_batch_1", "data_batch_2")])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": sums["batches.meta"]})
    return files


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


def test_cats_are_cifars_fourth_class(nothing_at_hand, small_cifar):
    assert not datasets.is_available("cats")
    train, test = datasets.load("cats"), datasets.load("cats", "test")
    expected = np.concatenate([small_cifar["data_batch_1"]["data"][[0, 2]], small_cifar["data_batch_2"]["data"][[1]]])
    assert np.array_equal(train.images.flatten(1).numpy(), expected)
    assert len(test) == 1 and test.classes == ("cat",) and not test.labels.any()
    assert datasets.is_available("cats")


def test_cats_from_the_packed_file(nothing_at_hand, monkeypatch, tmp_path):
    images = np.random.default_rng(2).integers(0, 256, (2, 5, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar10_cats.npz", train=images[0], test=images[1])
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert datasets.is_available("cats")
    for split, expected in zip(datasets.SPLITS, images, strict=True):
        assert np.array_equal(datasets.load("cats", split).images.permute(0, 2, 3, 1).numpy(), expected)


def test_offline_says_what_to_do(nothing_at_hand, monkeypatch):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    for name in ("mnist", "fashion_mnist", "cats"):
        with pytest.raises(OfflineError, match="COURSE_OFFLINE forbids it.*COURSE_DATA"):
            datasets.load(name)


def test_a_changed_file_is_refused(nothing_at_hand, small_mnist, small_cifar, site):
    for file in site[0].iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    for name in ("mnist", "cats"):
        with pytest.raises(DownloadError, match="try again, or put it into"):
            datasets.load(name)
        assert not datasets.is_available(name)


def test_an_unreachable_server_is_a_download_error(nothing_at_hand, small_mnist, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DownloadError, match="cannot download MNIST"):
        datasets.load("mnist")


def test_bad_arguments():
    with pytest.raises(ValueError, match="cats, digits, fashion_mnist, mnist; got 'dogs'"):
        datasets.load("dogs")
    with pytest.raises(ValueError, match="train, test; got 'val'"):
        datasets.load("digits", "val")
    with pytest.raises(ValueError, match="no image 'dogs'"):
        datasets.is_available("dogs")
    images, labels = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    for bad in (images.float(), images[0], images[:0]):
        with pytest.raises(ValueError, match="expected images"):
            ImageSet("x", bad, labels[: len(bad)], ("a",))
    for bad in (labels.float(), labels[:1]):
        with pytest.raises(ValueError, match="expected 2 labels int64"):
            ImageSet("x", images, bad, ("a",))


@with_data
def test_the_larger_sets_are_whole():
    counts = {"mnist": (60000, 10000), "fashion_mnist": (60000, 10000), "cats": (5000, 103)}
    for name, expected in counts.items():
        parts = [datasets.load(name, split) for split in datasets.SPLITS]
        if name != "cats" or (len(parts[1]) == 103):  # CIFAR-10 itself has 1,000
            assert tuple(map(len, parts)) == expected
        assert all(part.labels.max() < len(part.classes) for part in parts)
