"""Train the diffusion models that ship: digits and clothes with classes, and cats.

    python recipes/diffusion.py                             # all that ship, one after the other: two hours on one core
    python recipes/diffusion.py --model diffusion_mnist     # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `diffusion_mnist` | MNIST | predicts v; with classes, a tenth of them left out, for guidance |
| `diffusion_fashion_mnist` | Fashion-MNIST | the same |
| `diffusion_cats` | faces of cats, 64×64 | predicts X_0; without classes; mirrored, since there are only 8,000 |

All have the cosine schedule. Digits and clothes do without min-SNR weights: these give little weight to the latest
times, where it is decided which digit it will be, and after the same 150 s of training fewer digits were read as asked
(78 against 84 %). Their batches are small, because many steps matter more than exact ones (of 128 and of 64: 68 and
84 %).

The cats' network sees patches of 4×4 pixels as one, which makes 64×64 pixels affordable. It predicts X_0: a patch of
an image is simple, one of noise is not (Li & He 2025, arXiv 2511.13720), and a network that was to say v drew noise
after as long a training. It keeps the min-SNR weights, and has attention where its maps are smallest.

The learning rate rises for a while and falls to zero along a half cosine, and what ships is the moving average of the
weights. MNIST and Fashion-MNIST are found in `COURSE_DATA`, or downloaded; for the cats see `recipes/cat_faces.py`.
Samples of the average are drawn to build/ as the training goes. The scores are those of DPM-Solver++(2M) with 20 calls,
without guidance.
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
    "diffusion_cats": Preset("cat_faces", steps=9000, lr=2e-3, gamma=5.0, drop=None, mirror=True),
}


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: all; with --quick, diffusion_mnist")
    return parser


def rate(done: int, steps: int) -> float:
    """The learning rate after so many steps, as a proportion of the highest."""
    return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / steps))


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), model, script=__file__, model=model)

    data = datasets.load(preset.data)
    if preset.mirror:
        both = torch.cat([data.images, data.images.flip(3)])
        data = dataclasses.replace(data, images=both, labels=data.labels.repeat(2))
    denoiser = zoo.build(model).to(run.device)
    optimiser = torch.optim.Adam(denoiser.parameters(), preset.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, run.steps))
    rng = torch.Generator(run.device).manual_seed(run.seed)
    step = diffusion.diffusion_step(denoiser, optimiser, rng, drop=preset.drop, gamma=preset.gamma)

    def draw(loop: Loop, n: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Images of n different noises by the averaged denoiser, and the classes asked for."""
        labels = None if preset.drop is None else torch.arange(n) % len(data.classes)
        rng = torch.Generator().manual_seed(seed)
        with runtime.autocast(run.device):  # as in training; for 10,000 images it counts
            return diffusion.sample(loop.averaged["denoiser"], n, labels, steps=SAMPLER_STEPS, rng=rng), labels

    fixed = {f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()}
    loop = common.train(
        run,
        step,
        data,
        stateful={"denoiser": denoiser, "optimiser": optimiser, "schedule": schedule, "rng": rng},
        averages={"denoiser": preset.average},
        hooks=[
            lambda loop: schedule.step(),
            common.draw(run, lambda loop: draw(loop, common.IMAGES, 0)[0], 1000),
        ],
        save_every=500,
        settings=fixed,
    )
    averaged = common.round_to_half(loop.averaged["denoiser"])
    images, labels = draw(loop, 200 if run.quick else common.EVALUATED, run.seed)
    scores: dict[str, object] = dict(metrics.evaluate(images.cpu(), preset.data, labels=labels))
    if preset.data in metrics.UNLABELLED:
        scores["beside held-out images"] = common.beside_held_out(images.cpu(), preset.data)
    limit = common.MAX_BYTES_64 if data.images.shape[-1] >= 64 else common.MAX_BYTES
    common.export(run, averaged, scores, seconds=loop.seconds, max_bytes=limit, data=preset.data)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["diffusion_mnist"]).parse_args(argv)
    names = common.select(args, args.model, "diffusion_mnist", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
