"""A course's folder: who handed in what and when, what is due, what persons decided, and the points that follow.

    course.ini                              deadlines, penalties and extensions, written by the instructor
    release/NAME/NAME.ipynb                 the notebook for students; release/NAME/ru/NAME.ipynb in Russian
    submitted/STUDENT/NAME/*.ipynb          every attempt, named by its time; `collect` writes them
    results/NAME/STUDENT.json               what the checks found
    results/NAME/by_hand.csv                points that a person gives; the grader adds rows, and never changes points
    results/NAME/scores.csv                 points per exercise for the learning system
    feedback/STUDENT/NAME/NAME.html         the page for the student
    gradebook.db, source/, autograded/      for nbgrader's formgrader, where nbgrader is installed (`gradebook.py`)

course.ini has a section for each assignment; times are the local ones of the machine:

    [upsampling]
    deadline = 2026-12-01 23:59
    penalty = 10
    [upsampling extensions]
    ivanov = 2026-12-03 23:59

`penalty` is the percentage of the earned points that each day begun after the deadline costs.
"""

import configparser
import csv
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from course_lib.base.checkpoints import write_atomically
from grading.assignment import Assignment
from grading.match import match

TIME = "%Y-%m-%d_%H-%M-%S"  # at the beginning of an attempt's name
_HEAD = ["student", "item", "points", "of", "comment", "why", "answer"]
MAX_ANSWER = 20_000  # characters of an answer in the table


class CourseError(ValueError):
    """A file of the course says what cannot be; the message names it."""


def readable(content: bytes) -> Any:
    """A notebook of any nbformat, as format 4.

    Raises:
        ValueError: it is none; the message says why.
    """
    try:
        text = content.decode("utf-8-sig")
        notebook = nbformat.reads(text, as_version=4)
        if not (isinstance(notebook.cells, list) and all(isinstance(found, dict) for found in notebook.cells)):
            raise ValueError("its cells are no list of cells")
        return notebook
    except Exception as error:  # nbformat raises many kinds
        raise ValueError(f"not a notebook that can be read: {type(error).__name__}: {error}"[:300]) from error


def clean(text: str) -> str:
    """A text that can be written: halves of characters, which a submission may send, become question marks."""
    return text.encode(errors="replace").decode()


