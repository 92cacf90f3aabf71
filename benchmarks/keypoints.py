"""Keypoints in numbers: five ways to decode, the live network, the shipped ones, and MTCNN beside ours on faces.

    python benchmarks/keypoints.py --json keypoints.json        about 5 minutes on 2 cores
    python benchmarks/keypoints.py --only live                  three trainings of 45 s

Decoding: 2,000 points at stride 4, with noise in every cell; the mean error in pixels. The live network is trained from
random weights for 45 s by the clock, three times with other weights and another order, on 1,000 scenes (their drawing
is timed beside it), and judged on 200 others; then its own heatmaps are decoded in every way. The shipped networks are
judged on 500 other scenes, alone and behind the shipped detector, and on the faces of strangers where those are at hand
(`faces` in `COURSE_DATA`). Where facenet-pytorch can be imported (MIT, weights in its wheel), its MTCNN (Zhang et al.
2016) finds its five points in the same crops, enlarged twice; both are judged on the faces that it finds. (`pip install
--no-deps facenet-pytorch`: it asks for an old torch, and runs with a new one.) Ours learned this data set's points,
MTCNN those of others, which is a part of the difference.
"""

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks import common
from course_lib import detection, keypoints, scenes
from course_lib.base import images, runtime, zoo
from course_lib.base.loop import Loop

PARTS = ("decoding", "live", "figures", "faces")
SECONDS = 45.0  # of live training
BARS = {"decoding": 0.25, "live": 0.95, "faces": 0.06}
TRAINING_SEED, LIVE_SEED, SHIPPED_SEED = 0, 1, 1_000_003  # of scenes; no two sets share one
BATCH = 16
JOINT_SPREAD = [0.05] * len(scenes.KEYPOINTS)  # for OKS of figures, whose joints no people have placed


def decoding(quick: bool) -> dict[str, dict[str, object]]:
    """Mean error in pixels by method and by the noise's standard deviation; a bump is 1 high."""
    rng = torch.Generator().manual_seed(0)
    points = 16 + 96 * torch.rand(100 if quick else 2000, 1, 2, generator=rng, dtype=torch.float64)
    maps = keypoints.encode(points, (128, 128))
    noise = torch.randn(maps.shape, generator=rng, dtype=maps.dtype)
    rows = {}
    for method in keypoints.DECODERS:
        far = {n: (keypoints.decode(maps + n * noise, method)[0] - points).norm(dim=-1) for n in (0, 0.02, 0.05, 0.1)}
        rows[method] = {f"noise {n:g}, px": float(errors.mean()) for n, errors in far.items()}
    return rows


def training(data: keypoints.KeypointDataset, seed: int, steps: int, device: torch.device) -> Loop:
    """The lesson's training, not yet run."""
    runtime.seed_everything(seed)
    network = zoo.build("keypoints_figures").to(device, memory_format=torch.channels_last)
    optimiser, schedule = detection.optimiser_and_schedule(network, steps, lr=3e-3)
    rng = torch.Generator(device).manual_seed(seed)
    step = keypoints.keypoint_step(network, optimiser, rng, keypoints.varied(network.mirrored, turn=15), schedule)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    return Loop(step, data, steps=steps, batch_size=BATCH, stateful=parts, averages={"network": 0.99}, seed=seed)


def live(quick: bool) -> dict[str, dict[str, object]]:
    """As many steps as the clock allows, three seeds; of the first, also its own heatmaps decoded in every way."""
    device = runtime.device()
    begin = time.perf_counter()
    data, _ = keypoints.figure_crops(keypoints.figure_scenes(40 if quick else 1000, TRAINING_SEED))
    drawing = time.perf_counter() - begin
    held_out, sides = keypoints.figure_crops(keypoints.figure_scenes(10 if quick else 200, LIVE_SEED))
    budget, trial = (1.0, 3) if quick else (SECONDS, 40)
    rows = {}
    for seed in range(1 if quick else 3):
        loop = common.run_for(budget, trial, lambda steps, seed=seed: training(data, seed, steps, device))
        row = {"steps": loop.steps, "seconds": loop.seconds, "drawing, s": drawing, "figures": len(data)}
        rows[f"live, seed {seed}"] = row | judge(loop.averaged["network"], held_out, sides)
        if seed == 0:
            rows |= own_heatmaps(loop.averaged["network"], held_out)
    return rows


def judge(network: keypoints.KeypointNetwork, held_out: keypoints.KeypointDataset, sides: Tensor) -> dict[str, object]:
    """PCK, mean error, and how many crops a second it reads with the flip test."""
    crops, truth = held_out[torch.arange(len(held_out))]
    begin = time.perf_counter()
    points, _ = keypoints.predict(network, crops.to(next(network.parameters()).device))
    speed = len(crops) / (time.perf_counter() - begin)
    points = points.cpu()
    error = keypoints.nme(points, truth, torch.ones(len(truth)))
    return {"PCK@0.1": keypoints.pck(points, truth, sides), "error, px": error, "crops/s": speed}


def own_heatmaps(
    network: keypoints.KeypointNetwork, held_out: keypoints.KeypointDataset
) -> dict[str, dict[str, object]]:
    """Mean and median error in pixels of every way to decode what the network says, with the flip test."""
    crops, truth = held_out[torch.arange(len(held_out))]
    maps = keypoints.predict_heatmaps(network, crops.to(next(network.parameters()).device)).cpu()
    rows = {}
    for method in keypoints.DECODERS:
        far, labelled = keypoints.distances(keypoints.decode(maps, method)[0], truth, torch.ones(len(truth)))
        errors = far[labelled]
        rows[f"own heatmaps, {method}"] = {"error, px": float(errors.mean()), "median, px": float(errors.median())}
    return rows


