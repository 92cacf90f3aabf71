"""benchmarks/diffusion.py: a small run of it, and what its bars say of given figures."""

import importlib.util
import json

import pytest
import torch

from course_lib.base.metrics import Score

PEER = importlib.util.find_spec("diffusers") is not None


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.diffusion")


def test_quick_run_of_what_needs_no_data(benchmark, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    met = benchmark.main(["--quick", "--only", "step", "race", "live", "memory", "--json", str(figures)])
    parts, printed = json.loads(figures.read_text()), capsys.readouterr()
    here = parts.pop("environment")
    assert here["torch"] == torch.__version__
    assert parts.pop("environments") == dict.fromkeys(parts, here)
    assert parts.pop("bars") == met and met["memory does not grow with the number of steps"]
    assert ("step" in parts) == ("race" in parts) == PEER
    assert PEER or "diffusers is not installed" in printed.err
    assert 1 <= parts["live"]["seed 0"]["seconds"] < 10 and parts["live"]["seed 0"]["steps"] >= 1
    assert parts["live"]["real digits"]["agreement"]["value"] > 0.97
    if PEER:
        assert parts["step"]["diffusers, float32"]["ratio"] == 1
        assert all(row["images a second"] > 0 for row in parts["step"].values())
        assert parts["race"]["ours"]["steps"] == parts["race"]["diffusers, the usual settings"]["steps"] == 4
    for name in parts:
        assert f"\n{name}\n" in printed.out


def test_without_mnist_the_samplers_are_left_out(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.datasets, "is_available", lambda name: False)
    assert benchmark.main(["--quick", "--only", "sampling"]) == {}
    printed = capsys.readouterr().err
    assert all(f"{data} is left out, neither in COURSE_DATA nor downloaded" in printed for data in benchmark.SAMPLED)


def test_the_samplers_of_cats(benchmark, monkeypatch, tmp_path, capsys):
    figures, cats = tmp_path / "figures.json", torch.rand(60, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(benchmark.datasets, "is_available", lambda name: True)
    monkeypatch.setattr(benchmark.datasets, "load", lambda name, split: torch.utils.data.TensorDataset(cats))
    met = benchmark.main(["--quick", "--only", "sampling", "--data", "cat_faces", "--json", str(figures)])
    rows = json.loads(figures.read_text())["sampling cat_faces"]
    printed = capsys.readouterr().out
    assert len(rows) == 8 and all(row["images"] == 20 and "agreement" not in row for row in rows.values())
    assert all(f"cat_faces: {name}: {row['each seed']}" in printed for name, row in rows.items())
    (claim,) = met
    assert "ρ = 7, 20 calls" in claim and "Fréchet distance of DDPM, 10 calls" in claim


def test_bars_know_what_is_missed(benchmark):
    def score(value):
        return Score(value, value, value, 1)

    live = {f"seed {i}": {"seconds": 45, "agreement": score(v)} for i, v in enumerate((0.99, 0.96))}
    live |= {"real digits": {"agreement": score(0.9)}}  # is no student
    for row in list(live.values())[:2]:
        row["agreement, guidance 2"] = score(1.0)
    found = {
        "step": {"ours, bfloat16 where it pays": {"ratio": 1.6}},
        "race": {
            "ours": {"seconds": 9, "reached": True},
            "diffusers, the usual settings": {"seconds": 5, "reached": False},
        },
        "live": live,
        "sampling mnist": {
            "DDPM, 1000 calls": {"Fréchet distance": 1.0},
            "DDIM, 20 calls": {"Fréchet distance": 0.5},
            "SDE-DPM-Solver++(2M), 20 calls": {"Fréchet distance": 1.06},
            "guidance 1.1": {"Fréchet distance": 1.2, "agreement": score(0.99)},
        },
        "memory": {"DDPM": {"20 steps": 5, "1000 steps": 6}},
    }
    assert list(benchmark.bars(found).values()) == [True, True, False, True, False, False, False]
    found["sampling mnist"]["SDE-DPM-Solver++(2M), 20 calls"] = {"Fréchet distance": 1.04}
    found["sampling mnist"]["guidance 1.1"]["Fréchet distance"] = 1.0
    found["race"]["diffusers, the usual settings"]["reached"] = True
    found["memory"]["DDPM"]["1000 steps"] = 5
    assert list(benchmark.bars(found).values()) == [True, False, False, True, True, True, True]
