"""Train the course's GANs: fully connected as in 2014, DCGAN as in 2015, with classes, and cats.

    python recipes/gan.py                            # all that ship, one after the other: half an hour on 2 cores
    python recipes/gan.py --model dcgan_mnist        # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `gan_mnist` | MNIST | GAN 2014: fully connected, maxout, dropout; but DCGAN's optimiser |
| `dcgan_mnist` | MNIST | DCGAN 2015, with the paper's layers, initialisation and optimiser |
| `dcgan_mnist_conditional` | MNIST | the same with classes, a projection discriminator |
| `dcgan_fashion_mnist` | Fashion-MNIST | the same with classes |
| `dcgan_cats` | faces of cats, 64×64 | unconditional; mirrored and shifted, since there are only 8,000 |
| `dcgan_digits` | 8×8 digits | the settings of the lesson's live training |

MNIST and Fashion-MNIST are found in `COURSE_DATA`, or downloaded; for the cats see `recipes/cat_faces.py`. Samples of
the averaged generator are drawn to build/ as the training goes. Departures from both papers, for all: z is Gaussian and
has 64 or 128 numbers, a batch 64 images (32 of cats), layers are narrower, DCGAN's kernels 4×4 instead of 5×5, and what
ships is the moving average of the generator.
"""

import argparse
import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from course_lib import gan
from course_lib.base import datasets, metrics
from course_lib.base.loop import Loop
from recipes import common


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one model from another."""

    data: str
    steps: int
    batch_size: int = 64
    connected: bool = False  # the networks of 2014
    z_dim: int = 64
    width: int = 48
    conditional: bool = False
    lr: float = 2e-4  # this and the betas: Radford et al. 2016, section 4
    betas: tuple[float, float] = (0.5, 0.999)
    augment: bool = False  # mirror and shift what D sees
    average: float = 0.999  # decay; departs from the papers, which show the last weights

    def networks(self, data: datasets.ImageSet) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator for images of that kind."""
        _, C, size, _ = data.images.shape
        if self.connected:
            return gan.FullyConnectedGenerator(self.z_dim, 512, C, size), gan.MaxoutDiscriminator(C, size)
        classes = len(data.classes) if self.conditional else None
        generator = gan.Generator(self.z_dim, C, size, self.width, classes)
        return generator, gan.Discriminator(C, size, self.width, classes)


PRESETS = {
    "gan_mnist": Preset("mnist", steps=15_000, connected=True),
    "dcgan_mnist": Preset("mnist", steps=10_000),
    "dcgan_mnist_conditional": Preset("mnist", steps=10_000, conditional=True),
    "dcgan_fashion_mnist": Preset("fashion_mnist", steps=10_000, conditional=True),
    "dcgan_cats": Preset("cat_faces", steps=6_000, batch_size=32, z_dim=128, width=40, augment=True),
    "dcgan_digits": Preset("digits", steps=3_000, z_dim=16, width=32, lr=2e-3, average=0.99),
}


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: all that ship; with --quick, dcgan_digits")
    return parser


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), model, script=__file__, model=model)

    data = datasets.load(preset.data)
    generator, discriminator = (network.to(run.device) for network in preset.networks(data))
    rng = torch.Generator(run.device).manual_seed(run.seed)
    adam = partial(torch.optim.Adam, lr=preset.lr, betas=preset.betas)
    stateful = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimiser": adam(generator.parameters()),
        "discriminator_optimiser": adam(discriminator.parameters()),
        "rng": rng,
    }
    vary = gan.augment if preset.augment else None
    step = gan.adversarial_step(**stateful, augment=vary)

    def grid(loop: Loop) -> Tensor:
        return gan.sample(loop.averaged["generator"], common.IMAGES, rng=torch.Generator().manual_seed(0))

    fixed = {f"preset's {name}": value for name, value in dataclasses.asdict(preset).items() if name != "steps"}
    loop = common.train(
        run,
        step,
        data,
        stateful=stateful,
        averages={"generator": preset.average},
        hooks=[common.draw(run, grid, 500)],
        save_every=500,
        settings=fixed,
    )
    averaged = common.round_to_half(loop.averaged["generator"])
    n = 200 if run.quick else common.EVALUATED
    labels = torch.arange(n) % len(data.classes) if preset.conditional else None
    images = gan.sample(averaged, n, labels, torch.Generator().manual_seed(run.seed))
    scores: dict[str, object] = dict(metrics.evaluate(images.cpu(), preset.data, labels=labels))
    if preset.data in metrics.UNLABELLED:
        scores["beside held-out images"] = common.beside_held_out(images.cpu(), preset.data)
    limit = common.MAX_BYTES_64 if data.images.shape[-1] >= 64 else common.MAX_BYTES
    common.export(run, averaged, scores, seconds=loop.seconds, max_bytes=limit, data=preset.data)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["dcgan_digits"]).parse_args(argv)
    names = common.select(args, args.model, "dcgan_digits", [name for name in PRESETS if name != "dcgan_digits"])
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
