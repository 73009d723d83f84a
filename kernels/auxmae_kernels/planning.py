"""What a call of an operator would launch on an architecture, without a GPU and without launching it.

An operator runs on tensors of the CPU, whose contents do not matter, up to where a kernel would be launched; what is launched
there is all that a binary depends on.  So the entries that are compiled ahead of time are those that a GPU would get, by
the same code, and no kernel's arguments are written down twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auxmae_kernels import boundary, tuning

_TYPES = {
    torch.bool: "i1",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
# Constants that say how large a kernel's tiles are, in the order in which they are named in a table.
TILES = ("TILE", "WIDTH_TILE", "HEAD_TILE", "PIXEL_TILE", "COLUMNS", "CHUNK")


@dataclass(frozen=True)
class Entry:
    """A kernel with everything that its binary depends on, but for the architecture.

    Attributes:
        kernel: the jitted function.
        types: argument → Triton's name of its type ("*bf16", "i32"); the others are constants.
        constants: argument → value.
        aligned: arguments that are multiples of 16, or point to one.
        options: of the launch: "num_warps", "num_stages".
    """

    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The function's name."""
        return str(self.kernel.__name__)

    @property
    def size_class(self) -> tuple[Any, ...]:
        """What launches that differ in numbers alone have in common: kernel, types, tiles, options."""
        pointers = sorted((name, kind) for name, kind in self.types.items() if kind.startswith("*"))
        tiles = [(name, self.constants[name]) for name in TILES if name in self.constants]
        return self.name, tuple(pointers), tuple(tiles), tuple(sorted(self.options.items()))

    @property
    def switches(self) -> tuple[Any, ...]:
        """What is switched on in the kernel: its other constants, of numbers whether they are 0."""
        return self.name, tuple(
            (name, str(bool(value) if isinstance(value, (int, float)) else value))
            for name, value in sorted(self.constants.items())
            if name.isupper() and name not in TILES
        )

    @property
    def shape_class(self) -> tuple[Any, ...]:
        """Both of these: launches of one class have the same binary but for numbers in it."""
        return self.size_class, self.switches


def entry_of(kernel: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Entry:
    """The entry of a launch, specialised as Triton's own launcher does it."""
    names = [parameter.name for parameter in kernel.params]
    given = {**dict(zip(names, arguments, strict=False)), **{name: value for name, value in options.items() if name in names}}
    types, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        free = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1 and free):
            constants[name] = value
        elif isinstance(value, Tensor):
            types[name] = f"*{_TYPES[value.dtype]}"
            if value.data_ptr() % 16 == 0:
                aligned.add(name)
        elif isinstance(value, float):
            types[name] = "fp32"
        else:
            types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and free:
                aligned.add(name)
    return Entry(kernel, types, constants, frozenset(aligned), {k: v for k, v in options.items() if k not in names})


def planned(arch: str, run: Callable[[], Any]) -> list[Entry]:
    """What `run` would launch on an architecture ("sm_90"): value and gradients, of each class of shapes the first.

    Args:
        run: calls operators on tensors of the CPU, and returns a tensor or several.

    Raises:
        RuntimeError: the kernels were defined for Triton's interpreter, which has nothing to compile.
    """
    if boundary.interpreting():
        raise RuntimeError("interpreted kernels cannot be compiled: start without TRITON_INTERPRET=1")
    found: dict[tuple[Any, ...], Entry] = {}

    def keep(kernel: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
        entry = entry_of(kernel, arguments, options)
        found.setdefault(entry.shape_class, entry)

    tuning.assumed, boundary.instead = arch, keep
    try:
        results = run()
        results = [x for x in (results if isinstance(results, tuple) else (results,)) if x.requires_grad]
        if results:
            torch.autograd.backward(results, [torch.zeros_like(x) for x in results])
    finally:
        tuning.assumed = boundary.instead = None
    return list(found.values())


# Operators whose way back launches no kernel, and that may have been told that none follows.
_FORWARD_ALONE = frozenset({"masked_loss"})

# A call as JSON has it: the operator's name and its arguments, a tensor as ["tensor", dtype, *shape].
Call = tuple[str, tuple[Any, ...]]


def described(name: str, arguments: Sequence[Any]) -> Call:
    """A call of an operator without the contents of its tensors."""
    return name, tuple(
        ("tensor", str(x.dtype).removeprefix("torch."), *x.shape) if isinstance(x, Tensor) else x for x in arguments
    )


def replayed(call: Call) -> Callable[[], Any]:
    """Makes the call of `described` again, on tensors of zeros; for `planned`.

    fp64, which the interpreter alone is given, becomes bf16, whose tiles it has.
    """
    name, arguments = call

    def tensor(kind: str, *shape: int) -> Tensor:
        dtype = torch.bfloat16 if kind == "float64" else getattr(torch, kind)
        return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point and name not in _FORWARD_ALONE)

    def run() -> Any:
        operator = getattr(getattr(torch.ops, boundary.NAMESPACE), name).default
        return operator(*(tensor(*x[1:]) if isinstance(x, (tuple, list)) else x for x in arguments))

    return run
