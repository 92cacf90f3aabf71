"""A real browser, kept from leaving this machine: playwright drives chromium. `make browser` runs these tests."""

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "browser"
MINUTES = float(os.environ.get("COURSE_BROWSER_MINUTES", "10"))  # for whatever is waited for, on a busy machine

# No news from the network, and every cell in the page, so that it can be looked at.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
    "docmanager-extension/plugin": {"autosave": False},
}


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium: COURSE_BROWSER, else the system's, else the one of `playwright install chromium`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e .[browser]")
    program = os.environ.get("COURSE_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as p:
        try:
            chromium = p.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no chromium: apt install chromium, or playwright install chromium ({str(error)[:80]})")
        yield chromium
        chromium.close()


class Watched:
    """A page and what went wrong on it: errors in its console, failed answers, wishes to leave this machine."""

    def __init__(self, context) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(MINUTES * 60_000)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.route("**/*", self._local_only)

    def _local_only(self, route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "http://localhost:", "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()

    def shot(self, name: str) -> None:
        """A screenshot to look at, in build/browser."""
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def broken_images(self) -> list[str]:
        """Addresses of the pictures that do not show."""
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src.slice(0, 100))"
        return self.page.evaluate(broken)


@pytest.fixture
def watch(browser) -> Iterator[Callable[..., Watched]]:
    """`watch(width=390)` opens a page of that width."""
    contexts = []

    def open_page(width: int = 1280, **options: object) -> Watched:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        return Watched(contexts[-1])

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[Path], str]]:
    """`served(folder)` is an address on this machine."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    def serve(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory) -> Iterator[Callable[..., str]]:
    """`jupyter(folder)` is the address of a JupyterLab that was started in that folder; more are its variables."""
    servers = []

    def start(root: Path, **environment: str) -> str:
        settings = tmp_path_factory.mktemp("settings")
        for name, values in SETTINGS.items():
            file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "ServerApp.open_browser": False,
            "ServerApp.root_dir": root,
            "ServerApp.allow_root": True,
            "IdentityProvider.token": "",
            "LabApp.user_settings_dir": settings,
            "LabApp.workspaces_dir": tmp_path_factory.mktemp("workspaces"),
            "LabApp.expose_app_in_browser": True,
        }
        command = [sys.executable, "-m", "jupyterlab", *(f"--{key}={value}" for key, value in options.items())]
        log = settings / "lab.log"
        with log.open("w") as file:
            more = {**os.environ, "COURSE_OFFLINE": "1", **environment}
            servers.append(subprocess.Popen(command, cwd=root, stdout=file, stderr=file, env=more))
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + MINUTES * 60
        while True:
            try:
                urllib.request.urlopen(f"{address}/api").close()
                return address
            except OSError:
                assert servers[-1].poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(1)

    yield start
    for server in servers:
        server.terminate()
        server.wait(30)
