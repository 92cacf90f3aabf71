"""The grader against those who would fool it: wire, sandbox, and attacks as real submissions beside honest ones."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
import safetensors.torch
import torch
from conftest import normal
from hypothesis import given, settings
from hypothesis import strategies as st

from grading import assignment, batch, checks, feedback, grade, sandbox, wire
from grading.course import Course
from grading.sandbox import Limits, Sandbox, SandboxError, StudentError

needs_sandbox = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed (apt install bubblewrap)"
)


@pytest.fixture(scope="module")
def isolated():
    pytest.importorskip("pyseccomp", reason="pyseccomp is not installed (pip install -e .[grading])")
    try:
        made = Sandbox()
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")
    with made:
        with made.start() as job:
            try:
                job.ask({"do": "names", "names": []}, 60)
            except StudentError as error:
                pytest.skip(f"no job in a sandbox on this machine: {error}; {made.said()}")
        yield made


@pytest.fixture(scope="module")
def plain():
    with Sandbox(isolated=False) as made:
        yield made


# --- wire

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(-5, 5), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(values)
def test_messages_come_back_as_they_were(value):
    found = wire.decode(wire.encode(value))
    assert repr(found) == repr(value), "NaN too, and -0.0, and which is a tuple"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_dense(dtype):
    x = (normal(3, 4) * 9).to(dtype)
    for sent in (x, x.mT, x[::2], x.expand(2, 3, 4), torch.nn.Parameter(x) if dtype.is_floating_point else x):
        found = wire.decode(wire.encode({"x": [sent]}))["x"][0]
        assert type(found) is torch.Tensor and found.dtype == dtype and torch.equal(found, sent.detach())
    assert wire.decode(wire.encode([np.float32(0.5), np.int64(3), np.arange(3)[::-1]]))[:2] == [0.5, 3]


def test_what_pretends_arrives_as_what_it_is():
    class Always(torch.Tensor):
        __eq__ = __ge__ = __le__ = lambda self, other: True

    class One(float):
        def __eq__(self, other):
            return True

        __hash__ = None

    found = wire.decode(wire.encode([torch.zeros(2).as_subclass(Always), One(7)]))
    assert type(found[0]) is torch.Tensor and type(found[1]) is float and found[1] == 7


def test_broken_messages_are_refused():
    good = wire.encode({"a": [1, torch.zeros(2)]})
    deep = json.dumps([]).join("[" * 3 + "]" * 3)
    bad = [b"", b"\xff" * 40, good[:-1], good[:20], good.replace(b"tensor", b"tensoR"), b"\x00" * 8 + good[8:]]
    for message in (
        '{"int": "1x"}',
        '{"float": "1"}',
        '{"tensor": "7"}',
        '{"dict": [[[], 1]]}',
        "[1]",
        "{}",
        deep,
        "nul",
    ):
        bad.append(safetensors.torch.save({}, {"message": message}))
    bad.append(safetensors.torch.save({}, {"message": '{"list": [' * 40 + "]}" * 40}))
    bad.append(safetensors.torch.save({}, {"message": '{"list": [' + "1," * wire.MAX_ITEMS + "1]}"}))
    for content in bad:
        with pytest.raises(wire.WireError):
            wire.decode(content)
    with pytest.raises(TypeError, match="cannot send object"):
        wire.encode(object())
    endless = []
    endless.append(endless)
    with pytest.raises(ValueError, match="nested"):
        wire.encode(endless)


# --- comparing


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        (torch.ones(2), torch.ones(3), "shape"),
        (torch.ones(2, dtype=torch.int64), torch.ones(2), "floats"),
        (torch.tensor([1.0, float("nan")]), torch.ones(2), "NaN"),
        (torch.tensor([1.0, float("inf")]), torch.ones(2), "off by up to inf"),
        (1.0, torch.ones(1), "tensor"),
        (True, 1, "number"),
        ("1", 1, "number"),
        (2, 1, "wrong"),
        (1.01, 1.0, "off by up to 0.01"),
        ([1], [1, 2], "2 values"),
        ([1, [2, 3.5]], [1, [2, 3.0]], "off"),
        (torch.tensor([0, 1]), torch.tensor([1, 1]), "1 of 2"),
        (float("nan"), 1.0, "NaN"),
        (None, "a", "wrong"),
    ],
)
def test_differences_are_named(found, expected, says):
    assert says in checks.difference(found, expected)


def test_right_answers_have_no_difference():
    big = normal(5) * 1e6
    for found, expected in (
        (big + 1, big), (torch.ones(2).half(), torch.ones(2)), (torch.tensor(3), 3), (torch.tensor(0.5), 0.5),
        ((1, 2), [1, 2]), (torch.tensor([float("inf")]), torch.tensor([float("inf")])), (3, 3.0),
        (torch.zeros(0, 2), torch.zeros(0, 2)), (torch.tensor([1], dtype=torch.int32), torch.tensor([True])),
    ):  # fmt: skip
        assert checks.difference(found, expected) is None


# --- sandbox


@needs_sandbox
def test_the_sandbox_refuses_what_an_attacker_tries_first(isolated):
    assert not [name for name, got_through in sandbox.attack(isolated).items() if got_through]


@needs_sandbox
def test_an_ordinary_users_sandbox_refuses_as_much(isolated, tmp_path):
    """Root's tests lend this one to an account without rights; folders that it may not enter are uncovered for it."""
    if os.geteuid() != 0:
        pytest.skip("the test above is an ordinary user's already")
    account = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all"
    if subprocess.run([*account.split(), "unshare", "--user", "true"]).returncode:
        pytest.skip("this kernel gives ordinary users no namespaces")
    places = [sandbox.ROOT, *(p for p in Sandbox._view(sys.executable) if not p.is_relative_to(sandbox.ROOT))]
    lines, uncover, covered = ["set -e"], [], set()
    for number, place in enumerate(places):
        private = [parent for parent in reversed(place.parents) if not parent.stat().st_mode & 1]
        if private:
            kept = tmp_path / str(number)
            kept.mkdir()
            lines.append(f"mount --bind {place} {kept}")
            if private[0] not in covered:
                uncover.append(f"mount -t tmpfs -o mode=755 none {private[0]}")
                covered.add(private[0])
            uncover += [f"mkdir -p {place}", f"mount --bind {kept} {place}"]
    lines += [*uncover, f"cd {sandbox.ROOT}", f"exec {account} {sys.executable} -m grading sandbox"]
    path = os.pathsep.join([str(sandbox.ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "\n".join(lines)],
        env={**os.environ, "HOME": "/tmp", "PYTHONPATH": path}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused") == len(sandbox._ATTACKS)


def test_the_attacks_see_an_open_door(plain):
    with pytest.raises(
        SandboxError, match="does not hold here: .*a file of the grader.*the network, .*another process"
    ):
        sandbox.assert_safe(plain)


@needs_sandbox
def test_jobs_share_nothing_and_end_with_all_that_they_started(isolated):
    leave = "import os\nopen('/tmp/mine', 'w').write('1')\nif os.fork() == 0:\n    os.setsid()\n    while True: pass"
    with isolated.start() as one:
        one.ask({"do": "run", "source": leave}, 20)
        with isolated.start() as two:
            two.ask({"do": "run", "source": "import os\nfound = os.listdir('/tmp'), os.getuid()"}, 20)
            files, uid = two.ask({"do": "get", "target": None, "path": "found"}, 20)
            one.ask({"do": "run", "source": "mine = os.getuid()"}, 20)
            assert "mine" not in files
            assert uid == 0 or uid != one.ask({"do": "get", "target": None, "path": "mine"}, 20), "a uid of its own"
    with isolated.start() as three:
        assert three.ask({"do": "names", "names": ["found"]}, 20) == []


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match="apt install bubblewrap"):
        Sandbox()


@needs_sandbox
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("while True: pass", "no answer within"),
        ("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", "no answer"),
        ("import os; os._exit(0)", "ended"),
        ("import torch; x = torch.ones(300_000_000, dtype=torch.float64)", "ended|broke"),
    ],
)  # fmt: skip
def test_what_ends_a_process_is_reported(isolated, source, says):
    with isolated.start(Limits(memory=2**30)) as job:
        with pytest.raises(StudentError, match=says):
            job.ask({"do": "run", "source": source}, 3 if "while" in source else 60)
            job.ask({"do": "get", "target": None, "path": "os"}, 3)
        with pytest.raises(StudentError, match="has ended"):
            job.ask({"do": "names", "names": []}, 3)


