"""The benchmark of detection runs, and its bars can fail."""

import importlib
import json
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.detection")


@pytest.mark.parametrize(("times", "score", "met"), [(1.9, 0.71, [True, True]), (2.1, 0.69, [False, False])])
def test_bars_hold_for_the_worst_of_all(benchmark, times, score, met):
    rows = {
        "NMS": {"times": times},
        "IoU": {"times": 0.5},
        "live, seed 0": {"AP50": 0.9},
        "live, seed 1": {"AP50": score},
        "detector_scenes, other scenes": {"AP50": 0.1},
    }
    claims = benchmark.bars(rows)
    assert list(claims.values()) == met
    first, second = claims
    assert f"{times:.2f}" in first and f"{score:.3f}" in second
    assert benchmark.bars({}) == {}


def test_it_runs(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    met = benchmark.main(["--quick", "--json", str(tmp_path / "detection.json")])
    report = json.loads((tmp_path / "detection.json").read_text(encoding="utf-8"))
    assert report["bars"] == met and len(met) == 2
    rows = report["operations"] | report["live"] | report["shipped"]
    assert {"ours, ms", "torchvision, ms", "times"} == rows["NMS, 50 boxes, close"].keys()
    assert rows["live, seed 0"]["steps"] >= 1 and 0 <= rows["live, seed 0"]["AP50"] <= 1
    assert rows["detector_scenes, other scenes"]["AP50"] > 0.9
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows) and all(claim in printed for claim in met)


def test_without_photographs_it_says_so(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setenv("COURSE_OFFLINE", "1")
    benchmark.main(["--quick", "--only", "shipped"])
    assert "Penn-Fudan is not at hand" in capsys.readouterr().out


def test_the_live_training_is_the_lesson_s(benchmark):
    lesson = json.loads((Path(__file__).parents[1] / "notebooks" / "10_detection.ipynb").read_text(encoding="utf-8"))
    source = "".join(line for cell in lesson["cells"] for line in [*cell["source"], "\n"])
    for number, pattern in (
        (benchmark.STEPS, r"laptop=(\d+)"),
        (benchmark.SCENES, r"labelled\((\d+), seed=0\)"),
        (benchmark.HELD_OUT, r"labelled\((\d+), seed=1\)"),
        (benchmark.BATCH, r"batch_size=(\d+)"),
    ):
        assert re.findall(pattern, source) == [str(number)]
