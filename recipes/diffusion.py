"""Train the diffusion models of chapter 5: digits and clothes with classes, and cats.

    python recipes/diffusion.py                             # all that ship, one after the other: two hours on one core
    python recipes/diffusion.py --model diffusion_mnist     # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `diffusion_mnist` | MNIST | with classes, a tenth of them left out, for guidance |
| `diffusion_fashion_mnist` | Fashion-MNIST | the same |
| `diffusion_cats` | CIFAR-10's cats | without classes; mirrored, for there are 5,000 only |

All predict v on the cosine schedule. Digits and clothes do without min-SNR weights: these make light of the latest
times, where it is decided which digit it will be, and after the same 150 s of training fewer digits were read as asked
(78 against 84 %). Their batches are small, for many steps matter more than quiet ones (of 128 and of 64: 68 and 84 %).
The cats keep the weights and have attention: without either, twice as many images led to twice the distance (26.8).
The learning rate rises for a while and falls to zero along a half cosine, and what ships is the moving average of the
weights. MNIST, Fashion-MNIST and the cats are found in `COURSE_DATA`, or downloaded. Samples of the average are drawn
to build/ as the training goes. The scores are those of DPM-Solver++(2M) with 20 calls, without guidance.
"""

import argparse
import dataclasses
import math

import torch
from torch import Tensor

from course_lib import diffusion
from course_lib.base import datasets, metrics, runtime, zoo
from course_lib.base.loop import Loop
from recipes import common

WARM_UP = 200  # steps
SAMPLER_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one training from another."""

    data: str
    steps: int
    batch_size: int = 64
    lr: float = 3e-3
    average: float = 0.999
    gamma: float | None = None
    drop: float | None = 0.1
    mirror: bool = False


PRESETS = {
    "diffusion_mnist": Preset("mnist", steps=20_000),
    "diffusion_fashion_mnist": Preset("fashion_mnist", steps=8000),
    "diffusion_cats": Preset("cats", steps=4000, lr=1e-3, average=0.9995, gamma=5.0, drop=None, mirror=True),
}


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: all; with --quick, diffusion_mnist")
    return parser


def rate(done: int, steps: int) -> float:
    """The learning rate after so many steps, as a share of the highest."""
    return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / steps))


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    args = arguments(preset).parse_args(argv)
    args.model = model
    device = common.setup(args, model, script=__file__)

    data = datasets.load(preset.data)
    denoiser = zoo.build(model).to(device)
    optimiser = torch.optim.Adam(denoiser.network.parameters(), preset.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, args.steps))
    rng = torch.Generator(device).manual_seed(args.seed)
    denoise = diffusion.diffusion_step(denoiser, optimiser, rng, drop=preset.drop, gamma=preset.gamma)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, labels = batch
        if preset.mirror:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=rng, device=rng.device) < 0.5
            x = torch.where(mirrored.to(x.device), x.flip(3), x)
        losses = denoise((x, labels))
        schedule.step()
        return losses

    def averaged(loop: Loop) -> diffusion.Denoiser:
        return diffusion.Denoiser(loop.averaged["network"], denoiser.schedule, denoiser.prediction_type, denoiser.shape)

    def draw(chosen: diffusion.Denoiser, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Images of n different noises, and the classes asked for."""
        labels = None if preset.drop is None else torch.arange(n) % len(data.classes)
        rng = torch.Generator().manual_seed(seed)
        with runtime.autocast(device):  # as in training; for 10,000 images it counts
            return diffusion.sample(chosen, n, labels, steps=SAMPLER_STEPS, rng=rng), labels

    fixed = {f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()}
    loop = common.train(
        args,
        step,
        data,
        stateful={"network": denoiser.network, "optimiser": optimiser, "schedule": schedule, "rng": rng},
        averages={"network": preset.average},
        hooks=[common.draw(args.out.stem, lambda loop: draw(averaged(loop), common.IMAGES, 0)[0], 1000)],
        save_every=500,
        settings=fixed,
    )
    common.round_to_half(loop.averaged["network"])
    n = 200 if args.quick else common.EVALUATED
    images, labels = draw(averaged(loop), n, args.seed)
    scores = metrics.evaluate(images.cpu(), preset.data, labels=labels)
    common.export(args, loop.averaged["network"], scores, seconds=loop.seconds, data=preset.data)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["diffusion_mnist"]).parse_args(argv)
    names = common.select(args, args.model, "diffusion_mnist", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
