"""A call of every function for every tile that is a default: what `resources` compiles.

A kernel registers by a generator in `EXAMPLES` that calls its operator on small tensors, whose contents do not matter, with the
shapes that make `tuning` choose each of its tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from auxmae_kernels import (
    assembly,
    attention,
    attention_block_operator,
    embed,
    feed_forward_operator,
    linear,
    loss,
    norm,
    tuning,
)

Run = Callable[[], Any]
_BF16, _FP32 = torch.bfloat16, torch.float32


def _tensor(*shape: int, dtype: torch.dtype = _BF16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=dtype.is_floating_point)


def _call(function: Callable[..., Any], *arguments: Any) -> Run:
    return lambda: function(*arguments)


def _index(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _attention() -> Iterator[Run]:
    """Ragged channel attention: each size of a packed tile, sequences that stream, each head tile; fp32 at two of them."""
    for length in (16, 32, 64, 128, 256):
        for head_dim, dtype in (*((dim, _BF16) for dim in tuning.HEADS), (32, _FP32), (128, _FP32)):
            qkv = _tensor(2, length, 2, 3 * 2 * head_dim, dtype=dtype)
            yield _call(attention.axial_attention, qkv, 2, "channel", _index(2, 3, length), None, None)


def _attention_block() -> Iterator[Run]:
    """Padding, each size of a packed tile, for the way back gives the output there; with dropout; fp32."""
    width = 256
    cases = ((16, _BF16, 0.0), (16, _BF16, 0.1), (32, _BF16, 0.0), (64, _BF16, 0.0), (128, _BF16, 0.0), (16, _FP32, 0.0))
    for tokens, dtype, dropout in cases:
        x = _tensor(2, 3, tokens, width, dtype=dtype)
        weights = [
            _tensor(*shape, dtype=dtype)
            for shape in ((width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,))
        ]
        rest = (width // 32, "patch", None, _index(2, 3), 0.5, 1e-6, dropout)
        yield _call(attention_block_operator.attention_block, x, *weights, *rest)


def _feed_forward() -> Iterator[Run]:
    """Narrow, common and wide rows, the widest of which `linear` leaves to a library; with dropout; fp32."""
    for width, dtype, dropout in (
        (16, _BF16, 0.0),
        (256, _BF16, 0.0),
        (256, _BF16, 0.1),
        (1024, _BF16, 0.0),
        (2 * linear.MAX_WIDTH, _BF16, 0.1),
        (norm.MAX_WIDTH, _BF16, 0.0),
        (256, _FP32, 0.0),
        (norm.MAX_WIDTH, _FP32, 0.0),
    ):
        hidden = min(2 * width, 1024)
        shapes = ((16, width), (width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
        inputs = [_tensor(*shape, dtype=dtype) for shape in shapes]
        yield _call(feed_forward_operator.feed_forward, *inputs, 0.5, 1e-6, dropout)


def _add_norm() -> Iterator[Run]:
    for width, dtype in ((256, _BF16), (1024, _BF16), (norm.MAX_WIDTH, _BF16), (256, _FP32), (norm.MAX_WIDTH, _FP32)):
        inputs = [_tensor(*shape, dtype=dtype) for shape in ((4, width), (4, width), (width,), (width,))]
        yield _call(norm.add_norm, *inputs, 0.5, 1e-6)


def _embed_visible() -> Iterator[Run]:
    for dtype, activation in ((_BF16, "none"), (_BF16, "gelu"), (_FP32, "none")):
        image = torch.zeros(2, 3, 32, 32)
        # As autocast has it: embeddings stay fp32.
        shapes = ((256, 256), dtype), ((256,), dtype), ((4, 256), _FP32), ((3, 256), _FP32)
        parts = [_tensor(*shape, dtype=kind) for shape, kind in shapes]
        yield _call(embed.embed_visible, image, _index(2, 3, 2), *parts, 16, activation)


def _assemble() -> Iterator[Run]:
    for dtype in (_BF16, _FP32):
        inputs = [_tensor(*shape, dtype=_FP32) for shape in ((256,), (17, 256), (3, 256))]
        latent = _tensor(2, 3, 2, 256, dtype=dtype)
        yield _call(assembly.assemble, latent, _index(2, 3, 2), *inputs)


def _masked_loss() -> Iterator[Run]:
    """Patches of 8, 16 and 128 pixels a side."""
    valid = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    for side, dtype in ((8, _BF16), (16, _BF16), (128, _BF16), (16, _FP32), (128, _FP32)):
        prediction = _tensor(1, 1, 1, side * side, dtype=dtype)
        yield _call(loss.masked_loss, prediction, torch.zeros(1, 1, 128, 128), _index(1, 1, 1), valid, "l1", True)


EXAMPLES: dict[str, Callable[[], Iterator[Run]]] = {
    "axial_attention": _attention,
    "attention_block": _attention_block,
    "feed_forward": _feed_forward,
    "add_norm": _add_norm,
    "embed_visible": _embed_visible,
    "assemble": _assemble,
    "masked_loss": _masked_loss,
}
