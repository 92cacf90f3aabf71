"""Drawing from any trained network: noise to start from, evaluation mode, and batches that fit into memory.

z = sampling.starting_noise(z, (generator.z_dim,), generator, rng)    # given, or a number of them
images = sampling.in_batches(generator, generator, z, labels)
"""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block. After it, also after an error, each submodule has its own mode again.

    `network.train()` would give all of them the same mode, also a BatchNorm that was frozen on purpose.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def starting_noise(
    x: Tensor | int, shape: Sequence[int], network: nn.Module, rng: torch.Generator | None = None
) -> Tensor:
    """The noise that sampling starts from, on the network's device: given, or drawn from N(0, I).

    Args:
        x: the noise (B, ...), also as a NumPy array, which keeps its dtype; or B, how much of it to draw, in float32.
        shape: of one sample, without B.
        network: its first parameter tells the device.
        rng: draws on its own device; None: torch's own.

    Returns:
        (B, *shape) where drawn; else x.

    Raises:
        ValueError: B is below 1.
        TypeError: x is neither a tensor nor a whole number.
    """
    device = next(network.parameters()).device
    x = torch.as_tensor(x)
    n = len(x) if x.ndim else operator.index(x.item())
    if n < 1:
        raise ValueError(f"expected at least one image; got {n}")
    if x.ndim == 0:
        x = torch.randn(n, *shape, generator=rng, device=device if rng is None else rng.device)
    return x.to(device)


@torch.no_grad()
def in_batches(
    network: nn.Module, draw: Callable[..., Tensor], x: Tensor, *more: Tensor | None, batch_size: int = 256
) -> Tensor:
    """`draw(x, *more)`, computed batch by batch without gradients, with the network in evaluation mode.

    Args:
        network: works in evaluation mode, so that an image does not depend on its neighbours.
        draw: gives (b, ...) for b rows of x and of each of `more`. Often the network itself.
        x: (B, ...), B ≥ 1, as `starting_noise` gives it.
        more: labels, conditions or noise: (B, ...), or (1, ...), the same for all images, or None, which stays None.
            They go to the device of x; NumPy arrays become tensors.
        batch_size: rows at a time.

    Returns:
        (B, ...).

    Raises:
        ValueError: one of `more` has another number of rows.
    """
    B, rows = len(x), [x]
    for each in more:
        if each is not None:
            each = torch.as_tensor(each, device=x.device)
            if each.ndim == 0 or len(each) not in (1, B):
                raise ValueError(f"expected labels, conditions or noise for {B} images; got {tuple(each.shape)}")
            each = each.expand(B, *each.shape[1:])
        rows.append(each)
    parts = []
    with evaluating(network):
        for start in range(0, B, batch_size):
            batch = slice(start, start + batch_size)
            parts.append(draw(*(None if each is None else each[batch] for each in rows)))
    return torch.cat(parts)
