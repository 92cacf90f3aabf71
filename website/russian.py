"""Keep the Russian lessons and assignments in step with the English ones, cell by cell.

    python website/russian.py                                       list what is stale; exits with 1 if anything is
    python website/russian.py follow notebooks/ru/03_gan.ipynb      begin a translation, or take over new cells
    python website/russian.py follow assignments/gan/ru/gan.ipynb   so too for an assignment
    python website/russian.py confirm notebooks/ru/03_gan.ipynb     these cells translate the English ones of today
    python website/russian.py confirm notebooks/ru/03_gan.ipynb 1a2b3c4d5e6f …      only these

A Russian notebook stands in a folder `ru` beside the English one. A Russian cell has the id of the cell that it
translates. Its metadata remember, as `translates`, the hash of the English source; when that moves on, the cell is
stale until somebody has mended and confirmed it. Code says the same in both editions but for comments and for texts
that a reader sees.
"""

import argparse
import ast
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks" / "ru"
KEY = "translates"
CYRILLIC = re.compile("[А-Яа-яЁё]")
ORDERS = r"NBVAL_\w+|noqa.*|fmt: *\w+|type: *ignore.*|### (?:BEGIN|END) SOLUTION"  # comments that programs obey


def lessons() -> list[Path]:
    """The lessons that there are in Russian."""
    return sorted(FOLDER.glob("*.ipynb"))


def assignments() -> list[Path]:
    """The assignments that there are in Russian."""
    return sorted(ROOT.glob("assignments/*/ru/*.ipynb"))


def english(path: Path) -> Path:
    """The notebook that a Russian one translates."""
    return path.resolve().parents[1] / path.name


def digest(source: str) -> str:
    """The hash of an English cell; a fork's address and a new measurement are no news for a translator."""
    source = re.sub(r"(github\.com/|/github/)[\w-]+/[\w.-]+?(?=[/\")\s]|\.git|$)", r"\1", source)
    source = re.sub(r"(Measured on [^:*]*: )[^*]*", r"\1", source)
    return hashlib.sha256(source.encode("utf-8")).hexdigest()[:8]


class _Words(ast.NodeTransformer):
    """Takes the strings out of a syntax tree, and collects them in `found`; an f-string's expressions stay, sorted."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, str):
            return node
        self.found.append(node.value)
        return ast.Constant("")

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.AST:
        node.value = self.visit(node.value)
        # How a value is formatted is no text, but 3,186 would be read as a fraction: Russian leaves the comma out.
        if isinstance(node.format_spec, ast.JoinedStr):
            for part in node.format_spec.values:
                if isinstance(part, ast.Constant):
                    part.value = part.value.replace(",", "")
            if all(isinstance(part, ast.Constant) and not part.value for part in node.format_spec.values):
                node.format_spec = None
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        texts = [part.value for part in node.values if isinstance(part, ast.Constant)]
        expressions = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                inner = _Words()
                expressions.append((ast.dump(inner.visit(part)), inner.found, part))
        expressions.sort(key=lambda each: each[0])  # Russian may say them in another order
        self.found.append(" … ".join(texts))
        for _, inner, _ in expressions:
            self.found += inner
        return ast.Tuple([part for *_, part in expressions], ast.Load()) if expressions else ast.Constant("")


def numbers(text: str, russian: bool = False) -> list[str]:
    """The digits of the numbers in a text, sorted: 3,186 in English is 3186 or 3 186 in Russian, and 0.5 is 0,5."""
    separator = r"[ \u00a0\u202f]" if russian else r"(?:,|\{,\})"
    return sorted(re.findall(r"\d+", re.sub(rf"(?<=\d){separator}(?=\d{{3}}(?!\d))", "", text)))


def departs(old: str, new: str) -> str | None:
    """What a Russian code cell does otherwise than the English one; None if nothing."""
    magic = r"(?m)^( *)[%!].*"
    trees, words = [], []
    for source in (old, new):
        collected = _Words()
        try:
            trees.append(ast.dump(collected.visit(ast.parse(re.sub(magic, r"\1pass", source)))))
        except SyntaxError as error:
            return f"it is no Python: {error}"
        words.append(collected.found)
    if [m[0] for m in re.finditer(magic, old)] != [m[0] for m in re.finditer(magic, new)]:
        return "its magics are others"
    if re.findall(ORDERS, old) != re.findall(ORDERS, new):
        return "its comments for programs (NBVAL, noqa, fmt) are others"
    if trees[0] != trees[1]:
        return "its code differs, not only its texts and comments"
    for before, after in zip(*words, strict=True):
        if before != after and not CYRILLIC.search(after):
            return f"the text {before!r} became {after!r}, which is no Russian: an option must stay"
        if before != after and numbers(before) != numbers(after, russian=True):
            return f"the numbers in {before!r} became others in {after!r}"
    return None


def stale(path: Path) -> Iterator[tuple[str, str]]:
    """What keeps a Russian notebook from being in step: a cell's id, and what is wrong with it."""
    source, translation = (nbformat.read(file, as_version=4) for file in (english(path), path))
    mine = {cell.id: cell for cell in translation.cells}
    for cell in source.cells:
        if cell.id not in mine:
            yield cell.id, f"is new in English: {_begin(cell)}"
            continue
        own = mine[cell.id]
        if {**own.metadata, KEY: None} != {**cell.metadata, KEY: None} or own.cell_type != cell.cell_type:
            yield cell.id, f"has other metadata than in English: {_begin(cell)}"
        if cell.cell_type == "code" and (how := departs(cell.source, own.source)):
            yield cell.id, f"{how}: {_begin(cell)}"
        if own.metadata.get(KEY) != digest(cell.source):
            what = "moved on in English since it was translated" if KEY in own.metadata else "waits for its translation"
            yield cell.id, f"{what}: {_begin(cell)}"
    ids = [cell.id for cell in source.cells]
    for cell in translation.cells:
        if cell.id not in ids:
            yield cell.id, f"is no more in English: {_begin(cell)}"
    if [i for i in mine if i in ids] != [i for i in ids if i in mine]:
        yield "", "the cells stand in another order than in English"


