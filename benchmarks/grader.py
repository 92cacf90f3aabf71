"""The grader: its throughput against sequential `nbgrader autograde`, its growth, and what is left of killed runs.

    python benchmarks/grader.py --json benchmarks/results/grader.json --only throughput      # 5 minutes, 2 quiet cores
    python benchmarks/grader.py --json benchmarks/results/grader.json --only growth kills

The extra `grading` must be installed, and bubblewrap.

Throughput: the same submissions of one assignment, honest ones, graded with two sandboxes and by nbgrader one after
the other, each as one process started from the shell, so that both pay for their start. Memory is what one sandbox
with its jobs holds for itself at most.

Growth: up to 400 light submissions, which define the functions and do nothing else. A straight line through the times
says what the start costs and what a submission costs, and so how long 2,000 would take on 16 processors; there the
grader's own process, which draws inputs and compares, sets the pace as soon as it is busy all the time.

Kills: the grader is ended with SIGKILL at random moments of its run and started once more; results, scores and
gradebook must be those of a run that nobody disturbed.

Bars: 1.8 times nbgrader's submissions a second, and no difference after a kill. Exits with 1 where one is missed.
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

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import common
from grading import assignment
from grading.sandbox import ROOT

BAR, NAME, WORKERS = 1.8, "upsampling", 2
MANY, SLOTS = 2000, 16  # submissions and processors to extrapolate to
PARTS = ("throughput", "growth", "kills")


def fill(folder: Path, students: int, light: bool = False) -> None:
    """A course with that many submissions: the reference, the alternative, wrong solutions, in turn.

    Args:
        folder: of the course.
        students: how many.
        light: without self-checks and pictures: imports and functions alone.
    """
    made = assignment.load(NAME)
    answers = made.answers()
    wrong = [{exercise: code} for exercise, all_of in answers.WRONG.items() for code in all_of.values()]
    variants = [{}, answers.RIGHT, *wrong]
    kept = {"setup", *made.questions, *(exercise.name for exercise in made.exercises)}
    for number in range(students):
        notebook = made.filled({"explain": f"Because of {number}.", **variants[number % len(variants)]})
        if light:
            notebook.cells = [cell for cell in notebook.cells if assignment.grade_id(cell) in kept]
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


def ours(folder: Path) -> dict[str, float]:
    """Grade a course: seconds, of which the grader's own processor's, and the most that a sandbox held, in MB."""
    begun, own, peak = time.perf_counter(), 0.0, 0.0
    process = grader(folder, "--workers", str(WORKERS))
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        held = 0
        try:
            own = sum(watched.cpu_times()[:2])
            children = watched.children(recursive=True)
        except psutil.Error:  # it has just ended
            break
        for child in children:
            try:
                held += child.memory_full_info().uss
            except psutil.Error:
                continue
        peak = max(peak, held / WORKERS / 2**20)
        time.sleep(0.5)
    finish(process, "python -m grading grade")
    return {"seconds": time.perf_counter() - begun, "own seconds": own, "MB a sandbox": peak}


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


def throughput(folder: Path, students: int) -> dict[str, Any]:
    """The same submissions by us and by nbgrader, one after the other."""
    fill(folder / "ours", students)
    fill(folder / "theirs", students)
    print(f"{students} submissions in {WORKERS} sandboxes …", flush=True)
    found = {"submissions": students, "ours": ours(folder / "ours")}
    print(f"{found['ours']['seconds']:.0f} s; nbgrader autograde, one after the other …", flush=True)
    found["nbgrader"] = {"seconds": theirs(folder / "theirs")}
    print(f"{found['nbgrader']['seconds']:.0f} s", flush=True)
    found["times as fast"] = found["nbgrader"]["seconds"] / found["ours"]["seconds"]
    return found


def growth(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Seconds and memory for growing classes of light submissions, and the line through them."""
    rows = {}
    for students in sizes:
        fill(folder / str(students), students, light=True)
        rows[str(students)] = ours(folder / str(students))
        print(f"{students} light submissions: {rows[str(students)]['seconds']:.1f} s", flush=True)
    per, start = np.polyfit(sizes, [row["seconds"] for row in rows.values()], 1)
    own = np.polyfit(sizes, [row["own seconds"] for row in rows.values()], 1)[0]
    many = start + MANY * max(per * WORKERS / SLOTS, own)
    line = {"start": start, "each": per, "own": own}
    return {"rows": rows, "seconds": line, "extrapolated": {"submissions": MANY, "processors": SLOTS, "seconds": many}}


def kill(process: subprocess.Popen, after: float) -> tuple[bool, int]:
    """End a grader with SIGKILL; whether it was still at work then, and how many of its processes outlive it."""
    try:
        process.wait(after)
        return False, 0
    except subprocess.TimeoutExpired:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return True, len(psutil.wait_procs(family, timeout=60)[1])


def kills(folder: Path, students: int, times: int, options: tuple[str, ...] = ()) -> dict[str, Any]:
    """How many of that many killed runs end as the undisturbed one, and how far each had come."""
    fill(folder / "right", students)
    begun = time.perf_counter()
    options = ("--workers", str(WORKERS), *options)
    finish(grader(folder / "right", *options), "python -m grading grade")
    seconds, right = time.perf_counter() - begun, outcome(folder / "right")
    rng, equal, graded, left = random.Random(0), 0, [], 0
    bar = tqdm(total=times, desc="killed runs")
    while len(graded) < times:
        place = folder / "killed"
        fill(place, students)
        killed, outlived = kill(grader(place, *options), rng.uniform(0.02, 1.0) * seconds)
        if killed:  # else it was faster than the undisturbed one, and another moment is drawn
            graded.append(len(list((place / "results" / NAME).glob("*.json"))))
            left += outlived
            finish(grader(place, *options), "python -m grading grade")
            equal += outcome(place) == right
            bar.update()
            bar.set_postfix_str(f"{equal} equal, graded when killed: {graded}")
        shutil.rmtree(place)
    bar.close()
    return {"runs": times, "equal": equal, "submissions": students, "graded when killed": graded, "outlived": left}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write; exits with 1 where a bar is missed."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--students", type=int, default=40, help="submissions for the throughput; default 40")
    args = parser.parse_args(argv)
    if "throughput" in args.only and importlib.util.find_spec("nbgrader") is None:
        parser.error("nbgrader is missing: pip install -e .[grading]")
    figures: dict[str, Any] = {"assignment": NAME, "workers": WORKERS}
    for part in args.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "throughput":
                found = throughput(folder, 2 if args.quick else args.students)
            elif part == "growth":
                found = growth(folder, [1, 3] if args.quick else [50, 100, 200, 400])
            else:
                found = kills(folder, *((3, 2) if args.quick else (12, 20)))
        figures[part] = found
        print(part, json.dumps(common.plain(found), indent=1), flush=True)
        common.write(args.json, figures)  # a long run that is interrupted keeps what it has
    met = {}
    if "throughput" in figures and not args.quick:
        met[f"{BAR} times as fast as nbgrader"] = figures["throughput"]["times as fast"] >= BAR
    if "kills" in figures:
        met["no difference after a kill"] = figures["kills"]["equal"] == figures["kills"]["runs"]
        met["no process outlives the grader"] = figures["kills"]["outlived"] == 0
    if not common.report(met):
        raise SystemExit(1)
    return figures


if __name__ == "__main__":
    main()
