"""Diffusion against diffusers, and its samplers against each other; the bars of the topic in one run.

    pip install -e .[bench]                                       # diffusers, the peer of the first two parts
    COURSE_DATA=/path/to/data python benchmarks/diffusion.py      # 10 minutes on 2 cores, and part 5 hours
    COURSE_DATA=/path/to/data python benchmarks/diffusion.py --only sampling --data cat_faces --images 1000 --seeds 1

1. **step**: images a second of a training step at 3×32×32, batch 32: our U-Net and step against `UNet2DModel` with
   `DDPMScheduler`, of the same layers. First the two networks are given the same weights and must compute the same.
   The usual tutorial's step is float32; a row with bfloat16 autocast shows what is left when the peer gets it, too.
2. **race**: seconds of training on the 8×8 digits until the Fréchet distance of 300 samples falls below 2: our
   lesson's settings (v, cosine schedule, min-SNR weights, moving average) against the tutorial's (ε, linear schedule).
   Both are drawn from by the same sampler, and judging does not count as training. So it compares recipes
   (precision, moving average and the fold of 2 × 2 pixels included), not networks of the same cost; one seed of each.
3. **live**: the lesson's training on the 8×8 digits for 45 s, three seeds: how often a nearest-neighbour classifier
   (k = 3) of real digits reads the class that was asked for among 2,000, without guidance and with.
4. **memory**: how many tensors of the size of X_t live at once, in 20 and in 1000 steps.
5. **sampling**: the shipped models of digits, clothes and cats, judged by Fréchet distance to the test split (cats: to
   the training split, the test split is small): 1000 ancestral steps against 20 calls of each sampler (19 of Heun's),
   of two also at Karras' times, of digits also with a little guidance. The Fréchet distance is the mean over the
   seeds; `floor` is what as many real images could expect. The bar is on one way for each data set (`FAST`). Each
   row is printed, and each data set written, as soon as it is there.

Parts 1 to 3 run on the CPU. Exits with 1 where a bar is missed.
"""

import contextlib
import functools
import gc
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from benchmarks import common
from course_lib import diffusion
from course_lib.base import checkpoints, datasets, metrics, runtime, unet, zoo
from course_lib.base.loop import Loop

STEP_BAR, LIVE_BAR, SAMPLING_BAR, SHIPPED_BAR = 1.5, 0.97, 1.05, 0.98
GUIDANCE = 1.1  # what the shipped digits are best drawn with: as asked, and nearer to the data than without
BEST_GAN = "dcgan_mnist_conditional"  # the lowest Fréchet distance on MNIST of the generators before diffusion
FAR = 2.0  # the Fréchet distance at which the race ends
LIVE = {"width": 48, "multipliers": (1, 1), "classes": 10, "patch": 2}  # the lesson's network
RATE = 3e-3  # the lesson's learning rate, at its highest
SAMPLERS = {
    "DDPM": diffusion.ddpm,
    "DDIM": diffusion.ddim,
    "DPM-Solver++(2M)": diffusion.dpm_solver,
    "SDE-DPM-Solver++(2M)": functools.partial(diffusion.dpm_solver, eta=1.0),
    "Heun": diffusion.heun,
}
RHO = 7.0  # of the times of two more rows; all models have the cosine schedule
SAMPLED = {"mnist": "diffusion_mnist", "fashion_mnist": "diffusion_fashion_mnist", "cat_faces": "diffusion_cats"}
SDE = "SDE-DPM-Solver++(2M)"
FAST = {"mnist": SDE, "fashion_mnist": SDE, "cat_faces": f"{SDE}, ρ = {RHO:g}"}  # whose 20 calls are held to the bar
Rows = dict[str, dict[str, object]]


