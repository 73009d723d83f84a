"""Factorised attention by `scaled_dot_product_attention`, with the permuted copies that it needs, on each of its back ends."""

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


def permuted_attention(qkv: Tensor, heads: int, axis: str) -> Tensor:
    """(B, C, T, 3·D) → (B, C, T, D): tokens of the other axis join the batch, by a copy where the memory is in another order."""
    batch, channels, tokens, triple = qkv.shape
    dim = triple // (3 * heads)
    parts = qkv.view(batch, channels, tokens, 3, heads, dim)
    if axis == "patch":
        q, k, v = parts.permute(3, 0, 1, 4, 2, 5).reshape(3, batch * channels, heads, tokens, dim).unbind()
        out = F.scaled_dot_product_attention(q, k, v).view(batch, channels, heads, tokens, dim)
        return out.permute(0, 1, 3, 2, 4).reshape(batch, channels, tokens, heads * dim)
    q, k, v = parts.permute(3, 0, 2, 4, 1, 5).reshape(3, batch * tokens, heads, channels, dim).unbind()
    out = F.scaled_dot_product_attention(q, k, v).view(batch, tokens, heads, channels, dim)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, channels, tokens, heads * dim)


def sdpa_providers() -> dict[str, Callable[..., Tensor]]:
    """Name → a function of `axial_attention`'s arguments; each raises RuntimeError where its back end does not run."""

    def on(backend: SDPBackend) -> Callable[..., Tensor]:
        def run(qkv: Tensor, heads: int, axis: str) -> Tensor:
            with sdpa_kernel(backend):
                return permuted_attention(qkv, heads, axis)

        return run

    return {name: on(backend) for name, backend in BACK_ENDS.items()}
