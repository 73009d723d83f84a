"""`axial_attention` as an operator on Triton kernels: which of them, with what tile, and its gradient.

Sequences that fit one tile are packed several to a tile (`attention_packed`); longer ones stream (`attention_streaming`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from auxmae_kernels import autotuning, tuning
from auxmae_kernels.attention_packed import packed_backward, packed_forward
from auxmae_kernels.attention_streaming import streaming_backward, streaming_forward
from auxmae_kernels.boundary import accumulation, empty, index_table, launch, register, register_autograd

MAX_HEAD_DIM = 128
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def obstacle(head_dim: int, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot take such heads, or None."""
    if head_dim > MAX_HEAD_DIM:
        return f"a head dim of {head_dim} is beyond {MAX_HEAD_DIM}"
    if dtype not in DTYPES:
        return f"{dtype} is none of the kernel's types"
    return None


@dataclass(frozen=True)
class _Plan:
    """How the grid of sequences is cut into programs."""

    length: int
    sequences: int
    inner: int
    tile: tuning.Tile
    packed: bool
    programs: int
    constants: dict[str, Any]

    @property
    def blocks(self) -> int:
        """Tiles of a sequence that streams."""
        return -(-self.length // self.tile.rows)


def _head_tile(qkv: Tensor, heads: int) -> int:
    return max(16, tuning.power_of_two(qkv.shape[3] // (3 * heads)))


def streams(length: int, qkv: Tensor, heads: int) -> bool:
    """Whether a sequence is too long for one tile on this device; then its log-sum-exp and output are kept."""
    return length > tuning.longest_packed(_head_tile(qkv, heads), qkv.dtype, tuning.architecture(qkv.device))


def _plan(
    qkv: Tensor,
    heads: int,
    along_channels: bool,
    slots: Tensor | None,
    lengths: Tensor | None,
    scale: float | None,
    tile: tuning.Tile | None = None,
) -> _Plan:
    batch, channels, tokens, triple = qkv.shape
    dim = triple // (3 * heads)
    places = tokens if slots is None else slots.shape[1]
    length, inner = (channels, places) if along_channels else (tokens, channels)
    packed = not streams(length, qkv, heads)
    head_tile = _head_tile(qkv, heads)
    tile = tile or tuning.attention_tile(length, head_tile, qkv.dtype, tuning.architecture(qkv.device))
    sequences = batch * inner
    groups = tuning.cdiv(sequences, max(1, tile.rows // max(1, length))) if packed else sequences * tuning.cdiv(length, tile.rows)
    constants = {
        "HEADS": heads,
        "HEAD_DIM": dim,
        "HEAD_TILE": head_tile,
        "TILE": tile.rows,
        "SCALE": dim**-0.5 if scale is None else scale,
        "ALONG_CHANNELS": along_channels,
        "HAS_SLOTS": slots is not None,
        "HAS_LENGTHS": lengths is not None,
        **accumulation(qkv.dtype),
    }
    return _Plan(length, sequences, inner, tile, packed, groups * heads if length else 0, constants)


def _run_tuned(name: str, qkv: Tensor, plan: _Plan, run: Callable[[tuning.Tile], None]) -> None:
    def candidates() -> list[tuning.Tile]:
        arch = tuning.architecture(qkv.device)
        return tuning.attention_candidates(plan.length, plan.constants["HEAD_TILE"], qkv.dtype, arch)

    autotuning.run_tuned(f"{name} {plan.length}", qkv, plan.tile, candidates, plan.constants, run)


def _statistics_shape(qkv: Tensor, heads: int, along_channels: bool, slots: Tensor | None) -> tuple[int, ...]:
    batch, channels, tokens, _ = qkv.shape
    if not along_channels:
        return (batch * channels, heads, tokens) if streams(tokens, qkv, heads) else (0,)
    places = tokens if slots is None else slots.shape[1]
    return (batch * places, heads, channels) if streams(channels, qkv, heads) else (0,)


def forward(
    qkv: Tensor, heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    plan = _plan(qkv, heads, along_channels, slots, lengths, scale)
    batch, channels, tokens, triple = qkv.shape
    out = empty((batch, channels, tokens, triple // 3), qkv)
    if slots is not None:
        # Tokens that no place names are written by no program.
        out.zero_()
    statistics = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    lse = empty(_statistics_shape(qkv, heads, along_channels, slots), qkv, statistics)
    tables = (index_table(slots, qkv), index_table(lengths, qkv))

    def run(tile: tuning.Tile) -> None:
        cut = _plan(qkv, heads, along_channels, slots, lengths, scale, tile)
        options = {**cut.constants, "num_warps": tile.warps, "num_stages": tile.stages}
        if cut.packed:
            launch(
                packed_forward, cut.programs, qkv, out, *tables,
                cut.sequences, cut.length, cut.inner, channels, tokens, *qkv.stride(), **options,
            )  # fmt: skip
        else:
            launch(
                streaming_forward, cut.programs, qkv, out, lse, *tables,
                cut.length, cut.blocks, cut.inner, channels, tokens, *qkv.stride(), **options,
            )  # fmt: skip

    _run_tuned("axial_attention", qkv, plan, run)
    return out, lse


def _forward_fake(
    qkv: Tensor, heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float | None
) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    lse = qkv.new_empty(_statistics_shape(qkv, heads, along_channels, slots), dtype=statistics)
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)), lse


def backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor | None,
    lse: Tensor | None,
    heads: int,
    along_channels: bool,
    slots: Tensor | None,
    lengths: Tensor | None,
    scale: float | None,
) -> Tensor:
    """The gradient of qkv; out and lse, of `forward`, are read where sequences stream (see `streams`)."""
    return _backward(grad, qkv, out, lse, None, heads, along_channels, slots, lengths, scale)


def output_and_backward(
    grad: Tensor,
    qkv: Tensor,
    heads: int,
    along_channels: bool,
    slots: Tensor | None,
    lengths: Tensor | None,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """What `forward` gives, and the gradient of qkv."""
    length = qkv.shape[1] if along_channels else qkv.shape[2]
    if streams(length, qkv, heads):
        out, lse = forward(qkv, heads, along_channels, slots, lengths, scale)
        return out, _backward(grad, qkv, out, lse, None, heads, along_channels, slots, lengths, scale)
    again = empty((*qkv.shape[:3], qkv.shape[3] // 3), qkv)
    if slots is not None:
        again.zero_()
    return again, _backward(grad, qkv, None, None, again, heads, along_channels, slots, lengths, scale)


def _backward(
    grad: Tensor,
    qkv: Tensor,
    out: Tensor | None,
    lse: Tensor | None,
    again: Tensor | None,
    heads: int,
    along_channels: bool,
    slots: Tensor | None,
    lengths: Tensor | None,
    scale: float | None,
) -> Tensor:
    """`backward`; where sequences are packed the output is written to `again`, if there is one."""
    plan = _plan(qkv, heads, along_channels, slots, lengths, scale)
    channels, tokens = qkv.shape[1:3]
    grad_qkv = empty(qkv.shape, qkv)
    if slots is not None:
        grad_qkv.zero_()
    tables = (index_table(slots, qkv), index_table(lengths, qkv))

    def run(tile: tuning.Tile) -> None:
        cut = _plan(qkv, heads, along_channels, slots, lengths, scale, tile)
        options = {**cut.constants, "num_warps": tile.warps, "num_stages": tile.stages}
        if cut.packed:
            launch(
                packed_backward, cut.programs, grad, qkv, grad_qkv, grad_qkv if again is None else again, *tables,
                cut.sequences, cut.length, cut.inner, channels, tokens, *grad.stride(), *qkv.stride(),
                STORE_OUT=again is not None, **options,
            )  # fmt: skip
        else:
            assert out is not None
            assert lse is not None
            launch(
                streaming_backward, cut.programs, grad, qkv, out, lse, grad_qkv, *tables,
                cut.length, cut.blocks, cut.inner, channels, tokens, *grad.stride(), *qkv.stride(), **options,
            )  # fmt: skip

    _run_tuned("axial_attention_backward", qkv, plan, run)
    return grad_qkv


def _backward_fake(grad: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


_TAIL = "int heads, bool along_channels, Tensor? slots, Tensor? lengths, float? scale"
_forward_op = register(f"axial_attention(Tensor qkv, {_TAIL}) -> (Tensor, Tensor)", forward, _forward_fake)
_backward_op = register(
    f"axial_attention_backward(Tensor grad, Tensor qkv, Tensor? out, Tensor? lse, {_TAIL}) -> Tensor", backward, _backward_fake
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, heads, along_channels, slots, lengths, scale = inputs
    out, lse = output
    ctx.set_materialize_grads(False)
    long = streams(qkv.shape[1] if along_channels else qkv.shape[2], qkv, heads)
    # Scores that fit one tile are computed again, so nothing is kept but the input.
    ctx.save_for_backward(qkv, out if long else None, lse if long else None, slots, lengths)
    ctx.rest = (heads, along_channels, scale)


def _gradient(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    qkv, out, lse, slots, lengths = ctx.saved_tensors
    heads, along_channels, scale = ctx.rest
    return _backward_op(grad, qkv, out, lse, heads, along_channels, slots, lengths, scale), None, None, None, None, None


register_autograd(_forward_op, _setup_context, _gradient)


def axial_attention(
    qkv: Tensor, heads: int, axis: str, slots: Tensor | None, lengths: Tensor | None, scale: float | None
) -> Tensor:
    """See `auxmae_kernels.axial_attention`."""
    along_channels = axis == "channel"
    # A table of places says nothing about the patches within a channel.
    out: Tensor = _forward_op(qkv, heads, along_channels, slots if along_channels else None, lengths, scale)[0]
    return out