# --- attacks as submissions

STUB = assignment.load("upsampling").release()
ATTACKS = {
    "always equal": """
class Always:
    def __eq__(self, other): return True
    __ge__ = __le__ = __gt__ = __lt__ = __eq__
    shape = (1,)
    def __getattr__(self, name): return self
    def __call__(self, *args, **kwargs): return self
fitting_layers = stretch = transposed = depth_to_space = visits = learn_kernel = Always()
""",
    "subclasses": """
import torch, numpy
class T(torch.Tensor):
    def __eq__(self, other): return True
    @classmethod
    def __torch_function__(cls, f, types, args=(), kwargs=None): return True
class A(numpy.ndarray):
    def __eq__(self, other): return True
stretch = transposed = lambda *a: torch.zeros(1).as_subclass(T)
depth_to_space = visits = lambda *a: numpy.zeros(3).view(A)
""",
    "input and AST transformers": """
import ast
ip = get_ipython()
class Cheat(ast.NodeTransformer):
    def visit_Assert(self, node): return ast.Pass()
ip.ast_transformers.append(Cheat())
ip.input_transformers_cleanup.append(lambda lines: ["pass\\n"])
ip.run_cell = ip.run_cell_async = lambda *a, **k: None
ip.kernel = None
""",
    "patched comparison": """
import builtins, torch
torch.allclose = torch.equal = lambda *a, **k: True
builtins.round = builtins.abs = builtins.all = lambda *a, **k: True
import grading.checks, grading.wire, grading.server
grading.checks.same = grading.checks.difference = lambda *a, **k: None
grading.wire.encode = lambda *a, **k: b""
""",
    "monkeypatched course": """
import course_lib.base.images as images
for name in dir(images): setattr(images, name, lambda *a, **k: True)
""",
    "forged replies": """
import gc, socket, struct
for thing in gc.get_objects():
    if isinstance(thing, socket.socket):
        thing.sendall(struct.pack(">Q", 3) + b"abc")
""",
    "huge replies": "stretch = transposed = lambda *a: torch.zeros(40_000_000)\nvisits = lambda *a: list(range(10**6))",
    "another's memory": """
import os, glob
for path in glob.glob("/proc/[0-9]*/mem"):
    try: open(path, "rb").read(1)
    except Exception: pass
found = [open(p).read() for p in glob.glob("/**/gradebook*", recursive=True)]
""",
    "reading the stack": """
import sys, inspect
def stretch(*args):
    for frame in inspect.stack():
        for value in frame.frame.f_locals.values():
            if isinstance(value, dict) and "expected" in value: return value["expected"]
    return sys._getframe(1).f_locals
transposed = depth_to_space = visits = learn_kernel = fitting_layers = stretch
""",
    "a long line": "print('x' * 40_000_000)",
    "HTML": "from IPython.display import HTML, display\ndisplay(HTML('<script>1</script>')); print('<b>')",
    "exit": "import os; os._exit(0)",
    "system exit": "raise SystemExit(0)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "memory": "hog = [bytearray(2**28) for _ in range(32)]",
    "a child of its own": """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: pass
""",
    "recursion": "def visits(*a):\n    x = []\n    x.append(x)\n    return x\nstretch = visits",
    "no functions": "del fitting_layers, stretch, transposed",
    "a kernel of its own": """
ip = get_ipython()
class Kernel:
    def do_execute(self, *a, **k): return {"status": "ok", "execution_count": 1, "payload": [], "user_expressions": {}}
ip.kernel = Kernel()
type(ip).run_cell = type(ip).run_code = lambda *a, **k: None
""",
    "the history": """
def stretch(*args):
    ip = get_ipython()
    past = [ip.user_ns.get(name) for name in ("In", "_ih", "_oh", "Out")]
    return str(past) + str(list(ip.history_manager.get_range()))
transposed = depth_to_space = visits = learn_kernel = fitting_layers = stretch
""",
    "endless, deaf to signals": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "a neighbour and the gradebook": """
import glob, os, sqlite3
new = [FOLDER + "/gradebook.db", FOLDER + "/results/upsampling/mine.json"]
for path in new + glob.glob(FOLDER + "/**/*", recursive=True):
    try: open(path, "w").write('{"earned": 99}')
    except OSError: pass
    try: sqlite3.connect(FOLDER + "/gradebook.db").execute("UPDATE grade SET auto_score = 99")
    except sqlite3.Error: pass
stretch = visits = lambda *a: str([open(p).read() for p in glob.glob(FOLDER + "/**/*.ipynb", recursive=True)])
""",
    "timing": """
import time
asked = []
def stretch(x, *args):
    asked.append((time.monotonic(), x))
    waits = [b[0] - a[0] for a, b in zip(asked, asked[1:])]
    return asked[-2][1] if waits and waits[-1] > min(waits) else x
transposed = learn_kernel = visits = depth_to_space = fitting_layers = stretch
""",
    "half characters": """
print("\\ud800")
def stretch(*a): raise ValueError("\\ud800" * 9)
visits = transposed = lambda *a: "\\udfff"
raise KeyError("\\ud83d")
""",
    "errors that lie": """
class Error(Exception):
    def __str__(self): raise SystemExit(1)
    __repr__ = __str__
def stretch(*a): raise Error
def visits(*a): raise GeneratorExit
transposed = depth_to_space = learn_kernel = stretch
raise Error
""",
}  # fmt: skip


