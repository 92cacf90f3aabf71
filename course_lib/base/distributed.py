"""One process or several: what the training loop asks of Hugging Face Accelerate, and nothing where it runs alone.

    accelerate launch --multi_gpu --num_processes 2 recipes/gan.py                      # a GPU each
    COURSE_DEVICE=cpu accelerate launch --multi_gpu --num_processes 2 recipes/gan.py    # two processes on one CPU

start several processes of the same script (in the second line `--multi_gpu` only means several: with `--cpu`,
Accelerate starts more than one only through MPI). Each computes its slice of every batch. The functions here are the
few things that the processes tell each other. Only a process that was launched so imports Accelerate.
"""

import functools
import os
import types
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from course_lib.base import runtime


@functools.cache
def processes() -> Any:
    """All processes that train together, as Accelerate's `PartialState`; the first call connects them.

    Its `num_processes` is 1 unless started by `accelerate launch`; `process_index` is from 0, and `is_main_process`
    says whether it is 0, the one that writes, prints and shows the bar.
    """
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return types.SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    from accelerate import PartialState

    return PartialState(cpu=runtime.device().type == "cpu")  # also chooses this process's GPU


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the processes; all travel in one message.

    Args:
        tensors: floats of any shapes, the same ones in every process, on one device.
    """
    if processes().num_processes == 1 or not (tensors := list(tensors)):
        return
    from accelerate.utils import reduce

    mean = reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), "mean")
    for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, of any shape and dtype, in place, by that of process 0."""
    if processes().num_processes > 1:
        from accelerate.utils import broadcast

        broadcast(list(tensors))


def gather(thing: Any) -> list[Any]:
    """What each process gave, in their order, for all of them; it can be pickled."""
    if processes().num_processes == 1:
        return [thing]
    from accelerate.utils import gather_object

    return gather_object([thing])


def use_other_randomness(rngs: Iterable[torch.Generator]) -> None:
    """Seed the rngs given, and Python's, NumPy's and torch's own, anew in every process but the first.

    Otherwise all processes would draw the same noise, as if each noise were drawn once.
    """
    if shift := 1_000_003 * processes().process_index:
        from accelerate.utils import set_seed

        for rng in rngs:
            rng.manual_seed(rng.initial_seed() + shift)
        set_seed((torch.initial_seed() + shift) % 2**32)
