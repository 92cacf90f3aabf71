"""Where submissions run: bubblewrap around a warm process, and around each of its jobs namespaces of its own.

What a job can reach: the interpreter and the course, read-only; a private /tmp of limited size; nothing else. No
network, no other process, no capability, an unprivileged uid of its own where the grader is root. Memory, processes,
time and what it says are limited, and when it ends all that it started ends with it.

Linux with bubblewrap (Debian: `apt install bubblewrap`) and libseccomp; on macOS and Windows grade inside Docker.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grading.wire import WireError, decode, encode, receive, send

ROOT = Path(__file__).resolve().parents[1]
START = 120.0  # s for the warm process to import torch, on a slow disk
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_KILL", "CAP_SYS_PTRACE")


class SandboxError(RuntimeError):
    """The sandbox is missing or does not hold; the message says what to do."""


class StudentError(Exception):
    """The submission's own failure: its function raised, is missing, hung, or answered what cannot be read."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    Attributes:
        memory: bytes, of all its processes together.
        processes: processes and threads at once.
        disk: bytes in its private /tmp.
        seconds: of processor time, in each process.
    """

    memory: int = 3 * 2**30
    processes: int = 64
    disk: int = 256 * 2**20
    seconds: int = 900


class Job:
    """One submission's process, and the conversation with it.

    Args:
        channel: a socket to it.
        end: ends the process and all that it started.
    """

    def __init__(self, channel: socket.socket, end: Any) -> None:
        self._channel, self._end, self.alive = channel, end, True

    def ask(self, message: dict[str, Any], seconds: float) -> Any:
        """Send a message and wait for its answer.

        Raises:
            StudentError: the process answered with an error, nothing readable, or not in time; after the last two it
                is ended, and every further question fails at once.
        """
        if not self.alive:
            raise StudentError("the submission's process has ended")
        try:
            send(self._channel, encode(message), seconds)
            reply = decode(receive(self._channel, seconds))
        except WireError as error:
            self.close()
            raise StudentError(str(error)) from error
        match reply:
            case {"error": str(text)}:
                raise StudentError(text[:2000])
            case {"answer": answer}:
                return answer
        self.close()
        raise StudentError("an answer that is none")

    def close(self) -> None:
        """End the process, with all that it started."""
        if self.alive:
            self.alive = False
            self._channel.close()
            self._end()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sandbox:
    """A warm process, and jobs forked from it. Use it with `with`.

    Args:
        isolated: False runs submissions with the grader's own rights, which is for tests of assignments alone.
        python: the interpreter that has the course's packages.

    Raises:
        SandboxError: there is no bubblewrap, or the warm process does not start.
    """

    def __init__(self, isolated: bool = True, python: str = sys.executable) -> None:
        self.isolated, self._number = isolated, 0
        self._orders, theirs = socket.socketpair()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        command = [python, "-m", "grading.nursery", str(theirs.fileno()), "isolated" if isolated else "plain"]
        environment = self._environment()
        if isolated:
            command = [*self._bubblewrap(python), *command]
        self._process = subprocess.Popen(
            command, env=environment, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._said, stderr=self._said, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._orders.settimeout(START)
        if self._hear() != b"ready\n":
            self.close()
            raise SandboxError(f"the sandbox does not start: {self.said() or 'no word from it'}")

    def start(self, limits: Limits | None = None) -> Job:
        """A fresh process for a submission.

        Args:
            limits: what it may use.

        Raises:
            SandboxError: the warm process has gone.
        """
        ours, theirs = socket.socketpair()
        self._number += 1
        number = self._number
        order = {"do": "start", "number": number, "isolated": self.isolated, "root": os.geteuid() == 0}
        self._order({**order, "limits": asdict(limits or Limits())}, theirs)
        theirs.close()
        return Job(ours, lambda: self._order({"do": "end", "number": number}))

    def said(self) -> str:
        """What the warm process wrote to its error output, for the person who runs the grader."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")[-4000:].strip()

    def close(self) -> None:
        """End the warm process and every job."""
        self._orders.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _order(self, order: dict[str, Any], *sockets: socket.socket) -> None:
        try:
            socket.send_fds(self._orders, [json.dumps(order).encode()], [s.fileno() for s in sockets])
            heard = self._hear()
        except OSError:
            heard = b""
        if heard != b"done\n":
            raise SandboxError(f"the sandbox has ended: {self.said() or 'no word from it'}")

    def _hear(self) -> bytes:
        heard = b""
        while not heard.endswith(b"\n"):
            try:
                part = self._orders.recv(64)
            except TimeoutError:
                break
            if not part:
                break
            heard += part
        return heard

    @staticmethod
    def _environment() -> dict[str, str]:
        """Of the grader's own variables none but the search path: they may hold secrets."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *Sandbox._packages()])),
            "PYTHONHASHSEED": "0",
            "LANG": "C.UTF-8",
            "HOME": "/tmp",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": "/tmp/matplotlib",
            "IPYTHONDIR": "/tmp/ipython",
            "OMP_NUM_THREADS": "1",
            "COURSE_OFFLINE": "1",
            "COURSE_DEVICE": "cpu",
            "COURSE_CACHE": "/tmp/cache",
        }

    @staticmethod
    def _bubblewrap(python: str) -> list[str]:
        program = shutil.which("bwrap")
        if program is None:
            raise SandboxError("bubblewrap is missing: `apt install bubblewrap`, or grade inside Docker")
        command = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        if os.geteuid() == 0:
            command += ["--cap-drop", "ALL"]
        else:
            command += ["--unshare-user", "--uid", "1000", "--gid", "1000"]  # there is no root in it
        for capability in CAPABILITIES:
            command += ["--cap-add", capability]
        for place in ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin"):
            if os.path.islink(place):
                command += ["--symlink", os.readlink(place), place]
            elif os.path.isdir(place):
                command += ["--ro-bind", place, place]
        for place in ("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/fonts"):
            command += ["--ro-bind-try", place, place]
        command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--hostname", "sandbox"]
        for place in Sandbox._view(python):
            for parent in reversed(place.parents[:-1]):
                command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", str(place), str(place)]
        return [*command, "--chdir", str(ROOT), "--"]

    @staticmethod
    def _packages() -> list[Path]:
        """Where packages lie outside the interpreter's own folders: `pip install --user`, PYTHONPATH."""
        own = (Path(sys.prefix), Path(sys.base_prefix))
        places = [Path(place) for place in sys.path if place]
        outside = [place for place in places if not any(place.is_relative_to(prefix) for prefix in own)]
        return [place for place in outside if place.name in ("site-packages", "dist-packages") and place.is_dir()]

    @staticmethod
    def _view(python: str) -> list[Path]:
        """The folders of the interpreter and of the course that a job reads."""
        paths = {Path(os.path.abspath(python)).parents[1], Path(os.path.realpath(python)).parents[1]}
        paths |= {Path(sys.prefix), Path(sys.base_prefix), Path(sysconfig.get_path("purelib")), *Sandbox._packages()}
        paths |= {ROOT / name for name in ("course_lib", "grading", "data")}
        paths = {path for path in paths if not path.is_relative_to("/usr")}
        return sorted(path for path in paths if not any(path.is_relative_to(other) for other in paths - {path}))


