"""Reconstruction, measured: stereo on the motorcycle, fields and splats on lego or the toy, the hull's volume.

    python benchmarks/reconstruction.py                     # about 4 minutes on 2 cores
    python benchmarks/reconstruction.py --only stereo       # or hull, or fields

*stereo*: scikit-image's pair at full size, occlusions included: blocks, 4 and 8 paths, each with the left–right check
and filled holes, and 8 paths before these; beside OpenCV's StereoSGBM where it is installed (`.[bench]`), once as it
answers, with unknown pixels counted as wrong, and once with this course's filling. *hull*: the toy's volume from 24
silhouettes, and the Chamfer distance to its surface. *fields*: at most `--seconds` of training each, on held-out views:
NeRF's lego where `COURSE_DATA` has it, else the toy; grid and NeRF's network at 100 px, splats at 50 px. Setting up
(drawing, carving) is not counted.
"""

import contextlib
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from course_lib import reconstruction
from course_lib.base import runtime
from course_lib.base.loop import Loop
from course_lib.reconstruction import hull, stereo, turntable
from course_lib.reconstruction.views import Views

PARTS = ("stereo", "hull", "fields")


def stereo_rows(quick: bool) -> dict[str, dict[str, float]]:
    """Bad pixels at 1, 2, 4 px and seconds of each method."""
    pair = stereo.load_motorcycle()
    left, right, truth = (pair.left, pair.right, pair.disparity)
    if quick:
        left, right, truth = left[:, 200:260], right[:, 200:260], truth[200:260]
    rows = {}

    def measure(name: str, method: Callable[[], Tensor]) -> None:
        start = time.perf_counter()
        disparity = method()
        seconds = time.perf_counter() - start
        bad = {f"bad at {t} px, %": 100 * stereo.bad_pixels(disparity, truth, t) for t in (1, 2, 4)}
        rows[name] = {**bad, "seconds": seconds}

    def unfilled() -> Tensor:
        costs = stereo.block_mean(stereo.matching_cost(left, right, 64), 5)
        return stereo.best_disparity(stereo.semi_global_matching(costs, left.mean(0)))

    measure("blocks of 9×9", lambda: stereo.match(left, right, 64, paths=0, block=9).disparity)
    measure("4 paths", lambda: stereo.match(left, right, 64, paths=4).disparity)
    measure("8 paths", lambda: stereo.match(left, right, 64, paths=8).disparity)
    measure("8 paths, not checked or filled", unfilled)
    try:
        import cv2
    except ImportError:
        print("no OpenCV here: pip install .[bench]")
        return rows
    bytes_ = [np.ascontiguousarray((image.movedim(0, -1) * 255).byte().numpy()) for image in (left, right)]
    sgbm = cv2.StereoSGBM_create(
        0, 64, 5, P1=8 * 3 * 25, P2=32 * 3 * 25, disp12MaxDiff=1, uniquenessRatio=5, speckleWindowSize=100,
        speckleRange=2, mode=cv2.STEREO_SGBM_MODE_HH,
    )  # fmt: skip

    def opencv() -> Tensor:
        answer = torch.from_numpy(sgbm.compute(*bytes_)).float() / 16
        return torch.where(answer >= 0, answer, torch.nan)

    measure("OpenCV StereoSGBM, 8 paths", opencv)
    measure("OpenCV StereoSGBM, 8 paths, filled", lambda: _filled(opencv()))
    return rows


def _filled(answer: Tensor) -> Tensor:
    return stereo.fill(answer.nan_to_num(0.0), answer.isfinite())


def hull_rows(quick: bool) -> dict[str, dict[str, float]]:
    """Volume over true volume, and the Chamfer distance in centimetres (the toy is 1.5 m high)."""
    size, n, rng = (24, 24, torch.Generator()) if quick else (64, 96, torch.Generator())
    truth = hull.mesh(-turntable.signed_distance(hull.voxel_centres(turntable.BOX, n)), turntable.BOX, level=0)
    true_points = hull.sample_surface(*truth, 4000, rng.manual_seed(0))
    volume, rows = turntable.true_volume(n), {}
    for count in (6, 12, 24):
        views = reconstruction.load_turntable(count, size)
        start = time.perf_counter()
        body = hull.visual_hull(views.masks, views.cameras, views.box, n)
        seconds = time.perf_counter() - start
        points = hull.sample_surface(*hull.mesh(body, views.box), 4000, rng.manual_seed(1))
        rows[f"{count} views"] = {
            "volume / true volume": hull.volume(body, views.box) / volume,
            "Chamfer distance, cm": 100 * hull.chamfer_distance(points, true_points),
            "seconds": seconds,
        }
    return rows


