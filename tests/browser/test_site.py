"""The site (`make site`) as a reader sees it, on a desk and on a phone, without a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

import pytest

SITE = Path(__file__).resolve().parents[2] / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
LESSONS = [name for name in PAGES if name.startswith("notebooks/")]
LOOKED_AT = ["index.html", "reference/course_lib.diffusion.samplers.html", "checkpoints/diffusion_mnist.html"]
FORMULAS_DONE = "() => !window.MathJax || (MathJax.isReady && !MathJax.Hub.queue.pending && !MathJax.Hub.queue.running)"

pytestmark = pytest.mark.skipif(not PAGES, reason="no site: make site")


class Links(HTMLParser):
    """Where a page leads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.links += [given[key] for key in ("href", "src") if given.get(key)]
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}


def test_every_link_and_picture_of_every_page_is_there():
    pages = {name: Links((SITE / name).read_text(encoding="utf-8")) for name in PAGES}
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target = urlparse(urljoin(f"http://site/{name}", link))
            if target.netloc != "site":
                continue
            path = unquote(target.path).lstrip("/") or "index.html"
            known = (SITE / path).is_file()
            if known and target.fragment and path in pages:
                known = unquote(target.fragment) in pages[path].anchors
            if not known:
                broken.append(f"{name}: {link}")
    assert not broken


@pytest.mark.parametrize("name", [*LOOKED_AT, *LESSONS])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
def test_a_page_is_whole(watch, served, name, width):
    """Formulas, pictures, no error, nothing fetched from outside, and no page wider than its window."""
    watched = watch(width)
    page = watched.page
    page.goto(f"{served(SITE)}/{name}")
    page.wait_for_function(FORMULAS_DONE, timeout=120_000)
    page.wait_for_timeout(500)
    formulas = page.locator(".math.notranslate")
    typeset = page.locator(".math.notranslate:has(.MathJax)")
    assert typeset.count() == formulas.count()
    assert page.locator(".MathJax_Error, .merror").count() == 0
    assert not watched.broken_images()
    assert not watched.errors and not watched.outside
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    watched.shot(f"site-{Path(name).stem}-{width}")


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_reader_may_have_it_dark(watch, served, scheme):
    watched = watch(color_scheme=scheme)
    watched.page.goto(f"{served(SITE)}/index.html")
    colour = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert brightness < 60 if scheme == "dark" else brightness > 200
    watched.shot(f"site-{scheme}")


def test_search_finds_a_function(watch, served):
    watched = watch()
    watched.page.goto(f"{served(SITE)}/search.html?q=frechet_distance")
    hit = watched.page.locator("#search-results a", has_text="frechet_distance").first
    hit.wait_for(timeout=30_000)
    assert "course_lib.base.metrics" in hit.get_attribute("href")
    assert not watched.errors


def test_a_lesson_leads_to_colab_and_to_its_file(watch, served):
    watched = watch()
    watched.page.goto(f"{served(SITE)}/{LESSONS[0]}")
    buttons = watched.page.locator(".course-buttons a")
    assert buttons.first.get_attribute("href").startswith("https://colab.research.google.com/github/")
    with watched.page.expect_download() as download:
        buttons.nth(1).click()
    committed = SITE.parents[1] / Path(LESSONS[0]).with_suffix(".ipynb")
    assert Path(download.value.path()).read_bytes() == committed.read_bytes()
