"""Every published number has one source: the pages say what benchmarks/results and the checkpoints say."""

import json

import pytest

from benchmarks import common, generative_timeline, tables
from course_lib.base import checkpoints
from course_lib.base.metrics import Score


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: path.relative_to(tables.ROOT).as_posix())
def test_a_page_says_what_its_sources_say(path):
    assert path.read_text(encoding="utf-8") == tables.pages()[path], "run `make tables`"


def test_every_checkpoint_has_its_row():
    assert set(tables.WHAT) == {path.stem for path in checkpoints.folder().glob("*.safetensors")}


def test_every_table_stands_on_a_page():
    pages = "".join(text for path, text in tables.pages().items() if path.suffix == ".md")
    assert not [name for name in tables.TABLES if f"<!-- table: {name} -->" not in pages]


def test_a_changed_number_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- table: shipped networks -->\nold\n<!-- /table -->\nafter\n")
    (tmp_path / "data" / "README.md").write_text("no table\n")
    assert tables.main(["--check"]) == 1 and "stale: README.md" in capsys.readouterr().out
    assert "old" in (tmp_path / "README.md").read_text(), "--check changes nothing"
    assert tables.main([]) == 0 and tables.main(["--check"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    _, header = checkpoints.load("dcgan_mnist")
    assert header["sha256"] in text
    (tmp_path / "README.md").write_text(text.replace(header["sha256"], header["sha256"][::-1]))
    assert tables.main(["--check"]) == 1


def test_other_images_of_the_same_generators_have_the_same_scores():
    """The benchmark draws with a seed of its own: it must find what the headers say, within four standard errors."""
    rows = tables.results("generative_timeline")["rows"]
    compared = 0
    for name, model in generative_timeline.MODELS.items():
        if not model.data.endswith("mnist") or name not in rows:
            continue
        header = json.loads(checkpoints.load(model.file)[1]["score"])
        keys = [key for key in ("Fréchet distance", "precision", "recall", "copied", "agreement") if key in header]
        for key in keys:
            one, two = header[key], rows[name][key]
            if one["n"] != two["n"] and key != "agreement":  # of diffusion, fewer images: other balls, another floor
                continue
            error = sum(((s["high"] - s["low"]) / 3.92) ** 2 for s in (one, two)) ** 0.5
            assert abs(one["value"] - two["value"]) < 4 * error, f"{name}: {key} {one['value']} and {two['value']}"
            compared += 1
    assert compared == 30


def test_cats_are_compared_in_equal_numbers_with_real_ones_as_the_floor():
    found = tables.results("generative_timeline")["rows"]
    rows = {
        name: found[name] for name, data in generative_timeline.ROWS.items() if data == "cat_faces" and name in found
    }
    real = rows.pop(generative_timeline.HELD_OUT)
    assert rows and {row["images"] for row in rows.values()} == {real["images"]}
    assert 0.04 < real["copied"]["value"] < 0.06, "by definition"
    for name, row in rows.items():
        assert row["Fréchet distance"]["low"] > real["Fréchet distance"]["value"], name
        assert (
            f"| {name} | {row['images']:,} | {tables.score('Fréchet distance', row['Fréchet distance'])}"
            in tables.cats()
        )


def test_scores_as_text():
    assert tables.score("AP", 0.97412) == "0.974"
    assert tables.score("weights", 1125315) == "1,125,315" and tables.score("reached", True) == "yes"
    assert tables.score("copied", {"value": 0.0123, "low": 0.01, "high": 0.02}) == "1.23 % [1, 2]"
    assert tables.score("Fréchet floor", {"value": 0.5, "low": 0.5, "high": 0.5}) == "0.5"


def test_figures_are_written_with_where_and_when(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    common.write(path, {"rows": [{"score": Score(1.23456789, 1, 2, 10)}], "bars": {"met": True}})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert {"date", "processor", "threads", "torch"} <= set(found["environment"])
    assert found["rows"] == [{"score": {"value": 1.235, "low": 1.0, "high": 2.0, "n": 10}}]
    assert found["bars"]["met"] is True
    common.write(None, {})


def test_a_part_measured_elsewhere_keeps_where_it_was_measured(tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    common.write(path, {"first": 1})
    here = common.environment()
    monkeypatch.setattr(common, "environment", lambda: here | {"processor": "another"})
    common.write(path, {"second": 2})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["first"] == 1 and found["environment"]["processor"] == "another"
    places = {part: where["processor"] for part, where in found["environments"].items()}
    assert places == {"first": here["processor"], "second": "another"}
