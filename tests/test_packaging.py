"""The course installs: equal dependencies everywhere, a wheel that carries its checkpoints, make's stamps."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"torch": "pytorch", "jupyter-server-mathjax": "jupyter_server_mathjax"}


def pyproject() -> dict:
    """pyproject.toml; Python 3.10 has no parser of its own, but its pip carries one."""
    parser = import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli")
    return parser.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements() -> set[str]:
    """What a full install needs, in pyproject.toml's words."""
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    return {*project["dependencies"], *extras["lab"], *extras["test"]}


def run(*command, cwd, env=None):
    """Run a command to its end; its outputs are in the message if it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# --- dependencies ---


def all_requirements() -> set[str]:
    """All that pyproject.toml asks for: to build, to run, and with each extra."""
    project = pyproject()["project"]
    groups = [pyproject()["build-system"]["requires"], project["dependencies"]]
    return {requirement for group in [*groups, *project["optional-dependencies"].values()] for requirement in group}


def test_requirements_have_lower_bounds_only():
    for requirement in all_requirements():
        assert re.fullmatch(r"[a-z][a-z0-9-]*>=\d+(\.\d+)*", requirement), requirement
    names = [requirement.split(">=")[0] for requirement in all_requirements()]
    assert len(names) == len(set(names)), "one package with two bounds"
    assert re.fullmatch(r">=\d+\.\d+", pyproject()["project"]["requires-python"])


def test_conda_environment_asks_for_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    expected = {f"python{pyproject()['project']['requires-python']}"}
    for requirement in requirements() - set(pyproject()["project"]["optional-dependencies"]["grading"]):
        name, bound = requirement.split(">=")
        expected.add(f"{CONDA_NAMES.get(name, name)}>={bound}")
    assert {entry for entry in conda if not entry.startswith("pip>=")} == expected
    assert len(conda) == len(set(conda))
    assert pip == [["-e .[grading]"]], "what conda-forge does not have, pip brings"
    assert environment["channels"] == ["conda-forge"]


def test_continuous_integration_and_the_container_call_make():
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    (oldest,) = re.findall(r">=(3\.\d+)", pyproject()["project"]["requires-python"])
    assert oldest in workflows["test"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    commands = {"make install TORCH=cpu"}
    commands |= {
        step["run"]
        for workflow in workflows.values()
        for job in workflow["jobs"].values()
        for step in job["steps"]
        if "run" in step
    }
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] in commands
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert all(command.split()[:1] == ["make"] and command.split()[1] in targets for command in commands)
    deployed = [
        step["with"]["path"] for step in workflows["site"]["jobs"]["deploy"]["steps"] if "path" in step.get("with", {})
    ]
    assert deployed == ["build/site"]


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from what git tracks, and what it would on the next `git add`."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listing = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():  # a file removed but not yet committed is still listed
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", ".", "--no-index", "--no-deps", "--no-build-isolation", "-w", target, cwd=source)
    (built,) = target.iterdir()
    return built


def test_wheel_is_pure_python_and_carries_the_checkpoints(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    checkpoints = {path.name for path in (ROOT / "data" / "checkpoints").glob("*.safetensors")}
    assert checkpoints
    assert {f"course_lib/data/checkpoints/{name}" for name in checkpoints} <= inside
    images = {path.name for path in (ROOT / "data" / "images").iterdir()}
    assert images and {f"course_lib/data/images/{name}" for name in images} <= inside
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "course_lib").rglob("*") if path.suffix in (".py", ".js")
    }
    assert modules <= inside
    assert {name.split("/")[0] for name in inside if ".dist-info/" not in name} == {"course_lib"}


LOAD_ALL = """
import json, course_lib
from course_lib.base import checkpoints, datasets
names = sorted(path.stem for path in checkpoints.folder().glob("*.safetensors"))
sizes = {name: sum(tensor.numel() for tensor in checkpoints.load(name)[0].values()) for name in names}
painting = list(datasets.load_image("starry_night").shape)
found = {"package": course_lib.__file__, "folder": str(checkpoints.folder()), "sizes": sizes, "painting": painting}
print(json.dumps(found))
"""


def test_installed_wheel_loads_its_checkpoints_elsewhere(wheel, tmp_path):
    """As in Colab: torch is there already, the course is added with pip, the repository is nowhere."""
    fresh, elsewhere = tmp_path / "fresh", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(fresh, with_pip=False)
    python = fresh / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=elsewhere)

    # Folders named in a .pth file are searched, but .pth files inside them are not obeyed: the fresh
    # environment sees torch and does not see an editable install of this repository.
    site = Path(run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    folders |= {str(Path(import_module(name).__file__).parents[1]) for name in ("torch", "numpy", "safetensors")}
    (site / "torch_of_the_tests.pth").write_text("\n".join(sorted(folders)) + "\n")

    found = json.loads(run(python, "-I", "-c", LOAD_ALL, cwd=elsewhere))
    assert Path(found["package"]).is_relative_to(site)
    assert Path(found["folder"]).is_relative_to(site)
    assert set(found["sizes"]) == {path.stem for path in (ROOT / "data" / "checkpoints").glob("*.safetensors")}
    assert found["sizes"] and all(found["sizes"].values())
    assert found["painting"] == [1, 3, 304, 384]


# --- make ---

# Stands for the environment's Python: notes what it is asked to do, fails where the test says so.
FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *"$FAIL"*) exit 1;; esac
"""


