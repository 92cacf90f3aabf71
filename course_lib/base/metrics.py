"""How good are generated pictures? Four questions, each asked of features, and each answer with its uncertainty.

| question | answer |
|---|---|
| Are the two clouds of features alike? | `frechet_distance` (as Gaussians), `kernel_distance` (as they are) |
| Is each generated picture like real ones? | precision of `precision_recall`; with labels, `share` of agreement |
| Is every kind of real picture generated? | recall of `precision_recall`; `share` of the commonest class |
| Do they "differ from those that exist"? | `memorisation`, against how near real, unseen pictures come |

`evaluate` asks all of them. Features are tensors (N, D), of the networks that `extractor` gives. The sums run in
float64, for a distance is what remains of large numbers that nearly cancel. Precision, recall and memorisation live in
`base/neighbours.py`, intervals in `base/scores.py`; all are to be had from here.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.base import classifier, datasets, features
from course_lib.base.neighbours import memorisation, precision_recall
from course_lib.base.scores import Score, bootstrap, exact_sets, interval, share

CHUNK = 1000  # rows of the kernel's matrix at a time: 10,000 × 10,000 of them would be 800 MB
CATS_LAYERS = ("relu3_1", "relu4_1")


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the two sets' means and covariances (Heusel et al. 2017, FID).

    |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½) (Dowson & Landau 1982). The root is taken of a symmetric matrix by its
    eigenvalues, so that singular covariances, of fewer pictures than features, need no care.

    Of N and M pictures it is too large on average, by about what `frechet_floor` gives. So compare only distances of
    the same numbers. `frechet_score` adds the interval.

    Args:
        real, fake: features (N, D) and (M, D).

    Returns:
        At least 0; in squared units of the features.

    Raises:
        ValueError: other shapes, fewer than 2 pictures, NaN or infinity.
    """
    real, fake = exact_sets(2, real=real, fake=fake)
    C1, C2 = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (real, fake))
    eigenvalues, V = torch.linalg.eigh(C1)
    root = (V * eigenvalues.clamp_min(0).sqrt()) @ V.T
    cross = torch.linalg.eigvalsh(root @ C2 @ root).clamp_min(0).sqrt().sum()
    difference = (real.mean(0) - fake.mean(0)).square().sum()
    return max(0.0, float(difference + C1.trace() + C2.trace() - 2 * cross))


def frechet_score(real: Tensor, fake: Tensor, repeats: int = 100, generator: torch.Generator | None = None) -> Score:
    """`frechet_distance` with the interval of `bootstrap`, cut off at 0; n is that of `fake`.

    The interval is for the distance of infinitely many pictures; the value, too large by the floor, may lie above it.
    For Gaussians (D = 16, n = 300 and 1,000) it held the truth in 98 to 100 % of 100 trials each.

    Args and errors: those of `frechet_distance` and `bootstrap`.
    """
    found = bootstrap(frechet_distance, real, fake, repeats=repeats, generator=generator)
    return Score(found.value, max(0.0, found.low), max(0.0, found.high), found.n)