def peer(channels: int, size: int, widths: tuple[int, ...], classes: int | None = None) -> nn.Module:
    """diffusers' U-Net with the layers of ours: one block a level, no attention, scale-shift conditioning."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(widths),
        up_block_types=("UpBlock2D",) * len(widths),
        norm_num_groups=8,
        norm_eps=1e-5,
        freq_shift=0,
        flip_sin_to_cos=True,
        add_attention=False,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )


def copy_weights(ours: unet.UNet, theirs: nn.Module) -> None:
    """Give the peer our weights: part by part, and in each part layer by layer."""

    def layers(parts: list[nn.Module]) -> list[nn.Module]:
        kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm)
        return [layer for part in parts for layer in part.modules() if isinstance(layer, kinds)]

    mine = layers([ours.embedding, ours.first, ours.down, ours.middle, ours.up, ours.norm, ours.last])
    blocks = [theirs.down_blocks, theirs.mid_block, theirs.up_blocks]
    others = layers([theirs.time_embedding, theirs.conv_in, *blocks, theirs.conv_norm_out, theirs.conv_out])
    for layer, other in zip(mine, others, strict=True):
        other.load_state_dict(layer.state_dict())


def tutorial_step(network: nn.Module, optimiser: torch.optim.Optimizer) -> Callable[..., None]:
    """The usual tutorial's step, in our words: diffusers' scheduler adds the noise, the network names it."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000)

    def step(x0: Tensor, labels: Tensor | None = None) -> None:
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (len(x0),))
        given = {} if labels is None else {"class_labels": labels}
        predicted = network(scheduler.add_noise(x0, noise, t), t, **given).sample
        loss = F.mse_loss(predicted, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def measure_step(quick: bool) -> Rows:
    """Part 1."""
    size, batch, repeats = (16, 4, 2) if quick else (32, 32, 15)
    torch.manual_seed(0)
    ours = unet.UNet(unet.Config(channels=3))
    theirs = peer(3, size, ours.config.widths)
    with torch.no_grad():
        for parameter in ours.parameters():  # nothing may hide behind the zeros with which some layers begin
            parameter.add_(0.02 * torch.randn_like(parameter))
    copy_weights(ours, theirs)
    x, t = torch.randn(2, 3, size, size), torch.tensor([3, 700])
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t), theirs(x, t).sample, atol=1e-4, rtol=1e-3)
    images = torch.rand(batch, 3, size, size)
    adam = [torch.optim.Adam(network.parameters(), 1e-4) for network in (ours, theirs)]
    learn = diffusion.diffusion_step(
        diffusion.Denoiser(ours, diffusion.linear()), adam[0], torch.Generator().manual_seed(0)
    )
    tutorial = tutorial_step(theirs, adam[1])
    mixed = torch.autocast("cpu", torch.bfloat16)
    sides = {
        "diffusers, float32": (contextlib.nullcontext(), lambda: tutorial(2 * images - 1)),
        "diffusers, bfloat16": (mixed, lambda: tutorial(2 * images - 1)),
        "ours, float32": (contextlib.nullcontext(), lambda: learn(images)),
        "ours, bfloat16 where it pays": (runtime.autocast("cpu"), lambda: learn(images)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 2):
        for name, (precision, run) in sides.items():  # by turns, so that all meet the same machine
            began = time.perf_counter()
            with precision:
                run()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - began)
    rate = {name: batch / statistics.median(values) for name, values in seconds.items()}
    base = rate["diffusers, float32"]
    weights = sum(parameter.numel() for parameter in ours.parameters())
    return {name: {"images a second": value, "ratio": value / base, "weights": weights} for name, value in rate.items()}


