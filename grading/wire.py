"""What crosses the border of the sandbox: numbers, strings, lists, dictionaries and dense tensors, as bytes.

A message is its length (8 bytes, big-endian) and a safetensors file whose metadata holds the message as JSON; tensors
in it are named by number. There is no pickle, and nothing in a message is ever executed. Whatever a student's object
pretends to be (a tensor whose `__eq__` is always true, a subclass of float), it arrives as the numbers it holds.
"""

import json
import math
import select
import socket
import struct
import time
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

MAX_BYTES = 64 * 2**20  # of a message
MAX_DEPTH = 16
MAX_ITEMS = 100_000  # values in a message; a tensor is one
_LENGTH = struct.Struct(">Q")


class WireError(Exception):
    """A message that breaks the rules, came too late, or not at all; the text says which."""


class Handle:
    """Something that stays on the other side (a network, a function), to be named in later calls.

    Attributes:
        number: by which the other side knows it.
        kind: the name of its type there; as untrusted as all that comes from there.
    """

    def __init__(self, number: int, kind: str = "") -> None:
        self.number, self.kind = number, kind

    def __repr__(self) -> str:
        return f"<{self.kind} of the submission>"


class Code:
    """A Python expression that the other side evaluates, with `torch` at hand: a function to hand to a function.

    Attributes:
        source: the expression, for example "lambda x, t: 0.5 * x".
    """

    def __init__(self, source: str) -> None:
        self.source = source


def encode(message: Any, keep: Any = None) -> bytes:
    """A message as bytes.

    Args:
        message: None, bool, int, float, str, tensors, NumPy arrays and numbers, and lists, tuples and dictionaries
            (with keys that are strings or integers) of these; handles.
        keep: called with what is none of these; returns a Handle for it. Without it such a thing is an error.

    Raises:
        TypeError: something that cannot be sent.
        ValueError: a message beyond MAX_BYTES, or one that contains itself.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, np.bool_ | np.integer | np.floating):
            value = value.item()
        if isinstance(value, bool):
            return value
        if isinstance(value, int):
            return {"int": str(int.__index__(value))} if abs(value) >= 2**53 else int.__index__(value)
        if isinstance(value, float):
            number = float.__float__(value)
            return number if math.isfinite(number) else {"float": str(number)}
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.array(value))  # its own memory, in C's order
        if isinstance(value, Tensor):
            name = str(len(tensors))
            plain = value.detach().as_subclass(Tensor).cpu()
            if plain.layout != torch.strided or plain.is_complex() or plain.is_quantized:
                raise TypeError(f"cannot send a tensor of {plain.dtype}, {plain.layout}")
            tensors[name] = plain.clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [pack(item, depth + 1) for item in value]}
        if isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
            return {"dict": [[pack(k, depth + 1), pack(v, depth + 1)] for k, v in value.items()]}
        if isinstance(value, Handle):
            return {"handle": value.number, "kind": value.kind[:100]}
        if isinstance(value, Code):
            return {"code": value.source}
        if keep is None:
            raise TypeError(f"cannot send {type(value).__name__}")
        return pack(keep(value), depth)

    text = json.dumps(pack(message), allow_nan=False)
    content = safetensors.torch.save(tensors, {"message": text})
    if len(content) > MAX_BYTES:
        raise ValueError(f"{len(content):,} bytes are more than {MAX_BYTES:,}")
    return content


def decode(content: bytes) -> Any:
    """The message in bytes from `encode`, whoever wrote them.

    Raises:
        WireError: they are no such message.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + length])["__metadata__"]["message"]
        message, tensors = json.loads(text), safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise WireError(f"not a message: {type(error).__name__}") from error
    left = MAX_ITEMS

    def unpack(value: Any, depth: int = 0) -> Any:
        nonlocal left
        left -= 1
        if depth > 2 * MAX_DEPTH or left < 0:
            raise WireError("a message nested too deep or with too many values")
        if not isinstance(value, dict):
            if isinstance(value, list):
                raise WireError("a bare list in a message")
            return value
        match value:
            case {"int": str(digits)} if len(digits) < 1000:
                return int(digits)
            case {"float": str(name)} if name in ("nan", "inf", "-inf"):
                return float(name)
            case {"tensor": str(name)} if name in tensors:
                return tensors[name]
            case {"list": list(items)}:
                return [unpack(item, depth + 1) for item in items]
            case {"tuple": list(items)}:
                return tuple(unpack(item, depth + 1) for item in items)
            case {"dict": list(pairs)} if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
                found = [(unpack(k, depth + 1), unpack(v, depth + 1)) for k, v in pairs]
                if all(isinstance(key, str | int) for key, _ in found):
                    return dict(found)
            case {"handle": int(number), "kind": str(kind)}:
                return Handle(number, kind[:100])
            case {"code": str(source)}:
                return Code(source)
        raise WireError("a value of no known kind in a message")

    try:
        return unpack(message)
    except ValueError as error:
        raise WireError(f"not a message: {error}") from error


def send(channel: socket.socket, content: bytes, seconds: float) -> None:
    """Write a message to a socket.

    Raises:
        WireError: the other side has gone, or did not take it in time.
    """
    channel.settimeout(seconds)
    try:
        channel.sendall(_LENGTH.pack(len(content)) + content)
    except OSError as error:  # a timeout is one
        raise WireError(f"the message was not taken: {error}") from error


def receive(channel: socket.socket, seconds: float) -> bytes:
    """Read a message from a socket; the whole of it must come in time.

    Raises:
        WireError: the other side has gone, is too slow, or announces more than MAX_BYTES.
    """
    end = time.monotonic() + seconds

    def read(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            left = end - time.monotonic()
            if left <= 0 or not select.select([channel], [], [], left)[0]:
                raise WireError(f"no answer within {seconds:.3g} s")
            try:
                part = channel.recv(min(count - len(parts), 2**20))
            except OSError as error:
                raise WireError(f"the connection broke: {error}") from error
            if not part:
                raise WireError("the process has ended")
            parts += part
        return bytes(parts)

    (length,) = _LENGTH.unpack(read(_LENGTH.size))
    if length > MAX_BYTES:
        raise WireError(f"an answer of {length:,} bytes; at most {MAX_BYTES:,} are read")
    return read(length)
