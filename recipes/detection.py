"""Train the detectors: objects of the toy world, and real pedestrians.

    python recipes/detection.py                            # both, one after the other
    python recipes/detection.py --model pedestrians        # one of them; continues where it was interrupted

| model | data | what it is |
|---|---|---|
| `scenes` | scenes of the toy world, drawn anew | from random weights, the network that the lesson trains live |
| `pedestrians` | Penn-Fudan, 135 photographs | on top of the embedded perceptual network of `base.features` |

Penn-Fudan is found in `COURSE_DATA`, or downloaded from its authors. What is found in held-out images is drawn to
build/ as the training goes. What ships is the moving average of the network.
"""

import argparse
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from course_lib import detection, scenes
from course_lib.base import zoo
from course_lib.base.loop import Loop
from recipes import common

HELD_OUT_SEED = 1_000_003  # of the scenes that judge; training scenes have the run's own seed
SIZE = 64  # of scenes, in pixels
CANVAS = 256  # shorter side of the photographs that squares are cut from, in pixels


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one model from another."""

    steps: int
    batch_size: int
    lr: float
    images: int | None = None  # scenes to draw
    average: float = 0.998  # decay


PRESETS = {
    "scenes": Preset(steps=2000, batch_size=32, lr=2e-3, images=4000),
    "pedestrians": Preset(steps=600, batch_size=16, lr=1e-3),
}


def scene_data(count: int, seed: int) -> detection.DetectionDataset:
    """Random scenes as training data."""
    drawn = scenes.Scenes(count, SIZE, seed).render_all(lambda p: (p.image, detection.Objects(p.boxes, p.labels)))
    return detection.DetectionDataset(*zip(*drawn, strict=True))


SQUARES = detection.random_squares(detection.PEDESTRIAN_SIDE, zoom=(0.35, 1.0))


def vary_photographs(images: Tensor, boxes: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Random squares in random colours; see `detection.random_squares`."""
    return SQUARES(detection.recoloured(images, rng), boxes, labels, rng)


@dataclasses.dataclass
class Task:
    """Network, training data and its variation, and how to judge: (detector) → COCO's numbers."""

    detector: detection.Detector
    data: detection.DetectionDataset
    vary: Callable
    held_out: list[Tensor]  # images (3, H, W)
    truth: list[detection.Objects]

    def found(self, detector: detection.Detector) -> list[detection.Objects]:
        """What the detector finds in the held-out images."""
        device = next(detector.parameters()).device
        return [detection.detect(detector, p[None].to(device))[0].to("cpu") for p in self.held_out]

    def drawn(self, detector: detection.Detector) -> Tensor:
        """The first ten held-out images, cut to one size, with what is found there above a score of 0.3."""
        H, W = (min(p.shape[axis] for p in self.held_out) for axis in (1, 2))
        boxed = []
        for image, found in zip(self.held_out[:10], self.found(detector), strict=False):
            sure = found.shapes[found.scores > 0.3]
            boxed.append((draw_bounding_boxes(image, sure, colors="red") if len(sure) else image)[:, :H, :W])
        return torch.stack(boxed)


def prepare(model: str, run: common.Run) -> Task:
    """Data and a network to begin with; `--quick` takes few scenes."""
    if model == "scenes":
        data = scene_data(60 if run.quick else PRESETS[model].images, run.seed)
        judge = scene_data(20 if run.quick else 500, HELD_OUT_SEED)
        detector = detection.Detector(len(scenes.THINGS))
        return Task(detector, data, detection.mirrored, [p.float() / 255 for p in judge.images], judge.truth)
    photographs, test = detection.load_pedestrians(), detection.load_pedestrians("test")
    photographs, test = (photographs[:8], test[:10]) if run.quick else (photographs, test)
    backbone = detection.PerceptualBackbone().take_up(zoo.load("features").state_dict())
    small = [p.resized(detection.PEDESTRIAN_SIDE) for p in test]
    return Task(
        detection.Detector(1, backbone),
        detection.on_canvas(photographs, CANVAS),
        vary_photographs,
        [p.image for p in small],
        [p.objects for p in small],
    )


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: both; with --quick, scenes")
    return parser


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), f"detector_{model}", script=__file__, model=model)

    task = prepare(model, run)
    detector = task.detector.to(run.device, memory_format=torch.channels_last)
    optimiser, schedule = detection.optimiser_and_schedule(detector, run.steps, preset.lr)
    rng = torch.Generator(run.device).manual_seed(run.seed)
    stateful = {"detector": detector, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    step = detection.detection_step(detector, optimiser, rng, task.vary, schedule)

    def grid(loop: Loop) -> Tensor:
        return task.drawn(loop.averaged["detector"])

    loop = common.train(
        run,
        step,
        task.data,
        stateful=stateful,
        averages={"detector": preset.average},
        hooks=[common.draw(run, grid, 500)],
        save_every=100,
        settings={f"preset's {name}": str(value) for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["detector"])
    scores = detection.evaluate(task.found(averaged), task.truth).summary()
    scores["held-out images"] = len(task.truth)
    common.export(run, averaged, scores, seconds=loop.seconds, data=model)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["scenes"]).parse_args(argv)
    names = common.select(args, args.model, "scenes", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
