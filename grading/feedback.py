"""What a student and a learning system get: a page, and a table with points per exercise."""

import csv
import io
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import quote

from grading.course import Course, Total, cell, clean
from grading.grade import Report

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #8884 } .lost { color: #c0392b } .earned { color: #1e8449 }
.open { color: #b9770e } code { white-space: pre-wrap }
"""


def as_dict(report: Report) -> dict[str, Any]:
    """A report as plain data, for JSON."""
    return {
        "assignment": report.assignment,
        "version": report.version,
        "earned": report.earned,
        "points": report.points,
        "exercises": {
            outcome.exercise.name: {
                "title": outcome.exercise.title,
                "earned": outcome.earned,
                "points": outcome.exercise.points,
                "missing": outcome.missing,
                "parts": [[part.points, part.earned, part.reason] for part in outcome.parts],
            }
            for outcome in report.outcomes
        },
        "errors": {str(number): error for number, error in report.errors.items()},
        "flags": report.flags,
        "doubts": report.doubts,
        "answers": report.answers,
    }


def page(course: Course, report: Mapping[str, Any], total: Total, comments: Mapping[str, str]) -> str:
    """The page a student reads, as HTML: each part, what it earned and why. Nothing of a submission is markup here.

    Args:
        course: with the assignment.
        report: of `as_dict`.
        total: its points.
        comments: that a person wrote, by exercise and question.
    """
    rows, worth = [], course.worth
    for name, points in worth.items():
        found = report["exercises"].get(name, {"title": name.replace("_", " "), "parts": []})
        earned = total.points[name]
        given = "a person decides" if earned is None else f"{earned:g} of {points:g}"
        rows.append(f"<tr><th>{escape(found['title'])}</th><th>{given}</th></tr>")
        for most, got, reason in found["parts"]:
            kind = "earned" if got == most else "lost"
            rows.append(f'<tr class="{kind}"><td>{escape(reason)}</td><td>{got:g} of {most:g}</td></tr>')
        for note in (report["doubts"].get(name), comments.get(name)):
            if note:
                rows.append(f'<tr class="open"><td>{escape(note)}</td><td></td></tr>')
    if total.penalty:
        rows.append(f"<tr><th>late, days begun: {total.days}</th><th>−{total.penalty:g}</th></tr>")
    failed = "".join(
        f"<li>cell {escape(number)}: <code>{escape(error)}</code></li>" for number, error in report["errors"].items()
    )
    errors = f"<h2>Cells that stopped</h2><ul>{failed}</ul>" if failed else ""
    title = escape(report["assignment"].replace("_", " "))
    most = sum(worth.values())
    return clean(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}: {total.total:g} of {most:g}</h1><table>{''.join(rows)}</table>{errors}</html>"
    )


_COLUMNS = ("late days", "penalty", "total", "of", "status", "look at")


def rows(course: Course, reports: Mapping[str, Mapping[str, Any]], totals: Mapping[str, Total]) -> list[list[str]]:
    """Points per exercise, one student a row, after a row of titles.

    Args:
        course: with the assignment.
        reports: of `as_dict`, by the student's name.
        totals: of the same students.
    """
    found = [["student", *course.worth, *_COLUMNS]]
    for student, report in reports.items():
        total = totals[student]
        points = ["" if value is None else f"{value:g}" for value in total.points.values()]
        missing = [name for exercise in report["exercises"].values() for name in exercise["missing"]]
        look = [*(["NOT IN A SANDBOX"] if not report["sandbox"] else []), *report["flags"]]
        look += [*(["not defined: " + ", ".join(missing)] if missing else [])]
        look += [f"{name}: {why}" for name, why in report["doubts"].items() if total.points[name] is None]
        status = f"a person decides: {', '.join(total.waits)}" if total.waits else "complete"
        end = [f"{total.days}", f"{total.penalty:g}", f"{total.total:g}", f"{sum(course.worth.values()):g}", status]
        found.append([student, *points, *end, clean("; ".join(dict.fromkeys(look)))])
    return found


def table(found: list[list[str]]) -> str:
    """Rows as CSV for the learning system; nothing in it is a formula."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([cell(text) for text in row] for row in found)
    return stream.getvalue()


def index(course: Course, found: list[list[str]]) -> str:
    """The page the instructor reads: the table, with a link to each student's page."""
    red = '<p class="lost"><b>Graded without a sandbox.</b></p>' if "NOT IN A SANDBOX" in str(found) else ""
    lines = ["".join(f"<th>{escape(title)}</th>" for title in found[0])]
    for student, *cells in found[1:]:
        link = f"../../feedback/{quote(student)}/{course.name}/{course.name}.html"
        status = "earned" if cells[-2] == "complete" else "open"
        line = f'<td><a href="{link}">{escape(student)}</a></td>' + "".join(f"<td>{escape(c)}</td>" for c in cells[:-2])
        lines.append(f'{line}<td class="{status}">{escape(cells[-2])}</td><td>{escape(cells[-1])}</td>')
    title = escape(course.name.replace("_", " "))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}'
        f"body {{ max-width: none }}</style><h1>{title}: {len(found) - 1} students</h1>{red}"
        f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></html>"
    )
