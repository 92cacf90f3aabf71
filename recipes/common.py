"""What the command lines of recipes/ share: arguments, places of files, a resumable run, a table and its JSON.

def main(argv=None):
    args = common.parser(__doc__, steps=6000, batch_size=64).parse_args(argv)
    run = common.setup(args, "dcgan_mnist", script=__file__)
    ...                                     # networks, optimisers, step
    hook = common.draw(run, lambda loop: gan.sample(loop.averaged["generator"], common.IMAGES), 1000)
    loop = common.train(run, step, data, stateful=..., averages={"generator": 0.999}, hooks=[hook])
    generator = common.round_to_half(loop.averaged["generator"])
    scores = metrics.evaluate(gan.sample(generator, common.EVALUATED), "mnist")
    common.export(run, generator, scores, seconds=loop.seconds)
"""

import argparse
import dataclasses
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.base import checkpoints, datasets, distributed, images, metrics, runtime
from course_lib.base.loop import Loop, Step, every

MAX_BYTES = 3_000_000  # of a shipped checkpoint
MAX_BYTES_64 = 5_000_000  # of one that draws images of 64×64
IMAGES = 80  # of a grid that `draw` writes
EVALUATED = 10_000  # generated images that are judged
QUICK_STEPS, QUICK_BATCH_SIZE = 20, 16
PLACES = ("out", "state", "json", "quick")  # arguments that do not change what is learned

M = TypeVar("M", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training of a recipe, as the command line asks for it.

    Attributes:
        name: of the checkpoint, without folder and suffix.
        settings: the arguments that change what is learned, by name.
        command: that repeats the run, with every argument that matters spelt out.
        steps, batch_size, seed: as for `Loop`.
        device: to compute on.
        quick: whether to show only that the recipe works.
        out: the file of the checkpoint.
        resume_from: the file of the state; None: keeps none.
        json: where to write the scores, too; None: nowhere.
    """

    name: str
    settings: dict[str, Any]
    command: str
    steps: int
    batch_size: int
    seed: int
    device: torch.device
    quick: bool
    out: Path
    resume_from: Path | None
    json: Path | None


def parser(description: str, *, steps: int, batch_size: int) -> argparse.ArgumentParser:
    """The arguments that all recipes share; a recipe adds its own, and calls `setup` after parsing.

    Args:
        description: the recipe's docstring.
        steps: the default, with which the shipped checkpoint was trained.
        batch_size: the same.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--steps", type=_positive, default=steps, help=f"default {steps}")
    made.add_argument("--batch-size", type=_positive, default=batch_size, help=f"default {batch_size}")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="the checkpoint (default: in data/checkpoints)")
    made.add_argument("--state", type=Path, help="for resuming (default: in build/)")
    made.add_argument("--json", type=Path, help="write the scores there too")
    made.add_argument(
        "--quick", action="store_true", help="a few steps that show that the recipe works; kept in build/"
    )
    return made


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


def select(args: argparse.Namespace, asked: str | None, quick: str, everything: Iterable[str]) -> list[str]:
    """Which of a recipe's trainings the command line means: the one it names, with `--quick` one, else all.

    Args:
        args: of a `parser`.
        asked: the one that was named, if any.
        quick: the one for `--quick`.
        everything: all names.

    Raises:
        SystemExit: several of them, but one file to write.
    """
    names = [asked] if asked else [quick] if args.quick else list(everything)
    if len(names) > 1 and (args.out or args.state or args.json):
        raise SystemExit(f"{', '.join(names)} cannot share --out, --state or --json; name one of them")
    return names


def setup(args: argparse.Namespace, name: str, *, script: str, **chosen: Any) -> Run:
    """Fill in what the command line left open, connect the processes and seed everything.

    With `--quick` there are few steps and a small batch; the checkpoint goes to build/ instead of replacing the
    shipped one, and no state is kept unless the command line says where.

    Args:
        args: of a `parser`.
        name: of the checkpoint, without folder and suffix; with the data's name where a recipe knows several.
        script: the recipe's `__file__`.
        chosen: arguments that the recipe chose itself, as the model of several that is trained now.
    """
    args, build = argparse.Namespace(**vars(args) | chosen), Path("build")
    if args.quick:
        args.steps, args.batch_size = min(args.steps, QUICK_STEPS), min(args.batch_size, QUICK_BATCH_SIZE)
    settings = {key: value for key, value in vars(args).items() if key not in PLACES and value is not None}
    distributed.processes()  # connects them, and chooses this one's GPU before anything is put there
    device = runtime.device()
    runtime.seed_everything(args.seed, device)
    shipped, quick = checkpoints.folder() / f"{name}.safetensors", build / f"{name}_quick.safetensors"
    return Run(
        name=name,
        settings=settings,
        command=_command(script, settings),
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        device=device,
        quick=args.quick,
        out=args.out or (quick if args.quick else shipped),
        resume_from=args.state or (None if args.quick else build / f"{name}_state.pt"),
        json=args.json,
    )


def _command(script: str, settings: Mapping[str, Any]) -> str:
    words = ["python", f"recipes/{Path(script).name}"]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        else:
            words += [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]
    return shlex.join(words)


