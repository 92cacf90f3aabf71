"""A lesson on a busy laptop: training steps a second, alone and beside one busy process, by the number of threads.

    python benchmarks/busy.py --json busy.json               # 3 minutes on 2 quiet cores

The steps are those of the diffusion lesson: the small U-Net on the 8×8 digits, batches of 128, as many as the lesson
takes. The busy process multiplies matrices on one thread all the time. Rows: one thread, all threads, and the loop's
own choice (`runtime.fastest_threads`), which includes the time of its trials. The best of several runs counts, in turn.

Bar: with the loop's choice, the run takes at most 1.6 times as long beside the busy process as alone. Exits with 1
where it is missed.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks import common
from course_lib import diffusion
from course_lib.base import datasets, unet
from course_lib.base.loop import Loop

BAR = 1.6
LIVE = {"width": 48, "multipliers": (1, 1), "classes": 10, "patch": 2}  # the lesson's network
BUSY = """
import torch
torch.set_num_threads(1)
a = torch.randn(512, 512)
print("ready", flush=True)
while True:
    a @ a
"""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Another process that computes all the time, on one thread."""
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    try:
        child.stdout.readline()
        yield
    finally:
        child.kill()
        child.communicate()


@contextlib.contextmanager
def threads(count: int, *, fixed: bool) -> Iterator[None]:
    """So many threads for torch; fixed: as if the user had set OMP_NUM_THREADS, so that the loop chooses nothing."""
    before, variable = torch.get_num_threads(), os.environ.pop("OMP_NUM_THREADS", None)
    if fixed:
        os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop("OMP_NUM_THREADS", None)
        if variable is not None:
            os.environ["OMP_NUM_THREADS"] = variable


def steps_per_second(steps: int) -> float:
    """Of the lesson's training, in one run of the loop."""
    torch.manual_seed(0)
    network = unet.UNet(unet.Config(**LIVE))
    denoiser = diffusion.Denoiser(network, diffusion.cosine(), "v", shape=(1, 8, 8))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    rng = torch.Generator().manual_seed(0)
    step = diffusion.diffusion_step(denoiser, optimiser, rng, drop=0.1, gamma=5)
    parts = {"network": network, "optimiser": optimiser, "rng": rng}
    data = datasets.load("digits")
    loop = Loop(step, data, steps=steps, batch_size=128, stateful=parts, averages={"network": 0.99}, title="busy")
    loop.run()
    return steps / loop.seconds


def measure(steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Steps a second, by number of threads and by load: the best of several runs."""
    most = torch.get_num_threads()
    kinds = {"1 thread": (1, True), f"all threads ({most})": (most, True), "the loop's choice": (most, False)}
    rows = {name: {"alone": 0.0, "beside a busy process": 0.0} for name in kinds}
    for _ in range(repeats):
        for load, context in (("alone", contextlib.nullcontext), ("beside a busy process", busy_process)):
            with context():
                for name, (count, fixed) in kinds.items():
                    with threads(count, fixed=fixed):
                        rows[name][load] = max(rows[name][load], steps_per_second(steps))
    return rows


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measure, print the table, and write what was asked for; returns the figures."""
    options = common.parser(__doc__).parse_args(argv)
    rows = measure(steps=8 if options.quick else 300, repeats=1 if options.quick else 3)
    print("steps a second")
    print(common.table(rows))
    chosen = rows["the loop's choice"]
    ratio = chosen["alone"] / chosen["beside a busy process"]
    met = {f"beside a busy process the loop takes {ratio:.2f} times as long as alone, ≤ {BAR}": ratio <= BAR}
    common.report(met)
    common.write(options.json, {"rows": rows, "ratio": ratio, "bars": met})
    if not all(met.values()) and not options.quick:
        raise SystemExit(1)
    return {"rows": rows, "ratio": ratio}


if __name__ == "__main__":
    main()
