"""How good are generated images? Four questions, each asked of features, and each answer with its uncertainty.

| question | answer |
|---|---|
| Are the two clouds of features alike? | `frechet_distance` (as Gaussians), `kernel_distance` (as they are) |
| Is each generated image like real ones? | precision of `generative_precision_recall`; with labels, agreement |
| Is every kind of real image generated? | `generative_precision_recall`: recall; `proportion` of the commonest class |
| Do they "differ from those that exist"? | `memorisation`, against how near real, unseen images come |

`evaluate` asks all of them. Features are tensors (N, D), of the networks that `extractor` gives. The sums run in
float64, because a distance is what remains of large numbers that nearly cancel. An answer is a `Score`: a number, its
95 % interval, by bootstrap or, for a proportion, in closed form, and its sample size.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base import classifier, datasets, zoo
from course_lib.base.images import check_range

RESAMPLED = 10  # images, or more: of 4, one resample in 64 is four times the same image; of 10, one in 10⁹
CHUNK = 1000  # rows of an N × N matrix at a time: 10,000 × 10,000 of them would be 800 MB
CATS_LAYERS = ("relu3_1", "relu4_1")
UNLABELLED = ("cat_faces",)  # sets without classes, whose judge is the embedded VGG


@dataclass(frozen=True)
class Score:
    """A number with its sample size `n` (of generated images, unless something else is said) and 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n:,}"

    def __float__(self) -> float:
        return self.value


