"""The benchmark of chapter 8 runs, measures what it says, and its bars can fail."""

import importlib
import json
from pathlib import Path

import pytest

from course_lib.base import checkpoints

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "segmentation.py"


def needs(name):
    there = (checkpoints.folder() / f"{name}.safetensors").is_file()
    return pytest.mark.skipif(not there, reason=f"the checkpoint {name} is not there")


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.segmentation")


def test_quick_run_of_speed(benchmark, tmp_path):
    rows = benchmark.main(["--quick", "--only", "speed", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report["speed"].keys() == rows.keys() and len(rows) == 4
    assert all(row["times"] == pytest.approx(row["ours, ms"] / row["pycocotools, ms"]) for row in rows.values())


@needs("detector_scenes")
def test_quick_run_of_the_live_training(benchmark, capsys):
    rows = benchmark.main(["--quick", "--only", "live"])
    assert list(rows) == ["live, seed 0", "from random weights"]
    for row in rows.values():
        assert row["steps"] >= 5 and 0 < row["mIoU"] < 0.8
    assert "MISSED live mIoU ≥ 0.85" in capsys.readouterr().out, "of half a second of training"


@needs("panoptic_scenes")
def test_quick_run_of_the_shipped_network(benchmark, capsys):
    rows = benchmark.main(["--quick", "--only", "shipped"])
    assert rows["shipped"]["PQ"] > 0.5 and rows["shipped"]["ms a scene, with judging"] > 0
    assert "shipped PQ ≥ 0.70" in capsys.readouterr().out
