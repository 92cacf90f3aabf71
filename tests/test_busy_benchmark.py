"""The benchmark of a busy laptop runs, measures what it says, and leaves torch and the environment as they were."""

import importlib
import json
import os

import pytest
import torch


@pytest.fixture(scope="module")
def busy():
    return importlib.import_module("benchmarks.busy")


def test_quick_run(busy, tmp_path, capsys):
    before = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
    figures = busy.main(["--quick", "--json", str(tmp_path / "figures.json")])
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    rows = figures["rows"]
    assert written["rows"].keys() == rows.keys() and written["ratio"] == pytest.approx(figures["ratio"], rel=1e-3)
    assert len(rows) == 3 and all(rate > 0 for row in rows.values() for rate in row.values())
    assert figures["ratio"] == rows["the loop's choice"]["alone"] / rows["the loop's choice"]["beside a busy process"]
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == before
    assert "beside a busy process the loop takes" in capsys.readouterr().out


def test_a_missed_bar_is_an_error(busy, monkeypatch):
    for slow, missed in ((60.0, False), (10.0, True)):
        rows = {"the loop's choice": {"alone": 70.0, "beside a busy process": slow}}
        monkeypatch.setattr(busy, "measure", lambda steps, repeats, rows=rows: rows)
        if missed:
            with pytest.raises(SystemExit):
                busy.main([])
        else:
            busy.main([])


def test_only_a_fixed_number_of_threads_is_kept_from_the_loop(busy):
    for fixed in (True, False):
        with busy.threads(2, fixed=fixed):
            assert torch.get_num_threads() == 2 and ("OMP_NUM_THREADS" in os.environ) == fixed


def test_the_busy_process_ends(busy, monkeypatch):
    started, popen = [], busy.subprocess.Popen
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *a, **more: started.append(popen(*a, **more)) or started[-1])
    with busy.busy_process():
        assert started[0].poll() is None
    assert started[0].poll() is not None
