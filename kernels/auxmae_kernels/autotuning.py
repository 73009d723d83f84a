"""Tiles that are measured instead of looked up, where AUXMAE_AUTOTUNE=1 asks for it: what is tried, and for which shapes anew.

Attention's candidates stand in `tuning`, beside its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import triton
from torch import Tensor

from auxmae_kernels import tuning
from auxmae_kernels.tuning import Tile

T = TypeVar("T")
# Constants of a kernel that no choice of a tile depends on, or that are the tile's own.
_APART = frozenset({"TILE", "COLUMNS", "CHUNK", "SCALE", "EPS", "KEEP_SCALE", "ACC", "UPCAST"})


def run_tuned(
    name: str,
    like: Tensor,
    default: Tile,
    candidates: Callable[[], Sequence[Tile]],
    constants: Mapping[str, Any],
    run: Callable[[Tile], T],
) -> T:
    """What `run` returns with the default tile, or with the fastest where autotuning was asked for.

    Args:
        name: of the kernel, and whatever else the choice depends on.
        like: a tensor of the device and type that the kernel works in.
        candidates: gives the tiles to try besides the default.
        constants: of the kernel; those that a tile depends on decide for which shapes the choice is made anew.
        run: does the work with a tile; more than once, where it is measured.
    """
    if not tuning.autotuning(like.device):
        return run(default)
    # Of dropout, only whether there is any.
    shape = {
        key: bool(value) if key == "DROP_BELOW" else value
        for key, value in constants.items()
        if key not in _APART and not key.islower()
    }
    gpu = torch.cuda.get_device_name(like.device) if like.is_cuda else "cpu"
    key = f"{gpu}, triton {triton.__version__}: {name} {like.dtype} {shape}"
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        # Nothing can be measured while a CUDA graph is captured.
        return run(tuning.kept(key) or default)
    return run(tuning.fastest(key, list(dict.fromkeys((default, *candidates()))), run, triton.testing.do_bench))


def whole_rows(width_tile: int) -> list[Tile]:
    """Of kernels that hold whole rows of `width_tile` numbers: the norm, the loss."""
    sizes = [rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows * width_tile <= max(8192, width_tile)]
    # Enough for every thread of several warps.
    return [Tile(rows, warps) for rows in sizes for warps in (2, 4, 8, 16) if warps == 2 or rows * width_tile >= 256 * warps]


def patches() -> list[Tile]:
    """Of the product with gathered patches: tokens, numbers of a token, pixels at a time."""
    return [
        Tile(rows, warps, stages, columns=columns, chunk=chunk)
        for rows, columns in ((32, 64), (64, 64), (64, 128), (128, 64), (128, 128))
        for chunk, stages in ((32, 2), (32, 3), (64, 2))
        for warps in (4, 8)
    ]


def copies() -> list[Tile]:
    """Of kernels that move tokens from place to place: tokens, numbers of a token."""
    return [Tile(rows, warps, columns=columns) for rows in (8, 16, 32, 64) for columns in (64, 128, 256) for warps in (4, 8)]
