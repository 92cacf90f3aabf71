"""Every shipped generator before the same judge: how near to real images, how true, how complete, how new.

    COURSE_DATA=/path/to/data python benchmarks/generative_timeline.py --json timeline.json    # some minutes on 2 cores

Draws 10,000 images from each checkpoint with a seed of its own, not the recipe's, and compares them with held-out
real ones by `metrics.evaluate`, whose docstring says how many images each score takes and of which split. Diffusion,
which calls its network 20 times for an image, draws 1,000 digits or clothes: its distances, precision and recall are
those of fewer images, see `frechet_floor`. Of cats all draw as many as are held out, 838, and the reference is the
training set; the row "held-out cats" are the real ones.

The rows "copies" are images of the training set passed off as generated: their Fréchet distance is what real images
reach, and "copied" shows that the last two scores see through them.

With `--only`, some of the rows; in a file of figures the others stay. With `--quick`, 300 images of each (of diffusion
50), and only of MNIST.

Below the table, the bars: Fréchet distance of StyleGAN < DCGAN < GAN 2014, DCGAN < VAE, of cats diffusion < StyleGAN,
and a conditional GAN that draws the class asked for in 95 % of all cases, or in as many as its judge is right about
real images (of clothes 92.9 %). Diffusion's agreement grows with its guidance, of which there is none here. Exits with
1 where one is missed.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import common
from course_lib import diffusion, gan, stylegan, vae
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
    slow: bool = False

    def images(self, quick: bool) -> int:
        """How many to draw."""
        if quick:
            return 50 if self.slow else 300
        if self.data in metrics.UNLABELLED:
            return len(datasets.load(self.data, "test"))
        return 1000 if self.slow else 10_000


MODELS = {
    "VAE 2013": Model("vae_mnist", "mnist", vae.sample),
    "GAN 2014": Model("gan_mnist", "mnist", gan.sample),
    "DCGAN 2015": Model("dcgan_mnist", "mnist", gan.sample),
    "StyleGAN 2018": Model("stylegan_mnist", "mnist", stylegan.sample),
    "DCGAN, conditional": Model("dcgan_mnist_conditional", "mnist", gan.sample, conditional=True),
    "Diffusion, conditional": Model("diffusion_mnist", "mnist", diffusion.sample, conditional=True, slow=True),
    "DCGAN, clothes": Model("dcgan_fashion_mnist", "fashion_mnist", gan.sample, conditional=True),
    "Diffusion, clothes": Model(
        "diffusion_fashion_mnist", "fashion_mnist", diffusion.sample, conditional=True, slow=True
    ),
    "DCGAN, cats": Model("dcgan_cats", "cat_faces", gan.sample),
    "StyleGAN, cats": Model("stylegan_cats", "cat_faces", stylegan.sample),
    "Diffusion, cats": Model("diffusion_cats", "cat_faces", diffusion.sample, slow=True),
}
HELD_OUT = "held-out cats"
COPIES = {f"copies of {data}": data for data in ("mnist", "fashion_mnist", "cat_faces")}
ROWS = {name: model.data for name, model in MODELS.items()} | {HELD_OUT: "cat_faces"} | COPIES  # and their data

# Titles of the columns: of facts, and of scores with the unit by which they are multiplied.
FACTS = {"images": "{:,}", "weights": "{:,}", "MB": "{:.2f}", "seconds": "{:.0f}"}
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
    held_out = datasets.load(model.data, "test")
    labels = torch.arange(n) % len(held_out.classes) if model.conditional else None
    given = () if labels is None else (labels,)
    with runtime.autocast(device) if model.slow else contextlib.nullcontext():  # as in its recipe
        images = model.sample(network, n, *given, rng=torch.Generator().manual_seed(SEED))
    size = held_out.images.shape[-1]
    if images.shape[-1] != size:  # a generator of smaller images than the data's
        images = resize(images, size).clamp(0, 1)
    return facts | metrics.evaluate(images, model.data, labels=labels, repeats=repeats)


def real(data: str, split: str, n: int, repeats: int, device: torch.device) -> Row:
    """The scores of n images of a split, passed off as generated."""
    images = datasets.load(data, split)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))[:n]
    return dict(metrics.evaluate(images[chosen][0].to(device), data, repeats=repeats))


def row(name: str, quick: bool, device: torch.device) -> Row:
    """One of `ROWS`."""
    repeats = 5 if quick else 100
    if name in MODELS:
        n = MODELS[name].images(quick)
        return {"images": n} | judge(MODELS[name], n, repeats, device)
    fast = next(model for model in MODELS.values() if model.data == ROWS[name] and not model.slow)
    n = fast.images(quick)
    return {"images": n} | real(ROWS[name], "train" if name in COPIES else "test", n, repeats, device)


def kept(path: Path | None) -> dict[str, Row]:
    """The rows that a file of figures has."""
    if path is None or not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {
        name: {key: Score(**found) if isinstance(found, dict) else found for key, found in row.items()}
        for name, row in rows.items()
        if name in ROWS
    }


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
    for better, worse in (
        ("StyleGAN 2018", "DCGAN 2015"),
        ("DCGAN 2015", "GAN 2014"),
        ("DCGAN 2015", "VAE 2013"),
        ("Diffusion, cats", "StyleGAN, cats"),
    ):
        if better in rows and worse in rows:
            first, second = (rows[name]["Fréchet distance"] for name in (better, worse))
            apart = "apart" if first.high < second.low else "overlapping"
            claim = f"Fréchet distance: {better} {first.value:.3g} < {worse} {second.value:.3g} (intervals {apart})"
            found[claim] = first.value < second.value
    for name, row in rows.items():
        if "agreement" in row and not (name in MODELS and MODELS[name].slow):
            needed = min(AGREEMENT, row["judge"])
            claim = f"class agreement: {name} {row['agreement'].value:.2%} ≥ {needed:.2%}"
            found[claim] = row["agreement"].value >= needed
    return found


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Judge, print the table and the bars, and write what was asked for; returns the bars."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=ROWS, nargs="+", metavar="ROW", help=f"some of: {'; '.join(ROWS)}")
    options = parser.parse_args(arguments)
    wanted = options.only or [name for name, data in ROWS.items() if data == "mnist" or not options.quick]
    at_hand = {data: datasets.is_available(data) for data in dict.fromkeys(ROWS[name] for name in wanted)}
    for data in (data for data, there in at_hand.items() if not there):
        print(f"{data} is not at hand, so nothing that learnt from it is judged", file=sys.stderr)
    if not any(at_hand.values()):
        raise SystemExit(
            "no held-out images to compare with: set COURSE_DATA to a folder with MNIST and Fashion-MNIST "
            'in torchvision\'s layout, or download them once with datasets.load("mnist") and so on'
        )
    device = runtime.device()
    rows = kept(options.json) if options.only else {}
    for name in (name for name in wanted if at_hand[ROWS[name]]):
        rows[name] = row(name, options.quick, device)
        rows = {name: rows[name] for name in ROWS if name in rows}
        print(table({name: rows[name]}), flush=True)
        common.write(options.json, {"seed": SEED, "rows": rows})  # so that an interruption costs one row only
    print(f"\ntorch {torch.__version__}, {device}; 95 % intervals\n{table(rows)}")
    met = bars(rows)
    common.report(met)
    common.write(options.json, {"seed": SEED, "rows": rows, "bars": met})
    return met


if __name__ == "__main__":
    sys.exit(0 if all(main().values()) else 1)
