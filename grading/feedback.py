"""What a student and a learning system get: a page, and a table with points per exercise."""

import csv
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from grading.assignment import Assignment
from grading.grade import Report

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem; vertical-align: top }
tr { border-bottom: 1px solid #8884 } .lost { color: #c0392b } .earned { color: #1e8449 } code { white-space: pre-wrap }
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
    }


def page(assignment: Assignment, report: Mapping[str, Any]) -> str:
    """The page a student reads, as HTML: each part, what it earned and why. Nothing of a submission is markup here.

    Args:
        assignment: which one.
        report: of `as_dict`.
    """
    rows = []
    for exercise in report["exercises"].values():
        total = f"{exercise['earned']:g} of {exercise['points']:g}"
        rows.append(f"<tr><th>{escape(exercise['title'])}</th><th>{total}</th></tr>")
        for points, earned, reason in exercise["parts"]:
            kind = "earned" if earned == points else "lost"
            rows.append(f'<tr class="{kind}"><td>{escape(reason)}</td><td>{earned:g} of {points:g}</td></tr>')
    for name, points in assignment.questions.items():
        rows.append(f"<tr><th>{escape(name)}: read by a person</th><th>… of {points:g}</th></tr>")
    failed = "".join(
        f"<li>code cell {escape(number)}: <code>{escape(error)}</code></li>"
        for number, error in report["errors"].items()
    )
    errors = f"<h2>Cells that stopped</h2><ul>{failed}</ul>" if failed else ""
    title = escape(report["assignment"].replace("_", " "))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"<h1>{title}: {report['earned']:g} of {report['points']:g}</h1><table>{''.join(rows)}</table>{errors}</html>"
    )


def table(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Points per exercise, one student a row, as CSV.

    Args:
        reports: of `as_dict`, by the student's name.
    """
    stream = io.StringIO()
    names = list(next(iter(reports.values()))["exercises"]) if reports else []
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["student", *names, "points", "of", "look at"])
    for student, report in reports.items():
        points = [f"{report['exercises'][name]['earned']:g}" for name in names]
        missing = [name for exercise in report["exercises"].values() for name in exercise["missing"]]
        look = [*report["flags"], *(["not defined: " + ", ".join(missing)] if missing else [])]
        # A spreadsheet takes a cell that begins so for a formula.
        begins = ("=", "+", "-", "@", "\t", "\r")
        safe = [f"'{cell}" if cell.startswith(begins) else cell for cell in (student, "; ".join(look))]
        writer.writerow([safe[0], *points, f"{report['earned']:g}", f"{report['points']:g}", safe[1]])
    return stream.getvalue()
