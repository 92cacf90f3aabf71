"""Find students' notebooks in what learning systems hand out: folders and archives, whoever filled them.

A part of a path names the student: the first one from outside in that follows a learning system's pattern or stands on
the roster. What lies deeper was packed by the student and is not believed, neither its names nor its times. Names are
only read; every file is written to a place that the grader chooses, and none that is there is overwritten.
"""

import csv
import hashlib
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import requests
from tqdm import tqdm

from course_lib.base import runtime
from course_lib.base.checkpoints import write_atomically
from grading.course import TIME, Course, readable
from grading.match import match
from grading.roster import CollectError, Owner, Roster, copy_number, owner

MAX_NOTEBOOK = 50 * 2**20  # bytes
MAX_UNPACKED = 500 * 2**20  # bytes of notebooks and archives in an archive that a student packed
MAX_MEMBERS = 20_000  # of such an archive
MAX_DEPTH = 4  # archives in archives
LEAST_SHARE = 0.25  # of the assignment's cells that a notebook must have
_SKIPPED = {"__MACOSX", "node_modules"}
_UNREAD = (".rar", ".7z", ".tar", ".gz", ".tgz", ".xz", ".bz2")
_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, NotImplementedError, EOFError, OSError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A notebook and what its surroundings say of it.

    Attributes:
        parts: names from outside in, the last one the notebook's.
        time: when it was handed in, local: of the learning system, else of the outermost file.
        content: its bytes.
    """

    parts: tuple[str, ...]
    time: datetime
    content: bytes

    @property
    def where(self) -> str:
        return "/".join(self.parts)


class Reader:
    """Reads notebooks out of folders and archives, within limits.

    Attributes:
        problems: what was not read, and why, by its place.
    """

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}

    def read(self, source: Path) -> Iterator[Found]:
        """Every notebook in a source.

        Args:
            source: a folder, an archive of a learning system, a notebook, or a table (.csv) of `student` and `address`
                for notebooks in Colab, Drive or GitHub.

        Raises:
            CollectError: there is no such thing, or the table has other columns.
        """
        if source.is_dir():
            for folder, folders, files in os.walk(source):
                folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in _SKIPPED))
                parts = Path(folder).relative_to(source).parts
                for name in sorted(files):
                    yield from self._file(Path(folder) / name, (*parts, name))
        elif source.suffix.lower() == ".zip" and source.is_file():
            with source.open("rb") as file:
                yield from self._archive(file, (), _time_of(source), 0)
        elif source.suffix.lower() == ".csv" and source.is_file():
            yield from self._linked(source)
        elif source.is_file():
            yield from self._file(source, (source.name,))
        else:
            raise CollectError(f"expected a folder, an archive or a notebook, got {source}")

    def _linked(self, table: Path) -> Iterator[Found]:
        for row in csv.DictReader(table.read_text(encoding="utf-8-sig").splitlines()):
            if not {"student", "address"} <= row.keys():
                raise CollectError(f"{table.name}: expected the columns student and address")
            parts = (row["student"] or "", row["address"] or "")
            try:
                yield Found(parts, datetime.now().replace(microsecond=0), download(parts[1]))
            except (OSError, ValueError) as error:  # what requests raises is an OSError
                self.problems[": ".join(parts)] = f"not downloaded: {error}"

    def _file(self, path: Path, parts: tuple[str, ...]) -> Iterator[Found]:
        where, kind = "/".join(parts), path.suffix.lower()
        if kind not in (".ipynb", ".zip", *_UNREAD):
            return
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode):
            self.problems[where] = "a link or a device, not a file"
        elif kind in _UNREAD:
            self.problems[where] = f"{kind} is not read: unpack it, or ask for a .zip"
        elif kind == ".zip":
            with path.open("rb") as file:
                yield from self._archive(file, parts, _time_of(path), 1)
        elif state.st_size > MAX_NOTEBOOK:
            self.problems[where] = f"larger than {MAX_NOTEBOOK >> 20} MB"
        else:
            yield Found(parts, self._stamp(path) or _time_of(path), path.read_bytes())

    @staticmethod
    def _stamp(path: Path) -> datetime | None:
        """What nbgrader writes beside a submission."""
        try:
            return datetime.fromisoformat((path.parent / "timestamp.txt").read_text()[:19])
        except (OSError, ValueError):
            return None

    def _archive(self, file: BinaryIO, parts: tuple[str, ...], time: datetime, depth: int) -> Iterator[Found]:
        where = "/".join(parts)
        left = MAX_UNPACKED if depth else float("inf")  # the outermost is the learning system's
        try:
            with zipfile.ZipFile(file) as archive:
                if depth and len(archive.infolist()) > MAX_MEMBERS:
                    raise ValueError(f"more than {MAX_MEMBERS} files")
                for member in archive.infolist():
                    names = _member_parts(member)
                    kind = PurePosixPath(names[-1]).suffix.lower() if names else ""
                    place = "/".join((*parts, *names))
                    if any(name.startswith(".") or name in _SKIPPED for name in names) or member.is_dir():
                        continue
                    if kind in _UNREAD:
                        self.problems[place] = f"{kind} is not read: unpack it, or ask for a .zip"
                    if kind not in (".ipynb", ".zip"):
                        continue
                    most = MAX_NOTEBOOK if kind == ".ipynb" else MAX_UNPACKED
                    try:
                        content = _unpack(archive, member, most, left)
                    except _BROKEN as error:
                        self.problems[place] = f"not read: {error}"
                        continue
                    left -= len(content)
                    inner = time if depth else _member_time(member) or time
                    if kind == ".ipynb":
                        yield Found((*parts, *names), inner, content)
                    elif depth + 1 >= MAX_DEPTH:
                        self.problems[place] = f"archives in archives, more than {MAX_DEPTH} deep"
                    else:
                        yield from self._nested(content, (*parts, *names), inner, depth + 1)
        except _BROKEN as error:
            self.problems[where or "archive"] = f"not read: {error}"

    def _nested(self, content: bytes, parts: tuple[str, ...], time: datetime, depth: int) -> Iterator[Found]:
        yield from self._archive(BytesIO(content), parts, time, depth)


# Where a notebook lies whose address a student gave; other hosts are not asked, who knows what they answer.
_HOSTS = {
    r"https://(?:colab\.research|drive)\.google\.com/(?:drive|file/d)/([\w-]+)(?:[/?#].*)?":
        r"https://drive.google.com/uc?export=download&id=\1",
    r"https://(?:colab\.research\.google\.com/github|github\.com)/([\w.-]+/[\w.-]+)/blob/([^?#]+)(?:[?#].*)?":
        r"https://raw.githubusercontent.com/\1/\2",
}  # fmt: skip


def download(address: str) -> bytes:
    """The notebook at an address of Colab, Drive or GitHub.

    Raises:
        OSError: there is no connection, `COURSE_OFFLINE` forbids one, or the server refuses.
        ValueError: another kind of address, no notebook there, or one that is too large.
    """
    places = [re.sub(pattern, place, address) for pattern, place in _HOSTS.items() if re.fullmatch(pattern, address)]
    if not places:
        raise ValueError("expected an address of a notebook in Colab, Drive or GitHub")
    if runtime.is_offline():
        raise OSError("COURSE_OFFLINE forbids it; unset it")
    with requests.get(places[0], stream=True, timeout=30) as answer:
        answer.raise_for_status()
        content = b""
        for part in answer.iter_content(2**20):
            content += part
            if len(content) > MAX_NOTEBOOK:
                raise ValueError(f"larger than {MAX_NOTEBOOK >> 20} MB")
    if not content.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"{"):
        raise ValueError("a page, not a notebook: it must be shared with everybody who has the link")
    return content


def _time_of(path: Path) -> datetime:
    return datetime.fromtimestamp(path.lstat().st_mtime).replace(microsecond=0)


def _member_time(member: zipfile.ZipInfo) -> datetime | None:
    try:
        return datetime(*member.date_time) if member.date_time[0] > 1980 else None
    except ValueError:
        return None


def _member_parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    """A member's path, in which `..` and roots mean nothing; Cyrillic of old programs is read as such."""
    name = member.filename
    if not member.flag_bits & 0x800:  # not said to be UTF-8, so Python took it for code page 437
        raw = name.encode("cp437", "replace")
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = raw.decode("cp866", "replace")
    return tuple(part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..") and not part.endswith(":"))


def _unpack(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, left: float) -> bytes:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("an unusual compression")  # others can ask for gigabytes before the first byte
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError("a link, not a file")
    if member.file_size > most:  # zipfile reads no more of a member than its header says
        raise ValueError(f"larger than {most >> 20} MB")
    if member.file_size > left:
        raise ValueError(f"its archive holds more than {MAX_UNPACKED >> 20} MB")
    with archive.open(member) as file:
        return file.read(most)


# --- into the course's folder


@dataclass(frozen=True)
class Row:
    """What becomes of one notebook.

    Attributes:
        where: its place in what was collected.
        owner: whose it is.
        time: when it was handed in.
        outcome: "new", "there already", or why it is left out.
    """

    where: str
    owner: Owner
    time: datetime | None
    outcome: str


def collect(course: Course, sources: list[Path], dry: bool = False) -> list[Row]:
    """Put every notebook of an assignment where `grade` looks for it; none that is there is overwritten or repeated.

    Args:
        course: its roster.csv, if there is one, says who the students are.
        sources: folders, archives and notebooks.
        dry: only say what would happen.

    Raises:
        CollectError: the roster or a source cannot be read.
    """
    path = course.folder / "roster.csv"
    roster = Roster.read(path) if path.exists() else None
    reader, rows = Reader(), []
    seen: dict[str, set[str]] = {}
    for source in sources:
        for found in tqdm(reader.read(source), source.name, unit=" notebooks"):
            whose = owner(found.parts, roster)
            time = whose.time or found.time
            outcome = _outcome(course, found.content) if whose.student else f"nobody's: {whose.how}"
            if outcome == "new":
                digest = hashlib.sha256(found.content).hexdigest()[:16]
                folder = course.folder / "submitted" / whose.student / course.name
                there = seen.setdefault(whose.student, {old.stem.rpartition("_")[2] for old in folder.glob("*.ipynb")})
                if digest in there:
                    outcome = "there already"
                elif not dry:
                    number = copy_number(found.parts[-1])
                    target = folder / f"{time:{TIME}}_{number:02d}_{digest}.ipynb"
                    write_atomically(target, found.content)
                there.add(digest)
            rows.append(Row(found.where, whose, time, outcome))
    rows += [Row(where, Owner(None, ""), None, why) for where, why in reader.problems.items()]
    return rows


def _outcome(course: Course, content: bytes) -> str:
    """Whether it is this assignment's; what cannot be read is taken too, for a person to see."""
    try:
        share = match(course.assignment, readable(content)).share
    except ValueError:
        return "new"
    return "new" if share >= LEAST_SHARE else f"not this assignment ({share:.0%} of its cells are there)"


def table(rows: list[Row], roster: Roster | None = None) -> list[list[str]]:
    """Who is matched with what, the unmatched last, after a row of titles; then students with nothing."""
    found = [["student", "by", "handed in", "outcome", "from"]]
    for row in sorted(rows, key=lambda row: (row.owner.student is None, row.owner.student or "", row.where)):
        time = f"{row.time:%Y-%m-%d %H:%M:%S}" if row.time else ""
        late = ", marked late there" if row.owner.late else ""
        found.append([row.owner.student or "?", row.owner.how + late, time, row.outcome, row.where])
    taken = {row.owner.student for row in rows if row.outcome in ("new", "there already")}
    return found + [
        [student, "", "", "nothing found", ""] for student in (roster.names if roster else []) if student not in taken
    ]
