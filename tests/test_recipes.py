"""recipes/common.py: what a recipe's command line does, from its arguments to its checkpoint."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.base import checkpoints, distributed, images
from course_lib.base.loop import Loop, descend
from recipes import common


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Relative paths, such as build/, lead into a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_PRECISION", "float32")
    monkeypatch.setenv("COURSE_DEVICE", "cpu")
    monkeypatch.setattr(checkpoints, "folder", lambda: Path("data/checkpoints"))


SECOND = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)


class Score(NamedTuple):
    value: float
    low: float
    high: float
    n: int


def setup(*words: str, **chosen) -> common.Run:
    parser = common.parser("Fit a line.", steps=300, batch_size=8)
    parser.add_argument("--data", default="line")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--flat", action="store_true")
    parser.add_argument("--limit", type=float)
    args = parser.parse_args(words)
    name = f"tiny_{chosen.get('data', args.data)}"
    return common.setup(args, name, script="/some/where/recipes/tiny.py", **chosen)


def fit(*words: str, **more):
    """A whole recipe; the network, its loop and the run."""
    run = setup(*words)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)

    def step(x):
        loss = (network(x) - x[:, :2]).square().mean()
        descend(loss, optimiser)
        return {"loss": loss}

    data = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    parts = {"network": network, "optimiser": optimiser}
    loop = common.train(run, step, data, stateful=parts, averages={"network": 0.9}, **more)
    return network, loop, run


# --- arguments


def test_the_defaults_are_those_of_the_shipped_checkpoint():
    run = setup()
    assert (run.steps, run.batch_size, run.seed, run.name) == (300, 8, 0, "tiny_line")
    assert run.out == Path("data/checkpoints/tiny_line.safetensors")
    assert run.resume_from == Path("build/tiny_line_state.pt")
    assert run.json is None and not run.quick


def test_a_quick_run_touches_nothing_of_value():
    run = setup("--quick")
    assert run.steps < 50 and run.batch_size == 8 and run.quick
    assert run.out == Path("build/tiny_line_quick.safetensors") and run.resume_from is None
    assert setup("--quick", "--steps", "3").steps == 3
    named = setup("--quick", "--out", "a.safetensors", "--state", "b.pt")
    assert (named.out, named.resume_from) == (Path("a.safetensors"), Path("b.pt"))


@pytest.mark.parametrize("words", [["--steps", "0"], ["--batch-size", "-2"], ["--steps", "many"], ["--stepz", "3"]])
def test_wrong_arguments_end_with_a_message(words, capsys):
    with pytest.raises(SystemExit):
        setup(*words)
    assert words[0] in capsys.readouterr().err


def test_setup_seeds_everything_and_changes_no_arguments():
    args = common.parser("Fit a line.", steps=300, batch_size=8).parse_args(["--quick"])
    before, drawn = dict(vars(args)), []
    for seed in (3, 3, 4):
        run = common.setup(args, "tiny", script=__file__, seed=seed)
        assert run.device == torch.device("cpu") and run.seed == seed
        drawn.append((torch.rand(1).item(), np.random.rand()))
    assert drawn[0] == drawn[1] != drawn[2] and vars(args) == before


def test_the_command_spells_out_what_matters():
    assert setup("--json", "x.json", "--state", "s.pt", "--seed", "2").command == (
        "python recipes/tiny.py --steps 300 --batch-size 8 --seed 2 --data line --widths 1 2"
    )
    quick = setup("--quick", "--flat", "--limit", "0.5", "--widths", "7", data="curve")  # which the recipe chose itself
    assert quick.command.endswith("--steps 20 --batch-size 8 --seed 0 --data curve --widths 7 --flat --limit 0.5")
    again = setup(*quick.command.split()[2:])  # the command means what it says
    assert again.settings == quick.settings and again.name == quick.name == "tiny_curve"


# --- the run


def test_a_run_reports_for_log_files(capsys):
    _, loop, _ = fit("--steps", "40")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 and lines[-1].startswith("tiny_line     40  loss ")
    assert loop.title == "tiny_line" and loop.done == 40


def test_a_run_is_resumed_and_refuses_other_arguments(capsys):
    def stop(loop):
        if loop.done == 10:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 11 of 30, kept in build/tiny_line_state\.pt"):
        fit("--steps", "30", hooks=[stop])
    with pytest.raises(SystemExit, match=r"belongs to other settings: data is line there, curve here"):
        fit("--steps", "30", "--data", "curve", "--state", "build/tiny_line_state.pt")
    with pytest.raises(SystemExit, match="seed is 0 there, 1 here"):
        fit("--steps", "30", "--seed", "1")
    network, loop, _ = fit("--steps", "30")
    assert len(loop.history["loss"]) == 30
    whole, _, _ = fit("--steps", "30", "--state", "other.pt")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), whole.parameters(), strict=True))
    Path("build/tiny_line_state.pt").write_bytes(b"notes")
    with pytest.raises(SystemExit, match="is not a training state"):
        fit("--steps", "30")


def test_a_recipe_may_add_settings_of_its_own():
    fit("--steps", "5", settings={"loss": "hinge"})
    with pytest.raises(SystemExit, match="loss is hinge there, logistic here"):
        fit("--steps", "5", settings={"loss": "logistic"})
    with pytest.raises(SystemExit, match="data is line there, curve here"):  # the arguments count as before
        fit("--steps", "5", "--data", "curve", "--state", "build/tiny_line_state.pt", settings={"loss": "hinge"})


def test_images_are_drawn_on_the_way(monkeypatch):
    asked = []

    def sample(loop):
        asked.append(loop.done)
        return torch.arange(12.0).div(11).view(12, 1, 1, 1).expand(12, 1, 3, 4) if loop.averaged else None

    named = ("--out", "tiny.safetensors")
    fit("--steps", "10", *named, hooks=[common.draw(setup(*named), sample, 4)])
    assert asked == [4, 8, 10]
    assert sorted(path.name for path in Path("build").glob("*.png")) == [f"tiny_{n:06d}.png" for n in asked]
    image = images.load(Path("build/tiny_000010.png"))
    assert image.shape == (1, 3, 2 * (6 + 2) + 2, 10 * (8 + 2) + 2)  # twice as large, two rows of ten, frames of 2
    for number in range(12):
        top, left = 2 + 8 * (number // 10), 2 + 10 * (number % 10)
        tile = image[0, :, top : top + 6, left : left + 8]
        assert torch.allclose(tile, torch.full_like(tile, number / 11), atol=1 / 255)
    monkeypatch.setattr(distributed, "processes", lambda: SECOND)
    common.draw(setup(), sample, 1)(Loop(lambda x: {}, [0], steps=1, batch_size=2, stateful={}))
    assert asked == [4, 8, 10]


# --- the end


def test_export_ships_half_precision_with_its_history(capsys):
    _, loop, run = fit("--steps", "5", "--seed", "2", "--json", "build/new/scores.json")
    capsys.readouterr()
    scores = {"distance": Score(12.34567, 11, 13.5, 500), "accuracy": 0.98765, "modes": np.int64(8)}
    common.export(run, loop.averaged["network"], scores, seconds=loop.seconds, data="forty points")
    tensors, facts = checkpoints.load(run.out)
    assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int64}
    for name, tensor in loop.averaged["network"].state_dict().items():
        assert torch.equal(tensors[name], tensor.half() if tensor.is_floating_point() else tensor)
    assert facts["recipe"].startswith("python recipes/tiny.py --steps 5 --batch-size 8 --seed 2")
    assert (facts["seed"], facts["data"], float(facts["seconds"])) == ("2", "forty points", round(loop.seconds, 1))
    plain = {"distance": {"value": 12.35, "low": 11, "high": 13.5, "n": 500}, "accuracy": 0.9877, "modes": 8}
    assert json.loads(facts["score"]) == plain
    written = json.loads(Path("build/new/scores.json").read_text())
    assert written == {"name": "tiny_line", "seconds": round(loop.seconds, 1), **plain}
    printed = capsys.readouterr().out
    assert "data/checkpoints/tiny_line.safetensors: 0.00 MB" in printed
    assert "12.35 [11, 13.5], n = 500" in printed and "0.9877" in printed


def test_what_is_judged_is_what_ships():
    """Rounded before the evaluation, the module equals its checkpoint to the last bit."""
    run = setup("--quick")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, dtype=torch.float64))
    module[1](module[0](torch.randn(5, 3)))  # running statistics of its own
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parameter = module[0].weight
    assert common.round_to_half(module) is module and module[0].weight is parameter
    common.export(run, module, {}, seconds=1.0)
    shipped = checkpoints.load(run.out)[0]
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, shipped[name].to(tensor.dtype)), name
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, before[name], rtol=2**-11, atol=2**-25)
    assert not torch.equal(module[0].weight, before["0.weight"])
    assert not torch.equal(module[1].running_mean, before["1.running_mean"])
    assert module[1].num_batches_tracked == 1
    assert parameter.requires_grad and parameter.grad_fn is None  # it could be trained on


def test_tied_and_strided_weights_are_shipped_too():
    run = setup("--quick")
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last))
    module[1].weight = module[0].weight
    module.half()
    common.export(run, module, {}, seconds=1.0)
    assert torch.equal(checkpoints.load(run.out)[0]["2.weight"], module[2].weight)


def test_what_is_too_large_or_overflows_is_not_shipped():
    run = setup("--quick")
    common.export(run, nn.Linear(1, 1), {}, seconds=1.0)
    before = run.out.read_bytes()
    with pytest.raises(ValueError, match=r"at most 3 MB; tiny_line_quick\.safetensors would have 3\.\d\d"):
        common.export(run, nn.Linear(1000, 1501), {}, seconds=1.0)
    with pytest.raises(ValueError, match=r"at most 5 MB; .* would have 5\.\d\d"):
        common.export(run, nn.Linear(1000, 2501), {}, seconds=1.0, max_bytes=common.MAX_BYTES_64)
    huge = nn.Linear(1, 1)
    nn.init.constant_(huge.bias, 1e5)  # more than half precision holds
    with pytest.raises(ValueError, match="'bias' are not all finite"):
        common.export(run, huge, {}, seconds=1.0)
    assert run.out.read_bytes() == before


def test_what_draws_64_pixels_may_be_larger():
    run = setup("--quick")
    common.export(run, nn.Linear(1000, 1501), {}, seconds=1.0, max_bytes=common.MAX_BYTES_64)
    assert checkpoints.load(run.out)[0]["weight"].shape == (1501, 1000)


def test_only_the_main_process_writes(monkeypatch, capsys):
    run = setup("--quick")
    monkeypatch.setattr(distributed, "processes", lambda: SECOND)
    common.export(run, nn.Linear(1, 1), {}, seconds=1.0)
    assert not run.out.exists() and not capsys.readouterr().out


def test_tables_are_for_people():
    @dataclass
    class Interval:
        value: float
        low: float
        high: float

    assert common.table({"features": {"value": {"relu1_1": 0.97312, "relu1_2": 1}}}).splitlines() == [
        "                              value",
        "features  relu1_1 0.9731, relu1_2 1",
    ]
    rows = {"GAN": {"parameters": 1200, "distance": Interval(3.14159, 3, 4)}, "DCGAN": {"distance": torch.tensor(0.5)}}
    assert common.table(rows).splitlines() == [
        "       parameters      distance",
        "GAN          1200  3.142 [3, 4]",
        "DCGAN                       0.5",
    ]
