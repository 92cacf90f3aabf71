"""Does the course leave Colab's packages as they are? Builds an environment like Colab's and installs the wheel there.

    python tests/colab.py python3.13 build/colab      `make colab`, about 5 GB
    python tests/colab.py --refresh                   today's versions and date into tests/colab.txt

As a lesson's setup cell does, pip installs the course beside what is there. Afterwards `pip freeze` may differ by the
course alone, by `comm`, which Colab's old kernel comes without, and by `anywidget`, for the canvas of lesson 9, with
its one dependency `psygnal`. Then every lesson runs there from top to bottom:
in an empty folder, on Colab's Python, with a stand-in for the module `google.colab`.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = Path(__file__).with_suffix(".txt")
MAY_COME = {"comm", "generative-cv-course", "anywidget", "psygnal"}


def pins(text: str) -> dict[str, str]:
    """The versions that a list of `name==version` pins, by pip's spelling of names; torch's may be an address."""
    found = dict(re.findall(r"(?m)^([\w.-]+)==([^\s+]+)", text))
    found |= dict(re.findall(r"(?m)^(\w+) @ \S+/\w+-([\d.]+)", text))
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in found.items()}


def refreshed(old: str, freeze: str, osinfo: str, today: str) -> str:
    """The text of colab.txt with the versions of Colab's own list.

    Raises:
        ValueError: the list lacks a package that colab.txt names.
    """
    names, now = pins(old), pins(freeze)
    if missing := sorted(names.keys() - now.keys()):
        raise ValueError(f"Colab's list has no {', '.join(missing)}: look whether the page is still the right one")
    python = re.search(r"Python (3\.[\d.]+)", osinfo)
    head = "".join(line for line in old.splitlines(keepends=True) if line.startswith("#"))
    head = re.sub(r"\d{4}-\d\d-\d\d", today, head)
    if python:
        head = re.sub(r"Python 3\.[\d.]*\d", f"Python {python[1]}", head)
    return head + "".join(f"{name}=={now[name]}\n" for name in names)


def refresh() -> None:
    """Write colab.txt anew."""
    import requests

    old = VERSIONS.read_text(encoding="utf-8")
    address = re.search(r"https://\S+/", old)[0]
    pages = [requests.get(address + name, timeout=30) for name in ("pip-freeze.txt", "os-info.txt")]
    for page in pages:
        page.raise_for_status()
    today = datetime.date.today().isoformat()
    VERSIONS.write_text(refreshed(old, pages[0].text, pages[1].text, today), encoding="utf-8")


def run(*command: object, **options: object) -> str:
    """Run a command, show what it is, and return what it prints; an error ends the script."""
    print("$", *command, flush=True)
    return subprocess.run([*map(str, command)], check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def install(python: str, folder: Path) -> Path:
    """An environment with Colab's versions and the course's wheel; the course's pip line must change nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    there = folder / "bin" / "python"
    run(there, "-m", "pip", "install", "-q", "-r", VERSIONS)
    before = set(run(there, "-m", "pip", "freeze").splitlines())
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "wheel", ROOT)
    (wheel,) = (folder / "wheel").iterdir()
    print(run(there, "-m", "pip", "install", wheel))
    after = set(run(there, "-m", "pip", "freeze").splitlines())
    gone, come = sorted(before - after), sorted(after - before)
    print("gone:", gone, "come:", come)
    names = {re.split("==| @ ", line)[0] for line in come}
    if gone or not names <= MAY_COME or "generative-cv-course" not in names:
        sys.exit(f"The course may bring {sorted(MAY_COME)} and replace nothing.")
    return there


def run_lessons(python: Path) -> list[str]:
    """Run each lesson in an empty folder; the names of those that fail."""
    failed = []
    for lesson in sorted((ROOT / "notebooks").glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "google" / "colab").mkdir(parents=True)
            (folder / "google" / "colab" / "__init__.py").touch()
            kernel = folder / "kernels" / "colab"
            kernel.mkdir(parents=True)
            start = [str(python.absolute()), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            start.append("--IPKernelApp.exec_lines=import google.colab")
            spec = {"argv": start, "display_name": "Colab", "language": "python"}
            (kernel / "kernel.json").write_text(json.dumps(spec))
            shutil.copy(lesson, folder)
            env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
            env |= {"JUPYTER_PATH": str(folder), "PYTHONPATH": str(folder), "COURSE_OFFLINE": "1"}
            env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # no warning of the debugger at each start
            try:
                run(sys.executable, "-m", "jupyter", "execute", "--kernel_name=colab", lesson.name, cwd=folder, env=env)
            except subprocess.CalledProcessError:
                failed.append(lesson.stem)
    return failed


def main() -> None:
    """Refresh, or build and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refresh", action="store_true", help="only write tests/colab.txt anew")
    parser.add_argument("python", nargs="?", default="python3.13", help="Colab's Python")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "colab", help="replaced")
    options = parser.parse_args()
    if options.refresh:
        refresh()
    elif failed := run_lessons(install(options.python, options.folder)):
        sys.exit(f"failed on Colab's versions: {', '.join(failed)}")


if __name__ == "__main__":
    main()
