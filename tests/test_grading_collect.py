"""Collecting: what learning systems hand out, and archives that mean harm."""

import http.server
import io
import os
import stat
import threading
import zipfile
from datetime import datetime

import nbformat
import pytest

from grading import assignment, collect
from grading.course import Course
from grading.roster import CollectError, Roster, copy_number, owner

MADE = assignment.load("upsampling")
NOTEBOOK = nbformat.writes(MADE.release()).encode()
ROSTER = """id,First name,Last name,email,number,github
ivanov,Пётр,Иванов,p.ivanov@example.org,657737,petya-iv
petrova,Анна,Петрова,a.petrova@example.org,657738,anya
petrova2,Анна Мария,Петрова,am@example.org,657739,anna-maria
lee,Ann,Lee,lee@example.org,12345,ann
"""


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "roster.csv").write_text(ROSTER, encoding="utf-8")
    return Course(folder, MADE)


@pytest.fixture
def roster(course):
    return Roster.read(course.folder / "roster.csv")


def other(number):
    """The release with a comment, so that it is another attempt."""
    notebook = MADE.release()
    notebook.cells[3].source += f"\n# {number}"
    return nbformat.writes(notebook).encode()


def packed(members, **kwargs):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, **kwargs) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def outcomes(rows):
    return {row.where: (row.owner.student, row.outcome) for row in rows}


@pytest.mark.parametrize(
    ("parts", "student"),
    [
        (("Пётр Иванов_657737_assignsubmission_file_", "hw.ipynb"), "ivanov"),
        (("Somebody Else_657737_assignsubmission_file_hw.ipynb",), "ivanov"),  # the number is surer than the name
        (("ivanovpetr_12345_99_hw-1.ipynb",), "lee"),
        (("leeann_LATE_777_99_hw.ipynb",), "lee"),
        (("ivanovpetr_777_99_hw.ipynb",), "ivanov"),
        (("Иванов Петр - 2022-05-22 23-06-50-982887 - hw2 (1).ipynb",), "ivanov"),
        (("upsampling_lee_attempt_2016-01-30-15-00-00_x.ipynb",), "lee"),
        (("lee", "upsampling", "upsampling.ipynb"), "lee"),
        (("hw2-petya-iv", "src", "hw.ipynb"), "ivanov"),
        (("Petrova Anna.zip", "hw.ipynb"), "petrova"),
        (("Анна Мария Петрова", "hw.ipynb"), "petrova2"),
        (("A.Petrova@example.org.ipynb",), "petrova"),
        (("ИВАНОВ_Пётр_hw2-Copy1.ipynb",), "ivanov"),
        (("group", "Иванов С.ipynb"), None),
        (("Nobody Known_1_assignsubmission_file_", "Пётр Иванов.ipynb"), None),  # a name deeper inside is not believed
        (("hw.ipynb",), None),
    ],
)
def test_students_are_recognised(parts, student, roster):
    found = owner(parts, roster)
    assert found.student == student, found.how


def test_names_in_other_letters_and_several_that_fit(tmp_path):
    (tmp_path / "r.csv").write_text("id;name\nyu;Юрий Щукин\nd1;Дмитрий Ким\nd2;Ким Дмитрий\n", encoding="utf-8-sig")
    roster = Roster.read(tmp_path / "r.csv")
    assert roster.find("Yury Shchukin")[0] == roster.find("Iurii Shchukin")[0] == roster.find("shchukinyuri")[0] == "yu"
    assert roster.find("Dmitry Kim") == (None, "'Dmitry Kim' could be d1 or d2")
    assert "nearest: yu" in roster.find("Юрий Щукн")[1]


def test_without_a_roster_the_written_name_is_the_student():
    assert owner(("Пётр Иванов_657737_assignsubmission_file_", "hw.ipynb"), None).student == "Пётр Иванов"
    assert owner(("ivanov", "hw.ipynb"), None).student == "ivanov"
    assert owner(("ivanov (2).ipynb",), None).student == "ivanov"
    assert owner(("..",), None).student == "_" and owner(('a/b:*?\x00"<',), None).student == "a_b______"[:8]
    late = owner(("leeann_LATE_777_99_hw-1.ipynb",), None)
    assert late.late and copy_number("leeann_LATE_777_99_hw-1.ipynb") == 1
    assert [copy_number(name) for name in ("a.ipynb", "a (3).ipynb", "a-Copy2.ipynb", "hw-12.ipynb")] == [
        0,
        3,
        2,
        12,
    ]
    impossible = owner(("X - 2022-99-22 23-06-50 - hw.ipynb",), None)
    assert impossible.time is None


@pytest.mark.parametrize("text", ["name\nA\n", "id\na/b\n", "id\n..\n", "id,name\na,A\na,B\n", "id,name\n"])
def test_a_bad_roster_is_named(text, tmp_path):
    (tmp_path / "roster.csv").write_text(text)
    with pytest.raises(CollectError, match="roster.csv: expected"):
        Roster.read(tmp_path / "roster.csv")