def submission(*sources, base=STUB):
    notebook = nbformat.v4.new_notebook(cells=list(base.cells))
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    return notebook


def submitted(folder, student, notebook, time="2026-05-01_12-00-00", number=0):
    path = folder / "submitted" / student / "upsampling" / f"{time}_{number:02d}_x.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook))
    return path


def forged(notebook):
    """Points and outputs as if everything were right."""
    for cell in notebook.cells:
        mark = cell.metadata.get("nbgrader", {})
        mark.update(points=99, score=99, comment="right", grade=True, checksum="0" * 32)
        if cell.cell_type == "code":
            data = {"text/plain": "20", "text/html": "<script>alert(1)</script>"}
            cell.outputs = [nbformat.v4.new_output("execute_result", data, execution_count=1)]
    notebook.metadata["grading"] = {"earned": 99}
    return notebook


def nurseries():
    found = set()
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if "grading.nursery" in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


@pytest.fixture(scope="module")
def graded(isolated, tmp_path_factory):
    """All attacks and two honest solutions in one course, graded together as an instructor does."""
    folder, made = tmp_path_factory.mktemp("class"), assignment.load("upsampling")
    course = Course(folder, made)
    (folder / "gradebook.db").write_text("the gradebook")
    for student in ("honest", "honest too"):
        submitted(folder, student, made.source)
    for attack, source in ATTACKS.items():
        submitted(folder, attack, submission(source.replace("FOLDER", repr(str(folder)))))
    submitted(folder, "forged metadata", forged(made.release()))
    submitted(folder, "invalid JSON", "[" * 100_000)
    submitted(folder, "no notebook", '{"nbformat": 4, "nbformat_minor": 5, "metadata": 3, "cells": {"a": [1]}}')
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = nurseries()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "CELL_SECONDS", 8.0)
        patch.setattr(checks, "SECONDS", 8.0)
        patch.setattr(batch, "grade", functools.partial(grade.grade, limits=Limits(memory=2**30)))
        reports = batch.grade_all(course, workers=2)
    end = time.monotonic() + 20
    while (left := nurseries() - before) and time.monotonic() < end:
        time.sleep(0.1)
    changed = {path for path, content in files.items() if path.read_bytes() != content}
    (folder / "gradebook.db").unlink()
    return course, reports, changed, left


