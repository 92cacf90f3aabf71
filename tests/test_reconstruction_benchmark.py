"""The benchmark and the recipe of chapter 13 run, measure what they say, and the bars can fail."""

import importlib
import json

from benchmarks import reconstruction as benchmark
from course_lib.base import checkpoints
from course_lib.reconstruction import Splats


def test_quick_run_of_the_geometry(tmp_path, capsys):
    rows = benchmark.main(["--quick", "--only", "stereo", "hull", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report["stereo"].keys() == rows["stereo"].keys() >= {"8 paths", "4 paths"}
    assert rows["stereo"]["8 paths"]["bad at 1 px, %"] > rows["stereo"]["8 paths"]["bad at 4 px, %"] > 0
    assert rows["hull"]["6 views"]["volume / true volume"] > rows["hull"]["24 views"]["volume / true volume"]
    assert report["bars"].keys() >= {"8 paths in 20 s"}


def test_quick_run_of_the_fields(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))  # without lego: the toy
    monkeypatch.setattr(benchmark.reconstruction, "load_turntable", _few)
    rows = benchmark.main(["--quick", "--only", "fields"])
    assert list(rows["fields"]) == ["voxel grid", "NeRF's network", "splats, half the size"]
    for row in rows["fields"].values():
        assert row["steps"] >= 1 and row["PSNR, dB"] > 5
    assert "turntable: grid ≥ 26 dB" in capsys.readouterr().out


def _few(n, size, start=0.0, load=benchmark.reconstruction.load_turntable):
    return load(min(n, 6), 32, start)


def test_quick_run_of_the_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = importlib.import_module("recipes.reconstruction")
    scores = recipe.main(["--quick"])
    tensors, header = checkpoints.load("build/splats_turntable_quick.safetensors")
    assert scores["PSNR, dB"] > 8 and header["recipe"].startswith("python recipes/reconstruction.py --steps 20")
    Splats(100).load_state_dict(tensors)
