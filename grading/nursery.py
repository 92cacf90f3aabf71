"""A clean process that has imported torch once and forks a job for each submission. Runs inside bubblewrap.

It has seen no submission. A job is a fork of it that enters namespaces of its own (processes, mounts, IPC), gets a
private /tmp of limited size, an unprivileged uid of its own where this process is root, gives up every capability,
filters system calls (seccomp), and only then becomes a server of functions (`server.py`). Jobs share nothing that they
can write.

    python -m grading.nursery FD isolated|plain

FD is an inherited Unix socket on which orders come, with a socket for each job.
"""

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress

from grading import server

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 14, 1 << 18
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, CLEAR_ALL = 4, 24, 38, 47, 4
FIRST_UID = 1_800_000_000  # far from any account of the machine
# What no exercise needs, and an attack might: other namespaces, mounts, tracing, the kernel's keys and programs.
FORBIDDEN_CALLS = (
    "mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_tree", "move_mount", "fsopen",
    "fsmount", "fsconfig", "mount_setattr", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "kcmp", "perf_event_open", "bpf", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
    "keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "open_by_handle_at", "name_to_handle_at", "personality",
    "quotactl", "acct", "settimeofday", "clock_settime", "adjtimex",
)  # fmt: skip
# What assignments import, so that no job pays for it.
WARM = (
    "torch", "torchvision", "matplotlib.pyplot", "IPython.core.interactiveshell", "sklearn.datasets",
    "sklearn.model_selection", "course_lib.base.plots", "course_lib.base.zoo",
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(kind: str, place: str, flags: int, options: str = "") -> None:
    arguments = (kind.encode(), place.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _must(_libc.mount(*arguments), f"mount {kind} at {place}")


def _give_up_rights(uid: int | None) -> None:
    """Every capability goes, also those that a program could gain; then system calls are filtered."""
    for capability in range(64):
        _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # an error: there are fewer
    _libc.prctl(PR_CAP_AMBIENT, CLEAR_ALL, 0, 0, 0)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    _must(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _must(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    # Not dumpable would make /proc/self unreadable for this process itself; namespaces keep the others away.
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)

    seccomp = sys.modules["pyseccomp"]
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    for name in FORBIDDEN_CALLS:
        try:
            rules.add_rule(seccomp.ERRNO(1), name)
        except (ValueError, OSError, RuntimeError):
            continue  # a call that this processor or this libseccomp does not know
    family = seccomp.Arg(0, seccomp.NE, socket.AF_UNIX)
    rules.add_rule(seccomp.ERRNO(1), "socket", family)  # vsock has no namespace
    new_user = seccomp.Arg(0, seccomp.MASKED_EQ, 0x10000000, 0x10000000)
    rules.add_rule(seccomp.ERRNO(1), "clone", new_user)
    rules.add_rule(seccomp.ERRNO(38), "clone3")  # its flags cannot be read here; libc falls back to clone
    rules.load()


def _limit(limits: dict[str, int]) -> None:
    for name, value in (
        ("RLIMIT_NPROC", limits["processes"]),
        ("RLIMIT_FSIZE", limits["disk"]),
        ("RLIMIT_CPU", limits["seconds"]),
        ("RLIMIT_NOFILE", 512),
        ("RLIMIT_CORE", 0),
    ):
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _become_job(channel: socket.socket, order: dict) -> None:
    """The last fork: process 1 of its own namespace."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if order["isolated"]:
        _must(_libc.unshare(CLONE_NEWNS), "mounts of its own")  # not the keeper's, who needs its /proc
        _must(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None), "private mounts")
        quiet = MS_NOSUID | MS_NODEV
        try:
            _mount("proc", "/proc", quiet | MS_NOEXEC)
        except PermissionError:  # an ordinary user's kernel may forbid it; then nobody sees any process
            _mount("tmpfs", "/proc", quiet, "size=4096,mode=555")
        for place in ("/tmp", "/dev/shm"):
            _mount("tmpfs", place, quiet, f"mode=1777,size={order['limits']['disk']},nr_inodes=10000")
    os.chdir("/tmp")
    os.environ.update({"HOME": "/tmp", "TMPDIR": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"})
    os.umask(0o077)
    _limit(order["limits"])
    if order["isolated"]:
        _give_up_rights(FIRST_UID + order["number"] % 100_000 if order["root"] else None)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, channel.fileno())
    os.closerange(channel.fileno() + 1, 4096)
    server.serve(channel)


def _start(channel: socket.socket, order: dict) -> int:
    """A job's keeper: makes the namespaces, forks process 1 into them, watches it, ends with it. Returns its number."""
    keeper = os.fork()
    if keeper:
        return keeper
    try:
        os.setsid()
        if order["isolated"]:
            _must(_libc.unshare(CLONE_NEWIPC | CLONE_NEWPID), "namespaces")
        job = os.fork()
        if job == 0:
            _become_job(channel, order)
        channel.close()
        while os.waitpid(job, os.WNOHANG) == (0, 0):
            if _too_large(job, order["limits"]):
                os.kill(job, signal.SIGKILL)
            time.sleep(0.05)
    except BaseException as error:
        print(f"grading: a job could not start: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(0)


def _too_large(job: int, limits: dict[str, int]) -> bool:
    """Whether a job's processes together hold too much memory, or are too many.

    The kernel's own limit for address space is too blunt for torch, and its limit for processes counts a user's.
    """
    family = [job]
    for member in family:
        family += _children(member)
    pages = 0
    for member in family:
        try:
            with open(f"/proc/{member}/statm") as file:
                _, resident, shared, *_ = map(int, file.read().split())
            pages += resident - shared
        except (FileNotFoundError, ProcessLookupError):
            continue
    return pages * resource.getpagesize() > limits["memory"] or len(family) > limits["processes"]


def main() -> None:
    """Take orders until the socket is closed: start a job, or end one."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    isolated = sys.argv[2] == "isolated"
    for name in WARM + ("pyseccomp",) * isolated:
        importlib.import_module(name)
    torch = sys.modules["torch"]

    torch.set_num_threads(1)
    orders.sendall(b"ready\n")
    keepers: dict[int, int] = {}
    while True:
        content, sockets, _, _ = socket.recv_fds(orders, 65536, 1)
        if not content:
            break
        order = json.loads(content)
        if order["do"] == "start":
            channel = socket.socket(fileno=sockets[0])
            keepers[order["number"]] = _start(channel, order)
            channel.close()
        else:
            keeper = keepers.pop(order["number"], None)
            if keeper:
                _end(keeper)
        orders.sendall(b"done\n")
    for keeper in keepers.values():
        _end(keeper)
    os._exit(0)  # nothing here needs an orderly end


def _end(keeper: int) -> None:
    """End a job and all that it started: with process 1 of a namespace the kernel ends every other."""
    for child in _children(keeper):
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os.waitpid(keeper, 0)


def _children(process: int) -> list[int]:
    found = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as file:
                found += [int(number) for number in file.read().split()]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


if __name__ == "__main__":
    main()
