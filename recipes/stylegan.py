"""Train the small StyleGAN on MNIST.

    python recipes/stylegan.py        # about 15 minutes on 2 cores; continues where it was interrupted

What ships is the moving average of the generator (Karras et al. 2018, appendix A.1). MNIST is found in `COURSE_DATA`,
or downloaded. Samples of the averaged generator are drawn to build/ as the training goes.
"""

from functools import partial

import torch
from torch import Tensor

from course_lib import stylegan
from course_lib.base import datasets, metrics
from course_lib.base.loop import Loop
from recipes import common

NAME = "stylegan_mnist"
BETAS = (0.0, 0.99)  # StyleGAN, appendix C


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=12_000, batch_size=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--r1", type=float, default=3.0, help="γ, the weight of the penalty")
    parser.add_argument("--average", type=float, default=0.999, help="decay of the moving average")
    args = parser.parse_args(argv)
    run = common.setup(args, NAME, script=__file__)

    data = datasets.load("mnist")
    generator = stylegan.StyleGenerator().to(run.device)
    discriminator = stylegan.StyleDiscriminator().to(run.device)
    adam = partial(torch.optim.Adam, lr=args.lr, betas=BETAS)
    stateful = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimiser": adam(generator.parameters()),
        "discriminator_optimiser": adam(discriminator.parameters()),
        "rng": torch.Generator(run.device).manual_seed(run.seed),
    }
    step = stylegan.stylegan_step(**stateful, r1=args.r1)

    def grid(loop: Loop) -> Tensor:
        return stylegan.sample(loop.averaged["generator"], common.IMAGES, rng=torch.Generator().manual_seed(0))

    hooks = [common.draw(run, grid, 1000)]
    averages = {"generator": args.average}
    loop = common.train(run, step, data, stateful=stateful, averages=averages, hooks=hooks, save_every=1000)
    averaged = loop.averaged["generator"]
    rng = torch.Generator().manual_seed(run.seed)
    z = torch.randn(10_000, averaged.z_dim, generator=rng).to(run.device)
    averaged.mapping.w_mean.copy_(averaged.mapping(z).mean(0))  # the running one is that of the last weights
    common.round_to_half(averaged)
    images = stylegan.sample(averaged, 200 if run.quick else common.EVALUATED, rng=rng)
    scores = metrics.evaluate(images.cpu(), "mnist")
    common.export(run, averaged, scores, seconds=loop.seconds, data="mnist")
    return scores


if __name__ == "__main__":
    main()