def figures(quick: bool) -> dict[str, dict[str, object]]:
    """The shipped network on other scenes: given the true boxes, and behind the shipped detector."""
    device = runtime.device()
    detector, network = (zoo.load(name, device) for name in ("detector_scenes", "keypoints_figures"))
    rendered = keypoints.figure_scenes(10 if quick else 500, SHIPPED_SEED)
    rows = {"keypoints_figures, true boxes": judge(network, *keypoints.figure_crops(rendered))}
    found, truth = [], []
    for each in rendered:
        result = keypoints.find_figures(each.image.to(device), detector, network)
        found.append(keypoints.found_people(result.points.cpu(), result.scores.cpu()))
        mine = each.labels == keypoints.FIGURE
        areas = each.masks[mine].flatten(1).sum(1)
        truth.append(keypoints.true_people(each.keypoints[mine], each.boxes[mine], areas))
    summary = keypoints.summary(keypoints.evaluate(found, truth, JOINT_SPREAD))
    chosen = {f"{name} (OKS, 5 % a joint)": summary[name] for name in ("AP", "AP50", "AP75", "AR")}
    return rows | {"detector, then points": chosen}


def five_points(points: Tensor) -> Tensor:
    """(N, 5, 2): the middles of both eyes, the nose's tip and the mouth's corners, of points (N, 68, 2)."""
    eyes = [points[:, list(keypoints.PARTS[f"{side} eye"])].mean(1) for side in ("left", "right")]
    return torch.stack([*eyes, points[:, 30], points[:, 48], points[:, 54]], 1)


def faces(quick: bool) -> dict[str, dict[str, object]]:
    """The shipped network on strangers, and MTCNN beside it where it can be imported."""
    try:
        loaded = keypoints.load_faces("test")
    except FileNotFoundError as error:
        print(f"The faces are not at hand, so the face network is not judged: {error}")
        return {}
    few = slice(12 if quick else None)
    loaded = keypoints.Faces(loaded.images[few], loaded.keypoints[few], loaded.person[few])
    device = runtime.device()
    small = loaded.resized(keypoints.FACE_SIDE)
    begin = time.perf_counter()
    network = zoo.load("keypoints_faces", device)
    points, _ = keypoints.predict(network, small.images.to(device).float() / 255)
    speed = len(small) / (time.perf_counter() - begin)
    points = points.cpu() * loaded.images.shape[-1] / keypoints.FACE_SIDE
    eyes = keypoints.eye_distance(loaded.keypoints[..., :2])
    row = {"NME, 68 points": keypoints.nme(points, loaded.keypoints, eyes), "faces": len(loaded), "crops/s": speed}
    rows = {"keypoints_faces": row}
    theirs, speed = mtcnn(loaded.images)
    if theirs is not None:
        there = theirs.isfinite().all(-1).all(-1)
        true = five_points(loaded.keypoints[..., :2])[there]
        true = torch.cat([true, torch.full_like(true[..., :1], 2)], -1)
        for name, five in {"keypoints_faces, five points": five_points(points), "MTCNN, five points": theirs}.items():
            rows[name] = {"NME, 5 points": keypoints.nme(five[there], true, eyes[there]), "faces": int(there.sum())}
        rows["MTCNN, five points"] |= {"missed": int((~there).sum()), "crops/s": speed}
    return rows


def mtcnn(pixels: Tensor) -> tuple[Tensor | None, float]:
    """The five points (N, 5, 2) of facenet-pytorch's MTCNN in crops (N, 3, H, H) uint8, NaN where it finds no face."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        print("facenet-pytorch is not installed, so MTCNN is not measured")
        return None, 0.0
    finder = MTCNN(select_largest=True, device="cpu")
    found = torch.full((len(pixels), 5, 2), torch.nan)
    begin = time.perf_counter()
    for n, each in enumerate(pixels):
        twice = images.resize(each[None].float() / 255, 2 * each.shape[-1])[0]
        boxes, _, points = finder.detect((255 * twice).round().byte().permute(1, 2, 0).numpy(), landmarks=True)
        if boxes is not None:
            # It counts from the first pixel's centre, in an image twice as large.
            found[n] = torch.tensor(points[0].astype(float)) / 2 + 0.25
    return found, len(pixels) / (time.perf_counter() - begin)


def bars(found: Mapping[str, Mapping[str, Mapping[str, object]]]) -> dict[str, bool]:
    """What was promised of the parts that are there, and whether it holds."""
    met = {}
    if rows := found.get("decoding"):
        error = rows["DARK"]["noise 0.05, px"]
        met[f"DARK within {BARS['decoding']} px under noise of 0.05: {error:.3f}"] = error <= BARS["decoding"]
    if rows := found.get("live"):
        worst = min(row["PCK@0.1"] for row in rows.values() if "PCK@0.1" in row)
        met[f"live: PCK@0.1 ≥ {BARS['live']}: at least {worst:.3f}"] = worst >= BARS["live"]
    if rows := found.get("faces"):
        error = rows["keypoints_faces"]["NME, 68 points"]
        met[f"faces: NME ≤ {BARS['faces']:.0%}: {error:.2%}"] = error <= BARS["faces"]
    return met


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Measure, print the tables and the bars, and write what was asked for; returns the bars."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part (may be repeated)")
    options = parser.parse_args(arguments)
    found = {}
    for part in options.only or PARTS:
        found[part] = {"decoding": decoding, "live": live, "figures": figures, "faces": faces}[part](options.quick)
        print(common.table(found[part]), flush=True)
    met = bars(found)
    common.report(met)
    common.write(options.json, found | {"bars": met})
    return met


if __name__ == "__main__":
    main()