def interval(value: float, repeats: Tensor, n: int) -> Score:
    """The score of `value` with its basic interval: as the repeats lie about the value, the value lies about the truth.

    Args:
        value: of the sample.
        repeats: (R,), the values of resamples.
        n: size of the sample.
    """
    low, high = torch.quantile(repeats.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(value, 2 * value - high, 2 * value - low, n)


def bootstrap(
    metric: Callable[..., float], *samples: Tensor, repeats: int = 100, rng: torch.Generator | None = None
) -> Score:
    """A metric's value and 95 % interval, by drawing from each sample as many rows again, with replacement.

    The interval is the *basic* one (Davison & Hinkley 1997, section 5.2): resampling adds the same upward bias to a
    Fréchet distance that sampling has added already, so the usual percentile interval lies twice too high. The basic
    one reflects it: it is an interval for the metric of *infinitely many* images, and a biased value may lie outside.
    (`scipy.stats.bootstrap` gives the same, but for numbers instead of rows.)

    Args:
        metric: takes the samples, gives a number.
        samples: tensors (N_i, ...), each resampled by itself; n of the score is the last one's.
        repeats: 100 are enough for an interval's first digit.
        rng: draws the rows; on the CPU. By default one with seed 0: the same samples, the same interval.

    Raises:
        ValueError: no samples, an empty one, or fewer than 2 repeats.
    """
    if not samples or repeats < 2 or min(map(len, samples)) == 0:
        raise ValueError(f"expected samples and repeats ≥ 2; got {[len(s) for s in samples]} and {repeats}")
    rng = rng or torch.Generator().manual_seed(0)
    values = []
    for _ in range(repeats):
        rows = [torch.randint(len(s), (len(s),), generator=rng).to(s.device) for s in samples]
        values.append(float(metric(*(s[r] for s, r in zip(samples, rows, strict=True)))))
    return interval(float(metric(*samples)), torch.tensor(values, dtype=torch.float64), len(samples[-1]))


def proportion(hits: Tensor) -> Score:
    """The proportion of True in booleans (N,), with Wilson's interval (1927).

    A proportion needs no bootstrap, whose interval has no width where all, or none, of the N hit.

    Args:
        hits: such as `predicted == asked`, the class agreement of a conditional generator, or
            `predicted == predicted.mode().values`, the proportion of the commonest class.

    Raises:
        ValueError: not booleans (N,), or none.
    """
    if not isinstance(hits, Tensor) or hits.dtype != torch.bool or hits.ndim != 1 or len(hits) == 0:
        given = f"{hits.dtype} {tuple(hits.shape)}" if isinstance(hits, Tensor) else type(hits).__name__
        raise ValueError(f"expected a tensor of booleans (N,); got {given}")
    from scipy.stats import binomtest  # an import of a second

    found = binomtest(int(hits.sum()), len(hits))
    low, high = found.proportion_ci(0.95, "wilson")
    return Score(found.statistic, float(low), float(high), len(hits))


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the two sets' means and covariances (Heusel et al. 2017, FID).

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½) (Dowson & Landau 1982). The root is taken of a symmetric matrix by its
    eigenvalues, so that singular covariances, of fewer images than features, need no care.

    Of N and M images it is too large on average, by about what `frechet_floor` gives. So compare only distances of
    the same numbers. `frechet_score` adds the interval.

    Args:
        real: features (N, D).
        fake: features (M, D).

    Returns:
        At least 0; in squared units of the features.

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, fewer than 2 images, NaN or infinity.
    """
    real, fake = _checked(2, torch.float64, real=real, fake=fake)
    C1, C2 = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (real, fake))
    eigenvalues, V = torch.linalg.eigh(C1)
    root = (V * eigenvalues.clamp_min(0).sqrt()) @ V.T
    cross = torch.linalg.eigvalsh(root @ C2 @ root).clamp_min(0).sqrt().sum()
    difference = (real.mean(0) - fake.mean(0)).square().sum()
    return max(0.0, float(difference + C1.trace() + C2.trace() - 2 * cross))


def frechet_score(real: Tensor, fake: Tensor, repeats: int = 100, rng: torch.Generator | None = None) -> Score:
    """`frechet_distance` with the interval of `bootstrap`, cut off at 0; n is that of `fake`.

    The interval is for the distance of infinitely many images; the value, too large by the floor, may lie above it.
    For Gaussians (D = 16, n = 300 and 1,000) it held the truth in 98 to 100 % of 100 trials each.

    Args:
        real: features (N, D).
        fake: features (M, D).
        repeats: resamples.
        rng: draws them; by default one with seed 0.

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, fewer than 2 images or repeats, NaN or infinity.
    """
    found = bootstrap(frechet_distance, real, fake, repeats=repeats, rng=rng)
    return Score(found.value, max(0.0, found.low), max(0.0, found.high), found.n)


def frechet_floor(real: Tensor, n: int, m: int) -> float:
    """The Fréchet distance to expect between n and m images that are *both* real: about the best that can be asked.

    To first order in 1/n, and for Gaussian features of covariance C with the eigenvalues λ,
    (1/n + 1/m) (5/4 tr C + ½ Σᵢⱼ λᵢλⱼ/(λᵢ + λⱼ)): tr C comes from the means; the rest from the covariances, whose
    errors E give ½ Σᵢⱼ Eᵢⱼ²/(λᵢ + λⱼ), with the expectation of Eᵢⱼ² being λᵢλⱼ(1 + δᵢⱼ)(1/n + 1/m). Features of real
    images have heavier tails: two halves of MNIST's test split are 0.157 apart, this says 0.131.

    Args:
        real: features (N, D), as many as there are.
        n: how many images would be compared on one side; much more than D, for the first order to do.
        m: how many on the other side.

    Raises:
        TypeError: no tensor of floats.
        ValueError: another shape, fewer than 2 images, n or m below 2, NaN or infinity.
    """
    (real,) = _checked(2, torch.float64, real=real)
    if min(n, m) < 2:
        raise ValueError(f"expected 2 images or more in each set; got {n} and {m}")
    eigenvalues = torch.linalg.eigvalsh(torch.cov(real.T).reshape(real.shape[1], -1)).clamp_min(0)
    pairs = eigenvalues[:, None] + eigenvalues
    products = eigenvalues[:, None] * eigenvalues / pairs.where(pairs > 0, 1)
    return float((1 / n + 1 / m) * (1.25 * eigenvalues.sum() + 0.5 * products.sum()))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """The squared maximum mean discrepancy under the kernel (x·y/D + 1)³ (Bińkowski et al. 2018, KID).

    The unbiased estimate, from all pairs of different images: means of the kernel within each set, minus twice that
    between them. It has the same expectation for every number of images, 0 for equal distributions; so it may be
    negative. (The paper averages over subsets of 1000, which only saves time.)

    Args:
        real: features (N, D).
        fake: features (M, D).

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, fewer than 2 images, NaN or infinity.
    """
    real, fake = _checked(2, torch.float64, real=real, fake=fake)
    return float(_discrepancies(real, fake, real.new_ones(1, len(real)), fake.new_ones(1, len(fake))))


def kernel_score(real: Tensor, fake: Tensor, repeats: int = 100, rng: torch.Generator | None = None) -> Score:
    """`kernel_distance` with its bootstrap interval; n is that of `fake`.

    `bootstrap` would take two copies of an image for two images, though the estimate is unbiased only without such
    pairs. Here a resample is a row of weights, all of them are computed in one pass over the kernel, and an
    image never meets itself. For Gaussians (D = 16, n = 300) it held the truth in 92 to 99 % of 80 trials each.

    Args:
        real: features (N, D).
        fake: features (M, D).
        repeats: resamples.
        rng: draws them; by default one with seed 0.

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, fewer than 10 images (a resample must hold two different ones) or 2 repeats, NaN or
            infinity.
    """
    real, fake = _checked(RESAMPLED, torch.float64, real=real, fake=fake)
    if repeats < 2:
        raise ValueError(f"expected repeats ≥ 2; got {repeats}")
    rng = rng or torch.Generator().manual_seed(0)
    weights = []
    for x in (real, fake):
        drawn = torch.randint(len(x), (repeats, len(x)), generator=rng)
        counts = torch.stack([torch.bincount(rows, minlength=len(x)) for rows in drawn])
        weights.append(torch.cat([torch.ones(1, len(x)), counts]).to(x))  # first the sample itself
    found = _discrepancies(real, fake, *weights).cpu()
    return interval(float(found[0]), found[1:], len(fake))


def _discrepancies(real: Tensor, fake: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """MMD² (R,) for R pairs of weights of the images, u (R, N) and v (R, M)."""

    def mean_kernel(x: Tensor, y: Tensor, a: Tensor, b: Tensor, same: bool) -> Tensor:
        total = 0
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
            if same:  # an image is no other image
                kernel.diagonal(start).zero_()
            total = total + ((a[:, rows] @ kernel) * b).sum(1)
        pairs = a.sum(1) * b.sum(1) - (a * b).sum(1) if same else a.sum(1) * b.sum(1)
        return total / pairs

    between = mean_kernel(real, fake, u, v, same=False)
    return mean_kernel(real, real, u, u, same=True) + mean_kernel(fake, fake, v, v, same=True) - 2 * between


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|xᵢ − yⱼ|², (N, M), through one matrix product."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min_(0)


def generative_precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Score, Score]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A set's region is made of balls around its images' features, each reaching to its k-th nearest neighbour in the
    set. Precision is the proportion of generated images in the region of the real ones, recall the proportion of real
    images in the region of the generated ones. More images make smaller balls: compare equal numbers, N = M.
    Two samples of one distribution do not reach 1.

    Args:
        real: features (N, D).
        fake: features (M, D).
        k: neighbours; 3 in the paper.

    Returns:
        Precision (its n is M) and recall (its n is N). The intervals are `proportion`'s, and take the region as given.

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, k below 1, not more than k images in a set, NaN or infinity.
    """
    if k < 1:
        raise ValueError(f"expected k ≥ 1 neighbours; got {k}")
    real, fake = _checked(k + 1, torch.float64, real=real, fake=fake)
    real, fake = real - real.mean(0), fake - real.mean(0)  # small numbers cancel less

    def radii(x: Tensor) -> Tensor:
        # The nearest of all is the image itself.
        return torch.cat([_squared_distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(CHUNK)])

    def inside(x: Tensor, centres: Tensor) -> Score:
        reach = radii(centres)
        return proportion(torch.cat([(_squared_distances(part, centres) <= reach).any(1) for part in x.split(CHUNK)]))

    return inside(fake, real), inside(real, fake)


