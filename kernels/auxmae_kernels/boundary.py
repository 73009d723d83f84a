"""Between PyTorch and the Triton kernels: how an operator is registered, how a kernel is launched, where memory comes from.

A fused function is one operator of `torch.library` for its value and one for its gradients.  Its fake says what comes out
without computing it, so that `torch.compile` traces through without a break, whatever the batch size; nothing here asks for a
number that would tie a graph to one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMESPACE = "auxmae_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")

# Called with (kernel, grid, arguments, options) before every launch; tests record with it what was launched.
observers: list[Callable[[Any, int, tuple[Any, ...], dict[str, Any]], None]] = []
# Called with (name, arguments) before every call of an operator.
call_observers: list[Callable[[str, tuple[Any, ...]], None]] = []
# Where set, it is called with (kernel, arguments, options) instead of every launch: see `planning`.
instead: Callable[[Any, tuple[Any, ...], dict[str, Any]], None] | None = None


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any], *, observable: bool = True) -> Any:
    """Defines an operator in this package's namespace, and returns it.

    Args:
        schema: as `torch.library.Library.define` takes it: "name(Tensor x, …) -> Tensor".
        implementation: computes it; on a CPU that is Triton's interpreter.
        fake: empty tensors of the same shapes, types and strides.
        observable: whether `call_observers` are told of its calls, as of those that launch kernels.
    """
    name = schema.partition("(")[0]
    _library.define(schema)

    def observed(*arguments: Any) -> Any:
        for observer in call_observers:
            observer(name, arguments)
        return implementation(*arguments)

    for key in ("CUDA", "CPU"):
        _library.impl(name, observed if observable else implementation, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register_autograd(operator: Any, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Gives an operator of `register` its gradient."""
    name = operator.name().partition("::")[2]
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def differentiated_otherwise() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work.

    The gradient of `register_autograd` is for neither: `torch.func.grad` fails, and forward mode takes the derivative for 0.
    """
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def reading_is_free(tensor: Tensor) -> bool:
    """Whether a tensor's values can steer Python: no device is waited for, no graph broken, no `torch.func` in between."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        # What stands for tensors within `torch.func.vmap` or `grad` has no memory of its own, and says that it is a Tensor.
        # `grad` keeps that of all others out of reach too.
        and not torch._C._are_functorch_transforms_active()
    )


def reading_is_possible(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read at all, if need be by waiting for a device: not in a graph, nor in `torch.func`."""
    return (
        type(tensor) is Tensor
        and tensor.device.type != "meta"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not (tensor.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def empty(shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory for a kernel's output; tests fill it with NaN."""
    return like.new_empty(tuple(shape), dtype=dtype or like.dtype)


def index_table(table: Tensor | None, stand_in: Tensor) -> Tensor:
    """A table of numbers as the kernels read it; where there is none, a tensor that is never read."""
    return stand_in if table is None else table.to(torch.int32).contiguous()


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Runs `programs` programs of a kernel on a one-dimensional grid, which alone has room for 2³¹ − 1 of them."""
    if programs == 0:
        return
    for observer in observers:
        observer(kernel, programs, arguments, options)
    if instead is not None:
        instead(kernel, arguments, options)
        return
    with _on_device(arguments):
        kernel[(programs,)](*arguments, **options)


def _on_device(arguments: tuple[Any, ...]) -> AbstractContextManager[Any]:
    # Triton launches on the current device, whatever the tensors' is.  To choose the one that is chosen costs a launch's time.
    first = next(argument for argument in arguments if isinstance(argument, Tensor))
    elsewhere = first.is_cuda and first.device.index != torch.cuda.current_device()
    return torch.cuda.device(first.device) if elsewhere else nullcontext()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Types are settled before an operator is called; what it calls must not choose again."""
    return torch.autocast(x.device.type, enabled=False)


def programs_for(device: torch.device) -> int:
    """How many programs walk over a kernel's tiles where each keeps sums of its own: two a multiprocessor."""
    if device.type != "cuda":
        return 4
    return 2 * _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _multiprocessors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: TRITON_INTERPRET=1, when they were defined and now."""
    import triton

    from auxmae_kernels import tiles

    return bool(triton.knobs.runtime.interpret) and not isinstance(tiles.dot, triton.runtime.JITFunction)


def accumulation(dtype: torch.dtype) -> dict[str, Any]:
    """The constants of `tiles.dot` for operands of a type: accumulator, precision of fp32 products, upcast.

    fp32 products follow `torch.set_float32_matmul_precision`: TF32 unless it is "highest".
    """
    import triton.language as tl

    precision = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return {
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
        "PRECISION": precision,
        "UPCAST": interpreting(),
    }
