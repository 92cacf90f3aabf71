"""Train the network that enlarges faces of cats four times.

    python recipes/upsampling.py        # 24 minutes on one core of a busy machine; continues where it was interrupted

`datasets.load` says where the faces come from. The judge is the PSNR on the held-out ones, beside that of bicubic
interpolation, and of a single kernel that learns from the same faces. What the network makes of some of them is drawn
to build/ as the training goes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib import upsampling
from course_lib.base import datasets
from course_lib.base.loop import Loop
from course_lib.base.sampling import in_batches
from recipes import common

NAME = "upsampler_cats"


def psnr(y: Tensor, x: Tensor) -> float:
    """The mean over the images of 10 log10(1 / mean squared error), in dB."""
    return (-10 * (y.clamp(0, 1) - x).square().mean((1, 2, 3)).log10()).mean().item()


def enlarge(x: Tensor, kernel: Tensor) -> Tensor:
    """One kernel (1, 1, 16, 16) for all colours and places: (B, C, H, W) → (B, C, 4H, 4W)."""
    B, C, H, W = x.shape
    bordered = F.pad(x.reshape(B * C, 1, H, W), (2, 2, 2, 2), mode="replicate")  # as interpolation does
    y = F.conv_transpose2d(bordered, kernel, stride=upsampling.FACTOR, padding=6)
    return y[..., 8:-8, 8:-8].view(B, C, 4 * H, 4 * W)


def learn_kernel(x: Tensor, steps: int) -> Tensor:
    """The kernel of `enlarge` that best restores the images x: the error is quadratic in it, which suits L-BFGS."""
    small, kernel = upsampling.shrink(x), x.new_zeros(1, 1, 16, 16).requires_grad_()
    optimiser = torch.optim.LBFGS([kernel], max_iter=steps, history_size=50, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.mse_loss(enlarge(small, kernel), x)
        loss.backward()
        return loss

    optimiser.step(closure)
    return kernel.detach()


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Train, judge and save; returns the scores."""
    parser = common.parser(__doc__, steps=1500, batch_size=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    run = common.setup(args, NAME, script=__file__)

    data, held_out = datasets.load("cat_faces"), datasets.load("cat_faces", "test")
    network = upsampling.Upsampler().to(run.device)
    optimiser = torch.optim.Adam(network.parameters(), args.lr)
    # The learning rate falls to zero along a half cosine.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, run.steps)
    rng = torch.Generator().manual_seed(run.seed)
    learn = upsampling.upsampler_step(network, optimiser, rng)

    def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        losses = learn(batch)
        schedule.step()
        return losses

    x, _ = held_out[: 200 if run.quick else None]
    small = upsampling.shrink(x).to(run.device)

    def grid(loop: Loop) -> Tensor:
        return in_batches(network, network, small[: common.IMAGES]).cpu()

    stateful = {"network": network, "optimiser": optimiser, "schedule": schedule, "rng": rng}
    loop = common.train(run, step, data, stateful=stateful, hooks=[common.draw(run, grid, 500)], save_every=100)
    common.round_to_half(network)
    kernel = learn_kernel(data[: 50 if run.quick else 1000][0].to(run.device), steps=5 if run.quick else 60)
    enlarged = {
        "PSNR, dB": in_batches(network, network, small),
        "PSNR of one kernel, dB": enlarge(small, kernel),
        "PSNR of bicubic, dB": upsampling.bicubic(small, scale_factor=upsampling.FACTOR),
    }
    scores = {name: psnr(y.cpu(), x) for name, y in enlarged.items()}
    common.export(run, network, scores, seconds=loop.seconds, data="cat_faces", held_out=len(x))
    return scores


if __name__ == "__main__":
    main()
