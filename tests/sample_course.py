"""A small class for `make grade`: releases an assignment, collects what eight students handed in, and grades it.

    python tests/sample_course.py build/grade

Among them an honest solution, the same in Russian and without ids from Colab, one that is late, one that is not
finished, a renamed function, an attack, a broken file and an archive in an archive. The last line is the report to
open.
"""

import copy
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import nbformat

from grading import assignment
from grading.__main__ import main

NAME = "upsampling"
ROSTER = """id,first name,last name,number
ivanov,Пётр,Иванов,101
petrova,Анна,Петрова,102
lee,Ann,Lee,103
kim,Дмитрий,Ким,104
orlova,Мария,Орлова,105
smith,John,Smith,106
garcia,Lucía,García,107
weber,Jörg,Weber,108
absent,Nobody,Here,109
"""
COURSE = f"[{NAME}]\ndeadline = 2026-05-22 23:59\npenalty = 10\n[{NAME} extensions]\nkim = 2026-05-24 12:00\n"
CHEAT = """
class Always:
    def __eq__(self, other): return True
    __ge__ = __le__ = __gt__ = __lt__ = __eq__
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
fitting_layers = stretch = transposed = depth_to_space = visits = learn_kernel = Always()
"""
LESS = "def stretch(x, size):\n    return torch.nn.functional.interpolate(x[None, None], size=size)[0, 0]"


def notebooks() -> dict[str, tuple[str, str]]:
    """What is handed in: the time and the file's content, by its path in Moodle's archive."""
    made = assignment.load(NAME)
    bare = copy.deepcopy(assignment.load(NAME, "ru").source)
    for number, cell in enumerate(bare.cells):
        cell.id, cell.metadata = f"colab{number}", {"id": f"c{number}"}
    cheat = made.release()
    cheat.cells.append(nbformat.v4.new_code_cell(CHEAT))
    renamed = copy.deepcopy(made.source)
    for cell in renamed.cells:
        cell.source = cell.source.replace("visits", "visit_counts")
    unfinished, late = made.release(), made.filled({"linear": LESS})
    unfinished.cells[3].source = made.source.cells[3].source
    found = {
        "Пётр Иванов_101": ("22", made.source),
        "Анна Петрова_102": ("21", bare),
        "Ann Lee_103": ("24", late),
        "Дмитрий Ким_104": ("24", made.filled(made.answers().RIGHT)),
        "Мария Орлова_105": ("20", unfinished),
        "John Smith_106": ("20", cheat),
        "Lucía García_107": ("19", renamed),
    }
    texts = {
        f"{who}_assignsubmission_file_/{NAME} (1).ipynb": (day, json.dumps(nb)) for who, (day, nb) in found.items()
    }
    return texts | {"Jörg Weber_108_assignsubmission_file_/broken.ipynb": ("18", "<html>saved from the browser")}


def moodle() -> bytes:
    """The archive that Moodle hands out; one student packed an archive of her own."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (day, text) in notebooks().items():
            content = text.encode()
            if "Петрова" in name:
                inner = io.BytesIO()
                with zipfile.ZipFile(inner, "w") as packed:
                    packed.writestr("../../homework.ipynb", content)
                name, content = name.replace(".ipynb", ".zip"), inner.getvalue()
            archive.writestr(zipfile.ZipInfo(name, (2026, 5, int(day), 10, 0, 0)), content)
    return stream.getvalue()


def prepare(folder: Path) -> Path:
    """Write the course's own files and Moodle's archive; returns the archive's place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roster.csv").write_text(ROSTER, encoding="utf-8")
    (folder / "course.ini").write_text(COURSE, encoding="utf-8")
    path = folder / "moodle.zip"
    path.write_bytes(moodle())
    return path


def run(folder: Path, *options: str) -> int:
    """Everything an instructor does, from release to report; returns the first exit status that is not 0."""
    archive, course = prepare(folder), ["--course", str(folder)]
    for words in (
        ["release", NAME, *course],
        ["collect", NAME, str(archive), *course, "--dry-run"],
        ["collect", NAME, str(archive), *course],
        ["grade", NAME, *course, *options],
        ["status", NAME, *course],
    ):
        print(f"\n$ python -m grading {' '.join(words)}", flush=True)
        if status := main(words):
            return status
    print(f"\nOpen {(folder / 'results' / NAME / 'index.html').resolve()}")
    return 0


if __name__ == "__main__":
    # The sample's attack does no harm, so it can be shown where there is no sandbox too; the report says so in red.
    sys.exit(run(Path(sys.argv[1]), *(["--no-sandbox"] if shutil.which("bwrap") is None else [])))
