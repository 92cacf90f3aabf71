"""Trained networks by name: those that ship with the course, and those that torchvision trained on photographs.

`load(name)` is the one way to all of them. A topic registers its networks where it defines them:

    zoo.register("dcgan_mnist", partial(Generator, width=48))
    zoo.register("mask_rcnn", build, url=WEIGHTS.url, licence="BSD-3-Clause")
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import course_lib
from course_lib.base import checkpoints, runtime
from course_lib.base.datasets import DownloadError, OfflineError


@dataclass(frozen=True)
class Entry:
    """How to make a network.

    Attributes:
        build: gives the module; of a shipped network before training, else with its weights from torch.hub's cache.
        licence: of the weights.
        url: where torch.hub finds the weights; None: they ship with the course.
    """

    build: Callable[..., nn.Module]
    licence: str
    url: str | None


_ENTRIES: dict[str, Entry] = {}


def register(name: str, build: Callable[..., nn.Module], *, licence: str = "MIT", url: str | None = None) -> None:
    """Make a network known.

    Args:
        name: of its checkpoint, if it ships.
        build, licence, url: see `Entry`.
    """
    _ENTRIES[name] = Entry(build, licence, url)


def names() -> list[str]:
    """The names of all networks, sorted."""
    # Topics register when they are imported, so all of them are; only a name that is not known yet needs it.
    topics = (module.name for module in pkgutil.iter_modules(course_lib.__path__))
    for module in ("base.classifier", "base.features", *topics):
        importlib.import_module(f"course_lib.{module}")
    return sorted(_ENTRIES)


def entry(name: str) -> Entry:
    """What was registered under a name.

    Raises:
        ValueError: nothing; the message lists what is known.
    """
    if name not in _ENTRIES and name not in names():
        raise ValueError(f"expected a network of {', '.join(names())}; got {name!r}")
    return _ENTRIES[name]


def build(name: str, **options: object) -> nn.Module:
    """A shipped network before its training, in training mode, on the CPU.

    Args:
        name: see `names`.
        options: for its builder.

    Raises:
        ValueError: an unknown name, or a network that does not ship.
    """
    found = entry(name)
    if found.url:
        raise ValueError(f"{name} is trained by others and is only loaded, not built")
    return found.build(**options)


def load(name: str, device: torch.device | str | None = None, **options: object) -> nn.Module:
    """A trained network for use rather than training: on the device, in evaluation mode, frozen.

    Args:
        name: see `names`.
        device: by default `runtime.device()`.
        options: for its builder, such as `pooling` of the perceptual features.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the file of a shipped network is missing.
        CheckpointError: a file is damaged, or does not fit.
        OfflineError: the weights are not cached, and `COURSE_OFFLINE` forbids a download.
        DownloadError: they could not be downloaded.
    """
    found = entry(name)
    network = found.build(**options) if found.url is None else _from_hub(name, found, options)
    if found.url is None:
        checkpoints.restore(network, name)
    return network.to(device or runtime.device()).eval().requires_grad_(False)


def _from_hub(name: str, found: Entry, options: dict[str, object]) -> nn.Module:
    """Build with weights from torch.hub's cache, downloaded where missing; the file's name holds their hash."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(found.url).name
    cached = path.exists()
    if runtime.is_offline() and not cached:
        raise OfflineError(f"{name} is not cached as {path}, and COURSE_OFFLINE forbids a download")
    try:
        return found.build(**options)
    except Exception as error:  # URLError, a connection cut short, another hash; a damaged file, in many types
        if cached:
            raise checkpoints.CheckpointError(f"{path} is damaged ({error}); delete it and try again") from error
        raise DownloadError(f"{name} could not be downloaded from {found.url}: {error}") from error
