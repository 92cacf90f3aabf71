"""Write every published number from its one source: benchmarks/results/*.json, and the checkpoints' own headers.

    python benchmarks/tables.py            rewrites the READMEs and the lessons' line "Measured"
    python benchmarks/tables.py --check    changes nothing; exits with 1 if a number on a page is not its source's

On a page a table stands between `<!-- table: NAME -->` and `<!-- /table -->`, and NAME is a function below.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import generative_timeline
from course_lib.base import checkpoints, zoo

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

# What a checkpoint is, in a word or two; its other columns come from its header.
WHAT = {
    "features": "perceptual features, a narrow VGG",
    "classifier_digits": "judge of the 8×8 digits",
    "classifier_mnist": "judge of MNIST",
    "classifier_fashion_mnist": "judge of Fashion-MNIST",
    "upsampler_cats": "enlarges cats four times",
    "vae_mnist": "VAE 2013",
    "gan_mnist": "GAN 2014",
    "dcgan_mnist": "DCGAN 2015",
    "stylegan_mnist": "StyleGAN 2018",
    "stylegan_cats": "StyleGAN, 32×32",
    "dcgan_mnist_conditional": "DCGAN with classes",
    "dcgan_fashion_mnist": "DCGAN with classes",
    "dcgan_cats": "DCGAN, 64×64",
    "diffusion_mnist": "diffusion with classes",
    "diffusion_fashion_mnist": "diffusion with classes",
    "diffusion_cats": "diffusion, 64×64",
    "clip_scenes": "CLIP of scenes with captions, 32×32",
    "prior_scenes": "from a caption's vector to an image's",
    "super_resolution_x2": "enlarges photographs twice",
    "super_resolution_x4": "enlarges photographs four times",
    "edges_to_cats": "answers lines with a face of a cat (pix2pix)",
    "maps_to_scenes": "answers a semantic map with a scene (pix2pix)",
    "cycle_day_night": "scenes from day to night and back (CycleGAN)",
    "detector_scenes": "detector of scenes, 64 px",
    "detector_pedestrians": "detector of people on foot",
    "panoptic_scenes": "segmentation of scenes, 64 px",
    "panoptic_people": "masks of people in photographs",
    "keypoints_figures": "joints of figures, 64 px",
    "keypoints_faces": "68 points of faces, 96 px",
    "splats_turntable": "a toy as 800 Gaussian splats",
    "decoder_scenes": "captions to scenes, 32×32",
    "upsampler_scenes": "scenes from 32×32 to 64×64",
}
SHOWN = ("Fréchet distance", "precision", "recall", "copied", "agreement", "test accuracy", "ELBO, nats", "AP", "AP50",
         "edges agree", "mIoU", "mIoU of painted maps", "mIoU of true scenes",
         "error to night", "error to night, colour transfer", "error to day", "error to day, colour transfer",
         "mask AP", "PQ",
         "PSNR, dB", "PSNR of one kernel, dB", "PSNR of bicubic, dB", "PCK@0.1",
         "NME", "Penn-Fudan: IoU", "Penn-Fudan: mask AP50", "COCO: IoU", "COCO: mask AP50",
         "retrieval", "swaps of colour", "swaps of shape", "swaps of place", "cosine of the caption's vector",
         "cosine of the prior's, best of 2", "one object, tokens", "two objects, tokens", "two objects, text",
         "two objects, image", "two objects, true image",
         "two objects, held-out pairs, tokens", "two objects, real scenes")  # fmt: skip
PERCENT = {"copied", "agreement", "test accuracy", "NME", "retrieval", "swaps of colour", "swaps of shape",
           "swaps of place"}  # fmt: skip


@functools.cache
def results(name: str) -> dict[str, Any]:
    """The figures of a benchmark's last committed run."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def score(name: str, value: Any) -> str:
    """A score as text: with its interval where it has one, shares in percent."""
    unit, sign = (100, " %") if name in PERCENT else (1, "")
    if isinstance(value, dict) and "value" in value:
        low, high = (f"{unit * value[end]:.3g}" for end in ("low", "high"))
        bounds = "" if low == high else f" [{low}, {high}]"
        return f"{unit * value['value']:.3g}{sign}{bounds}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and unit == 1:
        return f"{value:,}"
    return f"{unit * value:.3g}{sign}" if isinstance(value, int | float) else str(value)