def cell(text: str) -> str:
    """A text for a spreadsheet, which would take some for formulas."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _kept(row: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, str]:
    """Points and comment of a row of by_hand.csv; points for what is not there any more become part of the comment."""
    points, comment = row.get("points") or "", row.get("comment") or ""
    changed = [key for key, text in now.items() if (row.get(key) or "").split() not in ([], text.split())]
    if points and changed:
        return "", f"{points} points for an earlier answer. {comment}".strip()
    return points, comment


@dataclass(frozen=True)
class Attempt:
    """A notebook that a student handed in.

    Attributes:
        path: where it lies.
        time: when it came; None where its name does not say.
    """

    path: Path
    time: datetime | None

    @classmethod
    def at(cls, path: Path) -> "Attempt":
        found = re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", path.name)
        return cls(path, datetime.strptime(found[0], TIME) if found else None)


@dataclass(frozen=True)
class Total:
    """A student's points of one assignment.

    Attributes:
        points: by exercise and question; None where a person has not decided yet.
        days: begun after the deadline.
        penalty: points that they cost.
        waits: exercises and questions that wait for a person.
    """

    points: dict[str, float | None]
    days: int
    penalty: float
    waits: list[str]

    @property
    def total(self) -> float:
        return sum(points or 0.0 for points in self.points.values()) - self.penalty


@dataclass(frozen=True)
class Course:
    """A course's folder and one of its assignments.

    Attributes:
        folder: of the course.
        assignment: which one.
    """

    folder: Path
    assignment: Assignment

    @property
    def name(self) -> str:
        return self.assignment.name

    @cached_property
    def worth(self) -> dict[str, float]:
        """The points of every exercise, then of every question that a person grades."""
        return {exercise.name: exercise.points for exercise in self.assignment.exercises} | self.assignment.questions

    @property
    def results(self) -> Path:
        return self.folder / "results" / self.name

    # --- what is due

    @cached_property
    def _settings(self) -> configparser.ConfigParser:
        settings = configparser.ConfigParser(delimiters=("=",), interpolation=None, inline_comment_prefixes=("#", ";"))
        settings.optionxform = str  # type: ignore[assignment,method-assign]
        try:
            settings.read(self.folder / "course.ini", encoding="utf-8-sig")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise CourseError(f"course.ini: {error}") from error
        return settings

    def deadline(self, student: str | None = None) -> datetime | None:
        """When the assignment is due, for a student with an extension later.

        Raises:
            CourseError: course.ini has no time there.
        """
        text = self._settings.get(self.name, "deadline", fallback=None)
        if student is not None:
            text = self._settings.get(f"{self.name} extensions", student, fallback=text)
        try:
            return datetime.fromisoformat(text) if text else None
        except ValueError:
            raise CourseError(
                f"course.ini: expected a time like 2026-12-01 23:59 for {self.name}, got {text!r}"
            ) from None

    @property
    def penalty(self) -> float:
        """The share of the earned points that a day begun costs.

        Raises:
            CourseError: it is not between 0 and 100 percent.
        """
        text = self._settings.get(self.name, "penalty", fallback="0").removesuffix("%").strip()
        if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 100:
            raise CourseError(f"course.ini: expected a penalty from 0 to 100 percent for {self.name}, got {text!r}")
        return float(text) / 100

    # --- what was handed in

    def attempts(self) -> dict[str, list[Attempt]]:
        """Every attempt by student, the earliest first."""
        found = {}
        for folder in sorted(self.folder.glob(f"submitted/*/{self.name}")):
            paths = [path for path in folder.glob("*.ipynb") if path.is_file() and not path.is_symlink()]
            attempts = [Attempt.at(path) for path in sorted(paths)]
            if attempts:
                found[folder.parent.name] = sorted(attempts, key=lambda one: one.time or datetime.min)
        return found

    def chosen(self, student: str, attempts: list[Attempt]) -> Attempt:
        """The attempt that counts: the latest before the deadline, else the latest; of several at once the fullest."""
        due = self.deadline(student)
        in_time = [one for one in attempts if due is None or one.time is None or one.time <= due]
        known = in_time or attempts
        last = [one for one in known if one.time == known[-1].time]
        return last[0] if len(last) == 1 else max(last, key=self._fullness)

    def _fullness(self, attempt: Attempt) -> tuple[int, str]:
        try:
            return len(match(self.assignment, readable(attempt.path.read_bytes())).answered), attempt.path.name
        except ValueError:
            return -1, attempt.path.name

    def days_late(self, student: str, time: datetime | None) -> int:
        """Days begun after a student's deadline."""
        due = self.deadline(student)
        return 0 if due is None or time is None else max(0, math.ceil((time - due) / timedelta(days=1)))

    # --- what was found

    def reports(self) -> dict[str, dict[str, Any]]:
        """What the checks found, by student."""
        paths = sorted(self.results.glob("*.json"))
        return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}

    def write_report(self, student: str, report: Mapping[str, Any]) -> dict[str, Any]:
        """Keep what the checks found for a student; returns it as it is read back."""
        text = clean(json.dumps(report, ensure_ascii=False, indent=1))
        write_atomically(self.results / f"{student}.json", text.encode())
        return json.loads(text)

    def by_hand(self) -> dict[tuple[str, str], dict[str, str]]:
        """The rows of by_hand.csv by student and item.

        Raises:
            CourseError: points that are no number, negative, or more than there are.
        """
        path = self.results / "by_hand.csv"
        if not path.exists():
            return {}
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
        for number, row in enumerate(rows, 2):
            if not {"student", "item", "points"} <= row.keys():
                raise CourseError(f"by_hand.csv: expected the columns {', '.join(_HEAD)}")
            points = (row["points"] or "").strip().replace(",", ".")
            if points and not (re.fullmatch(r"\d+(\.\d*)?", points) and float(points) <= self._worth(row["item"])):
                most = self._worth(row["item"])
                raise CourseError(
                    f"by_hand.csv, row {number}: expected points from 0 to {most:g} for {row['item']}, got {points!r}"
                )
            row["points"] = points
        return {(row["student"].removeprefix("'"), row["item"]): row for row in rows}

    def _worth(self, item: str) -> float:
        if item not in self.worth:
            raise CourseError(f"by_hand.csv: expected an item of {', '.join(self.worth)}, got {item!r}")
        return self.worth[item]

    def ask(self, reports: Mapping[str, Mapping[str, Any]]) -> int:
        """Write into by_hand.csv what persons must decide, and keep what they have decided.

        Returns:
            How many points are still missing.
        """
        rows, given = [], self.by_hand()
        for student, report in reports.items():
            answers = {name: text for name, text in report["answers"].items() if text}
            for item in dict.fromkeys([*report["doubts"], *answers]):
                answer = cell(clean(answers.get(item, ""))[:MAX_ANSWER])
                before = given.pop((student, item), {})
                why = cell(clean(report["doubts"].get(item, "")))
                points, comment = _kept(before, {"why": why, "answer": answer})
                rows.append([cell(student), item, points, f"{self._worth(item):g}", comment, why, answer])
        for (student, item), row in given.items():  # what a person wrote is never lost
            if row["points"] or row.get("comment"):
                points, comment = _kept(row, {"why": "", "answer": ""} if student in reports else {})
                rows.append([cell(student), item, points, f"{self._worth(item):g}", comment, "", ""])
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([_HEAD, *rows])
        write_atomically(self.results / "by_hand.csv", stream.getvalue().encode("utf-8-sig"))
        return sum(not row[2] for row in rows if row[5] or row[6])

    def totals(
        self, reports: Mapping[str, Mapping[str, Any]], gradebook: Mapping[tuple[str, str], float] | None = None
    ) -> dict[str, Total]:
        """Every student's points, from scratch: checks, what persons gave, and what lateness costs.

        Args:
            reports: what the checks found.
            gradebook: points given in nbgrader's formgrader; by_hand.csv counts where both are there.
        """
        given = {key: float(row["points"]) for key, row in self.by_hand().items() if row["points"]}
        given = {**(gradebook or {}), **given}
        totals = {}
        for student, report in reports.items():
            points: dict[str, float | None] = {name: found["earned"] for name, found in report["exercises"].items()}
            points |= {name: None if report["answers"].get(name) else 0.0 for name in self.assignment.questions}
            points |= dict.fromkeys(report["doubts"])
            points |= {name: given[student, name] for name in points if (student, name) in given}
            time = datetime.fromisoformat(report["time"]) if report.get("time") else None
            days = self.days_late(student, time)
            earned = sum(value or 0.0 for value in points.values())
            penalty = round(earned * min(1.0, self.penalty * days), 6)
            totals[student] = Total(points, days, penalty, [name for name, value in points.items() if value is None])
        return totals
