"""The benchmark of text to image runs, and its bars can fail."""

import importlib
import json

import pytest

from course_lib.text_to_image import judge


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("benchmarks.text_to_image")


@pytest.mark.parametrize(
    ("one", "two", "colours", "dB", "holds"), [(0.9, 0.6, 0.98, 31, True), (0.8, 0.4, 0.9, 27, False)]
)
def test_bars_can_fail(benchmark, one, two, colours, dB, holds):
    report = {
        "decoder": {
            "tokens, one, seen": {"class and colour": one},
            "tokens, two, seen": {"class and colour": two},
            "text, two, seen": {"class and colour": two},
            "tokens, two, held out": {"class and colour": 0.0},
        },
        "clip": {"swaps of colour": {"proportion": colours}},
        "upsampler": {"upsampler": {"PSNR, dB": dB}, "bicubic": {"PSNR, dB": 27}},
    }
    met = benchmark.bars(report)
    assert list(met.values()) == [holds] * 5
    assert any(f"{colours:.3f}" in claim for claim in met)
    assert benchmark.bars({}) == {}


def test_it_runs(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    met = benchmark.main(["--quick", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report["bars"] == met
    assert len(met) == 5
    ways = {name.split(", ")[0] for name in report["decoder"]}
    assert ways == {"text", "image", "tokens", "real scenes"}
    for row in report["decoder"].values():
        assert set(row) == set(judge.QUESTIONS)
    assert report["decoder"]["real scenes, one, seen"]["class and colour"]["value"] > 0.7
    assert report["learned"]
    gain = report["upsampler"]["upsampler"]["PSNR, dB"] - report["upsampler"]["bicubic"]["PSNR, dB"]
    assert gain >= 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*report["decoder"], *report["guidance"], *met))