def measured_at(name: str, script: str | None = None, part: str | None = None) -> str:
    """Where and when a benchmark was run, or a part of it, and by which command, if its results have another name."""
    where = results(name)["environments"][part] if part else results(name)["environment"]
    threads = "1 thread" if where["threads"] == 1 else f"{where['threads']} threads"
    version, command = where["torch"].partition("+")[0], f"python benchmarks/{script or name}.py"
    return f"*`{command}`, {where['date']}, {where['processor']}, {threads}, torch {version}.*"


def duration(seconds: float) -> str:
    """Seconds below two minutes, else minutes."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def shipped_networks() -> str:
    """data/README.md: every checkpoint, as its own header describes it."""
    rows = []
    for name, what in WHAT.items():
        header = checkpoints.load(name)[1]
        scores = json.loads(header["score"])
        if explained := scores.get("explained variance, held-out"):
            shown = "explained variance: " + ", ".join(f"{k} {v:.3g}" for k, v in sorted(explained.items()))
        else:
            shown = ", ".join(f"{key} {score(key, scores[key])}" for key in SHOWN if key in scores)
        licence = zoo.entry(name).licence
        size = (checkpoints.folder() / f"{name}.safetensors").stat().st_size
        facts = [f"{weights(name):,}", f"`{header['recipe']}`", header["data"], duration(float(header["seconds"]))]
        rows.append([f"`{name}`", what, *facts, shown, f"{size / 1e6:.2f} MB, {licence}, `{header['sha256']}`"])
    return markdown(["name", "what", "weights", "recipe", "data", "time", "score", "size, licence, SHA-256"], rows)


def weights(name: str) -> int:
    """How many numbers of a shipped network are learned: its parameters, without buffers."""
    return sum(parameter.numel() for parameter in zoo.build(name).parameters())


def generators() -> str:
    """README: the generators before one judge, as their headers tell; below them copies, which the benchmark made."""
    columns = ("Fréchet distance", "precision", "recall", "copied", "agreement")
    rows = {}
    for name, model in generative_timeline.MODELS.items():
        header = checkpoints.load(model.file)[1]
        facts = [f"{weights(model.file):,}", duration(float(header["seconds"]))]
        rows[name] = facts, json.loads(header["score"])
    for name, row in results("generative_timeline")["rows"].items():
        if name in generative_timeline.COPIES and row["images"] == 10_000:
            rows[name] = ["", ""], row
    body = [
        [n, *facts, *(score(key, row[key]) if key in row else "" for key in columns)]
        for n, (facts, row) in rows.items()
    ]
    head = ["", "weights", "training", *columns]
    return f"{markdown(head, body)}\n\n{measured_at('generative_timeline')}"


def cats() -> str:
    """README: generators of cats beside real cats, equally many of each, as the benchmark drew them."""
    found = results("generative_timeline")["rows"]
    ours = (name for name, data in generative_timeline.ROWS.items() if data == "cat_faces")
    rows = {name: found[name] for name in ours if name in found}
    columns = ("Fréchet distance", "precision", "recall", "distance to training", "copied")
    body = [[name, f"{row['images']:,}", *(score(key, row[key]) for key in columns)] for name, row in rows.items()]
    return f"{markdown(['', 'images', *columns], body)}\n\n{measured_at('generative_timeline')}"


def gan_step() -> str:
    """README: a DCGAN's training step against the tutorial's."""
    rows = [
        [f"{row['size']}×{row['size']}×{row['channels']}, batch {row['batch']}", row["step"],
         f"{row['images_per_second']:.0f}", f"{row['ratio']:.2f}"]
        for row in results("gan")["rows"]
    ]  # fmt: skip
    return f"{markdown(['images', 'step', 'images a second', 'ratio'], rows)}\n\n{measured_at('gan')}"


def upsampling() -> str:
    """README: operations by hand against torch's kernels."""
    found: dict[str, dict[str, float]] = {}
    for row in results("upsampling")["rows"]:
        if row["device"] == "cpu" and row["shape"] == "8×64×64×64":
            found.setdefault(row["operation"], {})[row["calls"]] = row["ratio"]
    rows = [[name, *(f"{ratio:.1f}" for ratio in ratios.values())] for name, ratios in found.items()]
    head = ["8×64×64×64, times torch's time", *next(iter(found.values()))]
    return f"{markdown(head, rows)}\n\n{measured_at('upsampling')}"


