"""Train the networks of text to image that ship: CLIP, the prior, the decoder and the upsampler.

    python recipes/text_to_image.py                          # all that ship, one after the other
    python recipes/text_to_image.py --model clip_scenes      # one of them; continues where it was interrupted

| model | what it is |
|---|---|
| `clip_scenes` | image and text encoder; twins with exchanged colours, shapes or places are further wrong answers |
| `prior_scenes` | from CLIP's vector of a caption to one of an image, by diffusion; needs `clip_scenes` |
| `decoder_scenes` | from a caption's words, or a vector of CLIP's, to images; needs `clip_scenes` and `prior_scenes` |
| `upsampler_scenes` | from images of 32×32 to 64×64 |

Data are scenes of one and two objects at 32×32, without the pairs of colour and class that are held out; they are drawn
once, in 5 ms each, and kept in build/. Half of those for CLIP and prior are near and without texture, as all for the
decoder. A quarter of the captions say less than all. The decoder that ships was trained in parts; data/README.md says
how, so the recipe repeats the networks and the data, not the bits.
"""

import argparse
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from course_lib import diffusion, text_to_image, upsampling
from course_lib.base import metrics, runtime, zoo
from course_lib.base.loop import Loop, every
from course_lib.text_to_image import clip as clips
from course_lib.text_to_image import decoder as decoders
from course_lib.text_to_image import judge as judges
from course_lib.text_to_image import upsampler as upsamplers
from recipes import common

WARM_UP = 50  # steps
FOLDER = "build"
SCENES, TEST, HELD_OUT = 20_000, 1000, 500  # how many
TRAINING_SEED, TEST_SEED, HELD_OUT_SEED = 0, 2, 3
PLAIN, PLAIN_SEEDS = 4000, range(100, 105)  # near scenes without texture, as the decoder draws: so many of each
DECODER_SEEDS = range(100, 110)  # the decoder's scenes, so many of each, and all of them mirrored
DECODER_TEST, DECODER_HELD_OUT = 300, 200
DECODER_TEST_SEED, DECODER_HELD_OUT_SEED = 900, 901
WATCHED = 100  # of its captions, along the training
SAMPLER_STEPS = 20
PAIRS, PAIRS_SEED, PAIRS_TEST, PAIRS_TEST_SEED = 4000, 500, 300, 501
BRIEF = 0.25  # of the captions say less than all


@dataclasses.dataclass(frozen=True)
class Preset:
    """What distinguishes one training from another."""

    steps: int
    batch_size: int
    lr: float
    options: dict[str, object] = dataclasses.field(default_factory=dict)