# What an attacker tries first: expressions, true where they get through.
_ATTACKS = {
    "remounting the system for writing": "libc.mount(b'none', b'/usr', None, 4096 | 32, None) == 0",
    "a namespace of its own with every right": "libc.unshare(0x10000000) == 0",
    "becoming root": "os.setuid(0) or os.getuid() == 0",
    "the accounts' passwords": "bool(open('/etc/shadow').read(1))",
    "a file of the grader": "bool(open(SECRET).read(1))",
    "writing into the course": "bool(open(COURSE + '/course_lib/.tried', 'w'))",
    "the network": "connects(socket.AF_INET, ('127.0.0.1', PORT))",
    "the host's virtual socket": "bool(socket.socket(socket.AF_VSOCK))",
    "another process": "any(p.isdigit() and int(p) not in (1, os.getpid()) for p in os.listdir('/proc'))",
    "tracing a process": "traces()",
    "a disk beyond its size": "open('/tmp/.tried', 'wb').write(bytes(DISK + 2**20)) > DISK",
    "processes without end": "forks()",
}
_TOOLS = """
import ctypes, os, signal, socket, time
libc = ctypes.CDLL(None, use_errno=True)
def sleeper():
    child = os.fork()
    if child == 0:
        time.sleep(5)
        os._exit(0)
    return child
def end(children):
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
def connects(family, address):
    socket.socket(family).connect(address)
    return True
def traces():
    child = sleeper()
    try:
        return libc.ptrace(0x4206, child, None, None) == 0
    finally:
        end([child])
def forks():
    children = []
    try:
        while len(children) < PROCESSES + 50:
            children.append(sleeper())
        return True
    finally:
        end(children)
def attempt(attack):
    try:
        return bool(eval(attack))
    except BaseException:
        return False
"""


def attack(sandbox: Sandbox) -> dict[str, bool]:
    """Try to break out of a sandbox; whether each attack got through, by its name.

    Args:
        sandbox: is left as it was.

    Raises:
        SandboxError: the attacks could not be tried.
    """
    limits, reached = Limits(processes=40, disk=8 * 2**20, seconds=60), {}
    place = ROOT if os.access(ROOT, os.W_OK) else None  # another user's, or the system's, course
    with (
        tempfile.NamedTemporaryFile(dir=place, prefix=".secret") as secret,
        socket.create_server(("127.0.0.1", 0)) as s,
    ):
        secret.write(b"secret")
        secret.flush()
        names = {"SECRET": secret.name, "COURSE": str(ROOT), "PORT": s.getsockname()[1]}
        names |= {"DISK": limits.disk, "PROCESSES": limits.processes}
        tools = "\n".join(f"{name} = {value!r}" for name, value in names.items()) + _TOOLS
        for name, expression in _ATTACKS.items():
            with sandbox.start(limits) as job:
                try:
                    if problem := job.ask({"do": "run", "source": tools}, 60)["error"]:
                        raise SandboxError(f"the sandbox could not be tried: {problem}")
                    call = {"do": "call", "target": None, "path": "attempt", "args": [expression], "kwargs": {}}
                    reached[name] = job.ask(call, 30) is not False
                except StudentError as error:
                    if job.alive:
                        raise SandboxError(f"the sandbox could not be tried: {error}") from error
                    reached[name] = False  # it was ended for trying
    for left in (ROOT / "course_lib" / ".tried", Path("/tmp/.tried")):
        left.unlink(missing_ok=True)
    return reached


def assert_safe(sandbox: Sandbox) -> None:
    """Attack a sandbox, and refuse it if anything gets through.

    Raises:
        SandboxError: something was reached; the message says what.
    """
    reached = [name for name, got_through in attack(sandbox).items() if got_through]
    if reached:
        raise SandboxError(f"the sandbox does not hold here: {', '.join(reached)}")