def train(run: Run, step: Step, data: Any, *, settings: Mapping[str, Any] | None = None, **more: Any) -> Loop:
    """Run a `Loop` to its end; returns the loop.

    The losses are printed twenty times on the way, for log files, where no progress bar is seen.

    Args:
        run: of `setup`.
        step: as for `Loop`.
        data: as for `Loop`.
        settings: what a state must agree in beside the arguments of the command line.
        more: further arguments of `Loop`, at least `stateful`.

    Raises:
        SystemExit: the state's file is damaged or belongs to other arguments; the message says which.
    """
    hooks = (*more.pop("hooks", ()), every(max(1, run.steps // 20), _report))
    own = {"steps": run.steps, "batch_size": run.batch_size, "seed": run.seed, "resume_from": run.resume_from}
    further = {name: value for name, value in run.settings.items() if name not in own} | dict(settings or {})
    loop = Loop(step, data, **own, title=run.name, settings=further, hooks=hooks, **more)
    try:
        loop.run()
    except checkpoints.CheckpointError as error:
        raise SystemExit(str(error)) from error
    return loop


def _report(loop: Loop) -> None:
    if distributed.processes().is_main_process:
        losses = "  ".join(f"{name} {value:.3g}" for name, value in loop.losses.items())
        tqdm.write(f"{loop.title} {loop.done:6d}  {losses}  {loop.seconds:.0f} s")


def draw(run: Run, sample: Callable[[Loop], Tensor], n: int) -> Callable[[Loop], None]:
    """A hook that writes a grid of images after every n steps, and at the end, to build/<checkpoint>_<step>.png.

    Args:
        run: of `setup`.
        sample: gives images (N, C, H, W) in [0, 1], C of 1 or 3, from the loop; best from noise that stays the same.
            Only the main process calls it. They are shown at twice their size, in ten columns.
        n: steps from one file to the next.
    """

    def write(loop: Loop) -> None:
        if distributed.processes().is_main_process:
            drawn = F.interpolate(sample(loop), scale_factor=2, mode="nearest")
            images.save(images.grid(drawn, 10), Path("build") / f"{run.out.stem}_{loop.done:06d}.png")

    return every(n, write)


def beside_held_out(generated: Tensor, name: str) -> dict[str, Any]:
    """Fréchet distances to the training split, of as many generated images as were held out, and of those themselves.

    `metrics.evaluate` compares with a floor from theory; this one is from real images, of which there are as many.

    Args:
        generated: (N, C, H, W) in [0, 1].
        name: of the data set.
    """
    features = metrics.extractor(name)
    training, held_out = (datasets.load(name, split)[:][0] for split in datasets.SPLITS)
    n = min(len(generated), len(held_out))
    real = features(training)
    sides = {"generated": generated[:n], "held-out": held_out[:n]}
    return {"images": n, **{side: metrics.frechet_distance(real, features(images)) for side, images in sides.items()}}


@torch.no_grad()
def round_to_half(module: M) -> M:
    """The module itself, its floating weights and buffers rounded, in place, to the half precision that `export` saves.

    So what is judged is what ships, to the last bit. Their type stays; beyond 65504 they become infinite, which
    `export` refuses.
    """
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())
    return module


def export(
    run: Run, module: nn.Module, scores: Mapping[str, Any], *, seconds: float, max_bytes: int = MAX_BYTES, **more: Any
) -> None:
    """Save the weights in half precision with their history, print the table and write the JSON.

    Only the main process does. Integers such as BatchNorm's counters keep their type.

    Args:
        run: of `setup`; its `out` and `json` say where to.
        module: what to ship; judged after `round_to_half`.
        scores: by name: numbers, text, or `metrics.Score`s (any dataclass or named tuple with value, low, high, n).
        seconds: of training, as `loop.seconds`.
        max_bytes: of the file.
        more: further facts for the checkpoint's metadata.

    Raises:
        ValueError: the file would exceed `max_bytes`, or a weight is not finite, also after rounding to half precision.
    """
    if not distributed.processes().is_main_process:
        return
    state = {name: tensor.cpu().clone() for name, tensor in module.state_dict().items()}
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}
    size = len(safetensors.torch.save(halves))
    if size > max_bytes:
        raise ValueError(f"a checkpoint has at most {max_bytes / 1e6:g} MB; {run.out.name} would have {size / 1e6:.2f}")
    numbers = {name: plain(score) for name, score in scores.items()}
    facts = {"seed": run.seed, "score": numbers, "seconds": round(seconds, 1)} | more
    checkpoints.save(run.out, halves, recipe=run.command, **facts)
    print(f"{run.out}: {size / 1e6:.2f} MB, trained in {seconds:.0f} s")
    print(table({name: {"value": score} for name, score in scores.items()}))
    if run.json:
        run.json.parent.mkdir(parents=True, exist_ok=True)
        run.json.write_text(json.dumps({"name": run.name, "seconds": round(seconds, 1), **numbers}, indent=1) + "\n")


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of named values as text in columns, for a person: `{"DCGAN": {"FD": 12.3, "precision": score}}`.

    A `metrics.Score` is shown with its interval and sample size; a missing value is left empty.
    """
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [["", *columns]]
    cells += [[name, *(_text(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns) + 1)]
    lines = []
    for first, *others in cells:
        padded = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or a named tuple."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value._asdict() if hasattr(value, "_asdict") else None


def plain(value: Any) -> Any:
    """A score as JSON holds it, its numbers rounded to 4 significant digits."""
    value = _fields(value) or value
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item"):  # a NumPy number, or a tensor of one
        value = value.item()
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _text(value: Any) -> str:
    fields = _fields(value)
    if fields and {"value", "low", "high"} <= fields.keys():
        n = f", n = {fields['n']}" if "n" in fields else ""
        return f"{fields['value']:.4g} [{fields['low']:.4g}, {fields['high']:.4g}]{n}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    value = plain(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
