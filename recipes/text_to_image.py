"""Train the networks of text to image that ship: CLIP, and the prior from captions to images' embeddings.

    python recipes/text_to_image.py                          # all that ship, one after the other
    python recipes/text_to_image.py --model clip_scenes      # one of them; continues where it was interrupted

| model | what it is |
|---|---|
| `clip_scenes` | image and text encoder; each caption's colour-swapped twin is one more wrong answer |
| `prior_scenes` | from CLIP's vector of a caption to one of an image, by diffusion; needs `clip_scenes` |

Data are scenes of one and two objects at 32×32, without the pairs of colour and class that are held out; they are drawn
once, in 5 ms each, and kept in build/. A quarter of the captions say less than all.
"""

import argparse
import dataclasses
import math

import torch
from torch.utils.data import TensorDataset

from course_lib import diffusion, text_to_image
from course_lib.base import metrics, zoo
from course_lib.text_to_image import clip as clips
from recipes import common

WARM_UP = 50  # steps
FOLDER = "build"
SCENES, TEST, HELD_OUT = 20_000, 1000, 500  # how many
TRAINING_SEED, TEST_SEED, HELD_OUT_SEED = 0, 2, 3
PLAIN, PLAIN_SEEDS = 4000, range(100, 105)  # near scenes without texture, as the decoder draws: so many of each
BRIEF = 0.25  # of the captions say less than all


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one training from another."""

    steps: int
    batch_size: int
    lr: float
    options: dict[str, object] = dataclasses.field(default_factory=dict)


PRESETS = {
    "clip_scenes": Preset(steps=600, batch_size=256, lr=2e-3, options={"twins": True}),
    "prior_scenes": Preset(steps=4000, batch_size=512, lr=2e-3),
}


def arguments(preset: Preset) -> argparse.ArgumentParser:
    """The command line, with a preset's defaults."""
    parser = common.parser(__doc__, steps=preset.steps, batch_size=preset.batch_size)
    parser.add_argument("--model", choices=PRESETS, help="default: all; with --quick, clip_scenes")
    return parser


def rate(done: int, steps: int) -> float:
    """The learning rate after so many steps, as a proportion of the highest."""
    return min(1.0, (done + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done / steps))


def scenes(run: common.Run, kind: str) -> text_to_image.Captioned:
    """The scenes to train on ("training"), to test on ("test"), or with held-out pairs ("held_out")."""
    n, seed = {
        "training": (SCENES, TRAINING_SEED),
        "test": (TEST, TEST_SEED),
        "held_out": (HELD_OUT, HELD_OUT_SEED),
    }[kind]
    return text_to_image.draw_captioned(
        n // 50 if run.quick else n, seed, held_out=kind == "held_out", folder=None if run.quick else FOLDER
    )


def train_clip(run: common.Run, preset: Preset) -> dict[str, object]:
    """Train, judge and save CLIP; returns the scores."""
    clip = zoo.build(run.name).to(run.device)
    optimiser = torch.optim.AdamW(clip.parameters(), preset.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, run.steps))
    loop = common.train(
        run,
        text_to_image.clip_step(clip, optimiser, **preset.options),
        text_to_image.Pairs(scenes(run, "training"), BRIEF),
        stateful={"clip": clip, "optimiser": optimiser, "schedule": schedule},
        averages={"clip": 0.99},
        hooks=[lambda loop: schedule.step()],
        save_every=250,
        settings={f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["clip"])
    scores = judge_clip(averaged, scenes(run, "test"), scenes(run, "held_out"))
    common.export(run, averaged, scores, seconds=loop.seconds, data="scenes")
    return scores


def judge_clip(clip: clips.CLIP, test: text_to_image.Captioned, held_out: text_to_image.Captioned) -> dict[str, object]:
    """Top-1 among 500 captions, and how often caption and twin are told apart."""
    half = len(test) // 2
    parts = [
        text_to_image.Captioned(test.images[part], test.captions[part]) for part in (slice(half), slice(half, 2 * half))
    ]
    scores = {
        "retrieval": metrics.proportion(torch.cat([clips.retrieval(clip, part) for part in parts])),
        "retrieval of held-out pairs": metrics.proportion(clips.retrieval(clip, held_out)),
    }
    for what in ("colour", "shape", "place"):
        scores[f"swaps of {what}"] = metrics.proportion(clips.tells_apart(clip, test, what))
    scores["swaps of colour, held-out pairs"] = metrics.proportion(clips.tells_apart(clip, held_out, "colour"))
    return scores


def train_prior(run: common.Run, preset: Preset) -> dict[str, object]:
    """Train, judge and save the prior; returns the scores."""
    clip = zoo.load("clip_scenes", run.device)
    n, seeds, folder = (100, PLAIN_SEEDS[:1], None) if run.quick else (PLAIN, PLAIN_SEEDS, FOLDER)
    simple = [text_to_image.draw_captioned(n, seed, plain=True, folder=folder) for seed in seeds]
    vectors = [
        text_to_image.embed(clip, data.floats(), text_to_image.briefer(data.captions, BRIEF))
        for data in (scenes(run, "training"), *simple)
    ]
    images, texts = (text_to_image.scaled(torch.cat(each)).cpu() for each in zip(*vectors, strict=True))
    prior = zoo.build(run.name).to(run.device)
    optimiser = torch.optim.Adam(prior.parameters(), preset.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, run.steps))
    rng = torch.Generator(run.device).manual_seed(run.seed)
    loop = common.train(
        run,
        diffusion.diffusion_step(prior, optimiser, rng, drop=0.1),
        TensorDataset(images, texts),
        stateful={"prior": prior, "optimiser": optimiser, "schedule": schedule, "rng": rng},
        averages={"prior": 0.999},
        hooks=[lambda loop: schedule.step()],
        save_every=1000,
        settings={f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["prior"])
    scores = judge_prior(averaged, clip, scenes(run, "test"), scenes(run, "held_out"))
    common.export(run, averaged, scores, seconds=loop.seconds, data="scenes")
    return scores


def judge_prior(
    prior: diffusion.Denoiser, clip: clips.CLIP, test: text_to_image.Captioned, held_out: text_to_image.Captioned
) -> dict[str, object]:
    """The mean cosine to the image's own vector: of the caption's vector, and of what the prior makes of it."""
    scores = {}
    for name, data in (("", test), (", held-out pairs", held_out)):
        images, texts = text_to_image.embed(clip, data.floats(), data.captions)
        scores[f"cosine of the caption's vector{name}"] = (images * texts).sum(1).mean()
        rng = torch.Generator().manual_seed(0)
        for n in (1, 2):
            drawn = text_to_image.draw_embeddings(prior, texts, candidates=n, rng=rng)
            scores[f"cosine of the prior's, best of {n}{name}"] = (images * drawn).sum(1).mean()
    return scores


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), model, script=__file__, model=model)
    return {"clip_scenes": train_clip, "prior_scenes": train_prior}[model](run, preset)


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["clip_scenes"]).parse_args(argv)
    names = common.select(args, args.model, "clip_scenes", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
