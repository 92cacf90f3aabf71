"""Detection in numbers: by-hand overlap and suppression against torchvision, the live detector, the shipped ones.

    python benchmarks/detection.py --json detection.json        about 3 minutes on 2 cores
    python benchmarks/detection.py --only live                  three trainings of the lesson's length

Operations are timed by turns with torchvision's, after a check that both give the same; the median counts. The live
detector is the lesson's: as many steps on as many scenes, judged on the same held-out ones; three times with other
weights and another order (the drawing is timed beside it). Shipped detectors are judged on 500 other
scenes, and on the held-out Penn-Fudan photographs where those are at hand.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import Tensor

from benchmarks import common
from course_lib import detection, scenes
from course_lib.base import runtime, zoo
from course_lib.base.datasets import DownloadError
from course_lib.base.loop import Loop

PARTS = ("operations", "live", "shipped")
SCENES, HELD_OUT, STEPS = 1000, 150, 320  # of the lesson's training
BAR = 0.7  # AP50 of the live detector
TIMES = 2.0  # torchvision's time, at most
TRAINING_SEED, LIVE_SEED, SHIPPED_SEED = 0, 1, 1_000_003  # of scenes; no two sets share one
BATCH = 16


def drawn_boxes(n: int, far: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """n boxes with sides up to 100 in a square of side `far`, and their scores."""
    rng = torch.Generator().manual_seed(seed)
    corner = far * torch.rand(n, 2, generator=rng)
    return torch.cat([corner, corner + 100 * torch.rand(n, 2, generator=rng)], 1), torch.rand(n, generator=rng)


def by_turns(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median milliseconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 3):
        for function, record in zip((ours, theirs), times, strict=True):
            begin = time.perf_counter()
            function()
            record.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times[0][3:]), statistics.median(times[1][3:])  # the first ones warm up


def pairs(n: int, far: float) -> dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]]:
    """By operation: ours and torchvision's, on the same n boxes."""
    boxes, scores = drawn_boxes(n, far)
    labels, ops = torch.arange(n) % 10, torchvision.ops
    return {
        "IoU": (lambda: detection.pairwise(detection.iou, boxes, boxes), lambda: ops.box_iou(boxes, boxes)),
        "GIoU": (
            lambda: detection.pairwise(detection.giou, boxes, boxes),
            lambda: ops.generalized_box_iou(boxes, boxes),
        ),
        "NMS": (lambda: detection.nms(boxes, scores), lambda: ops.nms(boxes, scores, 0.5)),
        "NMS of 10 classes": (
            lambda: detection.nms(boxes, scores, 0.5, labels),
            lambda: ops.batched_nms(boxes, scores, labels, 0.5),
        ),
    }


def operations(quick: bool) -> dict[str, dict[str, object]]:
    """Overlap and suppression of 1,000 boxes, crowded or far apart; times in milliseconds."""
    n, repeats = (50, 2) if quick else (1000, 60)
    rows = {}
    for name, far in {"far apart": 600.0, "close": 200.0, "crowded": 50.0}.items():
        for operation, (ours, theirs) in pairs(n, far).items():
            if "IoU" in operation and name != "close":
                continue  # their time does not depend on where the boxes lie
            torch.testing.assert_close(ours(), theirs(), atol=1e-5, rtol=0)
            mine, other = by_turns(ours, theirs, repeats)
            where = "" if "IoU" in operation else f", {name}"
            rows[f"{operation}, {n} boxes{where}"] = {"ours, ms": mine, "torchvision, ms": other, "times": mine / other}
    return rows


def scene_data(n: int, seed: int) -> detection.DetectionDataset:
    """Scenes of 64 × 64 pixels in memory."""
    kept = scenes.Scenes(n, 64, seed).render_all(lambda p: (p.image, detection.Objects(p.boxes, p.labels)))
    return detection.DetectionDataset(*zip(*kept, strict=True))


