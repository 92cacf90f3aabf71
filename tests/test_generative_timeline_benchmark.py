"""The comparison of the shipped generators runs, says what is missing, and its bars can fail."""

import importlib
import json
import os
from pathlib import Path

import pytest

from benchmarks.common import plain
from course_lib.base.metrics import Score

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "generative_timeline.py"


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.generative_timeline")


def score(value, width=0.0, n=100):
    return Score(value, value - width, value + width, n)


def distances(**values):
    names = {"vae": "VAE 2013", "gan": "GAN 2014", "dcgan": "DCGAN 2015", "stylegan": "StyleGAN 2018"}
    return {names[name]: {"Fréchet distance": score(value, 0.5)} for name, value in values.items()}


def test_bars_hold_in_the_order_of_the_years_and_in_no_other(benchmark):
    assert list(benchmark.bars(distances(vae=9, gan=8, dcgan=4, stylegan=2)).values()) == [True, True, True]
    assert list(benchmark.bars(distances(vae=9, gan=8, dcgan=4, stylegan=5)).values()) == [False, True, True]
    assert list(benchmark.bars(distances(vae=9, gan=3, dcgan=4, stylegan=2)).values()) == [True, False, True]
    assert list(benchmark.bars(distances(vae=3, gan=8, dcgan=4, stylegan=2)).values()) == [True, True, False]


def test_bars_tell_whether_intervals_overlap(benchmark):
    (near,) = benchmark.bars(distances(dcgan=4, stylegan=3.5))
    (far,) = benchmark.bars(distances(dcgan=4, stylegan=2))
    assert "overlapping" in near and "apart" in far


def test_bar_of_the_cats(benchmark):
    rows = {
        name: {"Fréchet distance": score(value, 0.5)}
        for name, value in (("Diffusion, cats", 12), ("StyleGAN, cats", 22))
    }
    assert list(benchmark.bars(rows).values()) == [True]
    assert list(benchmark.bars(dict(zip(reversed(rows), rows.values(), strict=True))).values()) == [False]


def test_diffusion_without_guidance_has_no_bar_of_agreement(benchmark):
    row = {"agreement": score(0.5), "judge": 0.99}
    assert benchmark.bars({"Diffusion, conditional": row}) == {}
    assert list(benchmark.bars({"DCGAN, conditional": row}).values()) == [False]


@pytest.mark.parametrize(
    ("agreement", "judge", "met"), [(0.95, 0.99, True), (0.949, 0.99, False), (0.93, 0.92, True), (0.91, 0.92, False)]
)
def test_bar_of_the_class_agreement(benchmark, agreement, judge, met):
    assert list(benchmark.bars({"x": {"agreement": score(agreement), "judge": judge}}).values()) == [met]


def test_table_shows_every_score_with_its_interval_and_leaves_gaps(benchmark):
    rows = {"a model": {"weights": 1234, "precision": score(0.5, 0.1), "Fréchet floor": score(0.25)}, "copies": {}}
    head, first, second = benchmark.table(rows).splitlines()
    assert all(title in head for title in ("weights", "precision %", "floor"))
    assert "1,234" in first and "50 [40, 60]" in first and "0.25" in first and "0.25 [" not in first
    assert len(head) >= len(first) and second == "copies"


def test_without_data_it_says_what_to_do(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    with pytest.raises(SystemExit, match="set COURSE_DATA"):
        benchmark.main(["--quick"])
    assert "mnist is not at hand" in capsys.readouterr().err


@pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="needs MNIST in COURSE_DATA")
def test_only_some_rows_leave_the_others_as_they_were(benchmark, tmp_path):
    path = tmp_path / "timeline.json"
    row = {"Fréchet distance": plain(score(9.0, 0.5)), "images": 10_000}
    path.write_text(json.dumps({"rows": {"VAE 2013": row, "a row of the past": row}}), encoding="utf-8")
    met = benchmark.main(["--quick", "--only", "DCGAN 2015", "--json", str(path)])
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert list(rows) == ["VAE 2013", "DCGAN 2015"], "in the order of the table"
    assert rows["VAE 2013"] == row and rows["DCGAN 2015"]["images"] == 300
    assert len(met) == 1, "DCGAN and VAE"


@pytest.mark.skipif(not os.environ.get("COURSE_DATA"), reason="needs MNIST in COURSE_DATA")
def test_it_runs_and_sees_through_copies(benchmark, tmp_path, capsys):
    met = benchmark.main(["--quick", "--json", str(tmp_path / "timeline.json")])
    report = json.loads((tmp_path / "timeline.json").read_text(encoding="utf-8"))
    mnist = [name for name, model in benchmark.MODELS.items() if model.data == "mnist"]
    assert list(report["rows"]) == [*mnist, "copies of mnist"] and report["bars"] == met
    assert "Diffusion, conditional" in mnist
    for name in mnist:
        row = report["rows"][name]
        assert row["weights"] > 100_000 and 0 < row["MB"] <= 3 and row["seconds"] > 0, name
        n = 50 if name.startswith("Diffusion") else 300
        assert row["Fréchet distance"]["value"] > 0 and row["precision"]["n"] == row["images"] == n, name
    copies = report["rows"]["copies of mnist"]
    assert copies["distance to training"]["value"] == 0 and copies["copied"]["value"] == 1
    assert len(met) == 4, "three distances and one agreement"
    printed = capsys.readouterr()
    assert all(name in printed.out for name in report["rows"])
    assert all(claim in (printed.out if holds else printed.err) for claim, holds in met.items())
