"""Train the course's StyleGANs: digits, and faces of cats.

    python recipes/stylegan.py                           # both, one after the other
    python recipes/stylegan.py --model stylegan_cats     # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `stylegan_mnist` | MNIST | for the timeline: 28×28 |
| `stylegan_cats` | faces of cats | 32×32, half their size; mirrored, since there are only 8,000 |

What ships is the moving average of the generator (Karras et al. 2018, appendix A.1). MNIST is found in `COURSE_DATA`,
or downloaded; the faces must be there (`datasets.load` says how). Samples of the averaged generator are drawn to
build/ as the training goes. Images that are smaller than the data set's are enlarged before they are judged.
"""

import argparse
import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib import gan, stylegan
from course_lib.base import datasets, metrics, zoo
from course_lib.base.images import resize
from course_lib.base.loop import Loop
from recipes import common

BETAS = (0.0, 0.99)  # StyleGAN, appendix C
PSI = (0.25, 0.5, 0.75, 1.0)  # truncations whose precision and recall are measured
TRUNCATED = 1000  # images at each


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one model from another."""

    data: str
    steps: int
    size: int = 28  # of the images, in pixels
    batch_size: int = 32
    capacity: int = 672
    lr: float = 3e-3
    r1: float = 3.0  # γ, the weight of the penalty
    lazy: int = 8
    mixing: float = 0.9
    average: float = 0.999  # decay of the moving average
    mirror: bool = False  # half of what D sees
    draw_every: int = 1000

    def images(self) -> datasets.ImageSet:
        """The training images, at the size asked for: means of squares."""
        data = datasets.load(self.data)
        if data.images.shape[-1] == self.size:
            return data
        factor = data.images.shape[-1] // self.size
        small = torch.cat([F.avg_pool2d(part.float(), factor).round().byte() for part in data.images.split(1000)])
        return dataclasses.replace(data, name=f"{data.name}, {self.size} px", images=small)

    def discriminator(self, channels: int) -> stylegan.StyleDiscriminator:
        """For such images."""
        return stylegan.StyleDiscriminator(self.size, channels, capacity=self.capacity)


PRESETS = {
    "stylegan_mnist": Preset("mnist", steps=12_000),
    "stylegan_cats": Preset(
        "cat_faces",
        steps=8000,
        size=32,
        capacity=512,
        r1=0.1,
        lazy=16,
        mixing=0.5,
        mirror=True,
        draw_every=500,
    ),
}


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: all that ship; with --quick, stylegan_mnist")
    return parser


def enlarged(images: Tensor, data: str) -> Tensor:
    """The images, on the CPU, at the size of the data set: bicubic where they are smaller."""
    size = datasets.load(data, "test").images.shape[-1]
    return images.cpu() if images.shape[-1] == size else resize(images.cpu(), size).clamp(0, 1)


def judge(generator: stylegan.StyleGenerator, data: str, n: int, rng: torch.Generator) -> dict[str, object]:
    """All scores of n images, and what truncation does."""
    images = enlarged(stylegan.sample(generator, n, rng=rng), data)
    return metrics.evaluate(images, data) | {"truncation": truncation(generator, data, rng)}


def truncation(generator: stylegan.StyleGenerator, data: str, rng: torch.Generator) -> dict[str, dict[str, float]]:
    """Precision and recall of truncated images by ψ, against as many of the test split."""
    features, held_out = metrics.extractor(data), datasets.load(data, "test")
    n = min(TRUNCATED, len(held_out))
    real = features(held_out[torch.randperm(len(held_out), generator=rng)[:n]][0])
    z, found = torch.randn(n, generator.z_dim, generator=rng), {}
    for psi in PSI:
        fake = features(enlarged(stylegan.sample(generator, z, rng, truncation=psi), data))
        precision, recall = metrics.generative_precision_recall(real, fake)
        found[f"{psi:g}"] = {"precision": precision.value, "recall": recall.value}
    return found


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), model, script=__file__, model=model)
    data = preset.images()
    generator = zoo.build(model).to(run.device)
    discriminator = preset.discriminator(data.images.shape[1]).to(run.device)
    adam = partial(torch.optim.Adam, lr=preset.lr, betas=BETAS)
    stateful = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimiser": adam(generator.parameters()),
        "discriminator_optimiser": adam(discriminator.parameters()),
        "rng": torch.Generator(run.device).manual_seed(run.seed),
    }
    vary = partial(gan.augment, shift=0.0) if preset.mirror else None
    step = stylegan.stylegan_step(**stateful, r1=preset.r1, lazy=preset.lazy, mixing=preset.mixing, augment=vary)

    def grid(loop: Loop) -> Tensor:
        return stylegan.sample(loop.averaged["generator"], common.IMAGES, rng=torch.Generator().manual_seed(0))

    loop = common.train(
        run,
        step,
        data,
        stateful=stateful,
        averages={"generator": preset.average},
        hooks=[common.draw(run, grid, preset.draw_every)],
        save_every=preset.draw_every,
        settings={f"preset's {name}": value for name, value in dataclasses.asdict(preset).items() if name != "steps"},
    )
    averaged = loop.averaged["generator"]
    rng = torch.Generator().manual_seed(run.seed)
    z = torch.randn(10_000, averaged.z_dim, generator=rng).to(run.device)
    averaged.mapping.w_mean.copy_(averaged.mapping(z).mean(0))  # the running one is that of the last weights
    common.round_to_half(averaged)
    scores = judge(averaged, preset.data, 200 if run.quick else common.EVALUATED, rng)
    common.export(run, averaged, scores, seconds=loop.seconds, data=preset.data)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["stylegan_mnist"]).parse_args(argv)
    names = common.select(args, args.model, "stylegan_mnist", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
