"""What the benchmarks share: their command line, and a JSON that says where and when its figures were measured."""

import argparse
import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision

from course_lib.base import runtime
from course_lib.base.loop import Loop
from recipes.common import plain, table

__all__ = ["environment", "parser", "plain", "report", "run_for", "table", "write"]


def parser(description: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks have; a benchmark adds its own.

    Args:
        description: the benchmark's docstring.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    made.add_argument("--quick", action="store_true", help="small and short: does it run?")
    return made


def processor() -> str:
    """The processor's name, as far as the operating system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment() -> dict[str, Any]:
    """Date, processor, threads and versions."""
    device = runtime.device()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def write(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON, with the environment before them; parts that the file had and that are not given stay.

    Where a file is written in several runs, perhaps on several machines, `environments` tells each part's own.

    Args:
        path: of the file, its folder is created; None: nothing is written.
        figures: by name: numbers, text, scores, and lists and mappings of them.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    here = environment()
    own = {"environments": kept.get("environments", {}) | dict.fromkeys(figures, here)}
    found = kept | {"environment": here} | plain(dict(figures)) | own
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def run_for(seconds: float, trial: int, training: Callable[[int], Loop]) -> Loop:
    """Run a training of as many steps as the clock allows; returns it.

    Args:
        seconds: that it may take.
        trial: steps of two short runs before it: one warms up, the other tells how long a step takes.
        training: makes one of so many steps, not yet run.
    """
    training(trial).run()
    paced = training(trial)
    paced.run()
    loop = training(max(1, int(0.97 * seconds * trial / paced.seconds)))
    loop.run()
    return loop


def report(met: Mapping[str, bool]) -> bool:
    """Print which bars are met and which are missed; whether all are met."""
    for claim, holds in met.items():
        print(f"{'met   ' if holds else 'MISSED'} {claim}")
    return all(met.values())
