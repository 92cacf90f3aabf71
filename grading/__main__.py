"""python -m grading release | collect | grade | feedback | export | status | check | sandbox

    python -m grading release upsampling --course class         the notebook for students, without solutions
    python -m grading release upsampling --language ru          the same in Russian; the same checks grade it
    python -m grading collect upsampling FILES --course class   notebooks out of folders and archives; --dry-run first
    python -m grading grade upsampling --course class           everything that was handed in
    python -m grading feedback upsampling --course class        the students' pages anew, with what persons decided
    python -m grading export upsampling --course class          points as CSV for the learning system
    python -m grading status upsampling --course class          who handed in, who is graded, what waits for a person
    python -m grading check [upsampling]                        reference, alternative and wrong solutions, as a table
    python -m grading sandbox                                   attacks the sandbox of this machine; says what holds

What lies where in the course's folder is told in `course.py`. Every command can be interrupted and run again: `grade`
goes on where it was, and grades anew what changed, a notebook or an assignment.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import nbformat
from tqdm import tqdm

from course_lib.base.checkpoints import write_atomically
from grading import assignment as assignments
from grading import batch, collect, feedback, gradebook
from grading.course import Course, CourseError
from grading.grade import grade
from grading.roster import CollectError, Roster
from grading.sandbox import Sandbox, SandboxError, attack


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m grading", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (run, what) in _COMMANDS.items():
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=run)
        if name == "sandbox":
            continue
        command.add_argument("name", nargs="?" if name == "check" else None, help="of the assignment")
        if name == "check":
            command.add_argument("--write", action="store_true", help="write the table to assignments/README.md")
            continue
        command.add_argument("--course", type=Path, default=Path("."), help="the course's folder; this one by default")
        if name == "release":
            command.add_argument("--language", default="en", help="en (default) or ru")
        if name == "collect":
            command.add_argument("sources", type=Path, nargs="+", help="folders, archives, notebooks")
            command.add_argument("--dry-run", action="store_true", help="only say who would be matched with what")
        if name == "grade":
            command.add_argument("--workers", type=int, default=0, help="sandboxes at once; one a processor by default")
            command.add_argument("--no-sandbox", action="store_true", help="run with your own rights: trusted only")
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (assignments.AssignmentError, CourseError, CollectError, SandboxError, OSError) as error:
        print(f"grading: {error}", file=sys.stderr)
        return 1


def _release(args: argparse.Namespace) -> int:
    made = assignments.load(args.name, args.language)
    path = args.course / "release" / made.name / made.path.relative_to(made.folder)
    notebook = made.release()
    if path.exists():
        before = nbformat.read(path, as_version=4).metadata.get("grading", {}).get("version", "unknown")
        if before == made.version:
            print(f"{path}: released already, version {before}")
            return 0
        path.rename(path.with_name(f"{made.name}.{before}.ipynb"))  # nothing is overwritten
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, nbformat.writes(notebook).encode())
    print(f"{path}: {len(made.exercises)} exercises, {made.points:g} points, version {made.version}")
    return 0


def _check(args: argparse.Namespace) -> int:
    tables, worst = {}, 0
    with Sandbox(isolated=False) as sandbox:
        for name in [args.name] if args.name else assignments.names():
            tables[name], faults = _table(assignments.load(name), sandbox)
            print(tables[name])
            worst += faults
    if args.write:
        path = assignments.FOLDER / "README.md"
        page = path.read_text(encoding="utf-8")
        write_atomically(path, with_tables(page, tables, keep=args.name is not None).encode())
    return 1 if worst else 0


def with_tables(page: str, tables: dict[str, str], *, keep: bool) -> str:
    """The page with these tables, by the assignments' names, between its two marks; `keep`: beside those of others."""
    head, begin, rest = page.partition("<!-- table -->\n")
    between, end, tail = rest.partition("<!-- /table -->")
    sections = between.split("### ")[1:] if keep else []
    there = {section.partition("\n")[0]: f"### {section.rstrip()}\n" for section in sections}
    return head + begin + "\n".join(table for _, table in sorted((there | tables).items())) + end + tail


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


def _course(args: argparse.Namespace) -> Course:
    return Course(args.course, assignments.load(args.name))


