"""Train the classifiers by whose features generated images are judged: of the 8×8 digits, MNIST and Fashion-MNIST.

    python recipes/classifier.py                    # all three; continues where it was interrupted
    python recipes/classifier.py --data mnist       # one of them

A classifier alone soon forgets all that does not matter for the class, such as the slant of a digit, and would not miss
it in generated images. So its features have to tell the image, too: a linear readout, thrown away afterwards,
paints it from them. (It also makes the classifier more accurate.)

Augmentation, as light as possible, for a judge that is blind to shifts would praise shifted images: shifts by whole
pixels; handwriting is also turned and scaled a little. Clothes reach to the border, so they move by one pixel only,
and are not mirrored: all the shoes look to the left.
"""

import argparse
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.base import classifier, datasets, metrics
from course_lib.base.classifier import Classifier
from course_lib.base.images import check_range, once
from course_lib.base.loop import Step, descend
from recipes import common

READOUT = 0.3  # weight of the readout's error, which is 1 for one that paints the mean image


@dataclass(frozen=True)
class Preset:
    """What differs between the data sets."""

    steps: int
    batch_size: int
    shift: float  # at most, as a proportion of the side
    turn: float  # degrees; the scale varies by a hundredth for each


PRESETS = {
    "digits": Preset(steps=3000, batch_size=64, shift=0.08, turn=8),
    "mnist": Preset(steps=3500, batch_size=128, shift=0.08, turn=8),
    "fashion_mnist": Preset(steps=12_000, batch_size=128, shift=0.04, turn=0),
}


def augment(images: Tensor, shift: float, turn: float, rng: torch.Generator) -> Tensor:
    """Shifted by up to `shift` sides in whole pixels, turned by up to `turn` degrees, scaled by as many percent."""
    B, _, H, W = images.shape

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=rng, device=rng.device).to(images.device) - 1

    angle, scale = math.radians(turn) * uniform(B), 1 + turn / 100 * uniform(B)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    side = torch.tensor([W, H], device=images.device)
    to = (shift * side * uniform(B, 2)).round() * 2 / side  # in an image that reaches from −1 to 1
    transform = torch.stack([torch.stack([cos, -sin, to[:, 0]], 1), torch.stack([sin, cos, to[:, 1]], 1)], 1)
    return F.grid_sample(images, F.affine_grid(transform, images.shape, align_corners=False), align_corners=False)


def judge_step(
    network: Classifier,
    readout: nn.Linear,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rng: torch.Generator,
    preset: Preset,
    variance: float,
) -> Step:
    """Cross-entropy of the class, and the readout's squared error relative to the pixels' variance.

    Of the first batch the step looks at the values, which must be in [0, 1]; of later ones it does not.
    """
    check_images = once(check_range)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        check_images(images)
        images = augment(images, preset.shift, preset.turn, rng).contiguous(memory_format=torch.channels_last)
        features = network.features(images)
        classes = F.cross_entropy(network.logits(network.dropout(features)).float(), labels)
        painted = (readout(features).float() - images.flatten(1)).square().mean() / variance
        descend(classes + READOUT * painted, optimiser)
        schedule.step()
        return {"classes": classes, "readout": painted}

    return step


@torch.no_grad()
def judged(network: Classifier, data: datasets.ImageSet) -> tuple[Tensor, Tensor]:
    """Features (N, 64) and predicted classes (N,) of a whole data set."""
    device = network.scale.device
    features = torch.cat([network.features(data[part][0].to(device)) for part in torch.arange(len(data)).split(500)])
    return features, network.logits(features).argmax(1)


def both_real(training: Tensor, held_out: Tensor, most: int = 5000) -> dict[str, metrics.Score]:
    """Precision and recall, by features (N, D) and (M, D), of as many training images as are compared of held-out ones.

    Neither set is generated: what they reach is the best that `metrics.evaluate` can give a generator's images.
    """
    n = min(len(training), len(held_out), most)
    chosen = [x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:n]] for x in (held_out, training)]
    return dict(zip(("precision", "recall"), metrics.generative_precision_recall(*chosen), strict=True))


def by_class(right: Tensor, data: datasets.ImageSet) -> dict[str, metrics.Score]:
    """The accuracy in each class, by its name, of a judge that was right (bool (N,)) or not about a whole data set."""
    return {name: metrics.proportion(right[data.labels == k]) for k, name in enumerate(data.classes)}


def train(argv: list[str] | None, name: str) -> dict[str, object]:
    """Train, calibrate, test and save the classifier of one data set; returns its scores."""
    preset = PRESETS[name]
    args = arguments(preset).parse_args(argv)
    run = common.setup(args, f"classifier_{name}", script=__file__, data=name)
    data, test = datasets.load(name), datasets.load(name, "test")
    _, C, H, W = data.images.shape
    network = Classifier(C, H, len(data.classes)).to(run.device, memory_format=torch.channels_last)
    readout = nn.Linear(classifier.FEATURES, C * H * W).to(run.device)
    optimiser = torch.optim.AdamW([*network.parameters(), *readout.parameters()], args.lr, weight_decay=0.02)
    parts = {
        "network": network,
        "readout": readout,
        "optimiser": optimiser,
        "schedule": torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=run.steps, pct_start=0.15),
        "rng": torch.Generator(run.device).manual_seed(run.seed),
    }
    variance = float((data.images / 255).var(dim=0).mean())
    step = judge_step(**parts, preset=preset, variance=variance)
    loop = common.train(run, step, data, stateful=parts)

    classifier.calibrate(network.eval(), judged(network, data)[0])
    held_out, predicted = judged(network, test)
    right = predicted.cpu() == test.labels
    scores = {
        "test accuracy": metrics.proportion(right),
        "real images": both_real(judged(network, data)[0], held_out),
        "accuracy by class": by_class(right, test),
    }
    common.export(run, network, scores, seconds=loop.seconds, data=name)
    return scores


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--data", choices=PRESETS, help="the data set (default: all; with --quick, the digits)")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate")
    return parser


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the classifiers asked for; returns the scores of each."""
    args = arguments(PRESETS["digits"]).parse_args(argv)
    names = common.select(args, args.data, "digits", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