class Student:
    """Our live training on the digits with the lesson's settings; `progress` says how much of it is over, 0 to 1."""

    def __init__(self, seed: int, steps: int, progress: Callable[[Loop], float]) -> None:
        torch.manual_seed(seed)
        network = unet.UNet(unet.Config(**LIVE))
        self.denoiser = diffusion.Denoiser(network, diffusion.cosine(), "v", (1, 8, 8))
        optimiser = torch.optim.Adam(network.parameters(), RATE)
        rng = torch.Generator().manual_seed(seed)
        learn = diffusion.diffusion_step(self.denoiser, optimiser, rng, drop=0.1, gamma=5)

        def step(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            for group in optimiser.param_groups:
                group["lr"] = RATE * (1 - min(0.999, progress(self.loop)))
            return learn(batch)

        parts = {"network": network, "optimiser": optimiser, "rng": rng}
        self.loop = Loop(
            step,
            datasets.load("digits"),
            steps=steps,
            batch_size=128,
            stateful=parts,
            seed=seed,
            averages={"network": 0.99},
            title=f"live, seed {seed}",
        )

    def averaged(self) -> diffusion.Denoiser:
        """The denoiser with the moving average of the weights."""
        return diffusion.Denoiser(self.loop.averaged["network"], self.denoiser.schedule, "v", (1, 8, 8))


class Done(Exception):
    """Ends a training from a hook."""


def distance_of(model: diffusion.Denoiser) -> float:
    """Fréchet distance of 300 digits, drawn with 20 calls, from the real ones."""
    look = metrics.extractor("digits")
    drawn = diffusion.sample(model, 300, torch.arange(300) % 10, rng=torch.Generator().manual_seed(0))
    return metrics.frechet_distance(look(datasets.load("digits")[:][0]), look(drawn))


def race(quick: bool) -> Rows:
    """Part 2."""
    every, limit = (2, 4) if quick else (50, 1500)
    rows: Rows = {}

    def watch(name: str, done: int, seconds: float, model: Callable[[], diffusion.Denoiser]) -> bool:
        if done % every:
            return False
        rows[name] = {"seconds": seconds, "steps": done, "Fréchet distance": distance_of(model())}
        return rows[name]["Fréchet distance"] < FAR or done >= limit

    student = Student(0, limit, lambda loop: loop.done / limit)
    judging = 0.0

    def hook(loop: Loop) -> None:
        nonlocal judging
        began = time.perf_counter()
        if watch("ours", loop.done, began - started - judging, student.averaged):
            raise Done
        judging += time.perf_counter() - began

    student.loop.hooks = (hook,)
    started = time.perf_counter()
    with contextlib.suppress(Done):
        student.loop.run()

    torch.manual_seed(0)
    network = peer(1, 8, student.denoiser.network.config.widths, classes=10)
    step = tutorial_step(network, torch.optim.Adam(network.parameters(), 1e-3))
    digits, seconds = datasets.load("digits"), 0.0

    class Adapter(nn.Module):
        """diffusers' network with our arguments; its time 0 is our 1."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, t: Tensor, condition: Tensor, condition_mask: Tensor | None = None) -> Tensor:
            return self.network(x, t - 1, class_labels=condition).sample

    model = diffusion.Denoiser(Adapter(), diffusion.linear(), "epsilon", (1, 8, 8))
    for done in itertools.count(1):
        x, labels = digits[torch.randint(len(digits), (128,))]
        began = time.perf_counter()
        step(2 * x - 1, labels)
        seconds += time.perf_counter() - began
        if watch("diffusers, the usual settings", done, seconds, lambda: model):
            break
    for row in rows.values():
        row["reached"] = row["Fréchet distance"] < FAR
    return rows


def live(quick: bool) -> Rows:
    """Part 3."""
    limit, per_class, seeds = (1.0, 3, 1) if quick else (45.0, 200, 3)
    digits, held_out = datasets.load("digits"), datasets.load("digits", "test")
    judge = KNeighborsClassifier(3).fit(digits[:][0].flatten(1).numpy(), digits.labels.numpy())
    asked = torch.arange(10 * per_class) % 10

    def agreement(images: Tensor, labels: Tensor) -> metrics.Score:
        read = torch.from_numpy(judge.predict(images.flatten(1).numpy()))
        return metrics.proportion(read == labels)

    rows: Rows = {}
    for seed in range(seeds):
        student = Student(seed, 100_000, lambda loop: loop.seconds / limit)  # the clock ends it
        student.loop.hooks = (_ends_after(limit),)
        with contextlib.suppress(Done):
            student.loop.run()
        drawn = [
            diffusion.sample(
                student.averaged(), len(asked), asked, guidance_scale=w, rng=torch.Generator().manual_seed(seed)
            )
            for w in (1.0, 2.0)
        ]
        plain, strong = (agreement(images, asked) for images in drawn)
        rows[f"seed {seed}"] = {
            "seconds": student.loop.seconds,
            "steps": student.loop.done,
            "agreement": plain,
            "agreement, guidance 2": strong,
        }
    rows["real digits"] = {"agreement": agreement(held_out[:][0], held_out.labels)}
    return rows


def _ends_after(seconds: float) -> Callable[[Loop], None]:
    def hook(loop: Loop) -> None:
        if loop.seconds >= seconds:
            raise Done

    return hook


@torch.no_grad()
def sampling(quick: bool, data: str, n: int, seeds: int, ancestral: int) -> Rows:
    """Part 5 of one data set; n images for each sampler and seed, and the calls of the reference."""
    n, ancestral, seeds = (20, 10, 1) if quick else (n, ancestral, seeds)
    # Heun's step is two calls, but for the last: 19 in all.
    ways = {f"DDPM, {ancestral} calls": (diffusion.ddpm, ancestral, 1.0)}
    ways |= {f"{name}, 20 calls": (sampler, 10 if name == "Heun" else 20, 1.0) for name, sampler in SAMPLERS.items()}
    times = diffusion.cosine().times(20, RHO)
    ways |= {f"{name}, ρ = {RHO:g}, 20 calls": (way, times, 1.0) for name, way in SAMPLERS.items() if "Solver" in name}
    if data == "mnist":
        ways[f"guidance {GUIDANCE}"] = diffusion.dpm_solver, 20, GUIDANCE
    look = metrics.extractor(data)
    real = look(datasets.load(data, "train" if data in metrics.UNLABELLED else "test")[:][0])
    rows: Rows = {}
    for name, way in ways.items():
        rows[name] = _drawn_by(data, look, real, n, seeds, *way)
        print(f"{data}: {name}: {rows[name]['each seed']}, {rows[name]['milliseconds an image']:.0f} ms", flush=True)
    return rows


def _drawn_by(
    data: str,
    look: Callable[[Tensor], Tensor],
    real: Tensor,
    n: int,
    seeds: int,
    sampler: Callable,
    steps: int | list[int],
    scale: float,
) -> dict[str, object]:
    """One way of sampling from one model: means over the seeds. `real` are the reference's features, as `look` sees."""
    device = runtime.device()
    model = zoo.load(SAMPLED[data], device)
    labels = None if data in metrics.UNLABELLED else torch.arange(n) % 10
    judge = None if labels is None else zoo.load(f"classifier_{data}", device)
    seconds, distances, hits = 0.0, [], []
    for seed in range(1, seeds + 1):
        began, rng = time.perf_counter(), torch.Generator(device).manual_seed(seed)
        with runtime.autocast(device):
            drawn = diffusion.sample(model, n, labels, sampler=sampler, steps=steps, guidance_scale=scale, rng=rng)
        seconds += time.perf_counter() - began
        distances.append(metrics.frechet_distance(real, look(drawn).to(real)))
        if judge is not None:
            hits.append(judge(drawn).argmax(1).cpu() == labels)
    return {
        "images": n * seeds,
        "milliseconds an image": 1000 * seconds / (n * seeds),
        "Fréchet distance": statistics.mean(distances),
        "each seed": ", ".join(f"{distance:.3f}" for distance in distances),
        "floor": metrics.frechet_floor(real, len(real), n),
    } | ({"agreement": metrics.proportion(torch.cat(hits))} if hits else {})


def memory(quick: bool) -> Rows:
    """The most tensors of X_t's size that live at a call of the model, in 20 and in 1000 steps."""
    schedule = diffusion.linear()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    rows: Rows = {}
    for name, sampler in SAMPLERS.items():
        row = {}
        for steps in (5, 20) if quick else (20, 1000):
            counts = []

            def model(x: Tensor, t: Tensor, condition: Tensor | None, counts: list[int] = counts) -> Tensor:
                if t[0] % 10 == 0 and t[0] <= 200:  # towards the end, where the most could have gathered
                    found = (thing for thing in gc.get_objects() if type(thing) is Tensor)
                    counts.append(sum(thing.shape == x.shape for thing in found))
                return 0.1 * x

            diffusion.last(sampler(model, x, schedule, schedule.times(steps)))
            row[f"{steps} steps"] = max(counts)
        rows[name] = row
    return rows


def bars(found: dict[str, Rows]) -> dict[str, bool]:
    """What must hold, and whether it does; only what was measured."""
    claims = {}
    if rows := found.get("step"):
        ratio = rows["ours, bfloat16 where it pays"]["ratio"]
        precision = "float32" if isinstance(runtime.autocast("cpu"), contextlib.nullcontext) else "bfloat16"
        claim = f"training step in {precision}: {ratio:.2f} times the images a second of diffusers in float32"
        claims[f"{claim} ≥ {STEP_BAR}"] = ratio >= STEP_BAR
    if rows := found.get("race"):
        ours, peer_ = rows["ours"], rows["diffusers, the usual settings"]
        first = ours["reached"] and (not peer_["reached"] or ours["seconds"] < peer_["seconds"])
        claims[f"race to a Fréchet distance of {FAR:g}: ours first"] = bool(first)
    if rows := found.get("live"):
        for column in ("agreement", "agreement, guidance 2"):
            worst = min(row[column].value for row in rows.values() if column in row and "seconds" in row)
            claims[f"live digits, {column}, the worst seed: {worst:.1%} ≥ {LIVE_BAR:.0%}"] = worst >= LIVE_BAR
    for data in SAMPLED:
        if rows := found.get(f"sampling {data}"):
            reference, *_ = rows
            fast = f"{FAST[data]}, 20 calls"
            ratio = rows[fast]["Fréchet distance"] / rows[reference]["Fréchet distance"]
            claim = f"{data}, {fast}: {ratio:.2f} times the Fréchet distance of {reference} ≤ {SAMPLING_BAR}"
            claims[claim] = ratio <= SAMPLING_BAR
            if guided := rows.get(f"guidance {GUIDANCE}"):
                right, far = guided["agreement"].value, guided["Fréchet distance"]
                claim = f"shipped digits, guidance {GUIDANCE}: {right:.1%} read as asked ≥ {SHIPPED_BAR:.0%}"
                best = json.loads(checkpoints.load(BEST_GAN)[1]["score"])["Fréchet distance"]["value"]
                claims[f"{claim}, Fréchet distance {far:.2f} < {best:.2f}"] = right >= SHIPPED_BAR and far < best
    if rows := found.get("memory"):
        flat = all(len(set(row.values())) == 1 for row in rows.values())
        claims["memory does not grow with the number of steps"] = flat
    return claims


PARTS = {"step": measure_step, "race": race, "live": live, "memory": memory}
NEED_PEER = ("step", "race")
NAMES = [*PARTS, "sampling"]


def main(arguments: list[str] | None = None) -> dict[str, bool]:
    """Measure, print a table a part and the bars, and write what was asked for; returns the bars."""
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="some of the parts")
    parser.add_argument("--images", type=int, default=5000, help="of part 5, for each sampler and seed; default 5000")
    parser.add_argument("--seeds", type=int, default=3, help="of part 5; default 3")
    parser.add_argument("--reference", type=int, default=1000, help="calls of part 5's reference; default 1000")
    parser.add_argument("--data", choices=SAMPLED, nargs="+", default=list(SAMPLED), help="of part 5; default all")
    options = parser.parse_args(arguments)
    found: dict[str, Rows] = {}
    jobs: dict[str, Callable[[bool], Rows]] = {}
    for part in options.only:
        if part in NEED_PEER and importlib.util.find_spec("diffusers") is None:
            print(f"{part}: left out, diffusers is not installed; pip install -e .[bench]", file=sys.stderr)
        elif part != "sampling":
            jobs[part] = PARTS[part]
        else:
            for data in options.data:
                if datasets.is_available(data):
                    given = {"n": options.images, "seeds": options.seeds, "ancestral": options.reference}
                    jobs[f"sampling {data}"] = functools.partial(sampling, data=data, **given)
                else:
                    print(f"sampling: {data} is left out, neither in COURSE_DATA nor downloaded", file=sys.stderr)
    for name, job in jobs.items():
        found[name] = job(options.quick)
        print(f"\n{name}\n{common.table(found[name])}", flush=True)
        common.write(options.json, {name: found[name]})  # a long run that is interrupted keeps what it has
    met = bars(found)
    print()
    common.report(met)
    common.write(options.json, {"bars": met})
    return met


if __name__ == "__main__":
    sys.exit(0 if all(main().values()) else 1)
