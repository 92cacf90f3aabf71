"""What `make site` lays out for Sphinx; tests/browser reads the finished pages."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from course_lib.base import checkpoints
from grading import assignment
from website import build, reference

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "course_lib").rglob("*.py"))

DOCSTRING = """Denoise (Ho et al. 2020, equation 4; Song et al. 2021, arXiv 2010.02502).

Args:
    x, y: images (B, C, H, W), and a line
        that goes on.
    *rest: more.

Returns:
    one number
    in two lines.

Raises:
    ValueError: other shapes.
"""


def test_a_docstrings_sections_become_fields_and_its_papers_links():
    text = reference.markdown(DOCSTRING)
    assert "([Ho et al. 2020](https://arxiv.org/abs/2006.11239), equation 4" in text
    assert "Song et al. 2021, [arXiv 2010.02502](https://arxiv.org/abs/2010.02502))" in text, "not the other paper"
    assert ":param x, y: images (B, C, H, W), and a line that goes on.\n:param rest: more." in text
    assert ":returns: one number in two lines." in text
    assert text.endswith(":raises ValueError: other shapes.")
    assert reference.markdown(None) == ""


def test_every_paper_that_the_library_names_is_a_link_and_no_other_is_kept():
    named = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
    unused = [paper for paper in reference.PAPERS if not re.search(r"\s+".join(map(re.escape, paper.split())), named)]
    assert not unused
    unlinked = re.compile(r"(?<![\[\w-])[\w-]+ et\s+al\.\s+\d{4}\b(?!, \[arXiv)")
    found = {(path.name, text) for path in MODULES for text in unlinked.findall(reference.page(path)[1])}
    assert not found, "add it to website/papers.json, or its arXiv number in the docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_reference_has_all_that_is_public_and_no_section_is_left_over(path):
    module, page = reference.page(path)
    assert f"```{{py:module}} {module}\n" in page
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert re.search(rf"(?m)^:+\{{py:(function|class)\}} {node.name}(\(|$)", page), node.name
    assert not re.findall(r"(?m)^ *(?:Args|Attributes|Raises|Returns|Yields):$", page)
    fences = re.findall(r"(?m)^(:{3,})(\{.*)?$", page)
    assert sum(bool(opened) for _, opened in fences) * 2 == len(fences), "each directive is closed"


def test_signatures_are_those_of_the_source():
    source = "class A:\n    def f(self, x: int = 1, *, y=(2, 3)) -> None: ...\n    @classmethod\n    def g(cls): ...\n"
    methods = ast.parse(source).body[0].body
    assert [reference.signature(m) for m in methods] == ["(x: int=1, *, y=(2, 3)) -> None", "()"]


def test_a_lesson_gets_its_buttons_and_keeps_its_original(tmp_path):
    lesson = tmp_path / "lessons" / "01_style_transfer.ipynb"
    lesson.parent.mkdir()
    shutil.copyfile(ROOT / "notebooks" / lesson.name, lesson)
    name = build.lay_notebook(lesson, tmp_path / "notebooks" / "ru" / lesson.name, tmp_path)
    assert name == "notebooks/ru/01_style_transfer"
    laid = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    colab, download = re.findall(r'<a href="([^"]+)"', laid.cells[0].source)
    assert colab.startswith("https://colab.research.google.com/github/")
    original = (tmp_path / "notebooks" / "ru" / download).resolve()
    relative = original.relative_to(tmp_path)
    assert (tmp_path / "extra" / relative).read_bytes() == lesson.read_bytes()
    assert "![" not in laid.cells[0].source


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "ru").glob("*.ipynb")), ids=lambda path: path.stem)
def test_each_edition_of_a_lesson_leads_to_the_other(path, tmp_path):
    build.lay_notebook(ROOT / "notebooks" / path.name, tmp_path / "notebooks" / path.name, tmp_path)
    build.lay_notebook(path, tmp_path / "notebooks" / "ru" / path.name, tmp_path)
    for page, twin, words in (
        (tmp_path / "notebooks" / path.name, f"ru/{path.stem}.html", "По-русски"),
        (tmp_path / "notebooks" / "ru" / path.name, f"../{path.stem}.html", "In English"),
    ):
        first = nbformat.read(page, as_version=4).cells[0].source
        assert f'<a href="{twin}">{words}</a>' in first and "![" not in first
        assert (page.parent / twin).with_suffix(".ipynb").is_file()


def test_folded_cells_stay_folded(tmp_path):
    v4 = nbformat.v4
    hidden = v4.new_code_cell("1", metadata={"jupyter": {"source_hidden": True}, "tags": ["solution"]})
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# A lesson"), hidden, v4.new_code_cell("2")])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    build.lay_notebook(tmp_path / "a.ipynb", tmp_path / "site" / "a.ipynb", tmp_path / "site")
    first, folded, other = nbformat.read(tmp_path / "site" / "a.ipynb", as_version=4).cells
    assert folded.metadata["tags"] == ["solution", "hide-input"] and "tags" not in other.metadata
    assert "Download the notebook" in first.source and "Colab" not in first.source


def test_a_checkpoints_page_says_what_its_header_says():
    name = "vae_mnist"
    page, header = build.checkpoint_page(name), checkpoints.load(name)[1]
    assert page.startswith(f"# {name}\n") and f'zoo.load("{name}")' in page
    assert all(header[key] in page for key in ("recipe", "data", "seed", "sha256"))
    assert "| ELBO, nats |" in page


def test_the_site_has_assignments_without_their_solutions(tmp_path):
    build.lay_out(tmp_path / "site")
    laid = sorted((tmp_path / "site" / "assignments").glob("*.ipynb"))
    assert [path.stem for path in laid] == assignment.names()
    translated = sorted((tmp_path / "site" / "assignments" / "ru").glob("*.ipynb"))
    assert [path.stem for path in translated] == [n for n in assignment.names() if "ru" in assignment.load(n).editions]
    downloads = (tmp_path / "site" / "extra" / "download" / "assignments").rglob("*.ipynb")
    for path in [*laid, *translated, *downloads]:
        language = "ru" if path.parent.name == "ru" else "en"
        made = assignment.load(path.stem, language)
        content = nbformat.read(path, as_version=4)
        if path in translated:
            original = nbformat.read(path.parents[1] / path.name, as_version=4)
            assert f'<a href="../{path.stem}.html">In English</a>' in content.cells[0].source
            assert f'<a href="ru/{path.stem}.html">По-русски</a>' in original.cells[0].source
        cells = {assignment.grade_id(cell): cell.source for cell in content.cells}
        for exercise in made.exercises:
            assert "BEGIN SOLUTION" in made.cell(exercise.name).source
            assert "SOLUTION" not in cells[exercise.name] and len(cells[exercise.name]) > 0
    index = (tmp_path / "site" / "index.md").read_text(encoding="utf-8")
    lessons = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert [line for line in index.splitlines() if line in lessons] == lessons
    assert "](README.md" not in (tmp_path / "site" / "README.ru.md").read_text(encoding="utf-8"), "it is the index"
