"""Train the keypoint networks: jointed figures of the toy world, and real faces with 68 points.

    python recipes/keypoints.py                      # both, one after the other
    python recipes/keypoints.py --model faces        # one of them; continues where it was interrupted

| model | data | judged by |
|---|---|---|
| `figures` | crops of 64 × 64 px from scenes of the toy world | PCK@0.1, on other scenes |
| `faces` | 3,186 crops, shrunk to 96 × 96 px, 68 points (YouTube Faces; for research) | NME, on other persons |

The faces are found in the folder `faces` of `COURSE_DATA`; they cannot be downloaded. What is found in held-out
figures is drawn to build/ as the training goes; of faces, nothing is. What ships is the moving average of the network.
"""

import argparse
import dataclasses

import torch
from torch import Tensor, nn
from torchvision.utils import draw_keypoints

from course_lib import detection, keypoints, scenes
from course_lib.base import datasets, zoo
from course_lib.base.loop import Loop
from recipes import common

HELD_OUT_SEED = 1_000_003  # of the scenes that judge; training scenes have the run's own seed
DRAWN = 40  # held-out figures that a grid shows


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one model from the other."""

    steps: int
    batch_size: int
    lr: float
    turn: float  # degrees, of the random variation
    scenes: int | None = None  # to draw
    average: float = 0.998  # decay


PRESETS = {
    "figures": Preset(steps=600, batch_size=16, lr=3e-3, turn=15.0, scenes=500, average=0.99),
    "faces": Preset(steps=2000, batch_size=32, lr=3e-3, turn=30.0),
}


@dataclasses.dataclass
class Task:
    """Training data, and what judges: held-out crops with their points, and the scale of each."""

    data: keypoints.KeypointDataset
    held_out: keypoints.KeypointDataset
    scale: Tensor

    def scores(self, network: keypoints.KeypointNetwork, model: str) -> dict[str, object]:
        """What the network reaches on the held-out crops."""
        crops, truth = self.held_out[torch.arange(len(self.held_out))]
        points, _ = keypoints.predict(network, crops)
        found = {
            "PCK@0.1" if model == "figures" else "PCK@0.1, by the eyes": keypoints.pck(points, truth, self.scale),
            "NME": keypoints.nme(points, truth, self.scale),
        }
        once, _ = keypoints.predict(network, crops, flip=False)
        return found | {"NME without flip test": keypoints.nme(once, truth, self.scale), "held-out crops": len(crops)}


def prepare(model: str, run: common.Run) -> Task:
    """The data of a model; `--quick` takes little of it."""
    if model == "figures":
        drawn = keypoints.figure_scenes(60 if run.quick else PRESETS[model].scenes, run.seed)
        data, _ = keypoints.figure_crops(drawn)
        return Task(data, *keypoints.figure_crops(keypoints.figure_scenes(20 if run.quick else 200, HELD_OUT_SEED)))
    few = slice(64 if run.quick else None)
    loaded = (keypoints.load_faces(split).resized(keypoints.FACE_SIDE) for split in ("train", "test"))
    data, held_out = (keypoints.KeypointDataset(f.images[few], f.keypoints[few]) for f in loaded)
    return Task(data, held_out, keypoints.eye_distance(held_out.keypoints[..., :2]))


def drawn_figures(network: nn.Module, held_out: keypoints.KeypointDataset) -> Tensor:
    """The first held-out crops with the points that were found in them."""
    crops, _ = held_out[torch.arange(min(DRAWN, len(held_out)))]
    points, _ = keypoints.predict(network, crops)
    drawn = [
        draw_keypoints(crop, own[None], connectivity=list(scenes.SKELETON), colors="red", radius=1, width=1)
        for crop, own in zip(crops, points, strict=True)
    ]
    return torch.stack(drawn)


def variation(model: str, network: keypoints.KeypointNetwork) -> keypoints.Vary:
    """Turned, enlarged, moved and mirrored; photographs in other colours too."""
    moved = keypoints.varied(network.mirrored, turn=PRESETS[model].turn)
    if model == "figures":
        return moved
    return lambda crops, points, rng: moved(detection.recoloured(crops, rng), points, rng)


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: both; with --quick, figures")
    return parser


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), f"keypoints_{model}", script=__file__, model=model)

    task = prepare(model, run)
    network = zoo.build(f"keypoints_{model}").to(run.device, memory_format=torch.channels_last)
    optimiser, schedule = detection.optimiser_and_schedule(network, run.steps, preset.lr)
    rng = torch.Generator(run.device).manual_seed(run.seed)
    stateful = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    step = keypoints.keypoint_step(network, optimiser, rng, variation(model, network), schedule)

    def grid(loop: Loop) -> Tensor:
        return drawn_figures(loop.averaged["network"], task.held_out)

    loop = common.train(
        run,
        step,
        task.data,
        stateful=stateful,
        averages={"network": preset.average},
        hooks=[common.draw(run, grid, 200)] if model == "figures" else [],  # faces are never shown
        save_every=100,
        settings={f"preset's {name}": str(value) for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["network"])
    scores = task.scores(averaged, model)
    common.export(run, averaged, scores, seconds=loop.seconds, data=model)
    return scores


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["figures"]).parse_args(argv)
    names = common.select(args, args.model, "figures", PRESETS)
    if args.model is None and "faces" in names and not (datasets.data_folder() / "faces").is_dir():
        print("The faces are not at hand, and cannot be downloaded: only the figures are trained.")
        names.remove("faces")
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
