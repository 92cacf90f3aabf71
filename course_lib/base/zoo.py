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
from course_lib.base import checkpoints, datasets, runtime


@dataclass(frozen=True)
class Entry:
    """How to make a network.

    Attributes:
        build: gives the module: one that ships, untrained; one of others, with its weights from torch.hub's cache.
        url: of the weights of others, as torch.hub knows it; None for a network that ships with the course.
        licence: of the weights.
    """

    build: Callable[..., nn.Module]
    url: str | None
    licence: str


_ENTRIES: dict[str, Entry] = {}


def register(name: str, build: Callable[..., nn.Module], *, url: str | None = None, licence: str = "MIT") -> None:
    """Make a network known.

    Args:
        name: for `load`; of a network that ships, also of its file.
        build: see `Entry`.
        url: see `Entry`.
        licence: see `Entry`; the course's own is MIT.
    """
    _ENTRIES[name] = Entry(build, url, licence)


def names() -> list[str]:
    """The names of all networks, sorted."""
    # Topics register their networks when they are imported. So all of them are imported here.
    topics = (module.name for module in pkgutil.iter_modules(course_lib.__path__))
    for module in ("base.classifier", "base.features", *topics):
        importlib.import_module(f"course_lib.{module}")
    return sorted(_ENTRIES)


def entry(name: str) -> Entry:
    """What was registered under a name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
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
    """A trained network, ready for use: on the device, in evaluation mode, frozen.

    A damaged file in torch.hub's cache is downloaded again.

    Args:
        name: see `names`.
        device: by default `runtime.device()`.
        options: for its builder, such as `pooling` of the perceptual features.

    Raises:
        ValueError: an unknown name.
        FileNotFoundError: the file of a shipped network is missing.
        CheckpointError: the file of a shipped network is damaged, or does not fit.
        OfflineError: others' weights are not in torch.hub's cache, or damaged there, and there is no connection or
            `COURSE_OFFLINE` forbids one.
        DownloadError: they could not be downloaded.
    """
    found = entry(name)
    if found.url is None:
        network = found.build(**options)
        checkpoints.restore(network, name)
    else:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(found.url).name
        datasets.fetch(found.url, path, f"sha256:{path.stem.rpartition('-')[2]}")  # the name ends with the hash
        network = found.build(**options)
    return network.to(device or runtime.device()).eval().requires_grad_(False)
