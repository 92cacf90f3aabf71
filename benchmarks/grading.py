"""The grader: its throughput against sequential `nbgrader autograde`, and whether a killed run ends as any other.

    python benchmarks/grading.py --json grading.json         # 15 minutes on 2 quiet cores; needs the extra `grading`

Throughput: the same submissions of one assignment, honest ones, graded with two sandboxes and by nbgrader one after
the other, each as one process started from the shell, so that both pay for their start. Memory is what one sandbox
with its jobs holds for itself at most. Kills: the grader is ended with SIGKILL at random moments of its run and
started once more; results, scores and gradebook must be those of a run that nobody disturbed.

Bar: 1.8 times nbgrader's submissions a second, and no difference after a kill. Exits with 1 where one is missed.
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import common
from grading import assignment
from grading.sandbox import ROOT

BAR, NAME = 1.8, "upsampling"


def fill(folder: Path, students: int) -> None:
    """A course with that many submissions: the reference, the alternative, wrong solutions, in turn."""
    made = assignment.load(NAME)
    answers = made.answers()
    wrong = [{exercise: code} for exercise, all_of in answers.WRONG.items() for code in all_of.values()]
    variants = [{}, answers.RIGHT, *wrong]
    for number in range(students):
        notebook = made.filled({"explain": f"Because of {number}.", **variants[number % len(variants)]})
        path = folder / "submitted" / f"student{number:04d}" / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook))
    (folder / "results" / NAME).mkdir(parents=True)
    (folder / "results" / NAME / ".secret").write_text("the same in every run")


def grader(folder: Path, *options: str) -> subprocess.Popen:
    """The grader as an instructor starts it."""
    command = [sys.executable, "-m", "grading", "grade", NAME, "--course", str(folder), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, command: str) -> None:
    """Wait for a process; an error shows what it said."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{command} failed: {said[-2000:]}")


def ours(folder: Path, workers: int) -> tuple[float, float]:
    """Seconds for a course, and the most memory that one sandbox with its jobs held for itself, in MB."""
    begun, peak = time.perf_counter(), 0.0
    process = grader(folder, "--workers", str(workers))
    while process.poll() is None:
        held = 0
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                held += child.memory_full_info().uss
            except psutil.Error:
                continue
        peak = max(peak, held / workers / 2**20)
        time.sleep(0.5)
    finish(process, "python -m grading grade")
    return time.perf_counter() - begun, peak


def theirs(folder: Path) -> float:
    """Seconds of `nbgrader autograde` for a course."""
    from grading import gradebook

    with gradebook.opened(folder):  # finds alembic
        pass
    source = folder / "source" / NAME
    source.mkdir(parents=True)
    shutil.copy(assignment.load(NAME).path, source)
    for words in (["generate_assignment", NAME], ["autograde", NAME]):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "nbgrader", *words, f"--CourseDirectory.root={folder}"]
        finish(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder), "nbgrader")
    graded = len(list(folder.glob(f"autograded/*/{NAME}/{NAME}.ipynb")))
    expected = len(list(folder.glob("submitted/*")))
    if graded != expected:
        raise SystemExit(f"nbgrader graded {graded} of {expected}")
    return time.perf_counter() - begun


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves, without times and random ids."""
    results = folder / "results" / NAME
    left = {
        path.name: path.read_text() for path in sorted(results.glob("*")) if path.suffix in (".json", ".csv", ".html")
    }
    left |= {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.glob("feedback/*/*/*.html"))}
    if importlib.util.find_spec("nbgrader"):
        from grading import gradebook

        with gradebook.opened(folder) as book:
            for one in book.assignment_submissions(NAME):
                grades = sorted((g.name, g.auto_score, g.needs_manual_grade) for g in one.notebooks[0].grades)
                left[f"gradebook {one.student.id}"] = repr((one.score, grades))
    return left


def kills(folder: Path, students: int, times: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """How many of that many killed runs end as the undisturbed one, and how long that one takes."""
    fill(folder / "right", students)
    begun = time.perf_counter()
    finish(grader(folder / "right", "--workers", "2", *options), "python -m grading grade")
    seconds, right = time.perf_counter() - begun, outcome(folder / "right")
    rng, equal, graded = random.Random(0), 0, []
    for number in range(times):
        place = folder / f"killed {number}"
        fill(place, students)
        process = grader(place, "--workers", "2", *options)
        try:
            process.wait(rng.uniform(0.02, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        graded.append(len(list((place / "results" / NAME).glob("*.json"))))
        finish(grader(place, "--workers", "2", *options), "python -m grading grade")
        equal += outcome(place) == right
        shutil.rmtree(place)
    return {"runs": times, "equal": equal, "undisturbed, s": seconds, "graded when killed": graded}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; exits with 1 where a bar is missed."""
    parser = common.parser(__doc__)
    parser.add_argument("--students", type=int, default=40, help="submissions for the throughput")
    args = parser.parse_args(argv)
    students, killed = (2, 2) if args.quick else (args.students, 20)
    figures: dict[str, Any] = {"assignment": NAME, "students": students, "bar": BAR}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder / "ours", students)
        figures["ours, s"], figures["memory of a sandbox, MB"] = ours(folder / "ours", 2)
        if importlib.util.find_spec("nbgrader"):
            fill(folder / "theirs", students)
            figures["nbgrader, s"] = theirs(folder / "theirs")
            figures["times as fast"] = figures["nbgrader, s"] / figures["ours, s"]
        figures["kills"] = kills(folder / "kills", 3 if args.quick else 12, killed)
    for key, value in figures.items():
        print(f"{key}: {value:.3g}" if isinstance(value, float) else f"{key}: {value}")
    common.write(args.json, figures)
    slow = not args.quick and figures.get("times as fast", BAR) < BAR
    if slow or figures["kills"]["equal"] < figures["kills"]["runs"]:
        raise SystemExit(1)
    return figures


if __name__ == "__main__":
    main()
