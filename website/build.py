"""Render the course as a static site: README, lessons with their committed outputs, the library, every checkpoint.

    python website/build.py                build/site, from sources laid out in build/site-source

A notebook is shown as committed and never executed. A warning of Sphinx is an error.
"""

import argparse
import html
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat

from benchmarks import tables
from course_lib.base import checkpoints, zoo
from grading import assignment as assignments
from website import mathjax, reference

ROOT = Path(__file__).resolve().parents[1]
BADGE = re.compile(r"\[?(?:!\[(?:Open in|Открыть в) Colab\]\([^)]*\)|Open in Colab)\]\((https://colab[^)\s]+)\)")
# A lesson's buttons, and the switch to the other edition, in the page's language.
BUTTONS = {"en": ("Open in Colab", "Download the notebook"), "ru": ("Открыть в Colab", "Скачать ноутбук")}
SWITCH = {"en": "По-русски", "ru": "In English"}


def toctree(caption: str, pages: Iterable[str]) -> str:
    """A part of the sidebar; nothing where there are no pages."""
    pages = list(pages)
    if not pages:
        return ""
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Write a page, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def lay_notebook(notebook: Path, page: Path, source: Path) -> str:
    """Lay out a notebook as `page` with its buttons; the original can be downloaded. Returns the page's name.

    A notebook that there is in two languages gets a button that leads to the other one.
    """
    original = source / "extra" / "download" / page.relative_to(source)
    original.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(notebook, original)
    up = "../" * (len(page.relative_to(source).parts) - 1)
    language = "ru" if notebook.parent.name == "ru" else "en"
    open_colab, get = BUTTONS[language]
    download = f'<a href="{up}download/{page.relative_to(source).as_posix()}" download>{get}</a>'
    twin = ("../" if language == "ru" else "ru/") + notebook.name
    if (notebook.parent / twin).is_file():
        download += f'<a href="{twin.removesuffix(".ipynb")}.html">{SWITCH[language]}</a>'

    def buttons(match: re.Match) -> str:
        colab = f'<a href="{html.escape(match[1])}">{open_colab}</a>'
        return f'<p class="course-buttons">{colab}{download}</p>'

    content = nbformat.read(notebook, as_version=4)
    first = content.cells[0]
    first.source, found = BADGE.subn(buttons, first.source)
    if not found:
        first.source += f'\n\n<p class="course-buttons">{download}</p>'
    content.metadata.language_info = {"name": "python", "pygments_lexer": "ipython3"}
    for cell in content.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            tags = cell.metadata.get("tags", [])
            cell.metadata["tags"] = [*tags, *({"hide-input"} - set(tags))]
    page.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(content, page)
    return page.relative_to(source).with_suffix("").as_posix()


def checkpoint_page(name: str) -> str:
    """What a checkpoint says of itself."""
    metadata = checkpoints.load(name)[1]
    size = (checkpoints.folder() / f"{name}.safetensors").stat().st_size
    facts = {
        "weights": f"{tables.weights(name):,}",
        "file": f"`data/checkpoints/{name}.safetensors`, {size / 1e6:.2f} MB",
        "licence": zoo.entry(name).licence,
        **{key: f"`{value}`" for key, value in metadata.items() if key not in ("score", "seconds")},
        "training": tables.duration(float(metadata["seconds"])),
    }
    scores = json.loads(metadata["score"])
    flat = {}
    for key, value in scores.items():
        nested = isinstance(value, dict) and "value" not in value
        flat |= {f"{key}: {k}": v for k, v in value.items()} if nested else {key: value}
    rows = [[key, tables.score(key, value)] for key, value in flat.items()]
    what = tables.WHAT.get(name, "")
    parts = [
        f"# {name}",
        what[:1].upper() + what[1:] + ".",
        f'```python\nfrom course_lib.base import zoo\n\nnetwork = zoo.load("{name}")\n```',
        tables.markdown(["", ""], facts.items()),
        "## Score\n\n" + tables.markdown(["on held-out data", ""], rows),
        "[All checkpoints, their data and licences](../data/README.md)",
    ]
    return "\n\n".join(parts) + "\n"


def lay_out(source: Path) -> None:
    """Put everything that Sphinx renders into `source`, in the folders of the repository, so that links hold."""
    shutil.rmtree(source, ignore_errors=True)
    pages = [*ROOT.glob("[A-Z]*.md"), *ROOT.glob("[!.]*/README.md"), *ROOT.glob("notebooks/ru/*.md")]
    for path in [*pages, ROOT / "LICENSE", *(ROOT / "data").glob("*.jpg")]:
        (source / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, source / path.relative_to(ROOT))
    lessons = {
        language: [
            lay_notebook(path, source / path.relative_to(ROOT), source)
            for path in sorted((ROOT / "notebooks" / folder).glob("*.ipynb"))
        ]
        for language, folder in (("Lessons", ""), ("Уроки", "ru"))
    }
    releases = source.with_name(f"{source.name}-releases")
    shutil.rmtree(releases, ignore_errors=True)
    for made in (edition for name in assignments.names() for edition in assignments.load(name).editions.values()):
        student = releases / made.path.relative_to(made.folder)
        student.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(made.release(), student)  # without solutions
    released = {
        caption: [
            lay_notebook(path, source / "assignments" / path.relative_to(releases), source)
            for path in sorted((releases / folder).glob("*.ipynb"))
        ]
        for caption, folder in (("Assignments", ""), ("Задания", "ru"))
    }
    networks = sorted(path.stem for path in checkpoints.folder().glob("*.safetensors"))
    for name in networks:
        write(source / "checkpoints" / f"{name}.md", checkpoint_page(name))
    modules = []
    for path in sorted((ROOT / "course_lib").rglob("*.py")):
        module, text = reference.page(path)
        if module != "course_lib":
            modules.append(module)
            write(source / "reference" / f"{module}.md", text)
    write(source / "reference" / "index.md", "# The library\n\n" + contents(modules))
    write(source / "checkpoints" / "index.md", "# Checkpoints\n\n" + contents(networks))
    others = [path.relative_to(ROOT).with_suffix("").as_posix() for path in sorted(pages) if path.parent != ROOT]
    others += [path.stem for path in sorted(pages) if path.parent == ROOT and path.name != "README.md"]
    (source / "README.md").unlink()  # it is the index
    if (russian := source / "README.ru.md").is_file():
        write(russian, russian.read_text(encoding="utf-8").replace("](README.md", "](index.md"))
    sidebar = [
        *(toctree(caption, pages) for caption, pages in lessons.items()),
        *(toctree(caption, pages) for caption, pages in released.items()),
        toctree("The course", ["reference/index", "checkpoints/index", *others]),
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    write(source / "index.md", readme + "\n" + "\n".join(filter(None, sidebar)))


def contents(pages: Iterable[str]) -> str:
    """A page's visible list of those below it."""
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *pages, "```", ""])


def main() -> int:
    """Lay out and render; Sphinx's exit status."""
    from sphinx.cmd.build import main as sphinx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="where the site goes")
    options = parser.parse_args()
    out = options.out.resolve()
    source = out.with_name(f"{out.name}-source")
    lay_out(source)
    settings = {"mathjax_path": f"../{mathjax.add(source / 'extra')}", "html_extra_path": source / "extra"}
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["-q", "-W", "--keep-going", "-c", Path(__file__).parent, source, out]
    status = sphinx([*map(str, arguments), *(f"-D{key}={value}" for key, value in settings.items())])
    if status == 0:
        print(f"The site: {out / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
