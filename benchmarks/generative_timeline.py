"""Every shipped generator before the same judge: how near to real images, how true, how complete, how new.

    COURSE_DATA=/path/to/data python benchmarks/generative_timeline.py --json timeline.json    # some minutes on 2 cores

Draws 10,000 images from each checkpoint with a seed of its own, not the recipe's, and compares them with held-out
real ones by `metrics.evaluate`, whose docstring says how many images each score takes and of which split. The rows
"copies" are images of the training set passed off as generated: their Fréchet distance is what real images reach,
and "copied" shows that the last two scores see through them. (Of the cats the reference is the training set itself.)

With `--quick`, 300 images of each, and only of MNIST.

Below the table, the bars: Fréchet distance of StyleGAN < DCGAN < GAN 2014, DCGAN < VAE, and a conditional generator
that draws the class asked for in 95 % of all cases, or in as many as its judge is right about real images (of clothes
92.9 %). Exits with 1 where one is missed.
"""

import dataclasses
import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import common
from course_lib import gan, stylegan, vae
from course_lib.base import checkpoints, datasets, metrics, runtime, zoo
from course_lib.base.images import resize
from course_lib.base.metrics import Score

SEED = 1  # the recipes judged with 0
AGREEMENT = 0.95


@dataclasses.dataclass(frozen=True)
class Model:
    """A shipped generator: the checkpoint's name, the data it learnt from, and how to sample it."""

    file: str
    data: str
    sample: Callable[..., Tensor]
    conditional: bool = False


MODELS = {
    "VAE 2013": Model("vae_mnist", "mnist", vae.sample),
    "GAN 2014": Model("gan_mnist", "mnist", gan.sample),
    "DCGAN 2015": Model("dcgan_mnist", "mnist", gan.sample),
    "StyleGAN 2018": Model("stylegan_mnist", "mnist", stylegan.sample),
    "DCGAN, conditional": Model("dcgan_mnist_conditional", "mnist", gan.sample, conditional=True),
    "DCGAN, clothes": Model("dcgan_fashion_mnist", "fashion_mnist", gan.sample, conditional=True),
    "DCGAN, cats": Model("dcgan_cats", "cat_faces", gan.sample),
    "StyleGAN, cats": Model("stylegan_cats", "cat_faces", stylegan.sample),
}

# Titles of the columns: of facts, and of scores with the unit by which they are multiplied.
FACTS = {"weights": "{:,}", "MB": "{:.2f}", "seconds": "{:.0f}"}
SCORES = {
    "Fréchet distance": ("Fréchet distance", 1),
    "Fréchet floor": ("floor", 1),
    "kernel distance": ("kernel distance ·1000", 1000),
    "precision": ("precision %", 100),
    "recall": ("recall %", 100),
    "distance to training": ("distance", 1),
    "copied": ("copied %", 100),
    "agreement": ("agreement %", 100),
    "largest class": ("largest class %", 100),
}
Row = dict[str, float | Score]


def judge(model: Model, n: int, repeats: int, device: torch.device) -> Row:
    """What the checkpoint tells of itself, and the scores of n new images."""
    network = zoo.load(model.file, device)
    metadata = checkpoints.load(model.file)[1]
    facts = {
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "MB": (checkpoints.folder() / f"{model.file}.safetensors").stat().st_size / 1e6,
        "seconds": float(metadata["seconds"]),
    }
    if model.conditional:
        judge = json.loads(checkpoints.load(f"classifier_{model.data}")[1]["score"])
        facts["judge"] = judge["test accuracy"]["value"]  # on real images
    labels = torch.arange(n) % network.classes if model.conditional else None
    given = () if labels is None else (labels,)
    images = model.sample(network, n, *given, rng=torch.Generator().manual_seed(SEED))
    size = datasets.load(model.data, "test").images.shape[-1]
    if images.shape[-1] != size:  # a generator of smaller images than the data's
        images = resize(images, size).clamp(0, 1)
    return facts | metrics.evaluate(images, model.data, labels=labels, repeats=repeats)


def copies(data: str, n: int, repeats: int, device: torch.device) -> Row:
    """The scores of n images of the training set."""
    training = datasets.load(data)
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(SEED))[:n]
    return dict(metrics.evaluate(training[chosen][0].to(device), data, repeats=repeats))


def text(score: Score, unit: float) -> str:
    """A score with its interval; only the value where there is none, as of the floor."""
    value, low, high = (unit * number for number in (score.value, score.low, score.high))
    return f"{value:.3g}" if low == high else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def table(rows: dict[str, Row]) -> str:
    """All rows, in columns as wide as they need."""
    shown = {}
    for name, row in rows.items():
        shown[name] = {title: form.format(row[title]) for title, form in FACTS.items() if title in row}
        shown[name] |= {title: text(row[key], unit) for key, (title, unit) in SCORES.items() if key in row}
    return common.table(shown)


def bars(rows: dict[str, Row]) -> dict[str, bool]:
    """What must hold, and whether it does; only what the rows at hand can tell."""
    found = {}
    for better, worse in (("StyleGAN 2018", "DCGAN 2015"), ("DCGAN 2015", "GAN 2014"), ("DCGAN 2015", "VAE 2013")):
        if better in rows and worse in rows:
            first, second = (rows[name]["Fréchet distance"] for name in (better, worse))
            apart = "apart" if first.high < second.low else "overlapping"
            claim = f"Fréchet distance: {better} {first.value:.3g} < {worse} {second.value:.3g} (intervals {apart})"
            found[claim] = first.value < second.value
    for name, row in rows.items():
        if "agreement" in row:
            needed = min(AGREEMENT, row["judge"])
            claim = f"class agreement: {name} {row['agreement'].value:.2%} ≥ {needed:.2%}"
            found[claim] = row["agreement"].value >= needed
    return found


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Judge, print the table and the bars, and write what was asked for; returns the bars."""
    options = common.parser(__doc__).parse_args(arguments)
    n, repeats = (300, 5) if options.quick else (10_000, 100)
    wanted = {name: model for name, model in MODELS.items() if model.data == "mnist" or not options.quick}
    at_hand = {data: datasets.is_available(data) for data in dict.fromkeys(model.data for model in wanted.values())}
    for data in (data for data, there in at_hand.items() if not there):
        print(f"{data} is not at hand, so nothing that learnt from it is judged", file=sys.stderr)
    if not any(at_hand.values()):
        raise SystemExit(
            "no held-out images to compare with: set COURSE_DATA to a folder with MNIST and Fashion-MNIST "
            'in torchvision\'s layout, or download them once with datasets.load("mnist") and so on'
        )
    device = runtime.device()
    rows = {name: judge(model, n, repeats, device) for name, model in wanted.items() if at_hand[model.data]}
    rows |= {f"copies of {data}": copies(data, n, repeats, device) for data, there in at_hand.items() if there}
    print(f"{n:,} images of each; torch {torch.__version__}, {device}; 95 % intervals")
    print(table(rows))
    met = bars(rows)
    common.report(met)
    common.write(options.json, {"images": n, "seed": SEED, "rows": rows, "bars": met})
    return met


if __name__ == "__main__":
    sys.exit(0 if all(main().values()) else 1)
