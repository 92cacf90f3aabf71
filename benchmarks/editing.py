"""Editing in numbers: each method beside doing nothing, and beside its peers.

    python benchmarks/editing.py --json editing.json             ten minutes on 2 cores; needs COURSE_DATA

- Super-resolution on Set5 by the protocol of `editing.super_resolution`: bicubic, the shipped networks, and (`--live`)
  networks that learn for 40 s in this run. FSRCNN (Dong et al. 2016) and EDSR-baseline (Lim et al. 2017) stand beside
  them as published.
- Perception against distortion: faces of cats from 16×16 pixels (or a quarter of the model's side), by bicubic
  interpolation, one answer of the diffusion model, and the mean of several (Blau & Michaeli 2018).
- Inpainting: the lower half of MNIST's digits and half of cats' faces, judged by the classifier and by the seam.
- SDEdit: how far from the drawing, by its strength, and which digit the classifier reads.
- Paired translation: edges to cats by the Fréchet distance to training faces and by the edges of the answer, maps to
  scenes by what the panoptic network reads. Beside doing nothing stands the answer without learning: the training image
  whose edges or map are most like the given ones.
- Unpaired translation: scenes by day and by night, by the mean absolute error to the same scene at the other time,
  beside doing nothing and a global transfer of colour (Reinhard et al. 2001).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from course_lib import diffusion, editing, segmentation
from course_lib.base import datasets, images, metrics, zoo
from course_lib.base.loop import Loop
from course_lib.editing import paired, unpaired
from course_lib.editing import super_resolution as sr

PUBLISHED = {  # PSNR, dB on Set5
    2: {"FSRCNN, published": 37.00, "EDSR-baseline, published": 37.99},
    4: {"FSRCNN, published": 30.71, "EDSR-baseline, published": 32.09},
}
BARS = {"live": {2: 35.8, 4: 29.6}, "shipped": {2: 37.0, 4: 30.7}}  # dB


def judges() -> list[Tensor]:
    """The photographs of Set5, else built-in ones that no network has learnt from."""
    files = sorted((datasets.data_folder() / "Set5").glob("*.png"))
    return [images.load(file) for file in files] or [datasets.load_image(name) for name in sr.HELD_OUT]


def learn_live(factor: int, seconds: float) -> sr.SuperResolver:
    """A network that has learnt for so long, the moving average of its weights."""
    data = sr.tiles(sr.photographs(), side=24 * factor, stride=16 * factor)

    def training(steps: int) -> Loop:
        torch.manual_seed(0)
        network, rng = sr.SuperResolver(factor), torch.Generator().manual_seed(0)
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        step = sr.super_resolution_step(network, optimiser, rng)
        stateful = {"network": network, "optimiser": optimiser, "rng": rng}
        return Loop(step, data, steps=steps, batch_size=8, stateful=stateful, averages={"network": 0.99})

    return common.run_for(seconds, 5, training).averaged["network"]


def super_resolution(seconds: float | None) -> dict[str, dict]:
    """PSNR and SSIM of each method, by the factor and its name."""
    photographs, found = judges(), {}
    for factor in (2, 4):
        methods = {"bicubic": lambda y, r=factor: sr.bicubic(y, r)}
        if seconds:
            methods[f"{seconds:g} s live"] = learn_live(factor, seconds)
        methods["shipped"] = zoo.load(f"super_resolution_x{factor}", "cpu")
        for name, method in methods.items():
            found[f"×{factor} {name}"] = sr.evaluate(method, photographs, factor)
        found |= {f"×{factor} {name}": {"PSNR, dB": value} for name, value in PUBLISHED[factor].items()}
    return found


def perception(n: int, answers: int) -> dict[str, dict]:
    """Faces of cats, held out, from a quarter of the side: error and Fréchet distance to the training faces."""
    cats = zoo.load("diffusion_cats", "cpu")
    side = cats.shape[-1]
    held_out = images.resize(datasets.load("cat_faces", "test")[:n][0], side)
    few = F.avg_pool2d(held_out, 4)

    def agree(x0: Tensor) -> Tensor:
        return x0 + (2 * few - 1 - F.avg_pool2d(x0, 4)).repeat_interleave(4, 2).repeat_interleave(4, 3)

    model = editing.consistent(cats, cats.schedule, agree)
    drawn = []
    for seed in range(answers):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(n, *cats.shape, generator=rng)
        states = diffusion.ddpm(model, x, cats.schedule, cats.schedule.times(40), noise=rng)
        drawn.append(((diffusion.last(states) + 1) / 2).clamp(0, 1))
    methods = {"bicubic": sr.bicubic(few, 4).clamp(0, 1), "one answer": drawn[0]}
    methods |= {f"mean of {answers}": torch.stack(drawn).mean(0), "the truth": held_out}
    features = metrics.extractor("cat_faces")
    real = features(datasets.load("cat_faces")[:2000][0])
    rows = {}
    for name, x in methods.items():
        error = {} if name == "the truth" else {"PSNR, dB": sr.psnr(x, held_out).mean().item()}
        rows[name] = error | {"Fréchet distance": metrics.frechet_distance(real, features(images.resize(x, 64)))}
    return rows


def inpainting(n: int, n_cats: int) -> dict[str, dict]:
    """Half a digit, with its class and at most 100 calls, and half a cat, at 100 calls."""
    x, labels = datasets.load("mnist", "test")[:n]
    denoiser, judge = zoo.load("diffusion_mnist", "cpu"), zoo.load("classifier_mnist", "cpu")
    upper = (torch.arange(28) < 14)[:, None].expand(28, 28)
    painted = {"digits, nothing": (torch.where(upper, x, 0.0), 0)}
    for name, resamplings in {"replacement": 1, "RePaint": 5}.items():
        options = {"steps": 20, "resamplings": resamplings, "rng": torch.Generator().manual_seed(0)}
        painted[f"digits, {name}"] = (editing.inpaint(denoiser, x, upper, labels, **options), 20 * resamplings)
    rows = {}
    for name, (found, calls) in painted.items():
        right = (judge(found).argmax(1) == labels).float().mean().item()
        rows[name] = {
            "calls": calls,
            "read right": right,
            "seam": editing.seam(found, upper) / editing.seam(x, upper),
            "known pixels exact": bool(torch.equal(found[:, :, :14], x[:, :, :14])),
        }
    cats = zoo.load("diffusion_cats", "cpu")
    side = cats.shape[-1]
    faces = images.resize(datasets.load("cat_faces", "test")[:n_cats][0], side)
    left = (torch.arange(side) < side // 2).expand(side, side)
    for name, resamplings in {"replacement": 1, "RePaint": 5}.items():
        options = {"steps": 20, "resamplings": resamplings, "rng": torch.Generator().manual_seed(0)}
        found = editing.inpaint(cats, faces, left, **options)
        exact = bool(torch.equal(found[..., : side // 2], faces[..., : side // 2]))
        seam = editing.seam(found, left) / editing.seam(faces, left)
        rows[f"cats, {name}"] = {"calls": 20 * resamplings, "seam": seam, "known pixels exact": exact}
    return rows


def sdedit(n: int) -> dict[str, dict]:
    """Digits told to be the next one: the distance to the given image, and how often the judge reads the new class."""
    x, labels = datasets.load("mnist", "test")[:n]
    denoiser, judge = zoo.load("diffusion_mnist", "cpu"), zoo.load("classifier_mnist", "cpu")
    asked, rows = (labels + 1) % 10, {}
    for strength in (0.0, 0.3, 0.5, 0.7, 0.9, 1.0):
        found = editing.sdedit(denoiser, x, strength, asked, steps=20, rng=torch.Generator().manual_seed(0))
        rows[f"strength {strength}"] = {
            "root mean squared distance": (found - x).square().mean().sqrt().item(),
            "read as asked": (judge(found).argmax(1) == asked).float().mean().item(),
        }
    return rows


def most_alike(given: Tensor, known: Tensor) -> Tensor:
    """The index, among known drawings or maps (M, C, H, W) of 0 and 1, of that nearest to each of (N, C, H, W).

    By the cosine of both after blurring by 5×5, so that a line a pixel away counts."""
    a, b = (F.normalize(F.avg_pool2d(x.float(), 5, 1, 2).flatten(1), dim=1) for x in (given, known))
    return (a @ b.T).argmax(1)


def edges_to_cats(n: int, known: int) -> dict[str, dict]:
    """Held-out edges answered with cats."""
    real, held_out = datasets.load("cat_faces")[:known][0], datasets.load("cat_faces", "test")[:n][0]
    given = paired.edges(held_out)
    methods = {
        "nothing: the edges": given.expand(-1, 3, -1, -1),
        "nearest training image": real[most_alike(given, paired.edges(real))],
        "pix2pix": paired.translate(zoo.load("edges_to_cats", "cpu"), given),
        "the truth": held_out,
    }
    features = metrics.extractor("cat_faces")
    faces = features(real)
    return {
        name: {
            "Fréchet distance": metrics.frechet_distance(faces, features(x)),
            "edges agree": paired.edge_agreement(x, given),
            "mean absolute error": (x - held_out).abs().mean().item(),
        }
        for name, x in methods.items()
    }


def maps_to_scenes(n: int, known: int) -> dict[str, dict]:
    """New semantic maps answered with scenes."""
    maps, drawn = paired.scene_pairs(n, seed=99)
    old_maps, old_scenes = paired.scene_pairs(known, seed=98)
    given = paired.one_hot(maps)
    methods = {
        "nothing: the painted map": segmentation.paint(maps),
        "nearest training image": old_scenes[most_alike(given, paired.one_hot(old_maps))] / 255,
        "pix2pix": paired.translate(zoo.load("maps_to_scenes", "cpu"), given),
        "the truth": drawn / 255,
    }
    judge, rows = zoo.load("panoptic_scenes", "cpu"), {}
    for name, x in methods.items():
        read = segmentation.predict(judge, x).logits.argmax(1)
        counts = segmentation.confusion_matrix(read, maps, given.shape[1])
        error = (x - drawn / 255).abs().mean().item()
        rows[name] = {"mIoU": segmentation.semantic.mean_iou(counts), "mean absolute error": error}
    return rows


def day_and_night(n: int) -> dict[str, dict]:
    """New scenes by day answered by night, and the other way round; and how near the way there and back ends."""
    truth = {side: unpaired.scenes_by(side, n, seed=99) / 255 for side in ("day", "night")}
    found = unpaired.evaluate(zoo.load("cycle_day_night", "cpu"), truth)
    names = {", nothing": "nothing", ", colour transfer": "colour transfer", "": "CycleGAN"}
    rows = {name: {f"error to {side}": found[f"error to {side}{end}"] for side in truth} for end, name in names.items()}
    rows["CycleGAN"] |= {name: error for name, error in found.items() if "there and back" in name}
    return rows


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Measure, print and write; returns the tables by name."""
    parser = common.parser(__doc__)
    parser.add_argument("--live", type=float, default=40.0, metavar="SECONDS", help="of live training; 0: none")
    args = parser.parse_args(argv)
    quick = args.quick
    tables = {
        "super_resolution": super_resolution(0.2 if quick else args.live),
        "perception": perception(*((8, 2) if quick else (200, 8))),
        "inpainting": inpainting(*((10, 2) if quick else (200, 50))),
        "sdedit": sdedit(10 if quick else 100),
        "edges_to_cats": edges_to_cats(*((8, 40) if quick else (500, 2000))),
        "maps_to_scenes": maps_to_scenes(*((8, 20) if quick else (300, 1000))),
        "day_and_night": day_and_night(8 if quick else 300),
    }
    for name, rows in tables.items():
        print(f"\n{name.replace('_', '-')}\n{common.table(rows)}")
    common.write(args.json, tables)
    if not quick:
        sharp, found = tables["super_resolution"], tables["inpainting"]
        met = {
            f"×{r} shipped at least {bar} dB": sharp[f"×{r} shipped"]["PSNR, dB"] >= bar
            for r, bar in BARS["shipped"].items()
        }
        if args.live:
            met |= {
                f"×{r} live at least {bar} dB": sharp[f"×{r} {args.live:g} s live"]["PSNR, dB"] >= bar
                for r, bar in BARS["live"].items()
            }
        met["digits read right at least 0.95"] = found["digits, RePaint"]["read right"] >= 0.95
        met["no seam above 1.4"] = max(row["seam"] for name, row in found.items() if "RePaint" in name) <= 1.4
        met["known pixels exact"] = all(row["known pixels exact"] for row in found.values())
        met["mIoU of translated maps at least 0.8"] = tables["maps_to_scenes"]["pix2pix"]["mIoU"] >= 0.8
        if not common.report(met):
            raise SystemExit(1)
    return tables


if __name__ == "__main__":
    main()
