"""Find the assignment's cells in a submission: by grade_id, by cell id, by the names they define, by similar source.

Colab, Kaggle, Deepnote and VS Code lose ids and metadata; students split, copy, move and retype cells and answer in new
ones. What is found with little confidence is a doubt: a person looks, and nobody gets a silent 0.
"""

import ast
import difflib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from grading.assignment import STUB, Assignment, grade_id

MAX_CELLS, MAX_SOURCE = 1000, 200_000  # cells of a notebook; characters of a cell
BLANK = {"", *(stub["markdown"] for stub in STUB.values())}  # what is no answer to a question
MAX_COMPARED, MAX_WORDS = 100, 200  # cells whose source is compared, and how much of it: the time is theirs squared
SURE, RESEMBLES = 0.6, 0.35  # shares of a given cell's words that a submission's cell has too

# One tree at a time: CPython 3.11 keeps one depth for the trees of all threads, and raises SystemError when they meet.
ONE_PARSER = threading.Lock()


@dataclass(frozen=True)
class Cell:
    """A cell without what a student may have forged.

    Attributes:
        number: in the notebook, from 1.
        kind: "code", "markdown" or "raw".
        source: its text.
        names: of it, as metadata say: its `grade_id`, its id.
    """

    number: int
    kind: str
    source: str
    names: tuple[str | None, str | None]


@dataclass
class Matched:
    """A submission as it is run and read.

    Attributes:
        sources: what is run, in order, by the cell's number; 0 is what the assignment gives and the notebook lacks.
        answers: texts for the questions that a person grades, by `grade_id`; empty where there is none.
        place: the cells that belong to each of the assignment's, by `grade_id`.
        answered: exercises with something else than the stub.
        share: how much of the assignment was recognised, from 0 to 1.
        notes: what was done about cells that are not as they were given.
        doubts: why a person must look, by exercise or question.
    """

    sources: list[tuple[int, str]] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    place: dict[str, list[int]] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    share: float = 0.0
    notes: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)


def plain(notebook: Any, notes: list[str]) -> list[Cell]:
    """The cells of a notebook; of hostile metadata nothing is left."""
    cells = []
    for number, cell in enumerate(notebook.cells[:MAX_CELLS], 1):
        source, mark = cell.get("source"), cell.get("metadata", {})
        mark = mark.get("nbgrader", {}) if isinstance(mark, dict) else {}
        names = (mark.get("grade_id") if isinstance(mark, dict) else None, cell.get("id"))
        source = source if isinstance(source, str) else ""
        if len(source) > MAX_SOURCE:
            notes.append(f"cell {number} has {len(source):,} characters and is left out")
            source = ""
        kept = tuple(name if isinstance(name, str) else None for name in names)
        cells.append(Cell(number, cell.get("cell_type"), source, kept))
    if len(notebook.cells) > MAX_CELLS:
        notes.append(f"{len(notebook.cells)} cells; those after {MAX_CELLS} are left out")
    return cells


def without_magics(source: str) -> str:
    """Python that parses: lines for IPython or a shell become `pass`."""
    return re.sub(r"(?m)^(\s*)[%!?].*$", r"\1pass", source)


