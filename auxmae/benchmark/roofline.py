"""What the machine can do, measured in the same run, and how much arithmetic a piece of work is.

The roofline model: Williams, Waterman and Patterson, CACM 52 (4), 2009.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from auxmae_kernels.products import linear
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from auxmae.benchmark.backend import forced
from auxmae.benchmark.device import kernel_clock

# Sizes beyond every cache, and large enough for the best rate.
_COPY_BYTES = {"cuda": 2**30, "cpu": 2**26}
_MATMUL_SIDE = {"cuda": 8192, "cpu": 1024}


def ceilings(device: torch.device, dtype: torch.dtype, repeats: int = 5, *, quick: bool = False) -> dict[str, Any]:
    """The best rates of a copy and of a square matrix product.

    Returns:
        {"copy_bytes_per_second" (read plus written), "matmul_flops_per_second", "dtype", "copy_samples_ms",
        "matmul_samples_ms", "copy_bytes", "matmul_flops"}.
    """
    shrink = 4 if quick else 1
    size = _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"]) // shrink
    side = _MATMUL_SIDE.get(device.type, _MATMUL_SIDE["cpu"]) // shrink
    clock = kernel_clock(device)
    source, target = (torch.ones(size, dtype=torch.int8, device=device) for _ in range(2))
    copy = _samples(lambda: target.copy_(source), clock, repeats)
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    # Through the library that our own products take: the faster one, where there are two.
    product = _samples(lambda: linear(a, b), clock, repeats)
    return {
        "copy_bytes_per_second": 2 * size / (1e-3 * min(copy)),
        "matmul_flops_per_second": 2 * side**3 / (1e-3 * min(product)),
        "dtype": str(dtype).removeprefix("torch."),
        "copy_samples_ms": copy,
        "matmul_samples_ms": product,
        "copy_bytes": 2 * size,
        "matmul_flops": 2 * side**3,
    }


def _samples(work: Callable[[], object], clock: Callable[[Callable[[], object]], float], repeats: int) -> list[float]:
    for _ in range(2):
        clock(work)
    return [clock(work) for _ in range(repeats)]


def _cpu_flash_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _cpu_flash_backward_flops(
    gradient: tuple[int, ...], query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any
) -> int:
    # Scores again, and the gradients of scores, queries, keys and values: five products for the forward pass' two.
    return 5 * int(sdpa_flop_count(query, key, value)) // 2


def _product_flops(a: tuple[int, ...], b: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[0]


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call's matrix products and attentions (a multiplication and an addition are two).

    Counted in PyTorch's implementation of our functions: the counter sees nothing of a Triton kernel.
    """
    # PyTorch's counter knows the fused attention of GPUs only, and not our operator.
    own: dict[Any, Any] = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_flash_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_flash_backward_flops,
        torch.ops.auxmae_kernels.product: _product_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=own)
    with forced("torch"), counter:
        work()
    return int(counter.get_total_flops())


def size_in_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the elements: what must be read or written once, whatever the implementation."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def achieved(row: dict[str, Any], limits: dict[str, Any] | None) -> dict[str, float | None]:
    """Rates of a row that has "median_ms", "flops" and "bytes", and their part of the ceilings; None where unknown."""
    seconds = None if row.get("median_ms") is None else 1e-3 * row["median_ms"]
    result: dict[str, float | None] = {}
    for kind, ceiling in (("flops", "matmul_flops_per_second"), ("bytes", "copy_bytes_per_second")):
        rate = None if seconds is None or row.get(kind) is None else row[kind] / seconds
        result[f"{kind}_per_second"] = rate
        result[f"{kind}_of_ceiling"] = None if rate is None or limits is None else rate / limits[ceiling]
    return result