PRESETS = {
    "clip_scenes": Preset(steps=1200, batch_size=256, lr=2e-3, options={"swaps": ("colour", "shape", "place")}),
    "prior_scenes": Preset(steps=4000, batch_size=512, lr=2e-3),
    "decoder_scenes": Preset(
        steps=14575, batch_size=32, lr=1e-3, options={"ways": ("text", "text", "image", "tokens", "tokens")}
    ),
    "upsampler_scenes": Preset(steps=1400, batch_size=16, lr=2e-3),
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
        text_to_image.clip_step(clip, optimiser, twins=True),
        text_to_image.Pairs(
            together(scenes(run, "training"), plain_scenes(run, PLAIN, PLAIN_SEEDS)), BRIEF, **preset.options
        ),
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


def plain_scenes(run: common.Run, n: int, seeds: Iterable[int], **more: bool) -> text_to_image.Captioned:
    """Near scenes without texture, n of each seed."""
    seeds, n, folder = (list(seeds)[:1], n // 50, None) if run.quick else (seeds, n, FOLDER)
    return together(*(text_to_image.draw_captioned(n, seed, plain=True, folder=folder, **more) for seed in seeds))


def together(*parts: text_to_image.Captioned) -> text_to_image.Captioned:
    """Several sets of scenes as one."""
    captions = tuple(itertools.chain.from_iterable(part.captions for part in parts))
    return text_to_image.Captioned(torch.cat([part.images for part in parts]), captions)


def train_decoder(run: common.Run, preset: Preset) -> dict[str, object]:
    """Train, judge and save the decoder; returns the scores. The header's `curve` tells what it learns when."""
    clip, prior = (zoo.load(name, run.device) for name in ("clip_scenes", "prior_scenes"))
    drawn = plain_scenes(run, PLAIN, DECODER_SEEDS)
    both = together(drawn, decoders.mirrored(drawn))
    denoiser = zoo.build(run.name).to(run.device)
    optimiser = torch.optim.Adam(denoiser.parameters(), preset.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, run.steps))
    rng = torch.Generator(run.device).manual_seed(run.seed)
    test = plain_scenes(run, DECODER_TEST, [DECODER_TEST_SEED])
    watched, kept = test.captions[:WATCHED], Path("build") / f"{run.out.stem}_curve.json"

    def watch(loop: Loop) -> None:
        """What images of the averaged decoder show of their captions, in a file beside the state."""
        curve = json.loads(kept.read_text()) if kept.exists() and loop.done > every_tenth else {}
        found = judge_decoder(loop.averaged["denoiser"], watched, "tokens", clip, prior)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(curve | {str(loop.done): common.plain(means(found))}))

    every_tenth = max(1, run.steps // 10)
    loop = common.train(
        run,
        decoders.decoder_step(denoiser, optimiser, rng, **preset.options),
        decoders.DecoderData(both, clip, BRIEF),
        stateful={"denoiser": denoiser, "optimiser": optimiser, "schedule": schedule, "rng": rng},
        averages={"denoiser": 0.999},
        hooks=[lambda loop: schedule.step(), every(every_tenth, watch)],
        settings={f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["denoiser"])
    held_out = plain_scenes(run, DECODER_HELD_OUT, [DECODER_HELD_OUT_SEED], held_out=True)
    scores = decoder_scores(averaged, test, held_out, clip, prior)
    counts = judges.by_objects({"all": torch.ones(len(watched), dtype=torch.bool)}, watched)
    facts = {"curve": json.loads(kept.read_text()), "curve_captions": {n: each["all"].n for n, each in counts.items()}}
    common.export(run, averaged, scores, seconds=loop.seconds, data="scenes", **facts)
    return scores


def judge_decoder(
    denoiser: diffusion.Denoiser,
    captions: Sequence[str],
    way: str,
    clip: clips.CLIP,
    prior: diffusion.Denoiser,
    guidance_scale: float = decoders.GUIDANCE,
) -> dict[str, dict[str, metrics.Score]]:
    """What the judge says of an image for each caption, by the number of objects."""
    rng = torch.Generator().manual_seed(0)
    condition = decoders.conditions(captions, way, clip, prior, rng)
    return judge_drawn(denoiser, condition, captions, rng, guidance_scale)


def judge_drawn(
    denoiser: diffusion.Denoiser,
    condition: torch.Tensor,
    captions: Sequence[str],
    rng: torch.Generator,
    guidance_scale: float = decoders.GUIDANCE,
) -> dict[str, dict[str, metrics.Score]]:
    """The same, of an image for each condition: tokens or placed vectors."""
    with runtime.autocast(condition.device):
        drawn = diffusion.sample(
            denoiser, len(captions), condition, steps=SAMPLER_STEPS, guidance_scale=guidance_scale, rng=rng
        )
    return judges.by_objects(judges.judge(drawn.float().cpu(), captions), captions)


def means(found: dict[str, dict[str, metrics.Score]]) -> dict[str, dict[str, float]]:
    """The values alone."""
    return {n: {question: score.value for question, score in answers.items()} for n, answers in found.items()}


def decoder_scores(
    denoiser: diffusion.Denoiser,
    test: text_to_image.Captioned,
    held_out: text_to_image.Captioned,
    clip: clips.CLIP,
    prior: diffusion.Denoiser,
) -> dict[str, object]:
    """Class and colour right, of one object and of two, in each way; of the vectors of the true images, where no prior
    can err; of held-out pairs; and of real scenes."""
    scores: dict[str, object] = {}
    rows = [(way, judge_decoder(denoiser, test.captions, way, clip, prior)) for way in decoders.WAYS]
    own = decoders.placed(text_to_image.embed(clip, test.floats(), test.captions)[0], "image")
    rows += [("true image", judge_drawn(denoiser, own, test.captions, torch.Generator().manual_seed(0)))]
    rows += [("held-out pairs, tokens", judge_decoder(denoiser, held_out.captions, "tokens", clip, prior))]
    real = judges.judge(test.floats(), test.captions)
    for name, found in [*rows, ("real scenes", judges.by_objects(real, test.captions))]:
        for n, answers in found.items():
            scores[f"{'one object' if n == 'one' else 'two objects'}, {name}"] = answers["class and colour"]
    return scores


def train_upsampler(run: common.Run, preset: Preset) -> dict[str, object]:
    """Train, judge and save the upsampler; returns the scores."""
    n, tests = (40, 20) if run.quick else (PAIRS, PAIRS_TEST)
    pairs = upsamplers.draw_pairs(n, PAIRS_SEED)
    network = zoo.build(run.name).to(run.device)
    optimiser = torch.optim.Adam(network.parameters(), preset.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, run.steps))
    rng = torch.Generator(run.device).manual_seed(run.seed)
    loop = common.train(
        run,
        upsamplers.upsampler_step(network, optimiser, rng),
        TensorDataset(*pairs),
        stateful={"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng},
        averages={"network": 0.998},
        hooks=[lambda loop: schedule.step()],
        settings={f"preset's {name}": value for name, value in dataclasses.asdict(preset).items()},
    )
    averaged = common.round_to_half(loop.averaged["network"])
    scores = judge_upsampler(averaged, *upsamplers.draw_pairs(tests, PAIRS_TEST_SEED))
    common.export(run, averaged, scores, seconds=loop.seconds, data="scenes")
    return scores


def judge_upsampler(network: torch.nn.Module, small: torch.Tensor, large: torch.Tensor) -> dict[str, object]:
    """The mean PSNR on scenes rendered at both sizes, beside bicubic interpolation's."""
    small, large = small.float() / 255, large.float() / 255
    bicubic = upsampling.bicubic(small, scale_factor=2).clamp(0, 1)
    return {
        "PSNR, dB": upsamplers.psnr(upsamplers.upsample(network, small).cpu(), large).mean(),
        "PSNR of bicubic, dB": upsamplers.psnr(bicubic, large).mean(),
    }


def train(argv: list[str] | None, model: str) -> dict[str, object]:
    """Train, judge and save one of them; returns the scores."""
    preset = PRESETS[model]
    run = common.setup(arguments(preset).parse_args(argv), model, script=__file__, model=model)
    trainings = (train_clip, train_prior, train_decoder, train_upsampler)
    return dict(zip(PRESETS, trainings, strict=True))[model](run, preset)


def main(argv: list[str] | None = None) -> dict[str, dict[str, object]]:
    """Train the models asked for; returns the scores of each."""
    args = arguments(PRESETS["clip_scenes"]).parse_args(argv)
    names = common.select(args, args.model, "clip_scenes", PRESETS)
    return {name: train(argv, name) for name in names}


if __name__ == "__main__":
    main()
