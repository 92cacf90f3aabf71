"""A CUDA card that is none: it finds on any machine what forgets a device.

    with fake_cuda():
        x = torch.randn(3, device="cuda")  # computed on the CPU, but x.device is cuda:0
        x + torch.randn(3)  # DeviceFault: expected all tensors to be on the same device

All tensors lie on the CPU; which of them are said to lie on the card is remembered, also of whatever is made of them.
What a card refuses is refused: operands on two devices, NumPy, rngs of the other device, products of integers. Random
numbers are others than the CPU's. Not simulated: rounding, other orders of sums, memory, time, several cards, and
backward passes written by hand, which see only the CPU.

    python tests/fake_cuda.py notebooks/*.ipynb

runs lessons cell by cell, no training longer than three steps (so what they assert of its result fails; only faults of
devices count), in some ten minutes for all.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

CPU, CARD = torch.device("cpu"), torch.device("cuda", 0)
# Operands may lie anywhere. `Tensor.to` is not here: it has a function of its own.
CROSSING = {"copy_", "type_as", "as_tensor", "__get__", "__set__", "_has_compatible_shallow_copy_type"}
LISTED = {"cat", "stack", "hstack", "vstack", "equal"}  # whose operands may not even be single numbers of the CPU
FLOATS_ONLY = {"matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "linear", "einsum", "conv2d", "max_pool2d"}
on_card = WeakTensorKeyDictionary()


class DeviceFault(RuntimeError):
    """What a real card raises, here as a class of its own, so that no other error is taken for it."""


class NumpyFault(DeviceFault, TypeError):
    """NumPy asks for a tensor of the card, which torch calls a TypeError."""


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor is said to lie, also inside of `torch.func`'s transformations."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return CARD if tensor in on_card else CPU


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """Remember where a tensor lies."""
    if device.type == "cuda":
        on_card[tensor] = True
    else:
        on_card.pop(tensor, None)
    return tensor


def tensors_in(*things: Any) -> list[Tensor]:
    """The tensors among arguments, also in lists and dicts of them."""
    found = []
    for thing in things:
        if isinstance(thing, Tensor):
            found.append(thing)
        elif isinstance(thing, tuple | list | dict):
            found += tensors_in(*(thing.values() if isinstance(thing, dict) else thing))
    return found


class Rng(torch.Generator):
    """A generator that says where it draws."""

    device = None  # hides torch's own

    def __new__(cls, device: torch.device | str = "cpu") -> "Rng":
        rng = super().__new__(cls, "cpu")
        rng.device = CARD if torch.device(device).type == "cuda" else CPU
        return rng

    def manual_seed(self, seed: int) -> "Rng":
        return super().manual_seed(seed if self.device == CPU else (seed + 1_000_003) % 2**63)


class Books(TorchFunctionMode):
    """Keeps account of devices through every function of torch's."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, "__name__", ""), dict(kwargs or {})
        here = device_of(args[0]) if args and isinstance(args[0], Tensor) else CPU
        if name == "__get__":
            told = {"device": here, "is_cuda": here == CARD, "is_cpu": here == CPU}
            if (attribute := getattr(function.__self__, "__name__", "")) in told:
                return told[attribute]
        if name in ("cuda", "cpu", "to"):
            return moved(here, *args, **kwargs) if name == "to" else moved(here, args[0], name)
        given = tensors_in(args, kwargs)
        device = CARD if any(device_of(t) == CARD for t in given) else CPU
        if name in ("numpy", "__array__") and device == CARD:
            raise NumpyFault("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")
        if kwargs.get("device") is not None:
            device, kwargs["device"] = torch.device(kwargs["device"]), "cpu"
            if device.index:
                raise DeviceFault("invalid device ordinal")  # there is one card
        elif name in ("tensor", "as_tensor", "type_as"):  # of a list on the CPU, even if it holds numbers of the card
            device = device_of(args[-1]) if isinstance(args[-1], Tensor) else CPU
        elif device == CARD and name not in CROSSING:
            check(name, args, given)
        rng = kwargs.get("generator")
        if rng is not None and rng.device.type != device.type:
            raise DeviceFault(f"expected a '{device.type}' device type for generator but found '{rng.device.type}'")
        result = function(*args, **kwargs)
        if name == "__set__" and given[1:]:  # as `parameter.data = moved`
            put(given[0], device_of(given[1]))
        if name in ("as_tensor", "type_as") and result is args[0] and device.type != here.type:
            result = result.clone()
        for tensor in tensors_in(result):
            if not any(tensor is each for each in given):
                put(tensor, device)
        return result


