"""Upsampling by hand against torch's kernels: time and memory, at one size of a real network and over sizes.

    python benchmarks/upsampling.py                                    every device present, a few minutes
    python benchmarks/upsampling.py --plot times.png --json times.json

Time is the median wall time of several calls in float32, ours and torch's in turn so that both meet the same
machine; "forward + backward" adds the gradients of all inputs. Memory is the largest sum of what torch's
allocator has handed out during one call, above what was there before, in 10⁶ bytes: results and gradients
count; on the CPU the private workspaces of oneDNN and MKL do not. The error is the largest difference from torch's
result, relative to its largest value.
"""

import dataclasses
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from course_lib import upsampling as up

SIZES = (32, 64, 128, 256, 512, 1024)
PLOTTED = ("nearest", "bilinear", "bicubic", "transposed convolution")
Operation = Callable[..., Tensor]


@dataclasses.dataclass
class Row:
    """One operation at one size on one device, ours and torch's."""

    device: str
    operation: str
    shape: str
    calls: str  # forward, or forward + backward
    ours_ms: float
    torch_ms: float
    ours_mb: float
    torch_mb: float
    error: float

    @property
    def ratio(self) -> float:
        return self.ours_ms / self.torch_ms

    def line(self) -> str:
        """One line of the printed table."""
        what = f"{self.device:5}{self.operation:23} {self.shape:14} {self.calls:18}"
        times = f"{self.ours_ms:9.2f} {self.torch_ms:9.2f} {self.ratio:6.2f}"
        return f"{what} {times} {self.ours_mb:8.1f} {self.torch_mb:9.1f} {self.error:7.0e}"


HEADER = (
    f"{'':5}{'operation':23} {'input':14} {'':18} {'ours ms':>9} {'torch ms':>9} {'ratio':>6} "
    f"{'ours MB':>8} {'torch MB':>9} {'error':>7}"
)