@needs_sandbox
@pytest.mark.parametrize("attack", [*ATTACKS, "forged metadata", "invalid JSON", "no notebook"])
def test_an_attack_earns_nothing_and_says_why(attack, graded):
    report = graded[1][attack]
    assert report["earned"] == 0 and report["points"] == 20
    parts = [part for exercise in report["exercises"].values() for part in exercise["parts"]]
    assert parts and all(reason for _, _, reason in parts), "never a silent 0"


@needs_sandbox
def test_attacks_harm_nobody_beside_them(graded):
    course, reports, changed, left = graded
    assert reports["honest"]["earned"] == reports["honest too"]["earned"] == 20
    assert not changed, "no file of the course was touched"
    assert not left, "no process is left"
    assert course.reports() == reports
    totals = course.totals(reports)
    found = feedback.rows(course, reports, totals)
    texts = [feedback.page(course, reports[student], totals[student], {}) for student in reports]
    assert not [text for text in [*texts, feedback.index(course, found)] if "<script>" in text]
    feedback.table(found).encode()


@needs_sandbox
def test_an_honest_solution_beside_attacks_earns_everything(isolated, monkeypatch):
    monkeypatch.setattr(grade, "CELL_SECONDS", 15.0)
    made = assignment.load("upsampling")
    noisy = "import warnings; warnings.warn('deprecated'); %matplotlib inline\n%pip install torch\n!ls"
    for notebook in (
        made.source,
        submission(noisy, base=made.source),
        submission("while True: pass", base=made.source),
    ):
        notebook = nbformat.from_dict(notebook)  # a copy
        notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell in notebook.cells:
            cell.metadata = {}
        report = grade.grade(made, notebook, isolated, "secret")
        assert report.earned == 20, "without metadata, with a warning, and with a cell that never ends"


