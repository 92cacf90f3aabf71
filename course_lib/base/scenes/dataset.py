"""Any number of scenes as a data set: the i-th depends on the seed and on i alone."""

import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from course_lib.base.scenes.drawing import draw_scene
from course_lib.base.scenes.rendering import Picture, render
from course_lib.base.scenes.world import THINGS, Scene

T = TypeVar("T")


class Scenes(Dataset):
    """`n` pictures, drawn whenever they are asked for.

    With torch's DataLoader and its worker processes give a `collate_fn`, such as `list`: pictures have different
    numbers of objects, so torch cannot stack their labels.

    Args:
        n: how many. size: of the pictures, 32 to 256 pixels.
        seed: other seeds give other scenes: take one for training and another for tests.
        objects, things: as for `draw_scene`.

    Raises:
        ValueError: n below 1, or what `draw_scene` refuses.
    """

    def __init__(
        self,
        n: int,
        size: int = 64,
        seed: int = 0,
        *,
        objects: tuple[int, int] = (1, 5),
        things: Sequence[str] = THINGS,
    ) -> None:
        if n < 1:
            raise ValueError(f"expected at least one scene; got {n}")
        self.n, self.size, self.seed, self.objects, self.things = n, size, seed, objects, tuple(things)
        self._start = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self.scene(0)  # refuses bad settings now

    def __len__(self) -> int:
        return self.n

    def scene(self, index: int) -> Scene:
        """The description of the picture at `index`; IndexError beyond the last."""
        i = operator.index(index)
        if not -self.n <= i < self.n:
            raise IndexError(f"expected an index below {self.n}; got {i}")
        # torch's generator takes 32 bits. Counting on from a random start, no two scenes of a set share theirs.
        generator = torch.Generator().manual_seed((self._start + i % self.n) % 2**32)
        return draw_scene(generator, self.size, objects=self.objects, things=self.things)

    def __getitem__(self, index: int) -> Picture:
        return render(self.scene(index))

    def render_all(self, keep: Callable[[Picture], T] = lambda picture: picture) -> list[T]:
        """All pictures, or what `keep` takes from each; with a progress bar if it takes more than 2 s.

        A picture of 64×64 with all its labels takes 0.15 MB.
        """
        return [keep(self[i]) for i in tqdm(range(self.n), "scenes", unit="scene", delay=2, leave=False)]