def training(data: detection.DetectionDataset, seed: int, steps: int, device: torch.device) -> Loop:
    """The lesson's training, not yet run."""
    runtime.seed_everything(seed)
    detector = detection.Detector(len(scenes.THINGS)).to(device, memory_format=torch.channels_last)
    optimiser, schedule = detection.optimiser_and_schedule(detector, steps)
    rng = torch.Generator(device).manual_seed(seed)
    step = detection.detection_step(detector, optimiser, rng, schedule=schedule)
    parts = {"detector": detector, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    return Loop(step, data, steps=steps, batch_size=BATCH, stateful=parts, averages={"detector": 0.98}, seed=seed)


def live(quick: bool) -> dict[str, dict[str, object]]:
    """The lesson's training with three seeds; the first one is the lesson's own."""
    device = runtime.device()
    begin = time.perf_counter()
    data = scene_data(60 if quick else SCENES, TRAINING_SEED)
    held_out = scene_data(20 if quick else HELD_OUT, LIVE_SEED)
    drawing = time.perf_counter() - begin
    rows = {}
    for seed in range(1 if quick else 3):
        loop = training(data, seed, 3 if quick else STEPS, device)
        loop.run()
        row = {"steps": loop.steps, "seconds": loop.seconds, "drawing, s": drawing}
        rows[f"live, seed {seed}"] = row | judge(loop.averaged["detector"], held_out)
    return rows


def judge(detector: detection.Detector, held_out: detection.DetectionDataset) -> dict[str, object]:
    """COCO's numbers, and how many images a second it reads."""
    images = held_out.images.float() / 255
    begin = time.perf_counter()
    found = detection.detect(detector, images.to(next(detector.parameters()).device))
    speed = len(images) / (time.perf_counter() - begin)
    summary = detection.evaluate([f.to("cpu") for f in found], held_out.truth).summary()
    return {name: summary[name] for name in ("AP", "AP50", "AP75", "AR 100")} | {"images/s": speed}


def shipped(quick: bool) -> dict[str, dict[str, object]]:
    """What the files of data/checkpoints reach."""
    device, rows = runtime.device(), {}
    scene_detector = zoo.load("detector_scenes", device)
    rows["detector_scenes, other scenes"] = judge(scene_detector, scene_data(20 if quick else 500, SHIPPED_SEED))
    try:
        photographs = detection.load_pedestrians("test")[: 4 if quick else None]
    except DownloadError as error:
        print(f"Penn-Fudan is not at hand, so the pedestrian detector is not judged: {error}")
        return rows
    small = [p.resized(detection.PEDESTRIAN_SIDE) for p in photographs]
    detector = zoo.load("detector_pedestrians", device)
    begin = time.perf_counter()
    found = [detection.detect(detector, p.image[None].to(device))[0].to("cpu") for p in small]
    speed = len(small) / (time.perf_counter() - begin)
    summary = detection.evaluate(found, [p.objects for p in small]).summary()
    chosen = {name: summary[name] for name in ("AP", "AP50", "AP75", "AR 100")}
    rows["detector_pedestrians, held-out Penn-Fudan"] = chosen | {"images/s": speed}
    return rows


def bars(rows: Mapping[str, Mapping[str, object]]) -> dict[str, bool]:
    """What was promised of the rows that are there, and whether it holds."""
    met = {}
    ratios = [row["times"] for row in rows.values() if "times" in row]
    if ratios:
        met[f"operations within {TIMES:g} times torchvision's time: at most {max(ratios):.2f}"] = max(ratios) <= TIMES
    scores = [row["AP50"] for name, row in rows.items() if name.startswith("live")]
    if scores:
        met[f"live detector: AP50 ≥ {BAR}: at least {min(scores):.3f}"] = min(scores) >= BAR
    return met


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Measure, print the tables and the bars, and write what was asked for; returns the bars."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be repeated)")
    options = parser.parse_args(arguments)
    rows: dict[str, dict[str, object]] = {}
    found = {}
    for part in options.only or PARTS:
        found[part] = {"operations": operations, "live": live, "shipped": shipped}[part](options.quick)
        print(common.table(found[part]), flush=True)
        rows |= found[part]
    met = bars(rows)
    common.report(met)
    common.write(options.json, found | {"bars": met})
    return met


if __name__ == "__main__":
    main()