def train(name: str, module: nn.Module, data: object, batch_size: int, seconds: float, draw: Callable, judges: Views,
          groups: list[dict], loss_of: Callable) -> dict[str, float]:  # fmt: skip
    """Adam for so many seconds, its learning rates falling to a tenth; PSNR on held-out views.

    The schedule follows the clock: what matters is what is reached in that time.
    """
    optimiser = torch.optim.Adam(groups, eps=1e-12)
    rates = [group["lr"] for group in optimiser.param_groups]
    start = time.perf_counter()

    class Enough(Exception):
        pass

    def step(batch: tuple) -> dict[str, Tensor]:
        passed = (time.perf_counter() - start) / seconds
        if passed >= 1:
            raise Enough
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * 0.1**passed
        loss = loss_of(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss.detach()}

    loop = Loop(step, data, steps=1_000_000, batch_size=batch_size, stateful={"module": module}, title=name)
    with contextlib.suppress(Enough):
        loop.run()
    spent = time.perf_counter() - start
    with torch.no_grad():
        found = reconstruction.mean_psnr(draw, judges)
    return {
        "PSNR, dB": found,
        "steps": loop.done,
        "seconds": spent,
        "numbers": sum(p.numel() for p in module.parameters()),
    }


def fields_rows(seconds: float, quick: bool, seed: int = 0) -> tuple[str, dict[str, dict[str, float]]]:
    """The data's name; for grid, network and splats, PSNR on held-out views after so many seconds."""
    device = runtime.device()
    try:
        data, views = "lego", reconstruction.load_lego()
        known, judges = views[:90], views[90:]
    except FileNotFoundError:
        data, known = "turntable", reconstruction.load_turntable(48, 100)
        judges = reconstruction.load_turntable(10, 100, start=3.75)
    if quick:
        known, judges = known[:12].shrunk(4), judges[:2].shrunk(4)
    body = hull.visual_hull(known.masks, known.cameras, known.box, 64)
    occupied = F.max_pool3d((body > 0.5)[None, None].float(), 3, 1, 1)[0, 0] > 0
    rays, rng, rows = reconstruction.Rays.of(known), torch.Generator(device).manual_seed(seed), {}

    def ray_loss(field: nn.Module) -> Callable:
        return lambda batch: F.mse_loss(reconstruction.render_rays(field, *batch[:2], 128, rng), batch[2])

    torch.manual_seed(seed)
    grid = reconstruction.VoxelGrid(known.box, 24 if quick else 64, occupied).to(device)
    network = reconstruction.RadianceMLP(known.box, 8, occupancy=occupied).to(device)
    for name, field, lr, batch in (("voxel grid", grid, 0.2, 2048), ("NeRF's network", network, 3e-3, 1024)):
        rows[name] = train(name, field, rays, batch, seconds, lambda c, f=field: reconstruction.render_field(f, c, 128),
                           judges, [{"params": list(field.parameters()), "lr": lr}], ray_loss(field))  # fmt: skip
    small, small_judges = (known, judges) if quick else (known.shrunk(2), judges.shrunk(2))
    surface, n = hull.mesh(body, known.box), 100 if quick else 600
    points = hull.sample_surface(*surface, n, torch.Generator().manual_seed(seed))
    blobs = reconstruction.Splats.at(points, 1 / n**0.5).to(device)

    def picture_loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(blobs(small.cameras[int(batch[0])]), batch[1][0])

    rows["splats, half the size"] = train("splats", blobs, reconstruction.Pictures(small), 1, seconds,
                                          lambda c: blobs(c).clamp(0, 1), small_judges, blobs.groups(),
                                          picture_loss)  # fmt: skip
    return data, rows


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Measure, print the tables, and write what was asked for; returns the rows."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=45.0, help="of training, each")
    options = parser.parse_args(arguments)
    found, met = {}, {}
    if "stereo" in options.only:
        rows = found["stereo"] = stereo_rows(options.quick)
        print(common.table(rows) + "\n")
        met["8 paths: bad pixels at 2 px ≤ 11 %"] = rows["8 paths"]["bad at 2 px, %"] <= 11
        met["8 paths in 20 s"] = rows["8 paths"]["seconds"] <= 20
    if "hull" in options.only:
        rows = found["hull"] = hull_rows(options.quick)
        print(common.table(rows) + "\n")
        met["hull: volume within 10 % from 24 views"] = abs(rows["24 views"]["volume / true volume"] - 1) <= 0.1
    if "fields" in options.only:
        data, rows = fields_rows(1.0 if options.quick else options.seconds, options.quick)
        found |= {"fields": rows, "fields' data": data}
        print(f"on {data}\n" + common.table(rows) + "\n")
        met[f"{data}: grid ≥ 26 dB"] = rows["voxel grid"]["PSNR, dB"] >= 26
        met[f"{data}: splats ≥ 23.5 dB"] = rows["splats, half the size"]["PSNR, dB"] >= 23.5
    common.report(met)
    common.write(options.json, found | {"bars": met})
    return {name: rows for name, rows in found.items() if isinstance(rows, dict)}


if __name__ == "__main__":
    main()
