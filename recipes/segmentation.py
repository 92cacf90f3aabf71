"""Train the networks of the lesson on segmentation: all that a scene of the toy world holds, and people in photographs.

    python recipes/segmentation.py                       # both, one after the other
    python recipes/segmentation.py --model people        # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `scenes` | scenes of the toy world, drawn anew | from random weights: semantic map, centres and offsets |
| `people` | Penn-Fudan and COCO | the same for a person or not, on top of lesson 10's detector of pedestrians |

Penn-Fudan is found in `COURSE_DATA`, or downloaded from its authors. Of COCO any part will do, in the folders coco_mini
or coco_panoptic of `COURSE_DATA` (see `segmentation.load_coco_people`), without the images of an Attribution licence,
four of which ship with the course and judge. Predictions for held-out images are drawn to build/ as the training goes.
What ships is the moving average of the network.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from course_lib import detection, scenes, segmentation
from course_lib.base import datasets, zoo
from course_lib.base.loop import Loop
from recipes import common

Network, Hook = segmentation.SegmentationNet, Callable[[Loop], None]

HELD_OUT_SEED = 1_000_003  # of the scenes that judge; training scenes have the run's own seed
SIZE = 64  # of scenes, in pixels
COUNT = 8000  # scenes to learn from
CANVAS, SQUARE, ZOOM = 256, 128, (0.4, 1.0)  # of photographs: shorter side, side of what is cut out, enlargement
# People are larger in pixels than things in scenes, and their centres rarer.
LOSSES = partial(segmentation.segmentation_losses, things=1, centre_weight=100.0, offset_weight=0.2)
STEPS = {"scenes": 7000, "people": 2000}
BATCH_SIZES = {"scenes": 16, "people": 8}
LR = {"scenes": 3e-3, "people": 2e-3}


def arguments(model: str) -> argparse.ArgumentParser:
    """The command line, with a model's defaults."""
    parser = common.parser(__doc__, steps=STEPS[model], batch_size=BATCH_SIZES[model])
    parser.add_argument("--lr", type=float, default=LR[model])
    parser.add_argument("--model", choices=STEPS, help="default: both; with --quick, scenes")
    return parser


def people(quick: bool) -> tuple[list[segmentation.People], dict[str, list[segmentation.People]]]:
    """Photographs to learn from, and by name those to judge by."""
    penn_fudan = {split: detection.load_pedestrians(split) for split in datasets.SPLITS}
    train, test = (
        [segmentation.People(p.image, p.masks, torch.zeros_like(p.masks[0])) for p in penn_fudan[split]]
        for split in datasets.SPLITS
    )
    folders = [datasets.data_folder() / name for name in ("coco_mini", "coco_panoptic")]
    coco = [segmentation.load_coco_people(folder) for folder in folders if folder.is_dir()]
    if not coco:
        raise SystemExit("expected a part of COCO as coco_mini or coco_panoptic in the folder COURSE_DATA")
    judges = {"Penn-Fudan": test, "COCO": list(segmentation.shipped_people().values())}
    others = [p for part in coco for p in part["others"]]
    if quick:
        return train[:4] + others[:4], {name: photographs[:3] for name, photographs in judges.items()}
    return train + 2 * others, judges  # twice: there are fewer of them, and they show more


def train_scenes(run: common.Run) -> dict[str, object]:
    """Train on scenes, judge and save; returns the scores."""
    data = segmentation.SegmentationDataset.draw(40 if run.quick else COUNT, SIZE, run.seed)
    judges = scenes.Scenes(20 if run.quick else 500, SIZE, HELD_OUT_SEED).render_all()
    network = segmentation.SegmentationNet().to(run.device)
    shown = torch.stack([image.image for image in judges[:40]])

    def maps(loop: Loop) -> Tensor:
        found = segmentation.predict(loop.averaged["network"], shown).logits.argmax(1)
        return torch.stack([shown, segmentation.paint(found)], 1).flatten(0, 1)

    trained, seconds = _train(run, network, data, 0.998, common.draw(run, maps, 1000))
    scores = segmentation.evaluate(trained, judges) | {"held-out scenes": len(judges)}
    common.export(run, trained, scores, seconds=seconds, data="scenes")
    return scores


def train_people(run: common.Run) -> dict[str, object]:
    """Train on photographs, judge and save; returns the scores."""
    photographs, judges = people(run.quick)
    data = segmentation.PeopleDataset(photographs, CANVAS)
    small = {name: [p.resized(segmentation.PEOPLE_SIDE) for p in given] for name, given in judges.items()}
    network = segmentation.SegmentationNet(2, segmentation.FineBackbone())
    network.take_up(zoo.load("detector_pedestrians", "cpu")).to(run.device)
    shown = [p.image for part in small.values() for p in part[:5]]

    def maps(loop: Loop) -> Tensor:
        drawn = []
        for image in shown:
            chance = segmentation.find_people(loop.averaged["network"], image[None])[0]
            drawn += [image[:, :160, :160], (image * (0.2 + 0.8 * chance))[:, :160, :160]]
        return torch.stack(drawn)

    squares = partial(segmentation.random_squares, size=SQUARE, zoom=ZOOM)
    hook = common.draw(run, maps, 250)
    trained, seconds = _train(run, network, data, 0.99, hook, losses=LOSSES, vary=squares)
    scores: dict[str, object] = {}
    for name, part in small.items():
        judged = segmentation.evaluate_people(trained, part)
        scores |= {f"{name}: {what}": score for what, score in judged.items()} | {f"{name}: images": len(part)}
    common.export(run, trained, scores, seconds=seconds, data="Penn-Fudan and COCO")
    return scores


def _train(
    run: common.Run, network: Network, data: object, average: float, hook: Hook, **more: Any
) -> tuple[Network, float]:
    """The moving average, rounded as it ships, and the seconds of training."""
    optimiser, schedule = segmentation.optimiser_and_schedule(network, run.steps, run.settings["lr"])
    rng = torch.Generator(run.device).manual_seed(run.seed)
    step = segmentation.segmentation_step(network, optimiser, rng, schedule=schedule, **more)
    parts = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    averages = {"network": average}
    loop = common.train(run, step, data, stateful=parts, averages=averages, hooks=[hook], save_every=100)
    return common.round_to_half(loop.averaged["network"]), loop.seconds


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    asked = arguments("scenes").parse_args(argv)
    found = {}
    for model in common.select(asked, asked.model, "scenes", STEPS):
        args = arguments(model).parse_args(argv)
        run = common.setup(args, f"panoptic_{model}", script=__file__, model=model)
        found[model] = {"scenes": train_scenes, "people": train_people}[model](run)
    return found


if __name__ == "__main__":
    main()