def style_transfer() -> str:
    """README: time to the plain algorithm's loss, and what each network leaves of style and content."""
    found = results("style_transfer")
    speed = [
        [side, f"{row['loss']:.3g}", f"{row['seconds']:.1f}", row["steps"], f"{row['peak MB']:.0f}"]
        for side, row in found["speed"].items() if isinstance(row, dict)
    ]  # fmt: skip
    first = markdown(["", "loss", "seconds", "full-size steps", "peak MB"], speed)
    means = found["quality means"]
    head = ["the painting network", *next(iter(means.values()))]
    second = markdown(head, [[name, *(f"{left:.3g}" for left in row.values())] for name, row in means.items()])
    faster = f"**{found['speed']['times faster']:.2f} times faster.**"
    return f"{first}\n\n{faster}\n\n{second}\n\n{measured_at('style_transfer')}"


def rows_of(name: str, part: str | None = None) -> Callable[[], str]:
    """A table of a benchmark whose rows are named figures."""

    def table() -> str:
        rows = results(name)[part] if part else results(name)["rows"]
        columns = list(dict.fromkeys(key for row in rows.values() for key in row))
        body = [[key, *(score(c, row[c]) if c in row else "" for c in columns)] for key, row in rows.items()]
        return f"{markdown(['', *columns], body)}\n\n{measured_at(name)}"

    return table


def samplers() -> str:
    """README: Fréchet distances of samplers with 20 calls, beside many calls."""
    found, shown = results("diffusion_sampling"), {"fashion_mnist": "clothes", "cat_faces": "cats"}
    parts = {what: found[f"sampling {data}"] for data, what in shown.items()}
    names = dict.fromkeys(name for rows in parts.values() for name in rows)
    body = [
        [name, *(f"{rows[name]['Fréchet distance']:.3g}" if name in rows else "" for rows in parts.values())]
        for name in sorted(names, key=lambda name: name.endswith(" 20 calls"))
    ]
    body.append(["as many real images", *(f"{next(iter(rows.values()))['floor']:.3g}" for rows in parts.values())])
    drawn = {}
    for what, rows in parts.items():
        row = next(iter(rows.values()))
        seeds = len(row["each seed"].split(", "))
        drawn[what] = f"{seeds} × " * (seeds > 1) + f"{row['images'] // seeds:,} images"
    head = ["", *(f"{what}, {n}" for what, n in drawn.items())]
    where = [
        f"{what.capitalize()}: {measured_at('diffusion_sampling', 'diffusion', f'sampling {data}')}"
        for data, what in shown.items()
    ]
    return "\n\n".join([markdown(head, body), *where])


