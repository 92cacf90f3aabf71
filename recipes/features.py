"""Train the embedded feature network: a narrow VGG that sees images as ImageNet-trained teachers do.

Style transfer looks at features only through inner products: a Gram matrix is a sum of them, and by Li et al. 2017
("Demystifying Neural Style Transfer") the style loss is a distance of distributions under the kernel k(u, v) = (uᵀv)².
The student therefore learns, at every layer and for positions u, v drawn from a batch of images, the teacher's
kernel uᵀv; and, through a linear readout that is thrown away afterwards, the teacher's features themselves.

Teachers: VGG-19 (torchvision's, or a file with its first convolutions) for the layers it has, and SqueezeNet 1.1 for
the deeper ones where a partial VGG file ends. Images: any folder of photographs. With `COURSE_DATA` both are found
there; without it VGG-19 is downloaded and `--images` names the folder.

    python recipes/features.py                      # about 40 minutes on one core; continues where it was interrupted
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.base import checkpoints, datasets, features, images, runtime, zoo
from course_lib.base.features import EMBEDDED_WIDTHS, VGG

SAVE_EVERY = 200  # steps between two states to resume from
# Where SqueezeNet's modules have the resolution of a VGG block: 1/8 of the image after fire5, 1/16 after fire7.
SQUEEZENET_LAYERS = {"relu4_1": 7, "relu5_1": 10}
MEAN_SQUARE = 5.0  # of VGG-19's activations at relu1_1 … relu3_1 once every filter has the mean one: 4 to 8


class SqueezeNetTeacher(nn.Module):
    """ImageNet SqueezeNet 1.1 (Iandola et al. 2016), its fire modules named after the VGG layers of their size."""

    def __init__(self, weights: dict[str, Tensor], calibration: list[Tensor]) -> None:
        super().__init__()
        net = torchvision.models.squeezenet1_1()
        net.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        self.modules_until_deepest = net.features[: max(SQUEEZENET_LAYERS.values()) + 1]
        self.layers = tuple(SQUEEZENET_LAYERS)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        # Its layers, sparser than VGG's, are scaled as a whole, to the mean square of VGG's normalised layers.
        self.scales = dict.fromkeys(self.layers, 1.0)
        with torch.no_grad():
            seen = [self.extract(image, self.layers) for image in calibration]
        for layer in self.layers:
            mean_square = sum(float(found[layer].square().mean()) for found in seen) / len(seen)
            self.scales[layer] = (MEAN_SQUARE / mean_square) ** 0.5

    def extract(self, image: Tensor, layers: tuple[str, ...]) -> dict[str, Tensor]:
        # Its unpadded strides look about 4 (8) px further right at 1/8 (1/16) size than VGG's: shift the image back.
        x = F.pad((image - self.mean) / self.std, (4, 4, 4, 4), mode="reflect")
        x = x.contiguous(memory_format=torch.channels_last)
        found = {}
        for number, module in enumerate(self.modules_until_deepest):
            x = module(x)
            for layer in layers:
                if SQUEEZENET_LAYERS[layer] == number:
                    block = int(layer[4]) - 1
                    x_same = x[..., : image.shape[-2] >> block, : image.shape[-1] >> block]
                    found[layer] = x_same * self.scales[layer]
        return found


def load_teachers(data: Path | None, calibration: list[Tensor]) -> list[nn.Module]:
    """The teachers, frozen; the first one that has a layer teaches it."""
    if data is None:
        teachers = [zoo.load("vgg19", device="cpu")]
    else:
        vgg = features.from_torchvision(torch.load(next((data / "weights").glob("vgg19*.pth")), weights_only=True))
        squeezenet = torch.load(data / "weights" / "squeezenet1_1-fp16.pth", weights_only=True)
        teachers = [features.normalise(vgg, calibration), SqueezeNetTeacher(squeezenet, calibration)]
    return [teacher.eval().requires_grad_(False) for teacher in teachers]


def load_images(folders: list[Path], limit: int = 400) -> list[Tensor]:
    """All images below the folders as uint8 (3, H, W), the longer side at most `limit`."""
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"no images in {', '.join(map(str, folders))}")
    found = []
    for path in tqdm(paths, desc="images", leave=False):
        image = images.load(path)
        H, W = image.shape[-2:]
        if max(H, W) > limit:
            image = images.resize(image, max(1, limit * min(H, W) // max(H, W)))
        found.append((image[0] * 255).round().byte())
    return [image for image in found if min(image.shape[-2:]) >= 160]


def draw_batch(pool: list[Tensor], size: int, count: int, generator: torch.Generator) -> Tensor:
    """Crops (count, 3, size, size) in [-0.2, 1.2], varied so that the student also meets what an optimiser paints.

    A third stay photographs (flipped, rescaled); the others get other colours and contrasts, are blends of two, or
    are drowned in noise of some grain, as a transfer that starts from noise is.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=generator).item()

    def crop() -> Tensor:
        image = pool[int(uniform(0, len(pool)))]
        H, W = image.shape[-2:]
        side = int(uniform(size * 0.6, min(H, W)))
        top, left = int(uniform(0, H - side + 1)), int(uniform(0, W - side + 1))
        x = images.resize(image[None, :, top : top + side, left : left + side].float() / 255, (size, size))
        return x.flip(-1) if uniform(0, 1) < 0.5 else x

    batch = []
    for index in range(count):
        x, kind = crop(), index % 6
        if kind in (2, 3):  # other colours and contrast
            mix = torch.eye(3) + uniform(0, 0.6) * torch.randn(3, 3, generator=generator)
            x = torch.einsum("ij,bjhw->bihw", mix, x - 0.5) * uniform(0.5, 1.8) + uniform(0.3, 0.7)
        elif kind == 4:
            x = torch.lerp(x, crop(), uniform(0.2, 0.8))
        elif kind == 5:  # noise of a grain of 1 to 8 px, over an image or alone
            grain = 2 ** int(uniform(0, 4))
            noise = torch.randn(1, 3, size // grain, size // grain, generator=generator)
            x = x * uniform(0, 1) + 0.25 + uniform(0.05, 0.3) * F.interpolate(noise, (size, size), mode="nearest")
        batch.append(x)
    return torch.cat(batch).clamp(-0.2, 1.2)


def distance(student: Tensor, teacher: Tensor, readout: nn.Conv2d, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Relative errors of the readout's features and of the kernel uᵀv, each 1 for a student that says nothing.

    Args:
        student: (B, c, H, W). teacher: (B, C, H, W). readout: c → C, 1×1.
    """
    difference = (readout(student) - teacher).square().mean(dim=(0, 2, 3))
    linear = (difference / teacher.var(dim=(0, 2, 3)).clamp_min(1e-3)).mean()
    where = torch.randint(student.shape[2] * student.shape[3], (student.shape[0], 64), generator=generator)

    def points(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        chosen = x.reshape(B, C, H * W).gather(2, where[:, None].expand(B, C, -1))
        return chosen.transpose(1, 2).reshape(-1, C) / C**0.5  # (B·64, C), positions of all images

    u, v = points(student.float()), points(teacher)
    # Divided by |v_i||v_j|, a pair of faint positions counts as much as one of glaring noise.
    norms = v.norm(dim=1).clamp_min(0.05 * v.norm(dim=1).mean())
    target = v @ v.T / norms / norms[:, None]
    return linear, (u @ u.T / norms / norms[:, None] - target).square().mean() / target.square().mean()


def train(args: argparse.Namespace, student: VGG, teachers: list[nn.Module], pool: list[Tensor]) -> float:
    """The loop: AdamW, one cycle of the learning rate, a state every `SAVE_EVERY` steps. Returns the seconds spent."""
    source = {layer: teacher for teacher in reversed(teachers) for layer in teacher.layers if layer in student.layers}
    torch.manual_seed(args.seed)
    first = draw_batch(pool, args.size, 6, torch.Generator().manual_seed(args.seed))
    seen, known = student.extract(first, source), targets(teachers, source, first)
    readouts = nn.ModuleDict({x: nn.Conv2d(seen[x].shape[1], known[x].shape[1], 1) for x in source})
    weights = [*student.parameters(), *readouts.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.05)
    parts = {"student": student, "readouts": readouts, "optimiser": optimiser, "schedule": schedule}
    start, seconds = resume(args, parts)
    began = time.perf_counter()
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, desc="features")
    for step in bar:
        # Each step draws from its own generator, so that a resumed run sees what an uninterrupted one would.
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        batch = draw_batch(pool, args.size, args.batch, generator)
        with torch.no_grad(), runtime.autocast("cpu"):
            known = targets(teachers, source, batch)
        seen = student.extract(batch, source)
        loss, errors = 0.0, {}
        for layer in source:
            linear, kernel = distance(seen[layer].float(), known[layer].float(), readouts[layer], generator)
            errors[layer] = f"{linear.detach():.3f} {kernel.detach():.3f}"
            loss = loss + linear + kernel
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: {errors}; lower --lr, or delete {args.state}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()) / 2 / len(source):.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == args.steps:
            save_state(args, parts, step + 1, seconds + time.perf_counter() - began)
            tqdm.write(f"{step + 1:6d}  linear, kernel error at " + ", ".join(f"{k} {v}" for k, v in errors.items()))
    return seconds + time.perf_counter() - began


def targets(teachers: list[nn.Module], source: dict[str, nn.Module], batch: Tensor) -> dict[str, Tensor]:
    """What the teachers see: for each layer the features of the teacher in charge."""
    found: dict[str, Tensor] = {}
    for teacher in teachers:
        layers = tuple(layer for layer in source if source[layer] is teacher)
        if layers:
            found.update(teacher.extract(batch, layers))
    return found


def resume(args: argparse.Namespace, parts: dict[str, object]) -> tuple[int, float]:
    """Load the state of an interrupted run of the same settings, if there is one; its step and its seconds so far."""
    if not args.state.exists():
        return 0, 0.0
    state = torch.load(args.state, weights_only=True)
    if state["settings"] != settings(args):
        raise SystemExit(f"{args.state} belongs to other settings ({state['settings']}); delete it to start anew")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["seconds"]


def save_state(args: argparse.Namespace, parts: dict[str, object], step: int, seconds: float) -> None:
    """Write the state beside its place, then move it there: an interruption leaves the previous one whole."""
    args.state.parent.mkdir(parents=True, exist_ok=True)
    fresh = args.state.with_suffix(".new")
    about = {"settings": settings(args), "step": step, "seconds": seconds}
    torch.save(about | {name: part.state_dict() for name, part in parts.items()}, fresh)
    os.replace(fresh, args.state)


def settings(args: argparse.Namespace) -> str:
    return json.dumps({name: getattr(args, name) for name in ("steps", "batch", "size", "lr", "seed")})


@torch.no_grad()
def evaluate(student: VGG, teachers: list[nn.Module], held_out: list[Tensor]) -> dict[str, float]:
    """The share of the teacher's variance that the best linear readout of the student explains, for each layer.

    The readout is fitted by least squares on half of the positions, drawn at random, and judged on the others.
    """
    source = {layer: teacher for teacher in reversed(teachers) for layer in teacher.layers if layer in student.layers}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in source}
    generator = torch.Generator().manual_seed(0)
    for image in held_out:
        x = image[None, :, :160, :160].float() / 255
        seen, known = student.extract(x, source), targets(teachers, source, x)
        for layer in source:
            where = torch.randperm(seen[layer].shape[2] * seen[layer].shape[3], generator=generator)[:400]
            pairs[layer].append(tuple(f[layer].flatten(2)[0, :, where].T.double() for f in (seen, known)))
    scores = {}
    for layer, samples in pairs.items():
        S, T = (torch.cat(side) for side in zip(*samples, strict=True))
        order = torch.randperm(len(S), generator=generator)
        S, T = F.pad(S, (0, 1), value=1.0)[order], T[order]
        half = len(S) // 2
        readout = torch.linalg.lstsq(S[:half], T[:half], driver="gelsd").solution  # survives filters that never fire
        residual = (S[half:] @ readout - T[half:]).square().mean(dim=0).sum()
        scores[layer] = round(1 - float(residual / T[half:].var(dim=0).sum()), 3)
    return scores


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", help="folders of photographs (default: in COURSE_DATA)")
    parser.add_argument("--out", type=Path, default=checkpoints.folder() / "features.safetensors")
    parser.add_argument("--state", type=Path, default=Path("build/features_state.pt"), help="for resuming")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="side of the crops, px")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the scores there too")
    parser.add_argument("--quick", action="store_true", help="a minute's run that shows that the recipe works")
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.batch, args.size = 40, 6, 64
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    args = parse(argv)
    data = Path(os.environ["COURSE_DATA"]) if os.environ.get("COURSE_DATA") else None
    if not args.images and data is None:
        raise SystemExit("name folders of photographs with --images, or set COURSE_DATA")
    folders = args.images or [data / name for name in ("bsds500", "coco_mini", "pets/images")]
    calibration = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
    teachers = load_teachers(data, calibration)
    pool = load_images(folders)
    held_out = pool[::10]
    pool = [image for index, image in enumerate(pool) if index % 10]
    runtime.seed_everything(args.seed)
    student = VGG(EMBEDDED_WIDTHS, name="embedded VGG")
    seconds = train(args, student, teachers, pool)
    scores = evaluate(student.eval(), teachers, held_out)
    print(f"{'layer':10s} explained variance on {len(held_out)} held-out images")
    for layer, score in scores.items():
        print(f"{layer:10s} {score:.3f}")
    half = {name: tensor.half() for name, tensor in student.state_dict().items()}
    score = {"explained variance, held-out": scores}
    recipe = f"recipes/features.py --steps {args.steps} --batch {args.batch} --size {args.size} --lr {args.lr}"
    checkpoints.save(args.out, half, recipe=recipe, seed=args.seed, score=score, minutes=round(seconds / 60, 1))
    if args.json:
        args.json.write_text(json.dumps(scores, indent=1))
    return scores


if __name__ == "__main__":
    main()
