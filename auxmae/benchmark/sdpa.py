"""Factorised attention by `scaled_dot_product_attention` on each of its back ends, of the same strided views as the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BACK_ENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa math": SDPBackend.MATH,
}


def strided_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    """(B, C, T, 3·D) → (B, C, T, D): along patches nothing is copied; along channels, where places join heads, each part is."""
    batch, channels, tokens, triple = qkv.shape
    # Each (B, C, T, H, E).
    parts = (part.unflatten(3, (heads, -1)) for part in qkv.chunk(3, dim=3))
    start = 0 if axis == "patch" else 2
    q, k, v = (part.flatten(start, start + 1).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, channels, tokens, triple // 3)


def sdpa_providers() -> dict[str, Callable[..., Tensor]]:
    """Name → a function of `axial_attention`'s arguments; each raises RuntimeError where its back end does not run."""

    def on(backend: SDPBackend) -> Callable[..., Tensor]:
        def run(qkv: Tensor, heads: int, axis: str) -> Tensor:
            with sdpa_kernel(backend):
                return strided_attention(qkv, heads, axis)

        return run

    return {name: on(backend) for name, backend in BACK_ENDS.items()}