@dataclass(frozen=True)
class Memorisation:
    """What `memorisation` found.

    Attributes:
        nearest: (N,) int64, which training image comes nearest to each generated one.
        distances: (N,), how near.
        relative: (N,), the same divided by the distance to the second nearest training image: 0 for a copy.
        ratio: median of `distances` over that of held-out real images: about 1 for new images, 0 for copies.
        copied: proportion of generated images whose `relative` is below that of 95 % of the held-out ones: about
            0.05 for new images, 1 for copies.
    """

    nearest: Tensor
    distances: Tensor
    relative: Tensor
    ratio: Score
    copied: Score


def memorisation(
    training: Tensor, held_out: Tensor, fake: Tensor, repeats: int = 100, rng: torch.Generator | None = None
) -> Memorisation:
    """Do generated images "differ from those that exist", as much as real ones that were not trained on?

    `ratio` compares plain distances, which are small for blurred images, too (unseen MNIST digits through a 3×3 mean:
    0.91), and for simple ones. `copied` therefore asks each image how much nearer one training image is than the
    next. Of copies with noise (σ = 0.1), it finds 99 %; "nearer than 95 % of the held-out ones" would find 49 %.

    Args:
        training: (N₀, ...), two images or more; pixels or features, as of the other two. They are flattened here.
        held_out: (M, ...), real images that are not among them.
        fake: (N, ...), generated images.
        repeats: resamples for the interval of `ratio`. That of `copied` is `proportion`'s; both take the training set
            as given, and the latter the held-out images, too.
        rng: draws the resamples; by default one with seed 0.

    Raises:
        TypeError: no tensors of floats.
        ValueError: other shapes, an empty set, NaN or infinity.
    """
    _check_floats(training=training, held_out=held_out, fake=fake)
    sets = {"training": training, "held_out": held_out, "fake": fake}
    if len({x.shape[1:] for x in sets.values()}) > 1 or min(map(len, sets.values())) == 0 or len(training) < 2:
        shapes = {name: tuple(x.shape) for name, x in sets.items()}
        raise ValueError(f"expected images of one shape, two or more of them in training; got {shapes}")
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in sets.values()), torch.float32)
    training, held_out, fake = _checked(1, dtype, **{name: x.flatten(1) for name, x in sets.items()})
    _, reference, reference_relative = _neighbours(training, held_out)
    nearest, distances, relative = _neighbours(training, fake)

    def median_ratio(reference: Tensor, distances: Tensor) -> float:
        return float(distances.median() / reference.median().clamp_min(1e-12))

    ratio = bootstrap(median_ratio, reference, distances, repeats=repeats, rng=rng)
    copied = proportion(relative < torch.quantile(reference_relative, 0.05))
    return Memorisation(nearest, distances, relative, ratio, copied)


