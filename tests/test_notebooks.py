"""The lessons keep their rules, and the script that executes them does what it says."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "notebooks.py"
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 700_000
THE_MAP = "00_tasks"  # shows what the others teach: no topic of its own, and nothing to write

# A folder of somebody's machine at the start of a path; `https://host/home/` is none.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp|var|mnt|opt|content)/|\b[A-Z]:\\\w")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s\\]+")  # an image's bytes may spell anything

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def repository() -> str:
    """The address of the repository, from the one place where it is kept."""
    return re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def read(path):
    return nbformat.read(path, nbformat.NO_CONVERT)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def headings(notebook):
    """The level-2 headings, in order, without their marks."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.findall(r"^## +(.+?)\s*$", prose, re.MULTILINE)


def texts(notebook):
    """Whatever a reader or a program may read: sources and textual outputs, without embedded images."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    yield EMBEDDED.sub("", data if isinstance(data, str) else json.dumps(data))


def test_there_is_a_lesson():
    assert LESSONS


@each_lesson
def test_is_valid_and_small(path):
    nbformat.validate(read(path))
    assert path.stat().st_size <= MAX_BYTES


@each_lesson
def test_is_committed_with_its_outputs(path):
    cells = code_cells(read(path))
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1)), "executed top to bottom, in one go"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert not [output.evalue for output in outputs if output.output_type == "error"]


def bindings(tree):
    """Names that a cell binds at its top level, and the functions that it defines there."""
    names, functions = set(), {}
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            functions[statement.name] = statement
        elif not isinstance(statement, ast.ClassDef):
            names |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | set(functions), functions


def needs(name, functions, seen=()):
    """The global names that a function reads, its helpers' included."""
    if name not in functions or name in seen:
        return set()
    function = functions[name]
    own = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
    own |= {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
    read = {n.id for n in nodes if isinstance(n.ctx, ast.Load)} - own
    return read.union(*(needs(other, functions, (*seen, name)) for other in read))


@each_lesson
def test_sliders_stay_alive(path):
    """Who has run all cells and then moves a slider must not meet the variables of a later section."""
    cells = [ast.parse(re.sub(r"(?m)^( *)%.*", r"\1pass", cell.source)) for cell in code_cells(read(path))]
    functions = {}
    for k, cell in enumerate(cells):
        functions |= bindings(cell)[1]
        calls = [n for n in ast.walk(cell) if isinstance(n, ast.Call)]
        calls = [call for call in calls if getattr(call.func, "id", "") in ("explore", "Canvas")]
        for call in calls:
            later = set().union(*(bindings(other)[0] for other in cells[k + 1 :]))
            taken = needs(call.args[0].id, functions) & later
            assert not taken, f"a later cell of {path.stem} rebinds {sorted(taken)}, which {call.args[0].id} reads"


@each_lesson
def test_opens_with_title_badge_and_measurement(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    badges = re.findall(r"https://colab\.research\.google\.com/github/[^\s)\"']+", first.source)
    owner_and_name = repository().removeprefix("https://github.com/")
    assert badges == [f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{path.name}"]
    measured = first.source.partition("Measured")[2]
    assert re.search(r"\d\s*(s|seconds|min)\b", measured), "Measured: time on a 2-core CPU"
    assert re.search(r"\d\s*[MG]B\b", measured), "Measured: peak memory"


@each_lesson
def test_setup_installs_the_course_and_leaves_torch(path):
    setup = code_cells(read(path))[0].source
    assert "import course_lib" in setup
    installs = [line for line in setup.splitlines() if "pip install" in line]
    assert len(installs) == 1 and f'"git+{repository()}"' in installs[0]
    assert "torch" not in installs[0] and "upgrade" not in installs[0] and " -U" not in installs[0]


@each_lesson
def test_sections_are_numbered_and_end_with_the_summary(path):
    found = headings(read(path))
    numbers = [int(number) for heading in found for number in re.findall(r"^(\d+)\. ", heading)]
    assert len(numbers) >= 2 and numbers == list(range(1, len(numbers) + 1))
    names = [re.sub(r"^\d+\. ", "", heading) for heading in found]
    assert names[-1].split()[0] == "Summary"
    unnumbered = [heading for heading in found if not heading[0].isdigit()]
    assert {name.split()[0] for name in unnumbered} <= {"Setup", "Summary"}


@each_lesson
def test_is_short(path):
    """At most 2,000 words (formulas, links and code are none), and no cell longer than a screen."""
    notebook = read(path)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for pattern in (
        r"(?s)```.*?```",
        r"(?s)\$\$.*?\$\$",
        r"\$[^$\n]+\$",
        r"`[^`]+`",
        r"<[^>]+>",
        r"\((?:https?|data):[^)]+\)",
    ):
        prose = re.sub(pattern, " ", prose)
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", prose)
    assert len(words) <= 2000
    long = {cell.id: cell.source.count("\n") + 1 for cell in code_cells(notebook)[1:]}
    assert not {cell: lines for cell, lines in long.items() if lines > 30}


@each_lesson
def test_predictions_have_answers(path):
    """Who is asked to predict or to think finds the answer folded in the same cell, or in the next words."""
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    for k, text in enumerate(prose):
        if re.search(r"\*\*(Predict|Think)", text):
            assert "<details>" in "".join(prose[k : k + 2]), text[:200]


@each_lesson
def test_names_no_folder_of_a_machine(path):
    assert not [text[:200] for text in texts(read(path)) if MACHINE_PATH.search(text)]


def test_the_rule_for_paths_sees_paths_only():
    for text in ("/home/ann/x.png", 'open("/tmp/x")', r"C:\Users\ann", "see /content/x"):
        assert MACHINE_PATH.search(text), text
    for text in ("https://example.org/home/x", "../tmp/x", r"\frac{a}{b} \\ C:\\", "data/tmp/x"):
        assert not MACHINE_PATH.search(text), text


@each_lesson
def test_stores_no_widgets(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    kinds = {kind for cell in code_cells(notebook) for out in cell.outputs for kind in out.get("data", {})}
    assert not [kind for kind in kinds if "widget" in kind], "without its state a widget shows as an error"


@each_lesson
def test_has_its_twins(path):
    assert re.fullmatch(r"\d\d_[a-z_]+", path.stem)
    if path.stem == THE_MAP:
        return
    library = ROOT / "course_lib"
    topic = path.stem[3:]
    # A file or a package; or, as 07_samplers, a file in the package of an earlier lesson.
    homes = {library / f"{topic}.py": topic, library / topic / "__init__.py": topic}
    homes |= {home: f"{home.parent.name}_{topic}" for home in library.glob(f"*/{topic}.py")}
    (twin,) = (name for home, name in homes.items() if home.is_file())
    assert (ROOT / "tests" / f"test_{twin}.py").is_file()


# --- benchmarks/notebooks.py ---


def save(path, *sources):
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell("# A title"), *map(v4.new_code_cell, sources)]
    cells[1].metadata = {"tags": ["kept"], "execution": {"iopub.execute_input": "2024-01-01"}}
    notebook = v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python", "version": "3.0.1"}})
    nbformat.write(notebook, path)
    return path


def execute(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_script_runs_the_rest_after_a_failure(tmp_path):
    good = save(tmp_path / "good.ipynb", "import sys; print(sys.executable)", "x = b'1' * 200_000_000", "")
    bad = save(tmp_path / "bad.ipynb", "1 + 1", "# divides\n1 / 0", "print('never')")
    before = bad.read_text()
    figures, html = tmp_path / "deep" / "figures.json", tmp_path / "html"
    done = execute(bad, good, "--html", html, "--json", figures, "--cells", "--write")

    assert done.returncode == 1
    assert "FAILED in [2] '# divides': ZeroDivisionError: division by zero" in done.stdout
    assert "x = b'1' * 200_000_000" in done.stdout
    first, second = json.loads(figures.read_text())["notebooks"]
    assert [first["notebook"], second["notebook"]] == ["bad", "good"]
    assert "ZeroDivisionError" in first["error"] and second["error"] is None
    assert [cell["number"] for cell in second["cells"]] == [1, 2]
    assert 0 < sum(cell["seconds"] for cell in second["cells"]) < second["seconds"]
    assert second["peak_mb"] > 200
    page = (html / "bad.html").read_text()
    assert "ZeroDivisionError" in page
    (script,) = re.findall(r'src="(mathjax/[^"?]+)', page)
    assert (html / script).is_file(), "formulas need no network"
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css)', page)

    assert bad.read_text() == before, "a notebook that fails is not overwritten"
    written = read(good)
    nbformat.validate(written)
    # The kernel is this interpreter; a path of this machine is what the other rules forbid in a lesson.
    assert written.cells[1].outputs[0].text.strip() == sys.executable
    assert [cell.execution_count for cell in code_cells(written)] == [1, 2]
    assert written.cells[1].metadata == {"tags": ["kept"]}
    assert written.metadata.kernelspec.name == "python3"
    assert written.metadata.language_info == {"name": "python"}


def test_script_writes_widgets_as_what_they_show(tmp_path):
    source = "import ipywidgets\nfrom IPython.display import display\ndisplay(ipywidgets.IntSlider())\nprint(7)"
    path = save(tmp_path / "widget.ipynb", source)
    assert execute(path, "--write").returncode == 0
    written = read(path)
    assert "widgets" not in written.metadata
    assert [output.get("text") for output in written.cells[1].outputs] == ["7\n"]


def test_script_quick_run_stops_after_setup(tmp_path):
    path = save(tmp_path / "lesson.ipynb", "import math", "1 / 0")
    done = execute(path, "--quick", "--cells")
    assert done.returncode == 0, done.stderr
    assert "import math" in done.stdout and "1 / 0" not in done.stdout


def test_script_refuses_what_makes_no_sense(tmp_path):
    path = save(tmp_path / "lesson.ipynb", "import math")
    assert "--write would save" in execute(path, "--quick", "--write").stderr
    assert "no such notebook" in execute(tmp_path / "none.ipynb").stderr
