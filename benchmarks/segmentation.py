"""Segmentation, measured: the live training and the shipped network on new scenes, and run lengths against pycocotools.

    python benchmarks/segmentation.py                 # about 5 minutes on 2 cores
    python benchmarks/segmentation.py --only speed    # or live, or shipped

*live*: the lesson's network and settings, 45 s of training for each of three seeds, on top of lesson 10's detector as
in the lesson, and once from random weights; drawing the scenes is not counted. *shipped*: the checkpoint. Both are
judged on scenes that neither has learnt from. *speed*: encoding and decoding of masks, and the IoU of all pairs,
against pycocotools' C; masks are discs with wavy rims.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks import common
from course_lib import scenes, segmentation
from course_lib.base import runtime, zoo
from course_lib.base.loop import Loop
from course_lib.segmentation import rle

SECONDS, SIZE = 45.0, 64  # of training; pixels
SCENES, BATCH = 2000, 16  # to learn from live
HELD_OUT_SEED = 1_000_003
PARTS = ("speed", "shipped", "live")
BARS = {"live mIoU ≥ 0.85": ("live", "mIoU", 0.85), "shipped PQ ≥ 0.70": ("shipped", "PQ", 0.70)}


def live(seed: int, seconds: float, count: int, judges: list[scenes.Rendering], *, transfer: bool) -> dict[str, float]:
    """Train for so many seconds, then judge the moving average.

    The schedule of the learning rate needs to know the number of steps, so the speed is measured first.
    """
    device = runtime.device()
    data = segmentation.SegmentationDataset.draw(count, SIZE, seed)

    def run(steps: int) -> Loop:
        torch.manual_seed(seed)
        network = segmentation.SegmentationNet()
        if transfer:
            network.take_up(zoo.load("detector_scenes"))
        network.to(device)
        optimiser, schedule = segmentation.optimiser_and_schedule(network, steps)
        rng = torch.Generator(device).manual_seed(seed)
        step = segmentation.segmentation_step(network, optimiser, rng, schedule=schedule)
        parts = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
        loop = Loop(step, data, steps=steps, batch_size=BATCH, seed=seed, stateful=parts, averages={"network": 0.98})
        loop.run()
        return loop

    run(3)  # warms up
    probe = run(20)
    loop = run(max(5, int(seconds / (probe.seconds / 20))))
    scores = segmentation.evaluate(loop.averaged["network"], judges)
    return {"steps": loop.steps, "seconds": loop.seconds, **scores}


def shipped(judges: list[scenes.Rendering]) -> dict[str, float]:
    """The checkpoint's scores, and its seconds an image for all three answers."""
    network = zoo.load("panoptic_scenes", runtime.device())
    begin = time.perf_counter()
    scores = segmentation.evaluate(network, judges)
    return {**scores, "ms a scene, with judging": 1000 * (time.perf_counter() - begin) / len(judges)}


def wavy_discs(n: int, H: int, W: int, seed: int = 0) -> Tensor:
    """Masks (n, H, W) bool with rims as uneven as those of real objects."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    masks = []
    for _ in range(n):
        a, b, r, phase = torch.rand(4, generator=rng).tolist()
        dy, dx = y - a * H, x - b * W
        rim = (0.05 + 0.25 * r) * min(H, W) * (1 + 0.2 * torch.sin(7 * torch.atan2(dy, dx) + 6 * phase))
        masks.append(torch.hypot(dy, dx) < rim)
    return torch.stack(masks)


def seconds_of(function: Callable[[], object], repeats: int) -> float:
    """The median time of a call, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def speed(H: int, W: int, n: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds for n masks, ours and pycocotools', checked to agree."""
    from pycocotools import mask as coco

    masks = wavy_discs(n, H, W)
    stacked = np.asfortranarray(masks.byte().movedim(0, -1).numpy())
    ours, theirs = [rle.encode(m) for m in masks], coco.encode(stacked)
    if [rle.to_text(r) for r in ours] != [r["counts"].decode() for r in theirs]:
        raise AssertionError("ours and pycocotools' run lengths differ")
    crowd = [0] * n
    difference = segmentation.mask_iou(masks, masks) - torch.from_numpy(coco.iou(theirs, theirs, crowd))
    if difference.abs().max() > 1e-6:
        raise AssertionError(f"the IoUs differ by {float(difference.abs().max()):.1e}")
    texts = [(rle.to_text(r), r.size) for r in ours]
    pairs = {
        "encode to text": (lambda: [rle.to_text(rle.encode(m)) for m in masks], lambda: coco.encode(stacked)),
        "decode from text": (lambda: [rle.decode(rle.from_text(*t)) for t in texts], lambda: coco.decode(theirs)),
        "IoU of all pairs, from pixels": (
            lambda: segmentation.mask_iou(masks, masks),
            lambda: coco.iou(coco.encode(stacked), coco.encode(stacked), crowd),
        ),
        "IoU of all pairs, from runs": (
            lambda: [[rle.iou(a, b) for b in ours] for a in ours],
            lambda: coco.iou(theirs, theirs, crowd),
        ),
    }
    rows = {}
    for name, functions in pairs.items():
        mine, other = (1000 * seconds_of(function, repeats) for function in functions)
        rows[f"{name}, {n} masks {H}×{W}"] = {"ours, ms": mine, "pycocotools, ms": other, "times": mine / other}
    return rows


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Measure, print the tables, and write what was asked for; returns the rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    rows: dict[str, dict] = {}
    if "speed" in options.only:
        sizes = [(32, 40, 4)] if options.quick else [(64, 64, 100), (480, 640, 20)]
        for H, W, n in sizes:
            rows |= speed(H, W, n, 2 if options.quick else 10)
        print(common.table(rows) + "\n")
    judged: dict[str, dict] = {}
    if {"shipped", "live"} & set(options.only):
        judges = scenes.Scenes(10 if options.quick else 200, SIZE, HELD_OUT_SEED).render_all()
        if "shipped" in options.only:
            judged["shipped"] = shipped(judges)
        if "live" in options.only:
            seconds, count = (0.5, 30) if options.quick else (SECONDS, SCENES)
            seeds = options.seeds[:1] if options.quick else options.seeds
            for seed in seeds:
                judged[f"live, seed {seed}"] = live(seed, seconds, count, judges, transfer=True)
            judged["from random weights"] = live(seeds[0], seconds, count, judges, transfer=False)
        print(f"on {len(judges)} new scenes\n" + common.table(judged))
    met = {}
    for claim, (part, name, least) in BARS.items():
        values = [row[name] for key, row in judged.items() if key.startswith(part)]
        if values:
            met[f"{claim}: {', '.join(f'{value:.3f}' for value in values)}"] = min(values) >= least
    common.report(met)
    parts = {name: found for name, found in (("speed", rows), ("quality", judged)) if found}
    common.write(options.json, parts | {"bars": met})
    return rows | judged


if __name__ == "__main__":
    main()
