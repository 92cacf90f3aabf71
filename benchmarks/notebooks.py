"""Execute the lessons, each in a kernel of its own: time, peak memory, result, and readable HTML.

    python benchmarks/notebooks.py                          every lesson, a line each
    python benchmarks/notebooks.py --cells notebooks/01*    one lesson, cell by cell
    python benchmarks/notebooks.py --write notebooks/01*    save it with its outputs, ready to commit

The kernel runs on the interpreter that runs this script. Time is wall time from the start of the kernel to
the end of the last cell. Memory is the resident set of the kernel and its children, sampled 20 times a
second: a peak shorter than that can be missed, and pages that processes share count in each.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import threading
import time

import nbconvert
import nbformat
import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, CellExecutionError
from tqdm import tqdm

from benchmarks import common
from website import mathjax

ROOT = pathlib.Path(__file__).resolve().parents[1]
CELL_TIMEOUT = 600  # seconds; a cell that takes longer hangs
# Of a cell's metadata: what hides a solution in JupyterLab and in Colab, and what a Russian cell translates.
KEPT = ("tags", "jupyter", "cellView", "translates")
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclasses.dataclass
class Cell:
    number: int  # as in the brackets beside it: the execution count
    source: str  # its first line
    seconds: float = 0.0


@dataclasses.dataclass
class Result:
    notebook: str
    seconds: float
    peak_mb: float  # 10⁶ bytes
    cells: list[Cell]
    error: str | None  # where and what, in one line; None when all cells ran

    def line(self) -> str:
        """One line of the printed table."""
        return f"{self.notebook:32} {self.seconds:7.1f} s {self.peak_mb:8.0f} MB   {self.error or 'passed'}"


class PeakMemory:
    """The peak of the resident memory of this process's descendants, in bytes, while the context is open."""

    def __init__(self, interval: float = 0.05):
        self.bytes = 0
        self._interval = interval
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._closed.wait(self._interval):
            total = 0
            for process in me.children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended meanwhile
                    continue
            self.bytes = max(self.bytes, total)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._thread.join()


class Client(NotebookClient):
    """Starts its kernel on this interpreter, whatever kernels the user has installed under the same name."""

    def create_kernel_manager(self) -> AsyncKernelManager:
        """The manager of the interpreter's own kernel; nbclient calls this."""
        specs = KernelSpecManager(kernel_dirs=[])
        self.km = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        return self.km


def has_code(cell: nbformat.NotebookNode) -> bool:
    """Whether the kernel executes it."""
    return cell.cell_type == "code" and bool(cell.source.strip())


def up_to_setup(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The cells down to the first one with code in it, which is the setup cell."""
    return cells[: 1 + next((i for i, cell in enumerate(cells) if has_code(cell)), len(cells))]


def execute(notebook: nbformat.NotebookNode, name: str, folder: pathlib.Path) -> Result:
    """Run the cells from top to bottom, as far as they go; their outputs are put into `notebook`."""
    cells: list[Cell] = []
    clock = 0.0
    bar = tqdm(total=sum(map(has_code, notebook.cells)), desc=name, unit="cell", leave=False, disable=None)

    def begin(cell: nbformat.NotebookNode, **_: object) -> None:
        nonlocal clock
        clock = time.perf_counter()
        cells.append(Cell(len(cells) + 1, cell.source.strip().splitlines()[0]))

    def end(**_: object) -> None:
        cells[-1].seconds = time.perf_counter() - clock
        bar.update()

    client = Client(
        notebook,
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": str(folder)}},
        # Newer kernels warn at each start that the loopback connection is not encrypted.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=begin,
        on_cell_executed=end,
    )
    error = None
    start = time.perf_counter()
    with bar, PeakMemory() as memory:
        try:
            client.execute()
        except (CellControlSignal, RuntimeError) as failure:  # an error or a timeout; a kernel that died
            where = f"[{cells[-1].number}] {cells[-1].source!r}" if cells else "the start of the kernel"
            error = f"FAILED in {where}: {describe(failure)}"
        seconds = time.perf_counter() - start
    return Result(name, seconds, memory.bytes / 1e6, cells, error)


def describe(failure: Exception) -> str:
    """What went wrong, in a line; the whole traceback is in the HTML."""
    if isinstance(failure, CellExecutionError):
        text = f"{failure.ename}: {failure.evalue}"
    else:
        text = f"{type(failure).__name__}: {failure}"
    return " ".join(text.split())[:200]


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep what a reader sees: no widget without its state, no metadata that changes from run to run."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in KEPT})
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            # Without the widget its fallback text says nothing either.
            if output.get("data", {}).pop(WIDGET, None) is not None and set(output.data) == {"text/plain"}:
                del output.data["text/plain"]
        cell.outputs = [output for output in cell.outputs if output.get("data") != {}]


def write_html(notebook: nbformat.NotebookNode, name: str, folder: pathlib.Path, target: pathlib.Path) -> None:
    """Write `target/name.html` with its images inside, and MathJax beside it; `folder` is where the notebook lies."""
    target.mkdir(parents=True, exist_ok=True)
    # Nothing comes from the network; require.js serves widgets alone, which `tidy` has taken out.
    exporter = nbconvert.HTMLExporter(
        embed_images=True, mathjax_url=mathjax.add(target), require_js_url="data:text/javascript,"
    )
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": name, "path": str(folder)}})
    (target / f"{name}.html").write_text(body, encoding="utf-8")


def save(notebook: nbformat.NotebookNode, path: pathlib.Path) -> None:
    """Replace the notebook in one step, so that an interrupted run leaves the old one whole."""
    partial = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, partial)
    os.replace(partial, path)


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("notebooks", nargs="*", type=pathlib.Path, help="notebooks to execute (default: all English lessons)")
    add("--html", metavar="DIR", type=pathlib.Path, help="write readable HTML there")
    add("--json", metavar="FILE", type=pathlib.Path, help="write the figures there")
    add("--cells", action="store_true", help="print the time of every cell")
    add("--quick", action="store_true", help="execute each notebook only as far as its setup cell")
    add("--write", action="store_true", help="save each notebook that passes in place, with its outputs")
    args = parser.parse_args()
    if args.quick and args.write:
        parser.error("--quick executes a part of the notebook, which --write would save as the whole")
    args.notebooks = args.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    missing = [str(path) for path in args.notebooks if not path.is_file()]
    if missing or not args.notebooks:
        parser.error(f"no such notebook: {', '.join(missing) or 'notebooks/*.ipynb'}")
    return args


def main() -> int:
    """Execute, print and write; 1 if a notebook failed, else 0."""
    args = arguments()
    results = []
    for path in args.notebooks:
        folder = path.resolve().parent
        name = path.stem + ("_ru" if folder.name == "ru" else "")
        notebook = nbformat.read(path, as_version=4)
        if args.quick:
            notebook.cells = up_to_setup(notebook.cells)
        result = execute(notebook, name, folder)
        tidy(notebook)
        print(result.line(), flush=True)
        if args.cells:
            for cell in result.cells:
                print(f"    [{cell.number:2}] {cell.seconds:7.2f} s   {cell.source[:80]}")
        if args.html:
            write_html(notebook, name, folder, args.html)
        if args.write and result.error is None:
            save(notebook, path)
        results.append(result)
    failed = sum(result.error is not None for result in results)
    seconds = sum(result.seconds for result in results)
    print(f"{len(results)} notebooks in {seconds:.1f} s, {failed} failed")
    common.write(args.json, {"seconds": seconds, "notebooks": [dataclasses.asdict(result) for result in results]})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