class Clone:
    """A folder with the Makefile, and an environment in it that only notes what it is asked."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        for name in ("Makefile", "pyproject.toml"):
            shutil.copyfile(ROOT / name, self.folder / name)
        self.python = self.folder / "env" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        self.python.write_text(FAKE_PYTHON)
        self.python.chmod(0o755)
        self.stamp = self.folder / "env" / ".course-installed"
        self.calls = self.folder / "calls"

    def make(self, *arguments: str, fail: str = "nothing at all") -> subprocess.CompletedProcess:
        """Run make as if from a shell of its own: `make test` passes its own flags on by the environment."""
        ours = (
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "MAKEOVERRIDES",
            "PYTHON",
            "VENV",
            "PINS",
            "TORCH",
        )  # of make around
        env = {k: v for k, v in os.environ.items() if k not in ours}
        self.calls.write_text("")
        return subprocess.run(
            ["make", "VENV=env", *arguments],
            cwd=self.folder,
            env={**env, "CALLS": str(self.calls), "FAIL": fail},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def asked(self) -> list[str]:
        """What the environment's Python was run with, without make's looks at its version and its pip."""
        calls = self.calls.read_text().splitlines()
        return [call for call in calls if not call.startswith(("-c", "--version", "-m pip --version"))]


@pytest.fixture
def clone(tmp_path) -> Clone:
    if shutil.which("make") is None or os.name == "nt":
        pytest.skip("no make here")
    return Clone(tmp_path)


def test_make_test_installs_once_then_checks_everything(clone):
    done = clone.make("test")
    assert done.returncode == 0 and re.search(
        r"make test: style, \d+ files of unit tests, then .* minutes", done.stdout
    )
    install, checks = clone.asked()[:2], clone.asked()[2:]
    assert install == ["-m pip install pip>=22.3", "-m pip install --editable .[lab,test]"]
    assert checks[:2] == ["-m ruff check .", "-m ruff format --check ."]
    assert checks[2].startswith("-m pytest tests notebooks --nbval-lax") and len(checks) == 3
    assert clone.make("test").returncode == 0
    assert clone.asked() == checks


def test_make_installs_again_when_it_must(clone):
    dry = ("-n", "test")
    assert "pip install" in clone.make(*dry).stdout
    assert clone.make("test").returncode == 0
    assert "pip install" not in clone.make(*dry).stdout
    newer = clone.stamp.stat().st_mtime + 10
    os.utime(clone.folder / "pyproject.toml", (newer, newer))
    assert "pip install" in clone.make(*dry).stdout
    os.utime(clone.folder / "pyproject.toml", (0, 0))
    clone.stamp.write_text("/some/other/clone\n")
    assert "pip install" in clone.make(*dry).stdout


def test_make_leaves_no_stamp_after_a_failed_install(clone):
    clone.stamp.write_text("/some/other/clone\n")
    assert clone.make("test", fail="--editable").returncode != 0
    assert not clone.stamp.exists()
    assert not any("pytest" in call for call in clone.asked())


@pytest.mark.parametrize("step", ["ruff check", "ruff format", "pytest"])
def test_make_test_fails_with_each_of_its_steps(clone, step):
    assert clone.make("test", fail=step).returncode != 0
    assert clone.stamp.exists()


def test_make_oldest_tests_with_every_lower_bound(clone):
    shutil.copytree(clone.folder / "env", clone.folder / "build" / "oldest")
    assert clone.make("oldest").returncode == 0
    install = "-m pip install --constraint build/oldest.txt --editable .[lab,test]"
    assert clone.asked() == ["-m pip install pip>=22.3", install, "-m pytest tests"]
    constraints = (clone.folder / "build" / "oldest.txt").read_text().splitlines()
    assert sorted(constraints) == sorted(requirement.replace(">=", "==") for requirement in all_requirements())


@pytest.mark.parametrize("step", ["--editable", "pytest"])
def test_make_oldest_fails_with_each_of_its_steps(clone, step):
    shutil.copytree(clone.folder / "env", clone.folder / "build" / "oldest")
    assert clone.make("oldest", fail=step).returncode != 0


def test_make_says_which_python_it_needs(clone):
    done = clone.make("lab", fail="version_info")
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stderr
    assert not clone.stamp.exists() and not clone.asked()


def test_make_clean_keeps_an_environment_it_did_not_make(clone):
    assert clone.make("test").returncode == 0
    (clone.folder / "build").mkdir()
    assert clone.make("clean").returncode == 0
    assert clone.python.exists() and not clone.stamp.exists()
    assert not (clone.folder / "build").exists()


def test_make_clean_removes_the_environment_it_made(clone):
    shutil.rmtree(clone.folder / "env")
    # A real environment, but its pip fails at once: nothing is installed.
    broken = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone.folder / "nowhere")}
    done = clone.make("test", f"PYTHON={sys.executable}", *(f"{k}={v}" for k, v in broken.items()))
    assert done.returncode != 0 and clone.python.exists() and not clone.stamp.exists()
    assert clone.make("clean").returncode == 0
    assert not (clone.folder / "env").exists()


def test_make_lists_its_targets(clone):
    listed = re.findall(r"^make ([a-z]+)  ", clone.make().stdout, re.MULTILINE)
    everyday = ["help", "install", "lab", "test", "oldest", "colab", "run", "site", "browser"]
    assert listed == [*everyday, "bench", "grade", "tables", "checkpoints", "address", "clean"]


# --- make lab ---


def test_make_lab_opens_the_map(clone):
    (clone.folder / "notebooks" / "ru").mkdir(parents=True)
    for name in ("10_detection", "00_tasks", "01_style_transfer"):
        (clone.folder / "notebooks" / f"{name}.ipynb").touch()
        (clone.folder / "notebooks" / "ru" / f"{name}.ipynb").touch()
    lesson = "notebooks/ru/10_detection.ipynb"
    for given, opened in (
        ([], "notebooks/00_tasks.ipynb"),
        (["MAP=notebooks/ru"], "notebooks/ru/00_tasks.ipynb"),
        ([f"MAP={lesson}"], lesson),
    ):
        assert clone.make("lab", *given).returncode == 0
        assert f"--LabApp.default_url=/lab/tree/{opened}" in clone.asked()[-1].split()


@pytest.fixture
def no_card(monkeypatch, tmp_path_factory):
    """A machine with Linux and without an NVIDIA card."""
    tools = tmp_path_factory.mktemp("tools")
    for name, script in (("nvidia-smi", "exit 9"), ("uname", "echo Linux")):
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")


def test_make_mentions_the_smaller_torch_before_it_downloads(clone, no_card):
    done = clone.make("lab", fail="import torch")
    assert done.returncode == 0 and done.stdout.index("make lab TORCH=cpu") < done.stdout.index("--editable")
    clone.stamp.unlink()
    assert "TORCH=cpu" not in clone.make("lab").stdout, "where torch is installed, nothing large is downloaded"


def test_make_takes_torch_from_the_index_of_cpu_builds(clone, no_card):
    assert clone.make("test", "TORCH=cpu").returncode == 0
    pair = [r for r in pyproject()["project"]["dependencies"] if r.startswith("torch")]
    index = "--index-url https://download.pytorch.org/whl/cpu"
    assert clone.asked()[1:3] == [f"-m pip install {index} {' '.join(pair)}", "-m pip install --editable .[lab,test]"]
    clone.stamp.unlink()
    done = clone.make("lab", "TORCH=cpu", fail="--index-url")
    assert done.returncode != 0 and not clone.stamp.exists() and "--editable" not in "".join(clone.asked())
    assert "could not be installed from https://download.pytorch.org/whl/cpu" in done.stderr
    assert clone.make("lab").returncode == 0, "the plain command still works"


def test_pip_finds_torch_in_a_local_index(clone, tmp_path):
    """Real pip, on an index of this machine that has nothing but two stand-ins."""
    pages = tmp_path / "index"
    for name, version in (("torch", "99.0+cpu"), ("torchvision", "98.0+cpu")):
        (pages / name).mkdir(parents=True)
        with zipfile.ZipFile(pages / name / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            info = f"{name}-{version}.dist-info"
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        link = f'<a href="{name}-{version}-py3-none-any.whl">{name}</a>'
        (pages / name / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    target = tmp_path / "target"
    pip = f'#!/bin/sh\ncase "$*" in *--index-url*) exec {sys.executable} "$@" --target {target} --no-deps;; esac\n'
    clone.python.write_text(pip)
    env = ["PIP_NO_INDEX=", "PIP_FIND_LINKS=", "PIP_EXTRA_INDEX_URL=", "PIP_CONFIG_FILE=/dev/null"]
    done = clone.make("lab", "TORCH=cpu", f"TORCH_INDEX={pages.as_uri()}", *env)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in target.glob("*.dist-info")} == {
        "torch-99.0+cpu.dist-info",
        "torchvision-98.0+cpu.dist-info",
    }
    shutil.rmtree(pages)
    clone.stamp.unlink()
    done = clone.make("lab", "TORCH=cpu", f"TORCH_INDEX={pages.as_uri()}", *env)
    assert done.returncode != 0 and "could not be installed from file:" in done.stderr


# --- a fork ---


def test_make_address_reaches_every_place(tmp_path):
    """In a copy of all that git tracks: the new address where the old one was, and nothing else changed."""
    run("git", "clone", "--quiet", "--no-hardlinks", ROOT, tmp_path / "fork", cwd=tmp_path)
    fork, old = tmp_path / "fork", pyproject()["project"]["urls"]["Repository"]
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and (ROOT / name).is_file():
            (fork / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, fork / name)
    script = [sys.executable, ROOT / "website" / "address.py"]
    new = "https://github.com/ann-lee/cv.course"
    changed = run(*script, f"{new}.git", cwd=fork).split()
    lessons = {path.relative_to(ROOT).as_posix() for path in (ROOT / "notebooks").rglob("*.ipynb")}
    assert {"pyproject.toml", "README.md"} | lessons <= set(changed)
    places = 0
    for name in changed:
        before, after = ((folder / name).read_text(encoding="utf-8") for folder in (ROOT, fork))
        places += after.count("ann-lee/cv.course")
        owner_and_name = old.removeprefix("https://github.com/")
        assert owner_and_name not in after
        assert after.replace("ann-lee/cv.course", owner_and_name).replace("cd cv.course", before_cd(before)) == before
    assert places >= 2 * len(lessons) + 2, "badge and setup cell of each lesson, pyproject.toml, README.md"
    assert run(*script, new, cwd=fork) == "", "again, it has nothing to do"
    for wrong in ("", "https://gitlab.com/a/b", "https://github.com/a", "git@github.com:a/b"):
        done = subprocess.run([*script, wrong], cwd=fork, capture_output=True, text=True)
        assert done.returncode != 0 and "REPOSITORY must be https://github.com/OWNER/NAME" in done.stderr


def before_cd(text: str) -> str:
    """The `cd FOLDER` that follows `git clone`."""
    found = re.search(r"&& (cd \S+)", text)
    return found[1] if found else ""
