"""The benchmark of lesson 9 runs and measures what it says."""

import json

import pytest

from benchmarks import editing as benchmark
from course_lib.base import datasets


def test_quick_run(tmp_path, capsys):
    if not (datasets.is_available("mnist") and datasets.is_available("cat_faces")):
        pytest.skip("needs mnist and cat_faces, in COURSE_DATA or the cache")
    tables = benchmark.main(["--quick", "--json", str(tmp_path / "figures.json")])
    report = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert report.keys() == {"environment", "environments", *tables}
    for r in (2, 4):
        rows = tables["super_resolution"]
        assert rows[f"×{r} shipped"]["PSNR, dB"] > rows[f"×{r} bicubic"]["PSNR, dB"] + 0.5
    perception, inpainting = tables["perception"], tables["inpainting"]
    assert perception["mean of 2"]["PSNR, dB"] > perception["one answer"]["PSNR, dB"]
    assert perception["the truth"]["Fréchet distance"] < perception["bicubic"]["Fréchet distance"]
    assert all(row["known pixels exact"] for row in inpainting.values())
    assert inpainting["digits, RePaint"]["calls"] == 100
    away = [row["root mean squared distance"] for row in tables["sdedit"].values()]
    assert away[0] == 0 and away[1] < away[-1]
    cats, drawn = tables["edges_to_cats"], tables["maps_to_scenes"]
    assert cats["the truth"]["edges agree"] == 1 and cats["the truth"]["mean absolute error"] == 0
    assert cats["pix2pix"]["edges agree"] > cats["nearest training image"]["edges agree"]
    assert drawn["nothing: the painted map"]["mIoU"] < drawn["pix2pix"]["mIoU"]
    lights = tables["day_and_night"]
    for side in ("day", "night"):
        errors = [lights[name][f"error to {side}"] for name in ("CycleGAN", "colour transfer", "nothing")]
        assert errors == sorted(errors)
    assert "read as asked" in capsys.readouterr().out