def _neighbours(training: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of x the nearest of the training set, its distance, and that over the distance to the second."""
    length = training.square().sum(1)
    two = torch.cat([(length - 2 * part @ training.T).topk(2, largest=False).indices for part in x.split(CHUNK // 4)])
    # The matrix product rounds; the differences themselves do not: a copy is at distance 0.
    distances, order = (x[:, None] - training[two]).norm(dim=2).double().cpu().sort(dim=1)
    nearest = two.cpu().gather(1, order)[:, 0]
    return nearest, distances[:, 0], distances[:, 0] / distances[:, 1].clamp_min(1e-12)


def _checked(least: int, dtype: torch.dtype, **sets: Tensor) -> list[Tensor]:
    """The sets of features (N, D), detached and in one dtype, after a look at them.

    They come to the CPU from Apple's GPUs, which lack float64.

    Raises:
        TypeError: no tensors of floats.
        ValueError: not all (N, D) with one D, fewer than `least` rows, NaN or infinity.
    """
    _check_floats(**sets)
    shapes = {name: tuple(x.shape) for name, x in sets.items()}
    if any(x.ndim != 2 for x in sets.values()) or len({x.shape[1:] for x in sets.values()}) > 1:
        raise ValueError(f"expected features (N, D) of one D; got {shapes}")
    if any(len(x) < least for x in sets.values()):
        raise ValueError(f"expected {least} images or more in each set; got {shapes}")
    for name, x in sets.items():
        if not x.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity in {int((~x.isfinite()).any(1).sum())} of {len(x)} rows")
    return [x.detach().to("cpu" if x.device.type == "mps" else x.device, dtype) for x in sets.values()]


def _check_floats(**sets: Tensor) -> None:
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in sets.values()):
        given = (f"{name}: {x.dtype if isinstance(x, Tensor) else type(x).__name__}" for name, x in sets.items())
        raise TypeError(f"expected tensors of floats; got {', '.join(given)}")


@functools.lru_cache(maxsize=4)
def _network(name: str, device: torch.device) -> torch.nn.Module:
    return zoo.load("features", device=device) if name in UNLABELLED else zoo.load(f"classifier_{name}", device)


def extractor(name: str) -> Callable[[Tensor], Tensor]:
    """The function by which images of a data set are compared: images (B, C, H, W) in [0, 1] → features (B, D).

    For labelled sets what their classifier's hidden layer sees, D = 64. For faces of cats the means of the
    channels of the embedded VGG's relu3_1 and relu4_1, D = 320. It works in batches, on the images' device, without
    gradients.

    Raises:
        ValueError: an unknown name. From the function: images of another shape or outside [0, 1], NaN.
        TypeError: from the function: images that are no tensor of floats.
    """
    if name not in UNLABELLED and name not in classifier.JUDGED:
        raise ValueError(f"expected a data set of {', '.join([*UNLABELLED, *classifier.JUDGED])}; got {name!r}")

    @torch.no_grad()
    def extract(images: Tensor) -> Tensor:
        check_range(images)
        network = _network(name, images.device)
        if name not in UNLABELLED:
            return torch.cat([network.features(part) for part in images.split(100)])
        found = [network.extract(part, CATS_LAYERS) for part in images.split(100)]
        return torch.cat([torch.cat([maps[k].mean((2, 3)) for k in CATS_LAYERS], 1) for maps in found])

    return extract


@functools.lru_cache(maxsize=2)
def _real(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the reference set, images of the test split, both shuffled, and the training split's images."""
    training, held_out = datasets.load(name)[:][0], datasets.load(name, "test")[:][0]
    # MNIST's first 5,000 test digits are the neater ones; a part of the set should be a fair one.
    held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))]
    reference = extractor(name)(training if name in UNLABELLED else held_out)
    return reference, held_out, training