def _collect(args: argparse.Namespace) -> int:
    course = _course(args)
    rows = collect.collect(course, args.sources, args.dry_run)
    roster = args.course / "roster.csv"
    found = collect.table(rows, Roster.read(roster) if roster.exists() else None)
    for line in found:
        print("  ".join(f"{text:{width}}" for text, width in zip(line, (16, 24, 20, 14, 0), strict=True)).rstrip())
    if not args.dry_run:
        write_atomically(course.results / "collected.csv", feedback.table(found).encode("utf-8-sig"))
    left = sum(row.outcome not in ("new", "there already") for row in rows)
    print(f"{len(rows) - left} notebooks{' would be' * args.dry_run} collected, {left} left out")
    return 0


def _grade(args: argparse.Namespace) -> int:
    course = _course(args)
    if not course.attempts():
        raise OSError(f"no notebooks in {args.course / 'submitted'}: collect them first")
    if args.no_sandbox:
        print("\033[31mWITHOUT A SANDBOX: submissions run with your rights.\033[0m", file=sys.stderr)
    batch.grade_all(course, args.workers, not args.no_sandbox)
    missing = course.ask(course.reports())
    if missing:
        print(f"{course.results / 'by_hand.csv'}: {missing} decisions of a person are missing")
    return _feedback(args) or _export(args)


def _feedback(args: argparse.Namespace) -> int:
    course = _course(args)
    reports, given = course.reports(), course.by_hand()
    totals = course.totals(reports, gradebook.given(course))
    for student, report in reports.items():
        comments = {item: row.get("comment") or "" for (who, item), row in given.items() if who == student}
        path = course.folder / "feedback" / student / course.name / f"{course.name}.html"
        write_atomically(path, feedback.page(course, report, totals[student], comments).encode())
    path = course.results / "index.html"
    write_atomically(path, feedback.index(course, feedback.rows(course, reports, totals)).encode())
    print(f"{path}: {len(reports)} students, and a page for each in {course.folder / 'feedback'}")
    return 0


def _export(args: argparse.Namespace) -> int:
    course = _course(args)
    reports = course.reports()
    totals = course.totals(reports, gradebook.given(course))
    path = course.results / "scores.csv"
    found = feedback.rows(course, reports, totals)
    write_atomically(path, feedback.table(found).encode("utf-8-sig"))
    print(f"{path}: {len(reports)} students")
    if importlib.util.find_spec("nbgrader"):
        gradebook.write(course, reports, totals)
        print(f"{course.folder / 'gradebook.db'}: for nbgrader's formgrader")
    return 0


def _status(args: argparse.Namespace) -> int:
    course = _course(args)
    attempts, reports = course.attempts(), course.reports()
    totals = course.totals(reports, gradebook.given(course))
    roster = args.course / "roster.csv"
    expected = list(Roster.read(roster).names) if roster.exists() else []
    due = f"due {course.deadline() or 'at any time'}, {course.penalty:.0%} off for a day late"
    print(f"{course.name}, version {course.assignment.version}, {due}")
    for student in sorted({*attempts, *reports, *expected}):
        if student not in attempts:
            print(f"{student:24}  nothing handed in")
            continue
        chosen = course.chosen(student, attempts[student])
        report = reports.get(student)
        if report is None:
            state = "not graded"
        elif report["key"] != batch.key_of(course, chosen.path.read_bytes()):
            state = "graded, but the notebook or the assignment has changed since"
        else:
            total = totals[student]
            state = f"{total.total:g} points" + (f", a person decides: {', '.join(total.waits)}" if total.waits else "")
        late = course.days_late(student, chosen.time)
        print(f"{student:24}  {len(attempts[student])} handed in{f', {late} days late' if late else ''}; {state}")
    return 0


def _sandbox(args: argparse.Namespace) -> int:
    with Sandbox() as sandbox:
        outcomes = attack(sandbox)
    for name, got_through in outcomes.items():
        print(f"{'REACHED' if got_through else 'refused'}  {name}")
    return 1 if any(outcomes.values()) else 0


_COMMANDS = {
    "release": (_release, "write the notebook for students"),
    "collect": (_collect, "sort notebooks out of folders and archives"),
    "grade": (_grade, "grade what was handed in"),
    "feedback": (_feedback, "write the students' pages"),
    "export": (_export, "write the points for the learning system"),
    "status": (_status, "say who handed in, who is graded, what waits for a person"),
    "check": (_check, "try right and wrong solutions of an assignment"),
    "sandbox": (_sandbox, "attack the sandbox of this machine"),
}

if __name__ == "__main__":
    sys.exit(main())
