"""The benchmark of chapter 8 runs, measures what it says, and its bars can fail."""

import importlib.util
import json
from pathlib import Path

import pytest

from course_lib.base import checkpoints

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "segmentation.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("segmentation_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick_run_of_speed_and_live(benchmark, tmp_path, capsys):
    rows = benchmark.main(["--quick", "--parts", "speed", "live", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report["rows"].keys() == rows.keys()
    speeds = [row for name, row in rows.items() if "masks" in name]
    assert len(speeds) == 4
    assert all(row["times"] == pytest.approx(row["ours, ms"] / row["pycocotools, ms"]) for row in speeds)
    (trained,) = [row for name, row in rows.items() if name.startswith("live")]
    assert trained["steps"] >= 5 and 0 < trained["mIoU"] < 0.5
    printed = capsys.readouterr().out
    assert "live mIoU ≥ 0.85: NOT met" in printed, "of half a second of training"


@pytest.mark.skipif(
    not (checkpoints.folder() / "panoptic_scenes.safetensors").is_file(), reason="the checkpoint is not there"
)
def test_quick_run_of_the_shipped_network(benchmark, capsys):
    rows = benchmark.main(["--quick", "--parts", "shipped"])
    assert rows["shipped"]["PQ"] > 0.5 and rows["shipped"]["ms a scene, with judging"] > 0
    assert "shipped PQ ≥ 0.70" in capsys.readouterr().out
