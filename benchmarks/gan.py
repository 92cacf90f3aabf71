"""The DCGAN training step against the one of the usual tutorial: same layers, same batch, same weights, one run.

    python benchmarks/gan.py --json gan.json               a minute or two on 2 cores

The tutorial's step is the one found everywhere: torch's layers as they are, `BCELoss` of a sigmoid, one backward pass
of D for the real and one for the fake images, then a third through D for G, which also computes D's gradients only
to throw them away. Ours computes the same updates (checked first, in float64, to rounding) and leaves out that waste;
keeps images in the memory format that CPUs like (channels last); turns convolutions with one or three channels into
their sub-pixel form; and uses bfloat16 where `runtime.autocast` has measured that it pays, as the training loop does.
A row without it shows what the rest is worth. Steps alternate, so that all meet the same machine; the median counts.
"""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import common
from course_lib import gan
from course_lib.base import runtime

ADAM = {"lr": 2e-4, "betas": (0.5, 0.999)}
Z_DIM = 64


class Tutorial(nn.Module):
    """Torch's own layers in the course's shapes; `first` makes the network's beginning, `last` its end."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.side = getattr(ours, "side", None)
        self.project = nn.Linear(ours.z_dim, ours.project.out_features, bias=False) if self.side else None
        self.layers = nn.Sequential(*map(_plain, ours.layers))
        self.head = None if self.side else nn.Linear(ours.head.in_features, 1)
        self.load_state_dict(ours.state_dict())  # refuses layers of other names or shapes

    def forward(self, x: Tensor) -> Tensor:
        """Noise → images, or images → probabilities (B,)."""
        if self.side:
            return self.layers(self.project(x).view(len(x), -1, self.side, self.side))
        return torch.sigmoid(self.head(self.layers(x).flatten(1))).squeeze(1)


def _plain(layer: nn.Module) -> nn.Module:
    """Torch's layer of the same kind and shape, in the usual memory format."""
    if isinstance(layer, gan.Upsampling | gan.Downsampling):
        kind = nn.ConvTranspose2d if isinstance(layer, gan.Upsampling) else nn.Conv2d
        bias = layer.bias is not None
        return kind(layer.in_channels, layer.out_channels, 4, stride=2, padding=1, bias=bias)
    return copy.deepcopy(layer)


def tutorial_step(G: nn.Module, D: nn.Module, rng: torch.Generator) -> Callable[[Tensor], dict[str, Tensor]]:
    """The usual tutorial's step, in our words."""
    for_G, for_D = (torch.optim.Adam(network.parameters(), **ADAM) for network in (G, D))
    criterion = nn.BCELoss()

    def step(images: Tensor) -> dict[str, Tensor]:
        real, B = 2 * images - 1, len(images)
        ones, zeros = real.new_ones(B), real.new_zeros(B)
        D.zero_grad()
        error_real = criterion(D(real), ones)
        error_real.backward()
        fake = G(torch.randn(B, Z_DIM, generator=rng, device=rng.device).to(real))
        error_fake = criterion(D(fake.detach()), zeros)
        error_fake.backward()
        for_D.step()
        G.zero_grad()
        error_G = criterion(D(fake), ones)
        error_G.backward()
        for_G.step()
        return {"D": (error_real + error_fake).detach(), "G": error_G.detach()}

    return step


def our_step(G: nn.Module, D: nn.Module, rng: torch.Generator) -> Callable[[Tensor], dict[str, Tensor]]:
    """The course's step with the tutorial's optimisers."""
    return gan.adversarial_step(G, D, *(torch.optim.Adam(n.parameters(), **ADAM) for n in (G, D)), rng)


def networks(channels: int, size: int, width: int) -> tuple[nn.Module, nn.Module]:
    """The course's pair, the same each time."""
    torch.manual_seed(0)
    return gan.Generator(Z_DIM, channels, size, width), gan.Discriminator(channels, size, width)


def check_equal(channels: int, size: int, width: int) -> float:
    """The largest difference of weights after three steps in float64 of both; raises where it is not rounding."""
    ours = [network.double() for network in networks(channels, size, width)]
    theirs = [Tutorial(network).double() for network in ours]
    steps = [
        make(*pair, torch.Generator().manual_seed(1)) for make, pair in ((our_step, ours), (tutorial_step, theirs))
    ]
    for _ in range(3):
        images = torch.rand(4, channels, size, size, dtype=torch.float64)
        for step in steps:
            step(images)
    pairs = [(n.state_dict(), m.state_dict()) for n, m in zip(ours, theirs, strict=True)]
    error = max(float((mine[k] - others[k]).abs().max()) for mine, others in pairs for k in mine)
    if error > 1e-6:
        raise AssertionError(f"the two steps are not the same training: their weights differ by {error:.1e}")
    return error


Row = dict[str, float | str]


def measure(channels: int, size: int, width: int, batch: int, repeats: int, device: torch.device) -> list[Row]:
    """The steps in turn, from the same weights on the same random images: a row each."""
    images = torch.rand(batch, channels, size, size, device=device)
    contexts = {"tutorial": contextlib.nullcontext, "ours, float32": contextlib.nullcontext}
    if not isinstance(runtime.autocast(device), contextlib.nullcontext):
        contexts["ours, bfloat16 autocast"] = lambda: runtime.autocast(device)
    steps = {}
    for name in contexts:
        pair = networks(channels, size, width)
        pair = [(Tutorial(network) if name == "tutorial" else network).to(device) for network in pair]
        make = tutorial_step if name == "tutorial" else our_step
        steps[name] = make(*pair, torch.Generator(device).manual_seed(1))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 3):
        for name, step in steps.items():
            begin = time.perf_counter()
            with contexts[name]():
                losses = step(images)
            sum(losses.values()).item()  # waits for a GPU
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(record[3:]) for name, record in times.items()}  # the first ones warm up
    shape = {"size": size, "channels": channels, "batch": batch}
    return [
        shape
        | {"step": name, "milliseconds": 1000 * t, "images_per_second": batch / t, "ratio": medians["tutorial"] / t}
        for name, t in medians.items()
    ]


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print a table for each shape, and write what was asked for; returns all rows."""
    options = common.parser(__doc__).parse_args(arguments)
    shapes = [(1, 8, 8, 8)] if options.quick else [(1, 28, 64, 64), (3, 32, 64, 64)]
    device, found = runtime.device(), []
    for channels, size, width, batch in shapes:
        error = check_equal(channels, size, min(width, 16))
        print(f"batches of {batch}×{channels}×{size}×{size}; weights after 3 steps in float64 differ by {error:.0e}")
        rows = measure(channels, size, width, batch, 2 if options.quick else 40, device)
        figures = ("milliseconds", "images_per_second", "ratio")
        print(common.table({row["step"]: {name: row[name] for name in figures} for row in rows}), flush=True)
        found += rows
    common.write(options.json, {"rows": found})
    return found


if __name__ == "__main__":
    main()