def frechet_floor(real: Tensor, n: int, m: int) -> float:
    """The Fréchet distance to expect between n and m pictures that are *both* real: about the best that can be asked.

    To first order in 1/n, and for Gaussian features of covariance C with the eigenvalues λ,
    (1/n + 1/m) (5/4 tr C + ½ Σᵢⱼ λᵢλⱼ/(λᵢ + λⱼ)): tr C comes from the means; the rest from the covariances, whose
    errors E give ½ Σᵢⱼ Eᵢⱼ²/(λᵢ + λⱼ), with the expectation of Eᵢⱼ² being λᵢλⱼ(1 + δᵢⱼ)(1/n + 1/m). Features of real
    pictures have heavier tails: two halves of MNIST's test split are 0.157 apart, this says 0.131.

    Args:
        real: features (N, D), as many as there are.
        n, m: how many pictures would be compared; much more than D, for the first order to do.

    Raises:
        ValueError: as `frechet_distance`; n or m below 2.
    """
    (real,) = exact_sets(2, real=real)
    if min(n, m) < 2:
        raise ValueError(f"expected 2 pictures or more in each set; got {n} and {m}")
    eigenvalues = torch.linalg.eigvalsh(torch.cov(real.T).reshape(real.shape[1], -1)).clamp_min(0)
    pairs = eigenvalues[:, None] + eigenvalues
    products = eigenvalues[:, None] * eigenvalues / pairs.where(pairs > 0, 1)
    return float((1 / n + 1 / m) * (1.25 * eigenvalues.sum() + 0.5 * products.sum()))


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """The squared maximum mean discrepancy under the kernel (x·y/D + 1)³ (Bińkowski et al. 2018, KID).

    The unbiased estimate, from all pairs of different pictures: means of the kernel within each set, minus twice that
    between them. It has the same expectation for every number of pictures, 0 for equal distributions; so it may be
    negative. (The paper averages over subsets of 1000, which only saves time.)

    Args:
        real, fake: features (N, D) and (M, D).

    Raises:
        ValueError: other shapes, fewer than 2 pictures, NaN or infinity.
    """
    real, fake = exact_sets(2, real=real, fake=fake)
    return float(_discrepancies(real, fake, real.new_ones(1, len(real)), fake.new_ones(1, len(fake))))


def kernel_score(real: Tensor, fake: Tensor, repeats: int = 100, generator: torch.Generator | None = None) -> Score:
    """`kernel_distance` with its bootstrap interval; n is that of `fake`.

    `bootstrap` would take two copies of a picture for two pictures, though the estimate is unbiased only without such
    pairs. Here a resample is a row of weights, all of them are computed in one pass over the kernel, and a
    picture never meets itself. For Gaussians (D = 16, n = 300) it held the truth in 92 to 99 % of 80 trials each.

    Args and errors: those of `kernel_distance` and `bootstrap`.
    """
    real, fake = exact_sets(2, real=real, fake=fake)
    if repeats < 2:
        raise ValueError(f"expected repeats ≥ 2; got {repeats}")
    generator = generator or torch.Generator().manual_seed(0)
    weights = []
    for x in (real, fake):
        drawn = torch.randint(len(x), (repeats, len(x)), generator=generator)
        counts = torch.stack([torch.bincount(rows, minlength=len(x)) for rows in drawn])
        weights.append(torch.cat([torch.ones(1, len(x)), counts]).to(x))  # first the sample itself
    found = _discrepancies(real, fake, *weights).cpu()
    return interval(float(found[0]), found[1:], len(fake))


def _discrepancies(real: Tensor, fake: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """MMD² (R,) for R pairs of weights of the pictures, u (R, N) and v (R, M)."""

    def mean_kernel(x: Tensor, y: Tensor, a: Tensor, b: Tensor, same: bool) -> Tensor:
        total = 0
        for start in range(0, len(x), CHUNK):
            rows = slice(start, start + CHUNK)
            kernel = (x[rows] @ y.T / x.shape[1] + 1) ** 3
            if same:  # a picture is no other picture
                kernel.diagonal(start).zero_()
            total = total + ((a[:, rows] @ kernel) * b).sum(1)
        pairs = a.sum(1) * b.sum(1) - (a * b).sum(1) if same else a.sum(1) * b.sum(1)
        return total / pairs

    between = mean_kernel(real, fake, u, v, same=False)
    return mean_kernel(real, real, u, u, same=True) + mean_kernel(fake, fake, v, v, same=True) - 2 * between


@functools.lru_cache(maxsize=4)
def _network(name: str, device: torch.device) -> torch.nn.Module:
    return features.load("embedded", device=device) if name == "cats" else classifier.load(name, device)


def extractor(name: str) -> Callable[[Tensor], Tensor]:
    """The function by which pictures of a data set are compared: pictures (B, C, H, W) in [0, 1] → features (B, D).

    For labelled sets what their classifier's hidden layer sees, D = 64. For "cats" the means of the channels of the
    embedded VGG's relu3_1 and relu4_1, D = 320. It works in batches, on the pictures' device, without gradients.

    Raises:
        ValueError: an unknown name. Of the function: pictures of another shape or outside [0, 1], NaN.
    """
    if name != "cats" and name not in classifier.SHIPPED:
        raise ValueError(f"expected a data set of cats, {', '.join(classifier.SHIPPED)}; got {name!r}")

    @torch.no_grad()
    def extract(pictures: Tensor) -> Tensor:
        if pictures.ndim != 4 or not pictures.is_floating_point() or len(pictures) == 0:
            raise ValueError(f"expected pictures (B, C, H, W) as floats; got {tuple(pictures.shape)} {pictures.dtype}")
        low, high = float(pictures.min()), float(pictures.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
            raise ValueError(f"expected pictures in [0, 1]; got {low:g} … {high:g}; is it (x + 1) / 2 that is missing?")
        network = _network(name, pictures.device)
        if name != "cats":
            return torch.cat([network.features(part.float()) for part in pictures.split(100)])
        found = [network.extract(part.float(), CATS_LAYERS) for part in pictures.split(100)]
        return torch.cat([torch.cat([maps[k].mean((2, 3)) for k in CATS_LAYERS], 1) for maps in found])

    return extract


@functools.lru_cache(maxsize=2)
def _real(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features of the reference set, pictures of the test split, both shuffled, and the training split's pictures."""
    training, held_out = datasets.load(name)[:][0], datasets.load(name, "test")[:][0]
    # MNIST's first 5,000 test digits are the neater ones; a part of the set should be a fair one.
    held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))]
    reference = extractor(name)(training if name == "cats" else held_out)
    return reference, held_out, training