def test_attempts_are_kept_and_the_latest_before_the_deadline_counts(course, tmp_path):
    names = {hour: f"Иванов Пётр - 2022-05-22 {hour}-00-00-982887 - hw2 ({hour}).ipynb" for hour in (10, 20, 22)}
    downloads = tmp_path / "in"
    downloads.mkdir()
    for hour, name in names.items():
        (downloads / name).write_bytes(other(hour))
    plan = collect.collect(course, [downloads], dry=True)
    assert [row.outcome for row in plan] == ["new"] * 3 and not (course.folder / "submitted").exists()
    assert outcomes(collect.collect(course, [downloads])) == outcomes(plan), "the dry run tells what happens"
    attempts = course.attempts()["ivanov"]
    assert [one.time for one in attempts] == [datetime(2022, 5, 22, hour) for hour in names]
    (course.folder / "course.ini").write_text("[upsampling]\ndeadline = 2022-05-22 21:00\n")
    due = Course(course.folder, MADE)
    assert due.chosen("ivanov", attempts).time.hour == 20
    (course.folder / "course.ini").write_text(
        "[upsampling]\ndeadline = 2022-05-22 09:00\n[upsampling extensions]\nivanov = 2022-05-22 11:00\n"
    )
    extended = Course(course.folder, MADE)
    assert extended.chosen("ivanov", attempts).time.hour == 10 and extended.chosen("lee", attempts).time.hour == 22
    before = {path: path.stat().st_mtime_ns for path in course.folder.rglob("*.ipynb")}
    again = collect.collect(course, [downloads])
    assert {row.outcome for row in again} == {"there already"}
    assert before == {path: path.stat().st_mtime_ns for path in course.folder.rglob("*.ipynb")}


def test_of_several_at_once_the_one_with_the_most_answers_counts(course, tmp_path):
    archive = tmp_path / "class.zip"
    inner = packed([("hw-Copy1.ipynb", NOTEBOOK), ("hw.ipynb", nbformat.writes(MADE.source)), ("hw2.ipynb", other(1))])
    archive.write_bytes(packed([("Ann Lee_1_assignsubmission_file_/work.zip", inner)]))
    rows = collect.collect(course, [archive])
    assert {row.owner.student for row in rows} == {"lee"} and len(course.attempts()["lee"]) == 3
    chosen = course.chosen("lee", course.attempts()["lee"])
    assert nbformat.read(chosen.path, 4).cells[3].source == MADE.source.cells[3].source


def test_old_archives_keep_cyrillic_names(course, tmp_path):
    raw = packed([("XXXXXX XXXX_1_assignsubmission_file_hw.ipynb", NOTEBOOK)])
    name = "Иванов Петр"[:11].encode("cp866")
    (tmp_path / "old.zip").write_bytes(raw.replace(b"XXXXXX XXXX", name))
    assert [row.owner.student for row in collect.collect(course, [tmp_path / "old.zip"])] == ["ivanov"]


