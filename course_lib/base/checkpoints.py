"""Trained weights as safetensors files that carry their own history: recipe, seed, score and a checksum.

A safetensors file is a JSON header and raw numbers, so loading one runs no code, unlike a pickled `.pth`.
The format cannot tell that a byte of a weight has changed; so `save` stores a SHA-256 and `load` checks it.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

REQUIRED = ("recipe", "score", "seed", "sha256")


class CheckpointError(ValueError):
    """A checkpoint that is damaged, lacks its history, or does not fit the module it is loaded into."""


def folder() -> Path:
    """Where the shipped checkpoints lie: inside the installed package, else in the repository."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "data" / "checkpoints"
    return inside if inside.is_dir() else package.parent / "data" / "checkpoints"


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """Write a whole file or none: into a neighbour first, then renamed. Creates the folder where missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with neighbour.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # onto the disk: after a power cut the new name must not lead to an empty file
        os.replace(neighbour, path)
    finally:
        neighbour.unlink(missing_ok=True)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata without its digest, and of every tensor's name, dtype, shape and bytes."""
    facts = {key: value for key, value in metadata.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(
    path: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    *,
    recipe: str,
    seed: int,
    score: str | Mapping,
    **more: object,
) -> None:
    """Write tensors and their history to a `.safetensors` file; an older file gives way only to a whole one.

    Args:
        path: ends in `.safetensors`; its folder is created where missing.
        tensors: for instance a `state_dict()`, of any shapes, dtypes and devices; every number finite.
        recipe: the command that made them.
        seed: the seed it ran with.
        score: what the result reached, as text or as named numbers.
        more: further facts. Whatever is not text is stored as JSON, since safetensors holds only text, and
            numbers of NumPy or torch as Python's.

    Raises:
        ValueError: another suffix, a weight that is NaN or infinite, or a fact called `sha256`.
        TypeError: a value that is not a tensor, or a fact that JSON cannot hold.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"a checkpoint's name must end in .safetensors; got {os.fspath(path)!r}")
    if "sha256" in more:
        raise ValueError("sha256 is computed here and cannot be given")
    own = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"expected tensors; {name!r} is {type(tensor).__name__}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"the weights of {name!r} are not all finite; nothing was saved")
        # A copy each, because safetensors refuses tensors that share memory, such as tied weights.
        own[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    facts = {"recipe": recipe, "seed": seed, "score": score, **more}
    metadata = {key: fact if isinstance(fact, str) else json.dumps(fact, default=_plain) for key, fact in facts.items()}
    metadata["sha256"] = _digest(own, metadata)
    write_atomically(path, safetensors.torch.save(own, metadata))


def _plain(fact: object) -> object:
    """NumPy's and torch's numbers as Python's own, for JSON."""
    if isinstance(fact, np.generic) or (isinstance(fact, Tensor) and fact.ndim == 0):
        return fact.item()
    raise TypeError(f"a fact must be text or what JSON can hold; got {type(fact).__name__}")


def load(name_or_path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors (on the CPU, in the dtypes they were saved in) and the metadata of a checkpoint.

    Args:
        name_or_path: a shipped checkpoint's bare name, such as `"features"`, or the path of a file.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not safetensors, is cut or changed, or was not written by `save`.
    """
    path = Path(name_or_path)
    if name_or_path == path.stem:  # neither a folder nor a suffix: a shipped checkpoint
        path = folder() / f"{name_or_path}.safetensors"
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        header_bytes = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
    except Exception as error:  # a damaged header surfaces as many types, some of them safetensors' own
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if missing := [key for key in REQUIRED if key not in metadata]:
        raise CheckpointError(f"{path} lacks the metadata {', '.join(missing)}; was it written by save()?")
    if (digest := _digest(tensors, metadata)) != metadata["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is {digest}, expected {metadata['sha256']}")
    return tensors, metadata


def differences(there: Mapping[str, str], here: Mapping[str, str], most: int = 4) -> str:
    """In which facts two descriptions differ, as text; empty if in none. At most `most` are spelt out."""
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    found = [f"{name} is {there.get(name, 'missing')} there, {here.get(name, 'missing')} here" for name in names]
    rest = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join(found[:most] + rest)


def _describe(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What a file and a module must agree in: shapes, and types but for the precision of floats."""
    types = {name: "floats" if t.is_floating_point() else str(t.dtype) for name, t in tensors.items()}
    return {name: f"{types[name]} {tuple(t.shape)}" for name, t in tensors.items()}


def restore(module: nn.Module, name_or_path: str | os.PathLike) -> dict[str, str]:
    """Load a checkpoint into a module, on the module's devices and in its dtypes; returns the metadata.

    Names and shapes must agree exactly; half precision is widened. On failure the module is untouched.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, lacks its history, or does not fit; then the message lists the first
            differences between the file (there) and the module (here).
    """
    tensors, metadata = load(name_or_path)
    if found := differences(_describe(tensors), _describe(module.state_dict())):
        raise CheckpointError(f"{name_or_path} does not fit {type(module).__name__}: {found}")
    module.load_state_dict(tensors)
    return metadata