def evaluate(
    images: Tensor, name: str, labels: Tensor | None = None, repeats: int = 100, rng: torch.Generator | None = None
) -> dict[str, Score]:
    """All scores of generated images, against the real ones of a data set.

    | score | of |
    |---|---|
    | `Fréchet distance` | all images against the whole test split |
    | `Fréchet floor` | `frechet_floor`: what as many real images could expect; no interval |
    | `kernel distance`, `precision`, `recall` | up to 5,000 images against as many of the test split |
    | `distance to training`, `copied` | `memorisation` in pixels: training split, up to 1,000 of test and generated |
    | `agreement` | with labels: the proportion that the classifier puts into the class asked for |
    | `largest class` | where there are classes: the proportion of the commonest, as the classifier sees them |

    Of the faces of cats, whose test split is small (838 images for 320 features), the first three rows take the
    training split, as is usual for small sets; there a generator that copies wins.

    Args:
        images: (N, C, H, W) in [0, 1]; 10 or more, and to be worth a number 1,000 or more.
        name: of the data set.
        labels: (N,) int64, the classes asked for.
        repeats: resamples for the intervals of the distances.
        rng: draws them; by default one with seed 0.

    Raises:
        TypeError: images that are no tensor of floats.
        ValueError: an unknown name; images of another shape, outside [0, 1] or fewer than 10; labels of another shape,
            or for a set without classes.
    """
    found = extractor(name)(images)
    if labels is not None and (name in UNLABELLED or labels.shape != (len(images),)):
        raise ValueError(f"expected a label for each of {len(images)} {name}; got {tuple(labels.shape)}")
    reference, held_out, training = (x.to(images.device) for x in _real(name))
    n, near = min(len(reference), len(images), 5000), min(len(images), 1000)
    floor = frechet_floor(reference, len(reference), len(images))
    precision, recall = generative_precision_recall(reference[:n], found[:n])
    memory = memorisation(training, held_out[:near], images[:near].to(training), repeats, rng)
    scores = {
        "Fréchet distance": frechet_score(reference, found, repeats, rng),
        "Fréchet floor": Score(floor, floor, floor, len(images)),
        "kernel distance": kernel_score(reference[:n], found[:n], repeats, rng),
        "precision": precision,
        "recall": recall,
        "distance to training": memory.ratio,
        "copied": memory.copied,
    }
    if name not in UNLABELLED:
        predicted = _network(name, images.device).logits(found).argmax(1)
        if labels is not None:
            scores["agreement"] = proportion(predicted == labels.to(predicted.device))
        scores["largest class"] = proportion(predicted == predicted.mode().values)
    return scores
