"""`attention_block` as an operator: one Triton kernel each way where a sequence fits a tile and the width is up to 256.

Beyond, the way forward is norm + projection, attention, projection + residual, by the kernels of `linear` and `axial_attention`;
wider still, and on the way back, norm and products are a library's.  Either way the input alone is saved between the two, with
the seed of dropout, and everything else is computed again: keeping the log-sum-exp of sequences that stream would spare no pass
over them, as the attention's output is needed too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from auxmae_kernels import attention, autotuning, tuning
from auxmae_kernels import dropout as masks
from auxmae_kernels.attention_block_kernels import attention_block_backward, attention_block_forward
from auxmae_kernels.boundary import accumulation, empty, index_table, launch, register, register_autograd, without_autocast
from auxmae_kernels.linear import in_pieces, linear

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# heads, along_channels, slots, lengths, scale, eps
Rest = tuple[int, bool, Tensor | None, Tensor | None, float, float]


def _length(x: Tensor, along_channels: bool) -> int:
    return x.shape[1] if along_channels else x.shape[2]


def _fused(x: Tensor, w_qkv: Tensor, along_channels: bool) -> bool:
    """Whether sequences of this length and width have a kernel of their own."""
    return tuning.block_fits(_length(x, along_channels), x.shape[3], w_qkv.dtype)


def _plan(x: Tensor, w_qkv: Tensor, rest: Rest, tile: tuning.Tile) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """How many tiles there are, and the kernels' numbers and constants."""
    heads, along_channels, slots, lengths, scale, eps = rest
    batch, channels, tokens, width = x.shape
    places = tokens if slots is None else slots.shape[1]
    length, inner = (channels, places) if along_channels else (tokens, channels)
    head_dim = width // heads
    width_tile = max(16, triton.next_power_of_2(width))
    sequences = batch * inner
    constants = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "HEAD_TILE": max(16, triton.next_power_of_2(head_dim)),
        "WIDTH_TILE": width_tile,
        "TILE": tile.rows,
        "SCALE": scale,
        "EPS": eps,
        "ALONG_CHANNELS": along_channels,
        "HAS_SLOTS": slots is not None,
        "HAS_LENGTHS": lengths is not None,
        **accumulation(torch.float64 if x.dtype == torch.float64 else w_qkv.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    return triton.cdiv(sequences, tile.rows // length), (sequences, length, inner, channels, tokens), constants


def _run_tuned(name: str, x: Tensor, w_qkv: Tensor, rest: Rest, run: Callable[[tuning.Tile], None]) -> None:
    length = _length(x, rest[1])
    default = tuning.block_tile(length, w_qkv.dtype, tuning.architecture(x.device), name.endswith("backward"))
    _, _, constants = _plan(x, w_qkv, rest, default)
    autotuning.run_tuned(f"{name} {length}", w_qkv, default, autotuning.attention_block(length), constants, run)


def _forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    rest = (heads, along_channels, slots, lengths, scale, eps)
    with without_autocast(x):
        if not _fused(x, w_qkv, along_channels):
            if in_pieces(x.shape[3], w_qkv.dtype):
                # Nothing reads the projection of padding, so NaN there is harmless.
                qkv = linear(x, w_qkv, b_qkv, norm=(norm_weight, norm_bias, eps))
                mixed, _ = attention.forward(qkv, heads, along_channels, slots, lengths, None)
                return linear(mixed, w_out, b_out, residual=(x, scale), seed=seed, dropout=dropout)
            _, qkv = _project(x, norm_weight, norm_bias, w_qkv, b_qkv, lengths, eps)
            mixed, _ = attention.forward(qkv, heads, along_channels, slots, lengths, None)
            y = masks.drop(F.linear(mixed, w_out, b_out), seed, dropout, masks.OUTPUT_MASK)
            return torch.add(x, y, alpha=scale).contiguous()
        out = empty(x.shape, x)
        if slots is not None:
            # Tokens that no place names are written by no program; they attend to nothing.
            bias = None if b_out is None else masks.drop(b_out.expand(x.shape), seed, dropout, masks.OUTPUT_MASK)
            out.copy_(x if bias is None else torch.add(x, bias, alpha=scale))

        def run(tile: tuning.Tile) -> None:
            groups, numbers, constants = _plan(x, w_qkv, rest, tile)
            launch(
                attention_block_forward, groups, x, norm_weight.contiguous(), norm_bias.contiguous(), w_qkv.contiguous(),
                x if b_qkv is None else b_qkv.contiguous(), w_out.contiguous(), x if b_out is None else b_out.contiguous(), out,
                x if seed is None else seed, index_table(slots, x), index_table(lengths, x), *numbers, *x.stride(),
                QKV_BIAS=b_qkv is not None, OUT_BIAS=b_out is not None, **masks.constants(dropout), **constants,
            )  # fmt: skip

        _run_tuned("attention_block", x, w_qkv, rest, run)
        return out


def _forward_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def _masked(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with 0 in padding tokens, so that NaN there reaches no gradient of a weight."""
    if lengths is None:
        return x
    return torch.where((torch.arange(x.shape[2], device=x.device) < lengths[..., None])[..., None], x, 0.0)


def _project(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, lengths: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The normalised rows, and queries, keys and values."""
    gamma, beta = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    n = F.layer_norm(_masked(x, lengths), x.shape[3:], gamma, beta, eps).to(w_qkv.dtype)
    return n, F.linear(n, w_qkv, b_qkv)


def _backward(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None,
    w_out: Tensor, b_out: Tensor | None,
    heads: int, along_channels: bool, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float,
    seed: Tensor | None = None, dropout: float = 0.0,
) -> Gradients:  # fmt: skip
    rest = (heads, along_channels, slots, lengths, scale, eps)
    with without_autocast(x):
        one_kernel = _fused(x, w_qkv, along_channels)
        compute = _fused_operands if one_kernel else _composed_operands
        dropped = masks.drop(grad, seed, dropout, masks.OUTPUT_MASK)
        n, mixed, grad_qkv = compute(dropped, x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, rest)
        of_norm, gamma, beta = _norm_gradients(grad_qkv @ w_qkv, x, norm_weight, norm_bias, lengths, eps)
        width = x.shape[3]
        wide = torch.promote_types(torch.float32, x.dtype)
        rows = grad_qkv.reshape(-1, 3 * width)
        upstream = dropped.reshape(-1, width)
        nothing = x.new_empty(0)
        return (
            (grad + of_norm).contiguous(),
            gamma.to(norm_weight.dtype),
            beta.to(norm_bias.dtype),
            rows.t() @ n.reshape(-1, width),
            nothing if b_qkv is None else rows.sum(0, dtype=wide).to(b_qkv.dtype),
            (upstream.to(w_out.dtype).t() @ mixed.reshape(-1, width)).mul_(scale),
            nothing.clone() if b_out is None else upstream.sum(0, dtype=wide).mul_(scale).to(b_out.dtype),
        )


def _fused_operands(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor,
    rest: Rest,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The normalised rows, the attention's output, and the gradient of queries, keys and values: by one kernel."""
    slots, lengths = rest[2:4]
    n, mixed = empty(x.shape, x, w_qkv.dtype), empty(x.shape, x, w_qkv.dtype)
    grad_qkv = empty((*x.shape[:3], 3 * x.shape[3]), x, w_qkv.dtype)
    if slots is not None:
        # Tokens that no place names are written by no program.
        for operand in (n, mixed, grad_qkv):
            operand.zero_()

    def run(tile: tuning.Tile) -> None:
        groups, numbers, constants = _plan(x, w_qkv, rest, tile)
        launch(
            attention_block_backward, groups, grad, x, norm_weight.contiguous(), norm_bias.contiguous(), w_qkv.contiguous(),
            x if b_qkv is None else b_qkv.contiguous(), w_out.contiguous(), n, mixed, grad_qkv,
            index_table(slots, x), index_table(lengths, x), *numbers, *grad.stride(), *x.stride(),
            QKV_BIAS=b_qkv is not None, **constants,
        )  # fmt: skip

    _run_tuned("attention_block_backward", x, w_qkv, rest, run)
    return n, mixed, grad_qkv


def _composed_operands(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor,
    rest: Rest,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `_fused_operands` gives, from products and the attention's own kernels."""
    heads, along_channels, slots, lengths, scale, eps = rest
    n, qkv = _project(x, norm_weight, norm_bias, w_qkv, b_qkv, lengths, eps)
    mixed, lse = attention.forward(qkv, heads, along_channels, slots, lengths, None)
    grad_mixed = (grad * scale).to(w_out.dtype) @ w_out
    return n, mixed, attention.backward(grad_mixed, qkv, mixed, lse, heads, along_channels, slots, lengths, None)


def _norm_gradients(
    grad_n: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, lengths: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, weight and bias; padding gets 0, and NaN in it goes nowhere."""
    seen, shape = _masked(x, lengths).contiguous(), x.shape[3:]
    gamma, beta = norm_weight.to(x.dtype), norm_bias.to(x.dtype)
    _, mean, rstd = torch.ops.aten.native_layer_norm(seen, shape, gamma, beta, eps)
    of_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
        grad_n.to(x.dtype), seen, shape, mean, rstd, gamma, beta, [True, True, True]
    )
    return of_x, of_weight, of_bias


def _backward_fake(
    grad: Tensor, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None,
    w_out: Tensor, b_out: Tensor | None, *_: Any,
) -> Gradients:  # fmt: skip
    def like(tensor: Tensor | None) -> Tensor:
        return x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(x), like(norm_weight), like(norm_bias), like(w_qkv), like(b_qkv), like(w_out), like(b_out)


_ARGUMENTS = (
    "Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor w_qkv, Tensor? b_qkv, Tensor w_out, Tensor? b_out, "
    "int heads, bool along_channels, Tensor? slots, Tensor? lengths, float scale, float eps, Tensor? seed=None, float dropout=0.0"
)
_forward_op = register(f"attention_block({_ARGUMENTS}) -> Tensor", _forward, _forward_fake)
_backward_op = register(
    f"attention_block_backward(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    heads, along_channels, slots, lengths, scale, eps, seed, dropout = inputs[7:]
    ctx.save_for_backward(*inputs[:7], slots, lengths, seed)
    ctx.rest = (heads, along_channels, scale, eps, dropout)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, slots, lengths, seed = ctx.saved_tensors
    heads, along_channels, scale, eps, dropout = ctx.rest
    results = _backward_op(grad, *inputs, heads, along_channels, slots, lengths, scale, eps, seed, dropout)
    return *(None if tensor is None else result for tensor, result in zip(inputs, results, strict=True)), *(None,) * 8


register_autograd(_forward_op, _setup_context, _gradient)


def attention_block(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    heads: int, axis: str, slots: Tensor | None, lengths: Tensor | None, scale: float, eps: float, dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """See `auxmae_kernels.attention_block`; the products run in the type of w_qkv, the sum keeps that of x."""
    along_channels = axis == "channel"
    # A table of places says nothing about the patches within a channel.
    named = slots if along_channels else None
    seed = masks.draw_seed(dropout, x.device)
    out: Tensor = _forward_op(
        x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, heads, along_channels, named, lengths, scale, eps, seed, dropout
    )
    return out
