"""Text to image: what the shipped networks understand of a caption, and what of it is seen in the images.

    python benchmarks/text_to_image.py --json text_to_image.json        ten minutes on one busy core

| table | what is measured |
|---|---|
| `clip` | how often CLIP finds the caption of an image among others, and tells it from twins with exchanged words |
| `prior` | cosine to the image's own vector: of the caption's vector, and of what the prior makes of it |
| `decoder` | what the judge finds right in the images, for three ways to tell the decoder; real scenes: its ceiling |
| `guidance` | class and colour right, against the guidance scale |
| `learned` | the same while the decoder was trained, from its checkpoint's header: what is learned first, what last |
| `upsampler` | PSNR on scenes rendered at 32×32 and at 64×64, and of bicubic interpolation, its peer |

The judge is the detector with the colours in its boxes, not CLIP. *Seen* and *held out* are pairs of colour and class.
All scenes and captions are drawn anew, from seeds that no training has seen.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import common
from course_lib import text_to_image as t2i
from course_lib.base import checkpoints, runtime, zoo
from course_lib.text_to_image import decoder as decoders
from course_lib.text_to_image import judge as judges
from course_lib.text_to_image import upsampler as upsamplers
from recipes import text_to_image as recipe

SEED, HELD_OUT_SEED, PAIRS_SEED = 7001, 7002, 7003
SCALES = (1.0, 2.0, 3.0, 5.0)
Rows = dict[str, dict[str, Any]]


def decoder_rows(parts: Mapping[str, torch.nn.Module], seen: t2i.Captioned, held_out: t2i.Captioned) -> Rows:
    """For each way, seen and held-out pairs, one object and two: the answers to the judge's questions."""
    rows: Rows = {}
    for title, data in (("seen", seen), ("held out", held_out)):
        real = judges.by_objects(judges.judge(data.floats(), data.captions), data.captions)
        for way in (*decoders.WAYS, "real scenes"):
            found = real if way == "real scenes" else _drawn(parts, data.captions, way)
            for n, answers in found.items():
                rows[f"{way}, {n}, {title}"] = dict(answers)
    return rows


def _drawn(parts: Mapping[str, torch.nn.Module], captions: tuple[str, ...], way: str, scale: float = decoders.GUIDANCE):
    return recipe.judge_decoder(parts["decoder"], captions, way, parts["clip"], parts["prior"], scale)


def guidance_rows(parts: Mapping[str, torch.nn.Module], captions: tuple[str, ...]) -> Rows:
    """Class and colour right by the guidance scale, told by tokens."""
    rows: Rows = {}
    for scale in SCALES:
        found = _drawn(parts, captions, "tokens", scale)
        rows[f"scale {scale:g}"] = {n: answers["class and colour"] for n, answers in found.items()}
    return rows


def learned_rows() -> Rows:
    """What the decoder's header says of its training, by step."""
    curve = json.loads(checkpoints.load("decoder_scenes")[1]["curve"])
    return {
        f"{n}, step {step}": answers
        for n in ("one", "two")
        for step, found in curve.items()
        if (answers := found.get(n))
    }


def bars(report: Mapping[str, Rows]) -> dict[str, bool]:
    """The claims, each with its figure, and whether they hold; of what was measured."""
    claims = {}

    def claim(table: str, row: str, column: str, least: float, text: str) -> None:
        if row in report.get(table, {}):
            value = report[table][row][column]
            value = float(getattr(value, "value", value))
            claims[f"{text} {value:.3f}, at least {least:g}"] = value >= least

    together = "class and colour"
    claim("decoder", "tokens, one, seen", together, 0.9, "one object, told by tokens: class and colour right")
    claim("decoder", "text, two, seen", together, 0.45, "two objects, told by the text vector: all right")
    claim("decoder", "tokens, two, seen", together, 0.6, "two objects, told by tokens: all right")
    claim("clip", "swaps of colour", "proportion", 0.98, "CLIP tells exchanged colours apart:")
    if "upsampler" in report:
        gain = report["upsampler"]["upsampler"]["PSNR, dB"] - report["upsampler"]["bicubic"]["PSNR, dB"]
        claims[f"the upsampler is {gain:.2f} dB above bicubic interpolation, at least 1"] = bool(gain >= 1)
    return claims


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Measure, print the tables, and write what was asked for; returns the bars."""
    options = common.parser(__doc__).parse_args(arguments)
    device = runtime.device()
    n, held = (12, 8) if options.quick else (300, 150)
    seen = t2i.draw_captioned(n, SEED, plain=True)
    held_out = t2i.draw_captioned(held, HELD_OUT_SEED, plain=True, held_out=True)
    parts = {name: zoo.load(f"{name}_scenes", device) for name in ("clip", "prior", "decoder", "upsampler")}
    report: dict[str, Rows] = {
        "clip": {k: {"proportion": v} for k, v in recipe.judge_clip(parts["clip"], seen, held_out).items()},
        "prior": {
            k: {"cosine": float(v)}
            for k, v in recipe.judge_prior(parts["prior"], parts["clip"], seen, held_out).items()
        },
        "decoder": decoder_rows(parts, seen, held_out),
        "guidance": guidance_rows(parts, seen.captions[:12] if options.quick else seen.captions[:150]),
        "learned": learned_rows(),
    }
    pairs = upsamplers.draw_pairs(8 if options.quick else 200, PAIRS_SEED)
    psnr = recipe.judge_upsampler(parts["upsampler"], *pairs)
    report["upsampler"] = {
        "upsampler": {"PSNR, dB": float(psnr["PSNR, dB"])},
        "bicubic": {"PSNR, dB": float(psnr["PSNR of bicubic, dB"])},
    }
    for title, rows in report.items():
        print(f"\n{title}\n{common.table(rows)}")
    met = bars(report)
    common.report(met)
    common.write(options.json, {**report, "bars": met})
    return met


if __name__ == "__main__":
    main()