def evaluate(
    pictures: Tensor,
    name: str,
    labels: Tensor | None = None,
    repeats: int = 100,
    generator: torch.Generator | None = None,
) -> dict[str, Score]:
    """All scores of generated pictures, against the real ones of a data set.

    | score | of |
    |---|---|
    | `Fréchet distance` | all pictures against the whole test split |
    | `Fréchet floor` | `frechet_floor`: what as many real pictures could expect; no interval |
    | `kernel distance`, `precision`, `recall` | up to 5,000 pictures against as many of the test split |
    | `distance to training`, `copied` | `memorisation` in pixels: training split, up to 1,000 of test and generated |
    | `agreement` | with labels: the share that the classifier puts into the class asked for |
    | `largest class` | where there are classes: the share of the commonest, as the classifier sees them |

    Of "cats", whose test split may be too small (103 pictures in `cifar10_cats.npz`, fewer than features), the first
    three rows take the training split, as is usual for CIFAR-10; there a generator that copies wins.

    Args:
        pictures: (N, C, H, W) in [0, 1]; 1,000 or more, to be worth a number.
        name: of the data set.
        labels: (N,) int64, the classes asked for.
        repeats, generator: of the bootstrap.

    Raises:
        ValueError: as `extractor`; fewer than 4 pictures; labels of another shape, or for a set without classes.
    """
    found = extractor(name)(pictures)
    if labels is not None and (name == "cats" or labels.shape != (len(pictures),)):
        raise ValueError(f"expected a label for each of {len(pictures)} {name}; got {tuple(labels.shape)}")
    reference, held_out, training = (x.to(pictures.device) for x in _real(name))
    n, near = min(len(reference), len(pictures), 5000), min(len(pictures), 1000)
    floor = frechet_floor(reference, len(reference), len(pictures))
    precision, recall = precision_recall(reference[:n], found[:n])
    memory = memorisation(training, held_out[:near], pictures[:near].to(training), repeats, generator)
    scores = {
        "Fréchet distance": frechet_score(reference, found, repeats, generator),
        "Fréchet floor": Score(floor, floor, floor, len(pictures)),
        "kernel distance": kernel_score(reference[:n], found[:n], repeats, generator),
        "precision": precision,
        "recall": recall,
        "distance to training": memory.ratio,
        "copied": memory.copied,
    }
    if name != "cats":
        predicted = _network(name, pictures.device).logits(found).argmax(1)
        if labels is not None:
            scores["agreement"] = share(predicted == labels.to(predicted.device))
        scores["largest class"] = share(predicted == predicted.mode().values)
    return scores
