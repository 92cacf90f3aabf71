"""Train the networks of the lesson on editing.

    python recipes/editing.py                                  # all, one after the other
    python recipes/editing.py --model super_resolution_x2      # one of them; continues where it was interrupted

The networks for super-resolution learn from the photographs of BSDS500 in `COURSE_DATA`, without them from those that
are built in. They are judged on Set5 (Bevilacqua et al. 2012; the folder Set5 of `COURSE_DATA`), without it on built-in
photographs that they have not seen. What is judged and kept is the moving average of the weights, so that no learning
rate has to fall to an end that is known before: more `--steps` go on from where fewer stopped. The layers before the
last of ×2 begin as those of ×4, whose small images are cheaper to learn from.
"""

import torch
from torch import Tensor

from course_lib.base import datasets, images, zoo
from course_lib.editing import super_resolution as sr
from recipes import common

LEARNT = {"super_resolution_x4": 8000, "super_resolution_x2": 9000}  # steps


def judges() -> tuple[str, list[Tensor]]:
    """The photographs that judge super-resolution: their name, and (1, 3, H, W) each."""
    files = sorted((datasets.data_folder() / "Set5").glob("*.png"))
    if files:
        return "Set5", [images.load(file) for file in files]
    return "built-in", [datasets.load_image(name) for name in sr.HELD_OUT]


def super_resolution(run: common.Run, lr: float) -> dict[str, object]:
    """Train, judge and save one network; returns the scores."""
    network = zoo.build(run.name)
    if run.name == "super_resolution_x2" and not run.quick:  # as between scales in Lim et al. (2017), section 3.3
        network.body.load_state_dict(zoo.load("super_resolution_x4", "cpu").body.state_dict())
    network = network.to(run.device)
    optimiser = torch.optim.Adam(network.parameters(), lr)
    rng = torch.Generator().manual_seed(run.seed)
    step = sr.super_resolution_step(network, optimiser, rng)
    stateful = {"network": network, "optimiser": optimiser, "rng": rng}
    data = sr.tiles(sr.photographs(), side=24 * network.factor, stride=16 * network.factor)
    loop = common.train(run, step, data, stateful=stateful, averages={"network": 0.999}, save_every=250)
    best = common.round_to_half(loop.averaged["network"]).cpu()
    name, held_out = judges()
    r = best.factor
    rule = sr.evaluate(lambda y: sr.bicubic(y, r), held_out, r)
    scores = sr.evaluate(best, held_out, r)
    scores |= {"PSNR of bicubic, dB": rule["PSNR, dB"], "SSIM of bicubic": rule["SSIM"]}
    common.export(run, best, scores, seconds=loop.seconds, data="bsds500", held_out=name, tiles=len(data))
    return scores


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores of the last network."""
    parser = common.parser(__doc__, steps=0, batch_size=8)
    parser.add_argument("--model", choices=list(LEARNT))
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    scores: dict[str, object] = {}
    for name in common.select(args, args.model, "super_resolution_x4", LEARNT):
        run = common.setup(args, name, script=__file__, model=name, steps=args.steps or LEARNT[name])
        scores = super_resolution(run, args.lr)
    return scores


if __name__ == "__main__":
    main()
