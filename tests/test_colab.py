"""Colab's versions and the course's bounds; `make colab` installs and runs the course on these versions."""

import colab
import pytest
from test_packaging import pyproject

LIST = colab.VERSIONS.read_text(encoding="utf-8")
FREEZE = """\
# generated
Pillow==12.1.0
scikit_image==0.27.0
torch @ https://host/whl/cu130/torch-2.13.0%2Bcu130-cp314-cp314-linux_x86_64.whl#sha256=aa
torchvision==0.28.0+cu130
zipp==3.17.0
"""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_colab_has_all_that_the_course_needs():
    """Each bound holds there already, so that pip has nothing to replace."""
    there = colab.pins(LIST)
    for requirement in pyproject()["project"]["dependencies"]:
        name, bound = requirement.split(">=")
        if name in colab.MAY_COME and name not in there:  # it comes new, and `make colab` sees that it replaces nothing
            continue
        assert name in there, f"{name}: does Colab have it? Then its version belongs into tests/colab.txt"
        assert numbers(bound) <= numbers(there[name]), f"pip would replace Colab's {name} {there[name]}"
    assert colab.re.search(r"\d{4}-\d\d-\d\d", LIST), "the date of the list"


def test_pins_are_read_as_pip_spells_them():
    assert colab.pins(FREEZE) == {
        "pillow": "12.1.0",
        "scikit-image": "0.27.0",
        "torch": "2.13.0",
        "torchvision": "0.28.0",
        "zipp": "3.17.0",
    }


def test_a_refresh_changes_versions_and_date_alone():
    old = "# Python 3.13.15, 2026-08-19, from\n# https://host/pip-freeze.txt\npillow==11.3.0\ntorch==2.11.0\n"
    new = colab.refreshed(old, FREEZE, "Ubuntu\nPython 3.14.2\n", "2027-01-30")
    assert new == old.replace("3.13.15", "3.14.2").replace("2026-08-19", "2027-01-30").replace(
        "11.3.0", "12.1.0"
    ).replace("2.11.0", "2.13.0")
    with pytest.raises(ValueError, match="Colab's list has no numpy"):
        colab.refreshed(old + "numpy==2.1.3\n", FREEZE, "", "2027-01-30")