def parsed(source: str) -> ast.Module | None:
    """The syntax tree of a cell, without its lines for IPython; None where it is not Python. For any thread."""
    try:
        with ONE_PARSER:
            return ast.parse(without_magics(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined(source: str) -> set[str] | None:
    """Names that a cell gives the notebook, as far as its text shows; None where it is not Python."""
    if (tree := parsed(source)) is None:
        return None
    names, left = set(), list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                names.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            left += ast.iter_child_nodes(node)
    return names


def _words(source: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", source[: 20 * MAX_WORDS])[:MAX_WORDS]


def likeness(given: str, found: str) -> float:
    """The share of a given cell's words that a submission's cell has in the same order."""
    words = _words(re.sub("|".join(stub["code"] for stub in STUB.values()), "", given))
    others = _words(found)
    if (Counter(pairwise(words)) & Counter(pairwise(others))).total() < RESEMBLES / 2 * len(words):
        return 0.0  # blocks of two words and more hold half as many pairs at least
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size > 1) / max(1, len(words))


def _place(given: list[Any], cells: list[Cell]) -> tuple[dict[int, list[Cell]], dict[int, tuple[float, Cell]]]:
    """Which cells belong to each given one, by its position, and for those without the cell that resembles it most."""
    placed: dict[int, list[Cell]] = {}
    taken: set[int] = set()
    for which, name_of in ((0, grade_id), (1, lambda cell: cell.get("id"))):
        for position, cell in enumerate(given):
            name = name_of(cell)
            hits = [c for c in cells if name is not None and c.names[which] == name and c.number not in taken]
            if hits and position not in placed:
                placed[position] = hits
                taken |= {hit.number for hit in hits}
    free = [cell for cell in cells if cell.number not in taken and cell.source.strip()][:MAX_COMPARED]
    lost = [(position, cell.source) for position, cell in enumerate(given) if position not in placed]
    scores = [
        (likeness(source, cell.source), -position, -cell.number, cell) for position, source in lost for cell in free
    ]
    near: dict[int, tuple[float, Cell]] = {}
    for score, position, _, cell in sorted(scores, key=lambda found: found[:3], reverse=True):
        if score < RESEMBLES:
            break
        if -position not in placed and cell.number not in taken:
            if score >= SURE:
                placed[-position] = [cell]
                taken.add(cell.number)
            else:
                near.setdefault(-position, (score, cell))
    return placed, near


def edition(assignment: Assignment, cells: list[Cell]) -> Assignment:
    """The assignment in the language that a submission was handed out in: most of its cells stand there as they are."""
    found = {cell.source.strip() for cell in cells}
    return max(
        assignment.editions.values(), key=lambda one: sum(cell.source.strip() in found for cell in one.release().cells)
    )


def match(assignment: Assignment, notebook: Any) -> Matched:
    """Find an assignment's cells in a submission.

    Args:
        assignment: with the cells as they were released, in whatever language.
        notebook: of nbformat 4, whatever its cells hold.
    """
    matched = Matched()
    cells = plain(notebook, matched.notes)
    given = edition(assignment, cells).release().cells
    placed, near = _place(given, cells)
    matched.share = len(placed) / len(given)
    stubs = {grade_id(cell): cell for cell in given if grade_id(cell)}
    position = {grade_id(cell): number for number, cell in enumerate(given)}
    matched.place = {name: [cell.number for cell in placed.get(position[name], [])] for name in stubs}
    runs = {cell.number: cell.source for cell in cells if cell.kind == "code"}
    if not any(c.source.strip() for c in cells):
        matched.notes.append("the notebook is empty")
    names_of = {cell.number: defined(cell.source) or set() for cell in cells}
    for exercise in assignment.exercises:
        own = placed.get(position[exercise.name], [])
        stub, needs = stubs[exercise.name].source.strip(), set(exercise.needs)
        for cell in own:
            if cell.kind != "code" and needs & names_of[cell.number]:
                runs[cell.number] = cell.source
                matched.notes.append(
                    f"cell {cell.number}, {exercise.name}, was no code any more and is run all the same"
                )
        givers = {n: names_of[n] for n in runs if needs & names_of[n]}
        for number in [n for n in givers if runs[n].strip() == stub]:
            if needs & givers[number] <= set().union(
                *(givers[n] for n in givers if n != number)
            ):  # the answer stands in another cell; the stub would undo it
                del givers[number], runs[number]
                matched.notes.append(f"cell {number}, the untouched cell of {exercise.name}, gives way to the answer")
        if any(runs[n].strip() != stub for n in givers) or any(c.source.strip() not in ("", stub) for c in own):
            matched.answered.append(exercise.name)
        whole = [n for n, names in givers.items() if needs <= names]
        if len(whole) > 1:
            matched.notes.append(
                f"{exercise.name} is answered in the cells {', '.join(map(str, whole))}; the last counts"
            )
        missing = needs - set().union(*givers.values())
        if missing:
            lacks = f"{', '.join(sorted(missing))} not found"
            matched.doubts[exercise.name] = _doubt(lacks, own, near.get(position[exercise.name]))
    for name in assignment.questions:
        _read(matched, name, given, position[name], placed, cells)
    lost = [
        cell.source for number, cell in enumerate(given)
        if cell.cell_type == "code" and number not in placed and not {"solution", "grade"} & _roles(cell)
    ]  # fmt: skip
    if lost:
        matched.notes.append("a cell that the assignment gives is missing and was put back")
        runs[0] = "\n\n".join(lost)
    matched.sources = sorted(runs.items())
    return matched


def _roles(cell: Any) -> set[str]:
    return {key for key, value in cell.metadata.get("nbgrader", {}).items() if value is True}


def _doubt(lacks: str, own: list[Cell], near: tuple[float, Cell] | None) -> str:
    if own:
        names = defined(own[-1].source)
        what = "is not Python" if names is None else f"defines {', '.join(sorted(names)[:5]) or 'nothing'}"
        return f"{lacks}: its cell {own[-1].number} {what}"
    if near:
        return f"{lacks}: its cell is gone; cell {near[1].number} resembles it ({near[0]:.0%})"
    return f"{lacks}: its cell is gone, and none resembles it"


def _read(
    matched: Matched, name: str, given: list[Any], position: int, placed: dict[int, list[Cell]], cells: list[Cell]
) -> None:
    """The answer to a question: its cell, or what stands between the cells that were given before and after it."""
    own = placed.get(position, [])
    if not any(cell.source.strip() not in BLANK for cell in own):
        after = [c.number for p in range(position + 1, len(given)) for c in placed.get(p, [])]
        known = {c.number for found in placed.values() for c in found}
        if position - 1 in placed:
            first = placed[position - 1][-1].number
            last = min([number for number in after if number > first], default=len(cells) + 1)
            own += [c for c in cells if first < c.number < last and c.number not in known and c.kind != "code"]
        if not own:
            matched.doubts[name] = "its cell is gone, and nothing stands in its place"
    texts = [cell.source.strip() for cell in own]
    matched.answers[name] = "\n\n".join(text for text in texts if text not in BLANK)
    matched.place[name] = [cell.number for cell in own]
