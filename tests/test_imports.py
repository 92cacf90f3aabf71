"""The house keeps its rules: who may import whom, what is documented and typed, how long a file may be."""

import ast
import functools
import graphlib
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "course_lib"

# The lecture's order is the order of dependence: a topic may build on those before it, and on base and scenes.
TOPICS = (
    "style_transfer",
    "upsampling",
    "gan",
    "vae",
    "stylegan",
    "diffusion",
    "text_to_image",
    "editing",
    "detection",
    "segmentation",
    "keypoints",
    "reconstruction",
)
ROOMS = ("base", "scenes", *TOPICS)
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 250  # of code, in a file

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())


def module_name(path: Path) -> str:
    """`course_lib/base/runtime.py` as `course_lib.base.runtime`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, by its full name."""
    return imports_of(path.read_text(encoding="utf-8"), module_name(path), path.name == "__init__.py")


def imports_of(source: str, module: str, is_package: bool) -> set[str]:
    names = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # One dot is the package that the file is in, each further dot the one around it.
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # `from course_lib.base import images` imports a module, not a name
                full = f"{origin}.{alias.name}"
                names.add(full if full in MODULES else origin)
    return names


def own(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "course_lib"}


def forbidden(module: str, names: set[str]) -> set[str]:
    """Those of the course's own modules that `module` must not import."""
    room = module.split(".")[1]
    # Up to and with its own room: what is too long for one file is a package.
    allowed = ROOMS[: ROOMS.index(room) + 1]
    return {name for name in own(names) if name != "course_lib" and name.split(".")[1] not in allowed}


def test_every_module_has_its_room():
    rooms = {module.split(".")[1] for module in MODULES if "." in module}
    assert rooms <= set(ROOMS), "a new topic takes its place in TOPICS, in the lecture's order"


@each_file
def test_imports_only_earlier_rooms(path):
    module = module_name(path)
    if module == "course_lib":
        assert not own(imported(path)), "importing the package must load no topic"
    else:
        assert not forbidden(module, imported(path))


def test_the_rule_sees_every_form_of_import():
    cases = {
        "import course_lib.gan": {"course_lib.gan"},
        "from course_lib.base import runtime": {"course_lib.base.runtime"},
        "from course_lib.base.runtime import device": {"course_lib.base.runtime"},
        "def f():\n    from .base.runtime import device": {"course_lib.base.runtime"},
        "from . import base": {"course_lib.base"},
    }
    for source, expected in cases.items():
        assert imports_of(source, "course_lib.upsampling", is_package=False) == expected
    later = {"course_lib.gan", "course_lib.style_transfer", "course_lib.base.runtime", "torch"}
    assert forbidden("course_lib.upsampling", later) == {"course_lib.gan"}
    assert not forbidden("course_lib.upsampling.convolution", {"course_lib.upsampling.interpolation"})
    assert forbidden("course_lib.base.runtime", later) == {"course_lib.gan", "course_lib.style_transfer"}


def test_no_circles():
    graph = {module_name(path): own(imported(path)) & MODULES for path in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@each_file
def test_no_star_imports(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    stars = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars


@each_file
def test_only_plots_and_widgets_draw(path):
    """A recipe on a server needs no matplotlib; it is also the slowest import after torch."""
    if path.name in ("plots.py", "widgets.py", "canvas.py"):
        return
    drawing = {"matplotlib", "ipywidgets", "anywidget", "IPython"}
    drawing |= {"course_lib.base.plots", "course_lib.base.widgets", "course_lib.base.canvas"}
    assert not {name for name in imported(path) if name in drawing or name.split(".")[0] in drawing}


def code_lines(source: str) -> int:
    """How many lines hold code: neither blank, nor only a comment, nor in a docstring."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    held = {line for token in tokens if token.type not in layout for line in range(token.start[0], token.end[0] + 1)}
    return len(held - documented)


@functools.cache
def public(path: Path) -> list[tuple[str, ast.AST]]:
    """The public classes and functions of a file, and the public methods and `__init__` of those classes."""

    def walk(body: list[ast.stmt], prefix: str) -> list[tuple[str, ast.AST]]:
        found = []
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") and node.name != "__init__":
                continue
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                found += walk(node.body, f"{node.name}.")
        return found

    return walk(ast.parse(path.read_text(encoding="utf-8")).body, "")


@each_file
def test_every_public_name_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), "the module itself"
    without = [
        name
        for name, node in public(path)
        if not name.endswith("__init__") and not ast.get_docstring(node)  # the class documents __init__
    ]
    assert not without


@each_file
def test_every_public_signature_is_typed(path):
    untyped = []
    for name, node in public(path):
        if isinstance(node, ast.ClassDef):
            continue
        a = node.args
        arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
        missing = [x.arg for x in arguments if x.annotation is None and x.arg not in ("self", "cls")]
        missing += ["return"] if node.returns is None else []
        untyped += [f"{name}: {', '.join(missing)}"] if missing else []
    assert not untyped


@each_file
def test_a_file_stays_short(path):
    assert code_lines(path.read_text(encoding="utf-8")) <= MAX_LINES, "past that, something is in the wrong room"


def test_lines_of_code_are_counted_without_docstrings_comments_and_blanks():
    source = '"""A\nmodule."""\nx = """two\nlines"""  # of text\n\n# why\ndef f():\n    """Does."""\n    return (\n1)\n'
    assert code_lines(source) == 5


if __name__ == "__main__":  # python tests/test_imports.py: how large the library is
    sizes = {path.relative_to(PACKAGE).as_posix(): code_lines(path.read_text(encoding="utf-8")) for path in FILES}
    print("\n".join(f"{lines:6,} {name}" for name, lines in sizes.items()))
    print(f"{sum(sizes.values()):6,} lines of code in {len(sizes)} files")