def test_what_is_forbidden_is_flagged_and_costs_nothing(plain):
    made = assignment.load("upsampling")
    short = "import torch.nn.functional as F\ndef transposed(x, weight, stride=1, padding=0):\n" \
            "    return F.conv_transpose1d(x, weight, None, stride, padding)"  # fmt: skip
    report = grade.grade(made, made.filled({"transposed": short}), plain, "secret")
    assert report.earned == 20
    assert [flag for flag in report.flags if "conv_transpose1d, which transposed forbids" in flag]


def test_inputs_depend_on_the_secret_and_repeat():
    assert grade.seed_of("a", "b") == grade.seed_of("a", "b") != grade.seed_of("ab", "")


# --- the command line


@pytest.fixture
def warm(plain, monkeypatch):
    """The command line takes the warm process that is there already."""
    monkeypatch.setattr(plain, "close", lambda: None)
    monkeypatch.setattr(batch, "Sandbox", lambda isolated: plain)


def run(*words):
    from grading.__main__ import main

    return main([str(word) for word in words])


def scores(folder):
    rows = list(csv.reader((folder / "results" / "upsampling" / "scores.csv").read_text("utf-8-sig").splitlines()))
    return {row[0].removeprefix("'"): dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_a_course_is_graded_goes_on_and_asks_a_person(tmp_path, capsys, warm):
    made = assignment.load("upsampling")
    answered = made.filled({"explain": "Because <script>alert(1)</script> of \ud800 the weights."})
    words = ("upsampling", "--course", tmp_path)
    grading = ("grade", *words, "--no-sandbox", "--workers", 1)
    submitted(tmp_path, "Анна", answered)
    submitted(tmp_path, "=cmd", made.release())
    submitted(tmp_path, "broken", "{<script>")
    submitted(tmp_path, "late", made.filled({"explain": "", "linear": "1/0"}), "2026-05-03_12-00-01")
    (tmp_path / "course.ini").write_text("[upsampling]\ndeadline = 2026-05-01 12:00\npenalty = 10%\n")
    assert run(*grading) == 0
    assert "WITHOUT A SANDBOX" in capsys.readouterr().err
    found = scores(tmp_path)
    assert found["Анна"]["total"] == "20" and found["Анна"]["explain"] == "" and "explain" in found["Анна"]["status"]
    assert found["=cmd"]["total"] == "0" and found["=cmd"]["status"] == "complete", "nothing was answered"
    assert found["broken"]["kernels"] == "" and "a person decides: kernels" in found["broken"]["status"]
    assert "not a notebook that can be read" in found["broken"]["look at"]
    late = found["late"]  # two days and a second: three days of ten percent
    assert (late["late days"], late["linear"], late["penalty"], late["total"]) == ("3", "", "4.8", "11.2")
    assert "stretch not found" in late["look at"] and all(
        "NOT IN A SANDBOX" in row["look at"] for row in found.values()
    )
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert len(pages) == 5 and not [page for page in pages if "<script>" in page]

    by_hand = tmp_path / "results" / "upsampling" / "by_hand.csv"
    text = by_hand.read_text("utf-8-sig")
    assert "Because <script>" in text and text.count("\n") == 1 + 1 + 7 + 1
    text = text.replace("Анна,explain,,2,", "Анна,explain,1.5,2,Good").replace(
        "late,linear,,4,", "late,linear,4,4,A typo"
    )
    by_hand.write_text(text.replace(",", ";").replace("1.5", "1,5"), "utf-8-sig")  # as Excel may save it
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/*.json")}
    submitted(tmp_path, "=cmd", made.source, "2026-05-01_11-00-00")
    submitted(tmp_path, "=cmd", made.source, "2026-05-01_11-30-00")
    assert run(*grading) == 0
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [], "the latest attempt is still the release, and nothing else changed"
    (tmp_path / "submitted" / "=cmd" / "upsampling" / "2026-05-01_12-00-00_00_x.ipynb").unlink()
    assert run(*grading) == 0
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == ["=cmd.json"], "only what changed is graded again"
    found = scores(tmp_path)
    assert found["Анна"]["total"] == "21.5" and found["Анна"]["status"] == "complete"
    assert found["late"]["linear"] == "4" and found["late"]["total"] == "14"
    assert "Good" in (tmp_path / "feedback" / "Анна" / "upsampling" / "upsampling.html").read_text()
    (tmp_path / "course.ini").write_text(
        "[upsampling]\ndeadline = 2026-05-01 12:00\npenalty = 10\n[upsampling extensions]\nlate = 2026-05-02 12:00\n"
    )
    assert run("export", *words) == 0 and scores(tmp_path)["late"]["total"] == "16", "one day less"

    submitted(tmp_path, "Анна", made.filled({"explain": "Something else."}), number=1)
    (tmp_path / "submitted" / "Анна" / "upsampling" / "2026-05-01_12-00-00_00_x.ipynb").unlink()
    assert run(*grading) == 0
    assert "Анна,explain,,2,1.5 points for an earlier answer. Good" in by_hand.read_text("utf-8-sig")
    capsys.readouterr()
    assert run("status", *words) == 0
    said = capsys.readouterr().out
    assert "late" in said and "2 days late; 16 points" in said and "20 points, a person decides: explain" in said


def test_a_changed_assignment_regrades_everybody(tmp_path, monkeypatch, capsys, warm):
    words = ("upsampling", "--course", tmp_path)
    submitted(tmp_path, "anna", STUB)
    assert run("grade", *words, "--no-sandbox") == 0
    assert run("status", *words) == 0 and "0 points" in capsys.readouterr().out
    monkeypatch.setattr(assignment.Assignment, "version", "another")
    assert run("status", *words) == 0 and "has changed since" in capsys.readouterr().out
    assert run("release", *words) == 0
    assert run("grade", *words, "--no-sandbox") == 0
    assert json.loads((tmp_path / "results" / "upsampling" / "anna.json").read_text())["version"] == "another"


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("course.ini", "[upsampling]\ndeadline = tomorrow", "expected a time like"),
        ("course.ini", "[upsampling]\npenalty = 200", "from 0 to 100 percent"),
        ("course.ini", "deadline = 1", "course.ini: "),
        ("results/upsampling/by_hand.csv", "student,item,points\na,explain,3", "row 2: expected points from 0 to 2"),
        ("results/upsampling/by_hand.csv", "student,item,points\na,explain,-1", "row 2: expected points"),
        ("results/upsampling/by_hand.csv", "student,item,points\na,exlain,1", "expected an item of kernels"),
        ("results/upsampling/by_hand.csv", "who,what\na,b", "expected the columns"),
    ],
)
def test_bad_tables_are_named(file, text, says, tmp_path, capsys):
    submitted(tmp_path, "anna", STUB)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert run("status", "upsampling", "--course", tmp_path) == 1
    assert says in capsys.readouterr().err


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    words = ("upsampling", "--course", tmp_path)
    assert run("release", *words) == 0
    released = tmp_path / "release" / "upsampling" / "upsampling.ipynb"
    content = released.read_bytes()
    assert run("release", *words) == 0 and "released already" in capsys.readouterr().out
    assert released.read_bytes() == content
    old = json.loads(content)
    old["metadata"]["grading"]["version"] = "older"
    released.write_text(json.dumps(old))
    assert run("release", *words) == 0 and released.read_bytes() == content
    assert (released.parent / "upsampling.older.ipynb").exists(), "nothing is overwritten"
    assert run("release", *words, "--language", "ru") == 0
    assert "Задание: upsampling" in nbformat.read(released.parent / "ru" / released.name, as_version=4).cells[0].source
    assert released.read_bytes() == content, "the English one stays"
    assert run("release", *words, "--language", "fr") == 1
    assert "upsampling: expected a language of en, ru; got 'fr'" in capsys.readouterr().err
    assert run("release", "cooking", "--course", tmp_path) == 1
    assert "expected an assignment of" in capsys.readouterr().err
    assert run("grade", *words) == 1
    assert "collect them first" in capsys.readouterr().err
    assert run("collect", *words[:1], tmp_path / "none", *words[1:]) == 1
    assert "expected a folder, an archive or a notebook" in capsys.readouterr().err


def test_the_sample_class_is_graded_as_it_deserves(tmp_path, capsys, warm):
    """What `make grade` does."""
    import sample_course

    assert sample_course.run(tmp_path, "--no-sandbox", "--workers", "1") == 0
    said = capsys.readouterr().out
    assert "8 notebooks would be collected" in said and "absent" in said and "nothing found" in said
    found = scores(tmp_path)
    assert {student: (row["total"], row["late days"]) for student, row in found.items()} == {
        "ivanov": ("20", "0"), "petrova": ("20", "0"), "kim": ("20", "0"), "orlova": ("3", "0"), "smith": ("0", "0"),
        "lee": ("13.2", "2"), "garcia": ("18", "0"), "weber": ("0", "0"),
    }  # fmt: skip
    assert found["petrova"]["look at"] == "NOT IN A SANDBOX", "in Russian, without ids, and every cell is found"
    assert "visits not found" in found["garcia"]["look at"] and found["garcia"]["blur"] == ""
    assert "not a notebook that can be read" in found["weber"]["look at"]
    page = (tmp_path / "results" / "upsampling" / "index.html").read_text()
    assert "Graded without a sandbox" in page and page.count("<tr>") == 9
    links = [tmp_path / "results" / "upsampling" / link for link in re.findall('href="([^"]+)"', page)]
    assert len(links) == 8 and all(link.resolve().is_file() for link in links)


@pytest.mark.parametrize("grace", [0.3, 0.7])
def test_a_grader_that_is_killed_goes_on_where_it_was(grace, tmp_path, monkeypatch):
    """As benchmarks/grader.py does twenty times: SIGKILL at some moment, once more, and nothing is different."""
    from benchmarks import grader as benchmark

    monkeypatch.setattr(benchmark.random.Random, "uniform", lambda self, low, high: grace)
    found = benchmark.kills(tmp_path, students=2, times=1, options=("--no-sandbox",))
    assert found["equal"] == 1, found


def test_the_benchmark_starts_as_a_script_and_extrapolates_from_a_line(tmp_path, monkeypatch):
    """Two processors take half a second a submission; on sixteen, the grader's own tenth of a second is the limit."""
    from benchmarks import grader as benchmark

    path = os.pathsep.join([str(sandbox.ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(sandbox.ROOT / "benchmarks" / "grader.py"), "--help"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, timeout=300)

    def measured(folder):
        students = len(list(folder.glob("submitted/*/upsampling/upsampling.ipynb")))
        return {"seconds": 10 + 0.5 * students, "own seconds": 3 + 0.1 * students, "MB a sandbox": 400.0}

    monkeypatch.setattr(benchmark, "ours", measured)
    found = benchmark.growth(tmp_path, [2, 4, 8])
    assert found["seconds"] == pytest.approx({"start": 10, "each": 0.5, "own": 0.1})
    assert found["extrapolated"]["seconds"] == pytest.approx(10 + 2000 * 0.1)
    made, light = assignment.load("upsampling"), nbformat.read(next(tmp_path.glob("8/submitted/*/*/*.ipynb")), 4)
    names = [assignment.grade_id(cell) for cell in light.cells]
    assert names == ["setup", *(exercise.name for exercise in made.exercises), "explain"]