def moved(here: torch.device, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`: a copy, wherever the device changes."""
    there, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    if args and isinstance(args[0], Tensor):
        there, dtype, args = device_of(args[0]), args[0].dtype, args[1:]
    elif args and not isinstance(args[0], torch.dtype):  # (device, dtype, …)
        there, args = args[0], args[1:]
    if args:
        dtype, args = args[0], args[1:]
    there = torch.device(here if there is None else there)
    result = tensor.to(dtype or tensor.dtype, *args, **kwargs)
    if result is tensor:
        return tensor if there.type == here.type else put(tensor.clone(), there)
    return put(result, there)


def check(name: str, args: tuple, given: list[Tensor]) -> None:
    """Refuse operands that no card accepts; some of those given lie on the card."""
    if name in ("__getitem__", "__setitem__"):
        chosen = [t for t in tensors_in(args[1]) if t.ndim]  # without them it is a slice, into which may be copied
        if device_of(args[0]) == CPU and any(device_of(t) == CARD for t in chosen):
            raise DeviceFault("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        given = [args[0], *tensors_in(args[2:])] if chosen else []
    on_cpu = [t for t in given if device_of(t) == CPU]
    if len(on_cpu) < len(given) and any(t.ndim or name in LISTED for t in on_cpu):
        raise DeviceFault(f"expected all tensors to be on the same device, but found cuda:0 and cpu, in {name}")
    if name in FLOATS_ONLY and not all(t.is_floating_point() or t.is_complex() for t in given):
        raise DeviceFault(f"{name} is not implemented for integers on cuda")


def new_parameter(cls, data=None, requires_grad=True, _new=nn.Parameter.__new__):
    """`nn.Parameter`, whose making no mode sees."""
    parameter = _new(cls, data, requires_grad)
    return parameter if data is None else put(parameter, device_of(data))


def apply(cls, *args, _apply=torch.autograd.Function.__dict__["apply"]):
    """`autograd.Function.apply`, which no mode sees either."""
    result = _apply.__get__(None, cls)(*args)
    if any(device_of(t) == CARD for t in tensors_in(args)):
        for tensor in tensors_in(result):
            put(tensor, CARD)
    return result


def autocast(device_type: str, *args: Any, _autocast: type = torch.autocast, **kwargs: Any) -> Any:
    """`torch.autocast`; the card's is the CPU's."""
    return _autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


@contextlib.contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Inside, this machine seems to have one card, of a kind that computes in bfloat16."""
    cuda = {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: (9, 0),
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "synchronize": lambda device=None: None,
        "default_generators": (Rng("cuda"),),
    }
    optimiser = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # as torch's age has it
    with contextlib.ExitStack() as stack:
        for name, value in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in optimiser:
            stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, lambda self: None, create=True))
        stack.enter_context(mock.patch.object(torch, "Generator", Rng))
        stack.enter_context(mock.patch.object(torch, "autocast", autocast))
        stack.enter_context(mock.patch.object(nn.Parameter, "__new__", new_parameter))
        stack.enter_context(mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)))
        stack.enter_context(Books())
        yield CARD


def run_lesson(path: str, steps: int = 3) -> list[int]:
    """The code cells of a notebook, by number, in which a device is forgotten; IPython prints where."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    from course_lib.base.loop import Loop

    def begin(loop: Loop, *args: Any, _begin: Any = Loop.__init__, **kwargs: Any) -> None:
        _begin(loop, *args, **kwargs | {"steps": min(steps, kwargs["steps"])})

    with open(path, encoding="utf-8") as file:
        cells = [cell for cell in json.load(file)["cells"] if cell["cell_type"] == "code"]
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.reset()
    faults = []
    with fake_cuda(), mock.patch.object(Loop, "__init__", begin):
        for number, cell in enumerate(cells):
            print(f"{path}, code cell {number}", flush=True)
            error = shell.run_cell("".join(cell["source"])).error_in_exec
            faults += [number] if isinstance(error, DeviceFault) else []
    return faults


if __name__ == "__main__":
    found = {path: run_lesson(path) for path in sys.argv[1:]}
    print(*(f"{path}: a device is forgotten in code cells {cells}" for path, cells in found.items() if cells), sep="\n")
    sys.exit(any(found.values()))
