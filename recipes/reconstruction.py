"""Train the splats of the toy on its turntable.

    python recipes/reconstruction.py        # about a minute on 2 cores; continues where it was interrupted

The toy is drawn, so nothing is downloaded. The splats begin on the surface of its visual hull, where the paper (Kerbl
et al. 2023) has points from structure from motion, and their number stays: no splat is divided or removed. They are
judged on views between those that they learn from.
"""

import torch
from torch import Tensor

from course_lib import reconstruction
from course_lib.base.loop import Loop
from course_lib.reconstruction.hull import mesh, sample_surface, visual_hull
from recipes import common

NAME = "splats_turntable"
JUDGES = 12  # held-out views


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=1200, batch_size=1)
    parser.add_argument("--splats", type=int, default=800)
    parser.add_argument("--views", type=int, default=48)
    parser.add_argument("--size", type=int, default=64, help="of the views, in pixels")
    args = parser.parse_args(argv)
    if args.quick:
        args.splats, args.views, args.size = min(args.splats, 100), min(args.views, 6), min(args.size, 32)
    run = common.setup(args, NAME, script=__file__)

    views = reconstruction.load_turntable(args.views, args.size)
    judges = reconstruction.load_turntable(2 if run.quick else JUDGES, args.size, start=360 / args.views / 2)
    surface = mesh(visual_hull(views.masks, views.cameras, views.box, 64), views.box)
    points = sample_surface(*surface, args.splats, torch.Generator().manual_seed(run.seed))
    network = reconstruction.Splats.at(points, scale=1 / args.splats**0.5).to(run.device)
    optimiser = torch.optim.Adam(network.groups(), eps=1e-15)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.05 ** (1 / run.steps))
    fit = reconstruction.splat_step(network, optimiser, views.cameras)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        losses = fit(batch)
        schedule.step()
        return losses

    @torch.no_grad()
    def grid(loop: Loop) -> Tensor:
        return torch.stack([network(camera).clamp(0, 1) for camera in views.cameras[:10]])

    stateful = {"splats": network, "optimiser": optimiser, "schedule": schedule}
    loop = common.train(
        run, step, reconstruction.Pictures(views), stateful=stateful, hooks=[common.draw(run, grid, 1000)]
    )
    common.round_to_half(network)
    with torch.no_grad():
        found = reconstruction.mean_psnr(lambda camera: network(camera).clamp(0, 1), judges)
    scores = {"PSNR, dB": found}
    common.export(run, network, scores, seconds=loop.seconds, data="turntable", size=args.size)
    return scores


if __name__ == "__main__":
    main()
