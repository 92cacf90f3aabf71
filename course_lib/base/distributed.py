"""One process or several: what the training loop asks of Hugging Face Accelerate, and nothing where it runs alone.

    accelerate launch --multi_gpu --num_processes 2 recipes/gan.py                      # a GPU each
    COURSE_DEVICE=cpu accelerate launch --multi_gpu --num_processes 2 recipes/gan.py    # shares of one CPU

start several processes of the same script (in the second line `--multi_gpu` only means several: with `--cpu`,
Accelerate starts more than one only through MPI). Each computes its slice of every batch; here lie the few things
they have to tell each other. Accelerate is imported only by a process that was launched so; every other run is alone
and does not need it.
"""

import functools
import os
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from course_lib.base import runtime


@functools.cache
def _together() -> Any:
    """Accelerate's view of the processes, or None in a process that is alone; the first call connects them."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError("to train in several processes: pip install accelerate") from error
    return PartialState(cpu=runtime.device().type == "cpu")  # also chooses this process's GPU


def count() -> int:
    """How many processes train together; 1 unless started by `accelerate launch`."""
    return 1 if _together() is None else _together().num_processes


def index() -> int:
    """This process's number, from 0."""
    return 0 if _together() is None else _together().process_index


def is_main() -> bool:
    """Whether this is process 0, the one that writes, prints and shows the bar."""
    return index() == 0


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the processes; all travel in one message.

    Args:
        tensors: floats of any shapes, the same ones in every process, on one device.
    """
    if count() == 1 or not (tensors := list(tensors)):
        return
    from accelerate.utils import reduce

    mean = reduce(torch.cat([tensor.reshape(-1) for tensor in tensors]), "mean")
    for tensor, part in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by process 0's; all travel as bytes in one message, so any dtypes may mix."""
    if count() == 1 or not (tensors := [tensor for tensor in tensors if tensor.numel()]):
        return
    from accelerate.utils import broadcast

    parts = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors]
    sent = broadcast(torch.cat(parts), from_process=0)
    for tensor, part in zip(tensors, sent.split([len(part) for part in parts]), strict=True):
        tensor.copy_(part.clone().view(tensor.dtype).view(tensor.shape))  # a clone, since views must be aligned


def broadcast(thing: Any) -> Any:
    """What process 0 gave, for all of them."""
    if count() == 1:
        return thing
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([thing], from_process=0)[0]


def gather(thing: Any) -> list[Any]:
    """What each process gave, in their order, for all of them."""
    if count() == 1:
        return [thing]
    from accelerate.utils import gather_object

    return gather_object([thing])


def part_ways(generators: Iterable[torch.Generator]) -> None:
    """Give every process but the first other random numbers: equal noise in all would be noise drawn once.

    Python's, NumPy's and torch's own generators, and those given, are seeded anew by their seed and `index()`.
    """
    if is_main():
        return
    shift = 1_000_003 * index()
    for generator in generators:
        generator.manual_seed(generator.initial_seed() + shift)
    seed = torch.initial_seed() + shift
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
