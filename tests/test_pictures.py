import hashlib
import http.server
import io
import re
import socket
import threading

import pytest
import torch
from PIL import Image

from course_lib.base import datasets
from course_lib.base.datasets import DownloadError, OfflineError

pytestmark = pytest.mark.usefixtures("cache")


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
        if behaviour == "once-cut":
            behaviour = "cut" if len(self.server.requests) == 1 else "ok"
        status = {"missing": 404, "broken": 503}.get(behaviour, 200)
        body = CONTENT[::-1] if behaviour == "wrong" else CONTENT
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if behaviour == "cut" else body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """A server on this machine: `server.url` is its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- names


def test_names_are_sorted_and_of_two_kinds():
    assert datasets.image_names() == sorted(datasets.image_names("built-in") + datasets.image_names("download"))
    assert {"astronaut", "cat", "china", "flower"} <= set(datasets.image_names("built-in"))
    assert {"starry_night", "tuebingen", "candy", "rain_princess"} <= set(datasets.image_names("download"))
    with pytest.raises(ValueError, match="kind"):
        datasets.image_names("painting")


def test_describe_gives_a_line_with_a_credit_to_each():
    lines = datasets.describe_images().splitlines()
    assert [line.split()[0] for line in lines] == datasets.image_names()
    assert any("Praefcke" in line for line in lines)


def test_an_unknown_name_is_answered_with_close_ones():
    for function in (datasets.load_image, datasets.is_available):
        with pytest.raises(ValueError, match=r"'astronaute'.*did you mean astronaut"):
            function("astronaute")
    with pytest.raises(ValueError, match=r"astronaut.*tuebingen"):
        datasets.load_image("qqq")


# --- built-in images


@pytest.mark.parametrize("name", datasets.image_names("built-in"))
def test_built_in_images_load_without_a_network(name, monkeypatch, cache):
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert datasets.is_available(name)
    image = datasets.load_image(name)
    B, C, H, W = image.shape
    assert (B, C) == (1, 3)
    assert 100 <= min(H, W) <= max(H, W) <= 1500
    assert image.dtype == torch.float32
    assert 0 <= image.min() <= image.max() <= 1
    assert image.std() > 0.03
    assert not cache.exists()


def test_load_resizes():
    assert datasets.load_image("china", 128).shape == (1, 3, 128, 192)


# --- downloads


def test_a_download_is_kept(server, cache):
    path = datasets.download(f"{server.url}/ok/a.jpg?x=1", SHA256)
    assert path.read_bytes() == CONTENT
    assert path.parent == cache
    assert path.name.endswith("-a.jpg")
    assert datasets.download(f"{server.url}/ok/a.jpg?x=1", SHA256.upper()) == path
    assert len(server.requests) == 1
    assert files(cache) == [path.name]


def test_a_download_may_be_given_its_place(server, cache):
    path = datasets.download(f"{server.url}/ok", SHA256, "set/part.bin")
    assert path == cache / "set" / "part.bin"
    assert path.read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_replaced(server):
    path = datasets.download(f"{server.url}/ok", SHA256)
    path.write_bytes(CONTENT[:-1])
    assert datasets.download(f"{server.url}/ok", SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("behaviour", "error", "requests"),
    [
        ("cut", DownloadError, 3),
        ("missing", DownloadError, 1),
        ("broken", DownloadError, 3),
        ("wrong", ValueError, 1),
    ],
)
def test_a_failed_download_leaves_nothing_and_hinders_nothing(behaviour, error, requests, server, cache):
    with pytest.raises(error) as raised:
        datasets.download(f"{server.url}/{behaviour}", SHA256, "a.jpg")
    assert not isinstance(raised.value, OfflineError)
    assert len(server.requests) == requests
    assert files(cache) == []
    datasets.download(f"{server.url}/ok", SHA256, "a.jpg")
    assert files(cache) == ["a.jpg"]


def test_a_wrong_hash_is_told_with_both_hashes(server):
    got = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(ValueError, match=f"expected (sha256:)?{SHA256} but got {got}"):
        datasets.download(f"{server.url}/wrong", SHA256)


def test_a_transfer_cut_once_is_tried_again(server):
    assert datasets.download(f"{server.url}/once-cut", SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_offline_says_what_is_wanted_and_what_to_do(server, cache, monkeypatch):
    url = f"{server.url}/ok"
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    with pytest.raises(OfflineError, match="COURSE_OFFLINE") as raised:
        datasets.download(url, SHA256, "a.jpg")
    assert url in str(raised.value)
    assert str(cache / "a.jpg") in str(raised.value)
    assert server.requests == []
    monkeypatch.delenv("COURSE_OFFLINE")
    datasets.download(url, SHA256, "a.jpg")
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert datasets.download(url, SHA256, "a.jpg").read_bytes() == CONTENT


def test_no_connection_is_an_offline_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.jpg"
        with pytest.raises(OfflineError, match=re.escape(url)):
            datasets.download(url, SHA256)
    assert issubclass(OfflineError, ConnectionError)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "g" * 64, "sha256:" + "0" * 57])
def test_a_malformed_hash_is_refused(sha256):
    with pytest.raises(ValueError, match="64 hexadecimal"):
        datasets.download("http://127.0.0.1/a", sha256)


@pytest.mark.parametrize("url", ["a.jpg", "ftp://127.0.0.1/a.jpg", "http://"])
def test_a_malformed_address_is_refused(url):
    with pytest.raises(ValueError, match=r"(?i)url|adapter"):
        datasets.download(url, SHA256)


def test_a_named_image_is_fetched_once(server, cache, monkeypatch):
    entry = datasets._Image("a ramp", "nobody", f"{server.url}/ok/ramp.jpg", SHA256)
    monkeypatch.setitem(datasets._IMAGES, "ramp", entry)
    assert not datasets.is_available("ramp")
    assert datasets.load_image("ramp").shape == (1, 3, 256, 256)
    assert datasets.is_available("ramp")
    assert datasets.load_image("ramp", 64).shape == (1, 3, 64, 64)
    assert len(server.requests) == 1
    assert files(cache) == ["ramp.jpg"]


def test_the_cache_is_the_systems_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("COURSE_CACHE")
    assert "generative-cv-course" in str(datasets.cache_folder())
    monkeypatch.setenv("COURSE_CACHE", "~/elsewhere")
    assert "~" not in str(datasets.cache_folder())
