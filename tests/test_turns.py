"""*Your turn*: each piece that students write is checked as its page says.

A turn is four cells in a row: the task with a folded hint, a stub (tag `stub`), a check of several shapes and values
(tag `check`), and the folded solution that later cells use (tag `solution`). tests/turns/TOPIC.py holds at least two
wrong answers of the kind students give and a right one written differently.
"""

import ast
import importlib.util
import re
from typing import Any

import pytest
from test_notebooks import LESSONS, ROOT, THE_MAP, code_cells, read

TAUGHT = [path for path in LESSONS if path.stem != THE_MAP]
each_lesson = pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)


def tags(cell: Any) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def defines(source: str) -> list[str]:
    """The functions and classes that a cell defines at its top level."""
    definitions = (ast.FunctionDef, ast.ClassDef)
    return [statement.name for statement in ast.parse(source).body if isinstance(statement, definitions)]


def turns(path) -> dict[str, Any]:
    """Each turn's check cell, by the name of the piece."""
    found = {}
    for cell in code_cells(read(path)):
        if "check" in tags(cell):
            (check,) = defines(cell.source)
            found[check.removeprefix("check_")] = cell
    return found


TURNS = [(path, name) for path in TAUGHT for name in turns(path)]


def plain(source: str) -> str:
    """Code without magics."""
    return re.sub(r"(?m)^( *)%.*", r"\1pass", source)


def only_defines(source: str) -> bool:
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return all(isinstance(statement, kinds) for statement in ast.parse(source).body)


def page_until(path, check: Any) -> dict[str, Any]:
    """What a check may use: the setup cell, cells that only define, earlier checks and solutions; it is run last."""
    cells = code_cells(read(path))
    namespace: dict[str, Any] = {"__name__": "lesson"}
    for number, cell in enumerate(cells):
        source = plain(cell.source)
        if cell.id == check.id:
            exec(compile(source, f"{path.stem}: check", "exec"), namespace)
            return namespace
        if number == 0 or tags(cell) & {"check", "solution"} or only_defines(source):
            exec(compile(source, f"{path.stem} [{number + 1}]", "exec"), namespace)
    raise AssertionError("no such cell")


def answers(path) -> Any:
    """tests/turns/TOPIC.py of a lesson."""
    file = ROOT / "tests" / "turns" / f"{path.stem[3:]}.py"
    spec = importlib.util.spec_from_file_location(f"turns_{path.stem[3:]}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each_lesson
def test_students_write_three_to_five_pieces(path):
    cells = [cell for cell in read(path).cells if cell.source.strip()]
    assert 3 <= len(turns(path)) <= 5
    for name in turns(path):
        k = next(k for k, cell in enumerate(cells) if f"def check_{name}(" in cell.source)
        task, stub, check, solution = cells[k - 2 : k + 2]
        assert task.cell_type == "markdown" and task.source.startswith("### Your turn: ")
        assert re.search(r"<details><summary>Hint</summary>.+</details>", task.source, re.DOTALL)
        assert "stub" in tags(stub) and defines(stub.source) == [f"my_{name}"]
        assert "raise NotImplementedError" in stub.source, "so that the verdict is 'not written yet'"
        assert check.source.rstrip().endswith(f"verdict(check_{name}, my_{name})")
        assert check.source.count("assert ") >= 2, "several shapes and values"
        assert {"solution", "hide-input"} <= tags(solution)
        assert solution.metadata.jupyter.source_hidden and solution.metadata.cellView == "form"
        assert solution.source.startswith(f"# @title Solution: {name}\n")
        assert name in defines(solution.source)
        assert solution.source.rstrip().endswith(f"check_{name}({name})")
        shown = "".join(output.get("text", "") for output in check.outputs)
        assert shown == f"my_{name}: not written yet.\n", "committed with an empty stub"


@pytest.mark.parametrize(("path", "name"), TURNS, ids=lambda value: getattr(value, "stem", value))
def test_checks_tell_right_from_wrong(path, name, capsys):
    page, module = page_until(path, turns(path)[name]), answers(path)
    check, verdict = page[f"check_{name}"], page["verdict"]
    solution = next(c for c in code_cells(read(path)) if c.source.startswith(f"# @title Solution: {name}\n"))
    exec(compile(plain(solution.source), f"{path.stem}: solution", "exec"), page)  # ends with check_NAME(NAME)
    capsys.readouterr()
    wrong = [answer.removeprefix(f"{name}_") for answer in vars(module) if answer.startswith(f"{name}_wrong_")]
    assert len(wrong) >= 2
    for answer, says in (("other", r"✓"), *((each, r"✗ \w+: .{10,}") for each in wrong)):
        verdict(check, getattr(module, f"{name}_{answer}"))
        printed = capsys.readouterr().out
        assert re.match(says, printed), f"{answer}: {printed}"
