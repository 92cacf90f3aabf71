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

import os
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm.auto import tqdm

from course_lib.base import datasets, features, images, runtime, zoo
from course_lib.base.features import EMBEDDED_WIDTHS, VGG
from course_lib.base.loop import Step, descend
from recipes import common

# Where SqueezeNet's modules have the resolution of a VGG block: 1/8 of the image after fire5.
SQUEEZENET_LAYERS = {"relu4_1": 7}
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
        # Its unpadded strides look about 4 px further right at 1/8 size than VGG's: shift the image back.
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


class Crops:
    """Crops of photographs, as data for the loop: `crops[indices]` is a batch, one crop of each image.

    Args:
        pool: images (3, H, W) uint8, of 160 px or more.
        size: of the crops, in pixels.
        rng: draws places and changes; give it to the loop, so that a run resumes.
    """

    def __init__(self, pool: list[Tensor], size: int, rng: torch.Generator) -> None:
        self.pool, self.size, self.rng = pool, size, rng

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Crops (B, 3, size, size) in [-0.2, 1.2], varied so that the student also meets what an optimiser paints.

        A third stay photographs (flipped, rescaled). The others get other colours and contrasts, are blends of two, or
        are hidden in noise, fine or coarse, as a transfer that starts from noise is.
        """
        batch = []
        for position, index in enumerate(indices.tolist()):
            x, change = self._crop(index), position % 6
            if change in (2, 3):  # other colours and contrast
                mix = torch.eye(3) + self._uniform(0, 0.6) * torch.randn(3, 3, generator=self.rng)
                mixed = torch.einsum("ij,bjhw->bihw", mix, x - 0.5)
                x = mixed * self._uniform(0.5, 1.8) + self._uniform(0.3, 0.7)
            elif change == 4:
                x = torch.lerp(x, self._crop(int(self._uniform(0, len(self)))), self._uniform(0.2, 0.8))
            elif change == 5:  # noise in squares of 1 to 8 px, over an image or alone
                side = 2 ** int(self._uniform(0, 4))
                noise = torch.randn(1, 3, self.size // side, self.size // side, generator=self.rng)
                noise = F.interpolate(noise, (self.size, self.size), mode="nearest")
                x = x * self._uniform(0, 1) + 0.25 + self._uniform(0.05, 0.3) * noise
            batch.append(x)
        return torch.cat(batch).clamp(-0.2, 1.2)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand(1, generator=self.rng).item()

    def _crop(self, index: int) -> Tensor:
        image = self.pool[index]
        H, W = image.shape[-2:]
        side = int(self._uniform(self.size * 0.6, min(H, W)))
        top, left = int(self._uniform(0, H - side + 1)), int(self._uniform(0, W - side + 1))
        square = image[None, :, top : top + side, left : left + side].float() / 255
        x = images.resize(square, (self.size, self.size))
        return x.flip(-1) if self._uniform(0, 1) < 0.5 else x


def distance(student: Tensor, teacher: Tensor, readout: nn.Conv2d, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Relative errors of the readout's features and of the kernel uᵀv, each 1 for a student that says nothing.

    Args:
        student: features (B, c, H, W).
        teacher: features (B, C, H, W).
        readout: c → C, 1×1.
        rng: draws the positions.
    """
    difference = (readout(student) - teacher).square().mean(dim=(0, 2, 3))
    linear = (difference / teacher.var(dim=(0, 2, 3)).clamp_min(1e-3)).mean()
    where = torch.randint(student.shape[2] * student.shape[3], (student.shape[0], 64), generator=rng)
    where = where.to(student.device)

    def points(x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        chosen = x.reshape(B, C, H * W).gather(2, where[:, None].expand(B, C, -1))
        return chosen.transpose(1, 2).reshape(-1, C) / C**0.5  # (B·64, C), positions of all images

    u, v = points(student.float()), points(teacher)
    # Divided by |v_i||v_j|, a pair of faint positions counts as much as one of glaring noise.
    norms = v.norm(dim=1).clamp_min(0.05 * v.norm(dim=1).mean())
    target = v @ v.T / norms / norms[:, None]
    return linear, (u @ u.T / norms / norms[:, None] - target).square().mean() / target.square().mean()


def teach_step(
    student: VGG,
    readouts: nn.ModuleDict,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    rng: torch.Generator,
    teachers: list[nn.Module],
) -> Step:
    """The mean error of the readouts' features and of the kernels, over the layers."""
    source = in_charge(teachers, student)

    def step(batch: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            known = targets(teachers, source, batch)
        with runtime.no_autocast(batch.device):  # the student and the errors keep all their digits
            seen = student.extract(batch, tuple(source))
            pairs = [distance(seen[x], known[x].float(), readouts[x], rng) for x in source]
        linear, kernel = (torch.stack(errors).sum() for errors in zip(*pairs, strict=True))
        descend(linear + kernel, optimiser, clip=1.0)
        schedule.step()
        return {"linear": linear.detach() / len(source), "kernel": kernel.detach() / len(source)}

    return step


def in_charge(teachers: list[nn.Module], student: VGG) -> dict[str, nn.Module]:
    """The teacher of each of the student's layers: the first that has it."""
    return {layer: teacher for teacher in reversed(teachers) for layer in teacher.layers if layer in student.layers}


def targets(teachers: list[nn.Module], source: dict[str, nn.Module], batch: Tensor) -> dict[str, Tensor]:
    """What the teachers see: for each layer the features of the teacher in charge."""
    found: dict[str, Tensor] = {}
    for teacher in teachers:
        layers = tuple(layer for layer in source if source[layer] is teacher)
        if layers:
            found.update(teacher.extract(batch, layers))
    return found


@torch.no_grad()
def evaluate(student: VGG, teachers: list[nn.Module], held_out: list[Tensor]) -> dict[str, float]:
    """The proportion of the teacher's variance that the best linear readout of the student explains, for each layer.

    The readout is fitted by least squares on half of the positions, drawn at random, and judged on the others.
    """
    source = in_charge(teachers, student)
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in source}
    rng = torch.Generator().manual_seed(0)
    for image in held_out:
        x = image[None, :, :160, :160].float() / 255
        seen, known = student.extract(x, source), targets(teachers, source, x)
        for layer in source:
            where = torch.randperm(seen[layer].shape[2] * seen[layer].shape[3], generator=rng)[:400]
            pairs[layer].append(tuple(f[layer].flatten(2)[0, :, where].T.double() for f in (seen, known)))
    scores = {}
    for layer, samples in pairs.items():
        S, T = (torch.cat(side) for side in zip(*samples, strict=True))
        order = torch.randperm(len(S), generator=rng)
        S, T = F.pad(S, (0, 1), value=1.0)[order], T[order]
        half = len(S) // 2
        readout = torch.linalg.lstsq(S[:half], T[:half], driver="gelsd").solution  # survives filters that never fire
        residual = (S[half:] @ readout - T[half:]).square().mean(dim=0).sum()
        scores[layer] = round(1 - float(residual / T[half:].var(dim=0).sum()), 3)
    return scores


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=6000, batch_size=8)
    parser.add_argument("--images", type=Path, nargs="+", help="folders of photographs (default: in COURSE_DATA)")
    parser.add_argument("--size", type=int, default=64, help="side of the crops, px")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args(argv)
    data = Path(os.environ["COURSE_DATA"]) if os.environ.get("COURSE_DATA") else None
    if not args.images and data is None:
        raise SystemExit("name folders of photographs with --images, or set COURSE_DATA")
    run = common.setup(args, "features", script=__file__)

    calibration = [datasets.load_image(name, size=224) for name in features.CALIBRATION]
    teachers = [teacher.to(run.device) for teacher in load_teachers(data, calibration)]
    pool = load_images(args.images or [data / name for name in ("bsds500", "coco_mini", "pets/images")])
    held_out, pool = pool[::10], [image for number, image in enumerate(pool) if number % 10]
    rng = torch.Generator().manual_seed(run.seed)
    crops = Crops(pool, args.size, rng)
    student = VGG(EMBEDDED_WIDTHS, name="embedded VGG").to(run.device)
    first = crops[torch.arange(1)].to(run.device)
    source = in_charge(teachers, student)
    seen, known = student.extract(first, tuple(source)), targets(teachers, source, first)
    readouts = nn.ModuleDict({x: nn.Conv2d(seen[x].shape[1], known[x].shape[1], 1) for x in source}).to(run.device)
    rise = max(0.05, 2 / run.steps)  # of the learning rate, as a proportion of the steps
    optimiser = torch.optim.AdamW([*student.parameters(), *readouts.parameters()], args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=run.steps, pct_start=rise)
    parts = {"student": student, "readouts": readouts, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    step = teach_step(**parts, teachers=teachers)
    loop = common.train(run, step, crops, stateful=parts, save_every=200)

    student = common.round_to_half(student).cpu().eval()
    teachers = [teacher.cpu() for teacher in teachers]
    scores = evaluate(student, teachers, held_out)
    common.export(run, student, {"explained variance, held-out": scores}, seconds=loop.seconds)
    return scores


if __name__ == "__main__":
    main()
