"""Grade everything that was handed in: several sandboxes at once, going on where an earlier run was interrupted."""

import hashlib
import os
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import nbformat
from tqdm import tqdm

from course_lib.base.checkpoints import write_atomically
from grading import feedback
from grading.course import Attempt, Course, readable
from grading.grade import grade
from grading.sandbox import Sandbox, SandboxError, assert_safe


def key_of(course: Course, content: bytes) -> str:
    """Changes when a notebook or its assignment does: a result with another key is out of date."""
    return hashlib.sha256(content + course.assignment.version.encode()).hexdigest()


def grade_all(course: Course, workers: int = 0, isolated: bool = True) -> dict[str, dict[str, Any]]:
    """Grade the attempt that counts of every student; those that are graded already are left as they are.

    A result is written when its student is done, so a run that was killed goes on; a sandbox that dies takes no
    submission with it: a new one tries it again.

    Args:
        course: with the assignment.
        workers: sandboxes at once; 0 for one a processor.
        isolated: False runs submissions with the grader's rights.

    Returns:
        The reports (`feedback.as_dict`) by student.

    Raises:
        SandboxError: there is no sandbox, or it does not hold.
    """
    chosen = {student: course.chosen(student, found) for student, found in course.attempts().items()}
    secret_file = course.results / ".secret"  # the same inputs again when grading goes on
    if not secret_file.exists():
        write_atomically(secret_file, secrets.token_hex().encode())
    secret = secret_file.read_text()
    before, reports, todo = course.reports(), {}, []
    for student, attempt in chosen.items():
        report = before.get(student, {})
        if report.get("key") == key_of(course, attempt.path.read_bytes()) and (report["sandbox"] or not isolated):
            if report["time"] != _time(attempt):  # the same notebook, handed in again
                report |= {"time": _time(attempt), "file": attempt.path.name}
                course.write_report(student, report)
            reports[student] = report
        else:
            todo.append(student)
    if not todo:
        return dict(sorted(reports.items()))
    count = max(1, min(workers or os.cpu_count() or 1, len(todo)))
    idle: SimpleQueue[Sandbox] = SimpleQueue()
    alive = [Sandbox(isolated) for _ in range(count)]
    try:
        if isolated:
            assert_safe(alive[0])
        for sandbox in alive:
            idle.put(sandbox)

        def one(student: str) -> tuple[str, dict[str, Any]]:
            sandbox = idle.get()
            try:
                for again in (True, False):
                    try:
                        report = report_of(course, chosen[student], sandbox, f"{secret} {student}")
                        break
                    except SandboxError as error:
                        print(f"grading: {student}: {error}; once more in a new sandbox", file=sys.stderr)
                        if not again:
                            raise
                        sandbox.close()
                        sandbox = Sandbox(isolated)
                        alive.append(sandbox)
            finally:
                idle.put(sandbox)
            return student, course.write_report(student, report)

        pool = ThreadPoolExecutor(count)
        try:
            reports |= dict(tqdm(pool.map(one, todo), course.name, total=len(todo)))
        finally:
            pool.shutdown(cancel_futures=True)
    finally:
        for sandbox in alive:
            sandbox.close()
    return dict(sorted(reports.items()))


def _time(attempt: Attempt) -> str | None:
    return attempt.time.isoformat() if attempt.time else None


def report_of(course: Course, attempt: Attempt, sandbox: Sandbox, secret: str) -> dict[str, Any]:
    """What one attempt earns, as plain data."""
    content, unread = attempt.path.read_bytes(), ""
    try:
        notebook = readable(content)
    except ValueError as error:
        notebook, unread = nbformat.v4.new_notebook(), str(error)
    report = feedback.as_dict(grade(course.assignment, notebook, sandbox, secret))
    if unread:
        report["flags"] = [unread]
        report["doubts"] = dict.fromkeys([*report["exercises"], *course.assignment.questions], unread)
    about = {
        "key": key_of(course, content),
        "file": attempt.path.name,
        "time": _time(attempt),
        "sandbox": sandbox.isolated,
    }
    return {**about, **report}
