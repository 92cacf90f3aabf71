"""What nearest neighbours tell about generated pictures: precision, recall, and whether they were seen before.

Used through `base/metrics.py`, where the other questions to a generator are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from course_lib.base.scores import Score, bootstrap, check_sets, exact_sets, share

CHUNK = 1000  # rows of a matrix of distances at a time: 10,000 × 10,000 of them would be 800 MB


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|xᵢ − yⱼ|², (N, M), through one matrix product."""
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min_(0)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Score, Score]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2).

    A set's region is made of balls around its pictures' features, each reaching to its k-th nearest neighbour in the
    set. Precision is the share of generated pictures in the region of the real ones, recall the share of real
    pictures in the region of the generated ones. More pictures make smaller balls: compare equal numbers, N = M.
    Two samples of one distribution do not reach 1.

    Args:
        real, fake: features (N, D) and (M, D).
        k: neighbours; 3 in the paper.

    Returns:
        Precision (its n is M) and recall (its n is N). The intervals are `share`'s, and take the region as given.

    Raises:
        ValueError: other shapes, k below 1, not more than k pictures in a set, NaN or infinity.
    """
    if k < 1:
        raise ValueError(f"expected k ≥ 1 neighbours; got {k}")
    real, fake = exact_sets(k + 1, real=real, fake=fake)
    real, fake = real - real.mean(0), fake - real.mean(0)  # small numbers cancel less

    def radii(x: Tensor) -> Tensor:
        # The nearest of all is the picture itself.
        return torch.cat([_squared_distances(part, x).kthvalue(k + 1, dim=1).values for part in x.split(CHUNK)])

    def inside(x: Tensor, centres: Tensor) -> Score:
        reach = radii(centres)
        return share(torch.cat([(_squared_distances(part, centres) <= reach).any(1) for part in x.split(CHUNK)]))

    return inside(fake, real), inside(real, fake)


@dataclass(frozen=True)
class Memorisation:
    """What `memorisation` found.

    Attributes:
        nearest: (N,) int64, which training picture comes nearest to each generated one.
        distances: (N,), how near.
        relative: (N,), the same divided by the distance to the second nearest training picture: 0 for a copy.
        ratio: median of `distances` over that of held-out real pictures: about 1 for fresh pictures, 0 for copies.
        copied: share of generated pictures whose `relative` is below that of 95 % of the held-out ones: about 0.05 for
            fresh pictures, 1 for copies.
    """

    nearest: Tensor
    distances: Tensor
    relative: Tensor
    ratio: Score
    copied: Score


def memorisation(
    training: Tensor,
    held_out: Tensor,
    fake: Tensor,
    repeats: int = 100,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Do generated pictures "differ from those that exist", as much as real ones that were not trained on?

    `ratio` compares plain distances, which are small for blurred pictures, too (unseen MNIST digits through a 3×3 mean:
    0.91), and for simple ones. `copied` therefore asks each picture how much nearer one training picture is than the
    next. Of copies with noise (σ = 0.1), it finds 99 %; "nearer than 95 % of the held-out ones" would find 49 %.

    Args:
        training: (N₀, ...), two pictures or more. held_out: (M, ...) real pictures that are not among them.
            fake: (N, ...). Pixels or features, all of one shape, flattened here.
        repeats, generator: of the bootstrap of `ratio`. The interval of `copied` is that of `share`; both take the
            training set as given, and the latter the held-out pictures, too.

    Raises:
        ValueError: other shapes, an empty set, NaN or infinity.
    """
    sets = {"training": training, "held_out": held_out, "fake": fake}
    if len({x.shape[1:] for x in sets.values()}) > 1 or min(map(len, sets.values())) == 0 or len(training) < 2:
        shapes = {name: tuple(x.shape) for name, x in sets.items()}
        raise ValueError(f"expected pictures of one shape, two or more of them in training; got {shapes}")
    training, held_out, fake = check_sets(1, **{name: x.flatten(1) for name, x in sets.items()})
    _, reference, reference_relative = _neighbours(training, held_out)
    nearest, distances, relative = _neighbours(training, fake)
    ratio = bootstrap(_median_ratio, reference, distances, repeats=repeats, generator=generator)
    return Memorisation(nearest, distances, relative, ratio, share(relative < torch.quantile(reference_relative, 0.05)))


def _median_ratio(reference: Tensor, distances: Tensor) -> float:
    return float(distances.median() / reference.median().clamp_min(1e-12))


def _neighbours(training: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row of x the nearest of the training set, its distance, and that over the distance to the second."""
    length = training.square().sum(1)
    two = torch.cat([(length - 2 * part @ training.T).topk(2, largest=False).indices for part in x.split(CHUNK // 4)])
    # The matrix product rounds; the differences themselves do not: a copy is at distance 0.
    distances, order = (x[:, None] - training[two]).norm(dim=2).double().cpu().sort(dim=1)
    nearest = two.cpu().gather(1, order)[:, 0]
    return nearest, distances[:, 0], distances[:, 0] / distances[:, 1].clamp_min(1e-12)