def operations(x: Tensor) -> dict[str, tuple[Operation, Operation, tuple[Tensor, ...]]]:
    """By name: ours, torch's, and the inputs, made from x of (B, C, H, W)."""
    B, C, H, W = x.shape
    double, half = (2 * H, 2 * W), (math.ceil(H / 2), math.ceil(W / 2))
    kernel4, kernel3 = (torch.randn(C, C, k, k, device=x.device) / (k * math.sqrt(C)) for k in (4, 3))
    one, gaps = torch.ones(C, 1, 1, 1, device=x.device), {"stride": 2, "output_padding": 1, "groups": C}
    pooled, indices = F.max_pool2d(torch.randn(B, C, *double, device=x.device), 2, return_indices=True)

    def interpolation(mode: str, size: tuple[int, int], **options: bool) -> tuple:
        ours = getattr(up, mode)
        return lambda x: ours(x, size, **options), lambda x: F.interpolate(x, size, mode=mode, **options), (x,)

    def transposed(way: Operation) -> tuple:
        return (
            lambda x, w: way(x, w, stride=2, padding=1),
            lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1),
            (x, kernel4),
        )

    return {
        "nearest": interpolation("nearest", double),
        "bilinear": interpolation("bilinear", double),
        "bilinear, corners": interpolation("bilinear", double, align_corners=True),
        "bilinear, to half": interpolation("bilinear", half),
        "bicubic": interpolation("bicubic", double),
        "bicubic, to half": interpolation("bicubic", half),
        "bed of nails": (up.bed_of_nails, lambda x: F.conv_transpose2d(x, one, **gaps), (x,)),
        "max unpooling": (
            lambda x: up.max_unpool(x, indices, double),
            lambda x: F.max_unpool2d(x, indices, 2),
            (pooled,),
        ),
        "pixel shuffle": (lambda x: up.pixel_shuffle(x, 2), lambda x: F.pixel_shuffle(x, 2), (x,)),
        "pixel unshuffle": (lambda x: up.pixel_unshuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2), (x,)),
        "transposed convolution": transposed(up.transposed_convolution),
        "transposed, by zeros": transposed(up.transposed_convolution_by_zeros),
        "convolution": (
            lambda x, w: up.convolution(x, w, padding=1),
            lambda x, w: F.conv2d(x, w, padding=1),
            (x, kernel3),
        ),
        "resize-convolution": (
            up.resize_convolution,
            lambda x, w: F.conv2d(F.interpolate(x, double), w, padding=1),
            (x, kernel3),
        ),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mb(call: Callable[[], object], device: torch.device) -> float:
    """The allocator's peak during one call, above the level before it, in 10⁶ bytes."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    # The profiler's public tables sum by operation; the peak needs the single events, in their order.
    level = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak / 1e6


def median_ms(calls: list[Callable[[], object]], device: torch.device, repeats: int, budget: float) -> list[float]:
    """The median time of each call, taken in turn: `repeats` rounds, fewer (but 3) past `budget` seconds."""
    times, start = [[] for _ in calls], time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - start > budget:
            break
        for call, record in zip(calls, times, strict=True):
            synchronize(device)
            begin = time.perf_counter()
            call()
            synchronize(device)
            record.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(record) for record in times]


def measure(name: str, x: Tensor, repeats: int) -> list[Row]:
    """Forward, and forward + backward, of one operation."""
    ours, theirs, inputs = operations(x)[name]
    inputs = [i.detach().requires_grad_() for i in inputs]
    with torch.no_grad():
        expected = theirs(*inputs)
        error = float((ours(*inputs) - expected).abs().max() / expected.abs().max())
    cotangent = torch.randn_like(expected)
    del expected

    def forward(operation: Operation) -> Callable:
        return torch.no_grad()(lambda: operation(*inputs))

    def both(operation: Operation) -> Callable:
        return lambda: torch.autograd.grad(operation(*inputs), inputs, cotangent)

    rows = []
    for calls, wrap in (("forward", forward), ("forward + backward", both)):
        pair = [wrap(ours), wrap(theirs)]
        memory = [peak_mb(call, x.device) for call in pair]  # which also warms up
        times = median_ms(pair, x.device, repeats, budget=2)
        rows.append(Row(x.device.type, name, "×".join(map(str, x.shape)), calls, *times, *memory, error))
    return rows


def plot(rows: list[Row], path: Path) -> None:
    """Forward time against output pixels on logarithmic axes, with a line of slope 1: linear growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    devices = list(dict.fromkeys(row.device for row in rows))
    figure, axes = plt.subplots(1, len(devices), figsize=(7 * len(devices), 5), squeeze=False)
    for ax, device in zip(axes[0], devices, strict=True):
        for i, name in enumerate(PLOTTED):
            chosen = [r for r in rows if (r.device, r.operation, r.calls) == (device, name, "forward")]
            chosen = [r for r in chosen if r.shape.startswith("1×")]
            pixels = [4 * int(r.shape.split("×")[2]) ** 2 for r in chosen]
            ax.plot(pixels, [r.ours_ms for r in chosen], "o-", color=f"C{i}", label=f"{name}, by hand")
            ax.plot(pixels, [r.torch_ms for r in chosen], "x--", color=f"C{i}", label=f"{name}, torch")
        ax.plot(
            pixels, [chosen[-1].ours_ms * p / pixels[-1] for p in pixels], ":", color="grey", label="slope 1: linear"
        )
        ax.set(xscale="log", yscale="log", title=f"{chosen[0].shape.split('×')[1]} channels, ×2, {device}")
        ax.set(xlabel="output pixels of a channel", ylabel="forward, ms")
        ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write what was asked for."""
    parser = common.parser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time against size")
    options = parser.parse_args(arguments)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports each start and stop
    torch.backends.cudnn.allow_tf32 = False  # float32 on both sides
    torch.manual_seed(0)
    shapes = [(1, 4, 16, 16), (1, 4, 32, 32)] if options.quick else [(8, 64, 64, 64), *((1, 16, s, s) for s in SIZES)]
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} CPU threads, float32\n\n{HEADER}")
    rows = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for shape in shapes:
            x = torch.randn(shape, device=device)
            for name in operations(x[:1, :4, :2, :2]):
                for row in measure(name, x, repeats=1 if options.quick else 9):
                    rows.append(row)
                    print(row.line(), flush=True)
    common.write(options.json, {"rows": [{**dataclasses.asdict(row), "ratio": row.ratio} for row in rows]})
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