def _begin(cell: NotebookNode) -> str:
    """The beginning of a cell, to recognise it by."""
    lines = [line for line in cell.source.splitlines() if line.strip()]
    return repr(lines[0][:70] if lines else "")


def follow(path: Path) -> None:
    """Lay a Russian notebook out as the English one stands: what is translated stays, what is new comes in English."""
    content = nbformat.read(english(path), as_version=4)
    known = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells} if path.is_file() else {}
    for cell in content.cells:
        own = known.get(cell.id)
        if own is not None and own.cell_type == cell.cell_type:
            cell.source = own.source
            if KEY in own.metadata:
                cell.metadata[KEY] = own.metadata[KEY]
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = own.outputs, own.execution_count
        elif cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    first = content.cells[0]
    first.source = first.source.replace(f"/blob/main/notebooks/{path.name}", f"/blob/main/notebooks/ru/{path.name}")
    _save(content, path)


def confirm(path: Path, ids: list[str]) -> list[str]:
    """Remember today's English for these cells, or for all; returns why a cell was refused."""
    content = nbformat.read(path, as_version=4)
    source = {cell.id: cell for cell in nbformat.read(english(path), as_version=4).cells}
    refused = [f"{i}: no such cell in both editions" for i in ids if i not in source or i not in
               {cell.id for cell in content.cells}]  # fmt: skip
    for cell in content.cells:
        if cell.id not in source or (ids and cell.id not in ids):
            continue
        how = departs(source[cell.id].source, cell.source) if cell.cell_type == "code" else None
        if how is None and cell.cell_type == "markdown" and not CYRILLIC.search(cell.source):
            how = "it holds no Russian"
        if how:
            refused.append(f"{cell.id}: {how}")
        else:
            cell.metadata[KEY] = digest(source[cell.id].source)
    _save(content, path)
    return refused


def _save(content: NotebookNode, path: Path) -> None:
    """Replace the notebook in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".ipynb.part")
    nbformat.write(content, partial)
    os.replace(partial, path)


def main(arguments: list[str] | None = None) -> int:
    """List, follow or confirm; 1 if something is stale or was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", nargs="?", choices=("list", "follow", "confirm"), default="list")
    parser.add_argument("notebook", nargs="?", type=Path, help="a Russian lesson or assignment (list: all of them)")
    parser.add_argument("cells", nargs="*", help="ids of cells to confirm (default: all)")
    options = parser.parse_args(arguments)
    if options.do != "list" and options.notebook is None:
        parser.error(f"{options.do} which notebook? For example notebooks/ru/03_gan.ipynb")
    if (path := options.notebook) and not (path.resolve().parent.name == "ru" and english(path).is_file()):
        parser.error(f"expected ru/NAME.ipynb beside an English NAME.ipynb; got {path}")
    problems = []
    if options.do == "follow":
        follow(options.notebook)
    elif options.do == "confirm":
        problems = confirm(options.notebook, options.cells)
    else:
        for path in [options.notebook] if options.notebook else [*lessons(), *assignments()]:
            problems += [f"{path.stem} {cell}: {what}" for cell, what in stale(path)]
    print("\n".join(problems) or "Everything is in step." if options.do == "list" else "\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
