"""Whose a notebook is: the names that learning systems write, and the students of a course.

A part of a path names the student: the first one from outside in that follows a learning system's pattern or stands on
the roster. What lies deeper was named by the student and is not believed.
"""

import csv
import difflib
import itertools
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

# How learning systems name what a student handed in. `rest` is the student's own choice.
_PATTERNS = {
    "Moodle": re.compile(r"(?P<name>.+?)_(?P<number>\d+)_assignsubmission_(?:file|onlinetext)_?(?P<rest>.*)"),
    "name - time - file": re.compile(
        r"(?P<name>.+?) - (?P<time>\d{4}-\d\d-\d\d \d\d-\d\d-\d\d)(?:-\d+)? - (?P<rest>.+)"
    ),
    "attempt": re.compile(r".+?_(?P<name>\w+?)_attempt_(?P<time>\d{4}(?:-\d\d){5})(?:_(?P<rest>.+))?"),
    "Canvas": re.compile(r"(?P<name>[^\W_]+)(?P<late>_LATE)?_(?P<number>\d+)_\d+_(?P<rest>.+)"),
}
_COPY = re.compile(r"\s*\((\d+)\)|-Copy(\d*)|(?<=[^\d])-(\d{1,2})$")


class CollectError(ValueError):
    """A roster or a source that cannot be read; the message says what was expected."""


@dataclass(frozen=True)
class Owner:
    """Whose a notebook is.

    Attributes:
        student: the id; None where nobody was recognised.
        how: by what, or why not.
        time: that the learning system wrote into the name.
        late: the learning system says so.
    """

    student: str | None
    how: str
    time: datetime | None = None
    late: bool = False


@dataclass(frozen=True)
class Roster:
    """The students of a course.

    Attributes:
        names: of each, by id: full names and whatever else the table says (addresses, numbers, logins).
    """

    names: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Roster":
        """A roster from a table: a column `id`, and `name` or `first name` and `last name`; others are aliases.

        Raises:
            CollectError: it has no such columns, an id twice, or one that cannot be a folder's name.
        """
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # Excel writes ; in some countries
        names: dict[str, list[str]] = {}
        for row in csv.DictReader(text.splitlines(), delimiter=delimiter):
            cells = {
                (key or "").strip().casefold().replace("_", " "): (value or "") for key, value in row.items() if key
            }
            cells = {key: value.strip() for key, value in cells.items()}
            student = cells.pop("id", "") or cells.pop("id number", "") or cells.pop("student id", "")
            if not student or safe(student) != student or student in names:
                raise CollectError(
                    f"{path.name}: expected a column id, each once and fit for a folder; got {student!r}"
                )
            full = " ".join(cells.pop(key, "") for key in ("first name", "middle name", "last name"))
            local = [value.partition("@")[0] for value in cells.values() if "@" in value]
            names[student] = [name for name in (student, full.strip(), *cells.values(), *local) if name]
        if not names:
            raise CollectError(f"{path.name}: expected a row for each student, got none")
        return cls(names)

    def find(self, text: str, number: str | None = None) -> tuple[str | None, str]:
        """The student that a text names, and by what; None and why where none or several fit.

        Args:
            text: as a learning system or a student wrote it.
            number: an id of the learning system.
        """
        words, plain = _words(text), _words(latin(text))
        if not words:
            return None, f"{text!r} names nobody"
        ways = {
            "number": lambda name: number is not None and name == number,
            "name": lambda name: set(_words(name)) == set(words),
            "name in other letters": lambda name: _joined(_words(latin(name)), plain),
            "part of the name": lambda name: _within(_words(name), words) or _within(_words(latin(name)), plain, 2),
        }
        for how, fits in ways.items():
            hits = [student for student, names in self.names.items() if any(fits(name) for name in names)]
            if len(hits) == 1:
                return hits[0], how
            if hits:
                return None, f"{text!r} could be {' or '.join(sorted(hits))}"
        known = {" ".join(sorted(_words(latin(n)))): student for student, names in self.names.items() for n in names}
        near = difflib.get_close_matches(" ".join(sorted(plain)), known, n=1)
        return None, f"{text!r} is not on the roster" + (f"; nearest: {known[near[0]]}" if near else "")


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold().replace("ё", "е")
    return re.findall(r"[^\W_]+", text)


_LETTERS = dict(zip("абвгдезийклмнопрстуфхыэ", "abvgdeziiklmnoprstufhye", strict=True)) | {
    "ё": "e", "ж": "zh", "ц": "ts", "ч": "ch", "ш": "sh", "щ": "shch", "ъ": "", "ь": "", "ю": "iu", "я": "ia",
}  # fmt: skip


def latin(text: str) -> str:
    """A name in Latin letters; the spellings that are in use for one Russian name come out alike."""
    text = "".join(_LETTERS.get(letter, letter) for letter in unicodedata.normalize("NFKC", text).casefold())
    for spelling, plain in (("kh", "h"), ("yu", "iu"), ("ya", "ia"), ("yo", "e"), ("y", "i"), ("j", "i"), ("ii", "i")):
        text = text.replace(spelling, plain)
    return text


def _joined(name: list[str], words: list[str]) -> bool:
    """Whether words are a name's, in any order and perhaps written together as by Canvas."""
    return len(name) <= 4 and any("".join(order) == "".join(words) for order in itertools.permutations(name))


def _within(name: list[str], words: list[str], least: int = 1) -> bool:
    """Whether a name of two words, or one that cannot be a counter, is among words."""
    return set(name) <= set(words) and len(name) >= least and (len(name) > 1 or len(name[0]) > 3)


def safe(name: str) -> str:
    """A name as a folder may have it, on every system."""
    name = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c)[0] != "C")
    return re.sub(r'[/\\:*?"<>|]', "_", name).strip(" .")[:100] or "_"


def copy_number(name: str) -> int:
    """Which copy a file's name says it is: 1 of "hw (1).ipynb" and "hw-Copy1.ipynb", 0 of "hw.ipynb"."""
    found = _COPY.search(name.removesuffix(".ipynb"))
    return max((int(number or 1) for number in found.groups() if number is not None), default=0) if found else 0


def _written_time(text: str | None) -> datetime | None:
    try:
        return datetime(*map(int, re.findall(r"\d+", text))) if text else None
    except ValueError:
        return None


def owner(parts: tuple[str, ...], roster: Roster | None) -> Owner:
    """Whose a notebook at that place is; without a roster, the first name that a learning system wrote, or its folder.

    Args:
        parts: names from outside in.
        roster: the students, if it is known who they are.
    """
    why = ""
    for part in parts:
        stem = re.sub(r"(?i)\.(ipynb|zip)$", "", part)
        for kind, pattern in _PATTERNS.items():
            if found := pattern.fullmatch(stem):
                said = found.groupdict()
                time = _written_time(said.get("time"))
                student, how = (safe(said["name"]), "name")
                if roster is not None:
                    student, how = roster.find(said["name"], said.get("number"))
                return Owner(student, f"{kind}: {how}", time, bool(said.get("late")))
        if roster is not None:
            student, how = roster.find(_COPY.sub("", stem))
            if student is not None:
                return Owner(student, how)
            why = why or how
    if roster is not None:
        return Owner(None, why)
    return Owner(safe(_COPY.sub("", re.sub(r"(?i)\.(ipynb|zip)$", "", parts[0]))), "outermost name")