def test_hostile_archives_harm_nobody(course, tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "MAX_NOTEBOOK", 2**20)
    monkeypatch.setattr(collect, "MAX_UNPACKED", 3 * 2**20)
    monkeypatch.setattr(collect, "MAX_MEMBERS", 50)
    deep = NOTEBOOK
    for _ in range(6):
        deep = packed([("deep.zip" if deep is not NOTEBOOK else "hw.ipynb", deep)])
    link = zipfile.ZipInfo("linked.ipynb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    lying = bytearray(packed([("hw.ipynb", b"0" * 2**21)]))
    at = lying.index(b"PK\x01\x02") + 24
    lying[at : at + 4] = (100).to_bytes(4, "little")
    unusual = io.BytesIO()
    with zipfile.ZipFile(unusual, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("hw.ipynb", NOTEBOOK)
    locked = bytearray(packed([("hw.ipynb", NOTEBOOK)]))
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    hostile = {
        "climbs": packed([(n, other(n)) for n in ("../../../lee/upsampling/a.ipynb", "/b.ipynb", "C:\\c.ipynb")]),
        "bomb": packed([("hw.ipynb", b"0" * 2**24)]),
        "many bombs": packed([(f"{i}.ipynb", bytes(2**20 - i)) for i in range(9)]),
        "many": packed([(f"{i}.txt", b"") for i in range(60)]),
        "deep": deep,
        "link": packed([(link, "/etc/passwd")]),
        "lying": bytes(lying),
        "unusual": unusual.getvalue(),
        "locked": bytes(locked),
        "cut": packed([("hw.ipynb", NOTEBOOK)])[:-30],
        "empty": b"",
    }  # fmt: skip
    members = [(f"Пётр Иванов_657737_assignsubmission_file_/{name}.zip", content) for name, content in hostile.items()]
    members += [
        ("Ann Lee_1_assignsubmission_file_/hw.ipynb", NOTEBOOK),
        ("Ann Lee_1_assignsubmission_file_/a.rar", b""),
    ]
    (tmp_path / "class.zip").write_bytes(packed(members))
    secret = tmp_path / "outside.ipynb"
    secret.write_bytes(NOTEBOOK)
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    allowed = [course.folder / "submitted" / student / "upsampling" for student in ("ivanov", "lee")]
    rows = collect.collect(course, [tmp_path / "class.zip"])
    found = outcomes(rows)
    taken = [row for row in rows if row.outcome == "new"]
    assert sum("climbs" in row.where for row in taken) == 3
    assert {row.owner.student for row in taken if "Lee" not in row.where} == {"ivanov"}, "climbing touches nobody else"
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - everything
    assert len(new) == len(taken) == 7 and all(path.parent in allowed for path in new)
    said = {name: " ".join(out for where, (_, out) in found.items() if f"/{name}.zip" in where) for name in hostile}
    words = {
        "bomb": "larger than 1 MB", "many bombs": "holds more than 3 MB", "many": "more than 50", "deep": "deep",
        "link": "a link", "lying": "not read", "unusual": "unusual compression", "locked": "password",
        "cut": "not read", "empty": "not read",
    }  # fmt: skip
    assert not {name: said[name] for name in words if words[name] not in said[name]}
    assert any(".rar is not read" in out for _, out in found.values())


def test_links_and_devices_in_folders_are_not_followed(course, tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(NOTEBOOK)
    folder = tmp_path / "in" / "lee"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "x.ipynb").write_bytes(NOTEBOOK)
    (folder / "link.ipynb").symlink_to(secret)
    (folder / "inside").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.ipynb")
    found = outcomes(collect.collect(course, [tmp_path / "in"]))
    assert found == {f"lee/{name}.ipynb": (None, "a link or a device, not a file") for name in ("link", "pipe")}


def test_other_notebooks_are_left_out_and_unreadable_ones_are_kept_for_a_person(course, tmp_path):
    folder = tmp_path / "in" / "lee"
    folder.mkdir(parents=True)
    nbformat.write(assignment.load("gan").release(), folder / "gan.ipynb")
    (folder / "broken.ipynb").write_text("{<script>")
    found = outcomes(collect.collect(course, [tmp_path / "in"]))
    assert found["lee/broken.ipynb"] == ("lee", "new") and "not this assignment" in found["lee/gan.ipynb"][1]
    with pytest.raises(CollectError, match="expected a folder, an archive or a notebook"):
        collect.collect(course, [tmp_path / "none"])


@pytest.fixture
def server(monkeypatch, cache):
    """Stands for Drive and GitHub."""
    answers = {"/uc": NOTEBOOK, "/private": b"<!doctype html>Sign in", "/large": b"{" + b" " * 2**21}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = answers.get(self.path.partition("?")[0])
            self.send_response(200 if content else 404)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        hosts = {
            pattern: place.replace("https://drive.google.com", f"http://127.0.0.1:{made.server_port}").replace(
                "https://raw.githubusercontent.com/\\1/\\2", f"http://127.0.0.1:{made.server_port}/\\2"
            )
            for pattern, place in collect._HOSTS.items()
        }
        monkeypatch.setattr(collect, "_HOSTS", hosts)
        yield
        made.shutdown()


def test_addresses_of_colab_are_followed(course, tmp_path, server, monkeypatch):
    monkeypatch.setattr(collect, "MAX_NOTEBOOK", 2**20)
    links = {
        "Пётр Иванов": "https://colab.research.google.com/drive/1aB_c-9?usp=sharing",
        "lee": "https://drive.google.com/file/d/xyz/view",
        "petrova": "https://github.com/a/b/blob/private",
        "petrova2": "https://colab.research.google.com/github/a/b/blob/large",
        "a": "https://github.com/a/b/blob/gone",
        "b": "http://127.0.0.1/uc",
        "c": "file:///etc/passwd",
    }
    table = tmp_path / "links.csv"
    table.write_text("student,address\n" + "\n".join(",".join(row) for row in links.items()), encoding="utf-8")
    found = {row.where.partition(": ")[0].partition("/")[0]: row for row in collect.collect(course, [table])}
    assert {row.owner.student for row in found.values() if row.outcome == "new"} == {"ivanov", "lee"}
    for student, says in {
        "petrova": "shared with everybody", "petrova2": "larger than 1 MB", "a": "404", "b": "expected an address",
        "c": "expected an address",
    }.items():  # fmt: skip
        assert says in found[student].outcome
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    assert "COURSE_OFFLINE forbids it" in collect.collect(course, [table])[0].outcome
    table.write_text("who,where\na,b\n")
    with pytest.raises(CollectError, match="expected the columns student and address"):
        collect.collect(course, [table])