def grader() -> str:
    """grading/README: throughput, growth and killed runs, as far as they have been measured."""
    if not (RESULTS / "grader.json").exists():
        return "*Not measured yet: `python benchmarks/grader.py --json benchmarks/results/grader.json`.*"
    found, lines = results("grader"), []
    rows = {f"ours, {n} light submissions": row for n, row in found.get("growth", {}).get("rows", {}).items()}
    if part := found.get("throughput"):
        rows = {f"{name}, {part['submissions']} submissions": part[name] for name in ("ours", "nbgrader")} | rows
        lines.append(f"**{part['times as fast']:.1f} times as fast as `nbgrader autograde`, one after the other.**")
    if part := found.get("growth"):
        one, many = part["seconds"], part["extrapolated"]
        each = f"{one['start']:.0f} s to start, {one['each']:.2g} s a light submission ({one['own']:.2g} s of them the"
        size = f"{many['submissions']:,} on {many['processors']} processors"
        lines.append(f"{each} grader's own process): {size} would take {duration(many['seconds'])}.")
    if part := found.get("kills"):
        equal = f"{part['equal']} of {part['runs']} runs that were killed at a random moment and started again"
        lines.append(f"{equal} ended as the one that nobody disturbed; {part['outlived']} processes outlived a kill.")
    if rows:
        head = [f"{found['workers']} sandboxes", "seconds", "MB a sandbox"]
        cells = [[name, *(f"{row[key]:.0f}" if key in row else "" for key in head[1:])] for name, row in rows.items()]
        lines.insert(0, markdown(head, cells))
    return "\n\n".join([*lines, measured_at("grader")])


TABLES: dict[str, Callable[[], str]] = {
    "grader": grader,
    "shipped networks": shipped_networks,
    "style transfer": style_transfer,
    "upsampling": upsampling,
    "gan": gan_step,
    "generators": generators,
    "cats": cats,
    "busy": rows_of("busy"),
    "diffusion sampling": samplers,
    **{f"diffusion {part}": rows_of("diffusion", part) for part in ("step", "race")},
}


def cost(lesson: str, russian: bool = False) -> str:
    """Time and memory of a lesson, as measured: in English, for the Russian one computes the same."""
    (row,) = (row for row in results("notebooks")["notebooks"] if row["notebook"] == lesson)
    seconds, gigabytes = f"{row['seconds']:.0f}", f"{row['peak_mb'] / 1000:.1f}"
    return f"{seconds} с, {gigabytes.replace('.', ',')} ГБ" if russian else f"{seconds} s, {gigabytes} GB"


def page(text: str) -> str:
    """A page of Markdown with its tables, and the costs of the lessons it links to, from their sources."""

    def table(match: re.Match) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- /table -->"

    text = re.sub(r"<!-- table: (.+?) -->\n.*?<!-- /table -->", table, text, flags=re.DOTALL)
    row = r"(?m)^(\|.*\(notebooks/(ru/)?(\w+)\.ipynb\).*\| )[^|]*( \|)$"
    return re.sub(row, lambda match: f"{match[1]}{cost(match[3], bool(match[2]))}{match[4]}", text)


def lesson(text: str, name: str) -> str:
    """A notebook's text with its line "Measured" from the source."""
    for line, russian in (("Measured on a 2-core CPU without GPU or network: ", False),
                          ("Измерено на процессоре с двумя ядрами, без GPU и сети: ", True)):  # fmt: skip
        text = re.sub(rf"({line})[^*]*(\.\*)", rf"\g<1>{cost(name, russian)}\g<2>", text)
    return text


def pages() -> dict[Path, str]:
    """What each page should say."""
    written = [*sorted(ROOT.glob("README*.md")), ROOT / "data" / "README.md", *(ROOT / "grading").glob("README.md")]
    found = {path: page(path.read_text(encoding="utf-8")) for path in written}
    for path in [path for folder in ("", "ru") for path in sorted((ROOT / "notebooks" / folder).glob("*.ipynb"))]:
        found[path] = lesson(path.read_text(encoding="utf-8"), path.stem)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or compare them; 1 if one differs from its sources."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    stale = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.write_text(text, encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
