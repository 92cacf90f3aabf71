"""python -m grading release | check | grade | sandbox

    python -m grading release upsampling --to folder       the notebook for students, without solutions
    python -m grading check [upsampling]                   reference, alternative and wrong solutions, as a table
    python -m grading grade upsampling submissions/ --to results/     every notebook in a folder
    python -m grading sandbox                              attacks the sandbox of this machine, and says what holds

`grade` takes submissions/*.ipynb and submissions/STUDENT/*.ipynb (the newest of a folder). It writes results/scores.csv
and for each student a page (STUDENT.html) and all reasons (STUDENT.json). Interrupted, it goes on where it was; a
notebook or an assignment that changed is graded anew.
"""

import argparse
import hashlib
import json
import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import nbformat
from tqdm import tqdm

from course_lib.base.checkpoints import write_atomically
from grading import assignment as assignments
from grading import feedback
from grading.grade import grade
from grading.sandbox import Sandbox, SandboxError, assert_safe, attack


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m grading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    release = commands.add_parser("release", help="write the notebook for students")
    release.add_argument("name")
    release.add_argument("--to", type=Path, required=True, help="folder")
    check = commands.add_parser("check", help="try right and wrong solutions of an assignment")
    check.add_argument("name", nargs="?")
    check.add_argument("--write", action="store_true", help="write the table to assignments/README.md")
    graded = commands.add_parser("grade", help="grade a folder of notebooks")
    graded.add_argument("name")
    graded.add_argument("submissions", type=Path)
    graded.add_argument("--to", type=Path, required=True, help="folder for the results")
    graded.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    graded.add_argument("--no-sandbox", action="store_true", help="run submissions with your own rights: trusted only")
    commands.add_parser("sandbox", help="attack the sandbox of this machine")
    args = parser.parse_args(argv)
    try:
        return {"release": _release, "check": _check, "grade": _grade, "sandbox": _sandbox}[args.command](args)
    except (assignments.AssignmentError, SandboxError, OSError) as error:
        print(f"grading: {error}", file=sys.stderr)
        return 1


def _release(args: argparse.Namespace) -> int:
    made = assignments.load(args.name)
    args.to.mkdir(parents=True, exist_ok=True)
    path = args.to / made.path.name
    if path.exists():
        raise OSError(f"{path} is there already; nothing is overwritten")
    nbformat.write(made.release(), path)
    print(f"{path}: {len(made.exercises)} exercises, {made.points:g} points, version {made.version}")
    return 0


def _check(args: argparse.Namespace) -> int:
    texts, worst = [], 0
    with Sandbox(isolated=False) as sandbox:
        for name in [args.name] if args.name else assignments.names():
            text, faults = _table(assignments.load(name), sandbox)
            print(text)
            texts.append(text)
            worst += faults
    if args.write:
        path = assignments.FOLDER / "README.md"
        page = path.read_text(encoding="utf-8")
        head, begin, rest = page.partition("<!-- table -->\n")
        end = "<!-- /table -->" + rest.partition("<!-- /table -->")[2]
        write_atomically(path, (head + begin + "\n".join(texts) + end).encode())
    return 1 if worst else 0


def _table(made: assignments.Assignment, sandbox: Sandbox) -> tuple[str, int]:
    """What each solution earns, as Markdown, and how many earn what they should not."""
    names = [exercise.name for exercise in made.exercises]
    full = {exercise.name: exercise.points for exercise in made.exercises}
    answers = made.answers()
    tried = [("reference", None, made.source), ("written differently", None, made.filled(answers.RIGHT))]
    tried.append(("the stub", "", made.release()))
    for exercise, solutions in answers.WRONG.items():
        tried += [(f"{exercise}: {what}", exercise, made.filled({exercise: code})) for what, code in solutions.items()]
    lines = [f"### {made.name}", f"| solution | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    faults = 0
    for what, exercise, notebook in tqdm(tried, made.name):
        report = grade(made, notebook, sandbox, "check")
        earned = {outcome.exercise.name: outcome.earned for outcome in report.outcomes}
        lost = {name for name in names if earned[name] < full[name]}
        right = lost == ({exercise} if exercise else set(names) if exercise == "" else set())
        faults += not right
        cells = [f"{earned[name]:g}" if name in lost else f"{full[name]:g}" for name in names]
        lines.append(f"| {what}{'' if right else ' (not as it should be)'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n", faults


def _submissions(folder: Path) -> dict[str, Path]:
    """The newest notebook of each student."""
    if not folder.is_dir():
        raise OSError(f"expected a folder of notebooks, got {folder}")
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    for student in sorted(path for path in folder.iterdir() if path.is_dir()):
        notebooks = sorted(student.glob("*.ipynb"), key=lambda path: path.stat().st_mtime)
        if notebooks:
            found[student.name] = notebooks[-1]
    if not found:
        raise OSError(f"no notebooks in {folder}")
    return found


def _grade(args: argparse.Namespace) -> int:
    made, found = assignments.load(args.name), _submissions(args.submissions)
    args.to.mkdir(parents=True, exist_ok=True)
    secret_file = args.to / ".secret"  # the same inputs again when grading goes on
    if not secret_file.exists():
        write_atomically(secret_file, secrets.token_hex().encode())
    secret = secret_file.read_text()
    isolated = not args.no_sandbox
    if not isolated:
        print("\033[31mWITHOUT A SANDBOX: submissions run with your rights.\033[0m", file=sys.stderr)
    idle: SimpleQueue[Sandbox] = SimpleQueue()
    workers = [Sandbox(isolated) for _ in range(max(1, min(args.workers, len(found))))]
    try:
        if isolated:
            assert_safe(workers[0])
        for worker in workers:
            idle.put(worker)

        def one(student: str) -> tuple[str, dict[str, Any]]:
            content = found[student].read_bytes()
            key = hashlib.sha256(content + made.version.encode()).hexdigest()
            path = args.to / f"{student}.json"
            if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))).get("key") == key:
                return student, before
            worker = idle.get()
            try:
                report = {"key": key, "sandbox": isolated, **_report(made, content, worker, f"{secret} {student}")}
            finally:
                idle.put(worker)
            write_atomically(args.to / f"{student}.html", feedback.page(made, report).encode())
            write_atomically(path, json.dumps(report, ensure_ascii=False, indent=1).encode())
            return student, report

        with ThreadPoolExecutor(len(workers)) as pool:
            reports = dict(tqdm(pool.map(one, found), made.name, total=len(found)))
    finally:
        for worker in workers:
            worker.close()
    write_atomically(args.to / "scores.csv", feedback.table(reports).encode("utf-8-sig"))
    print(f"{args.to / 'scores.csv'}: {len(reports)} students")
    return 0


def _report(made: assignments.Assignment, content: bytes, sandbox: Sandbox, secret: str) -> dict[str, Any]:
    try:
        notebook = nbformat.reads(content.decode("utf-8-sig"), as_version=4)
    except Exception as error:  # nbformat raises many kinds
        notebook = nbformat.v4.new_notebook()
        report = feedback.as_dict(grade(made, notebook, sandbox, secret))
        report["flags"].append(f"not a notebook that can be read: {type(error).__name__}: {error}"[:500])
        return report
    return feedback.as_dict(grade(made, notebook, sandbox, secret))


def _sandbox(args: argparse.Namespace) -> int:
    with Sandbox() as sandbox:
        outcomes = attack(sandbox)
    for name, got_through in outcomes.items():
        print(f"{'REACHED' if got_through else 'refused'}  {name}")
    return 1 if any(outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
