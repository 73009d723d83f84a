"""Every public kernel function as its formula says it, to check the specification itself.

Nothing here is shared with `auxmae_kernels`, so that a fault there cannot hide; loops make it slow.  The functions take the
arguments that the kernel suite's cases have.

Shapes: B batch, C channels, N positions of the patch grid, K visible and M hidden ones, T tokens of a channel, S places that a
channel's tokens can have, D width, H heads, E head dim, P pixels per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("...i,oi->...o", x, weight) + bias


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def _sequences(channels: int, tokens: int, axis: str, slots: list[list[int]] | None) -> list[list[int]]:
    """The tokens c·T + t of one image that attend to each other; slots (S, C)."""
    if axis == "patch":
        return [[c * tokens + t for t in range(tokens)] for c in range(channels)]
    if slots is None:
        return [[c * tokens + t for c in range(channels)] for t in range(tokens)]
    return [[c * tokens + t for c, t in enumerate(place) if t >= 0] for place in slots]


def axial_attention(qkv: Tensor, heads: int, axis: str, slots: Tensor | None = None) -> Tensor:
    """(B, C, T, 3·D) → (B, C, T, D): softmax(q kᵀ / √E) v, one sequence after another."""
    batch, channels, tokens, triple = qkv.shape
    dim = triple // 3 // heads
    rows = qkv.reshape(batch, channels * tokens, 3, heads, dim)
    out = torch.zeros_like(rows[:, :, 0])
    for b in range(batch):
        for members in _sequences(channels, tokens, axis, None if slots is None else slots[b].tolist()):
            if members:
                q, k, v = rows[b, members].unbind(1)
                weight = (torch.einsum("nhe,mhe->hnm", q, k) / math.sqrt(dim)).exp()
                out[b, members] = torch.einsum("hnm,mhe->nhe", weight / weight.sum(2, keepdim=True), v)
    return out.reshape(batch, channels, tokens, heads * dim)


def attention_block(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_out: Tensor, b_out: Tensor,
    heads: int, axis: str, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(B, C, T, D) → (B, C, T, D)."""
    qkv = _linear(_layer_norm(x, norm_weight, norm_bias), w_qkv, b_qkv)
    return x + _linear(axial_attention(qkv, heads, axis, slots), w_out, b_out)


def feed_forward(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual_scale: float
) -> Tensor:
    """(…, D) → (…, D)."""
    hidden = _linear(_layer_norm(x, norm_weight, norm_bias), w1, b1)
    return x + residual_scale * _linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, w2, b2)


def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, residual_scale: float) -> tuple[Tensor, Tensor]:
    """(…, D), (…, D) → (…, D), (…, D)."""
    total = residual + residual_scale * x
    return total, _layer_norm(total, weight, bias)


def _patches(image: Tensor, index: Tensor, side: int) -> Tensor:
    """(B, C, L, P): the patches at places (B, C, L) of an image (B, C, h, w)."""
    every = image.unfold(2, side, side).unfold(3, side, side).flatten(4).flatten(2, 3)
    chosen = [every[b, c, places] for b, channels in enumerate(index) for c, places in enumerate(channels)]
    return torch.stack(chosen).reshape(*index.shape, -1)


def embed_visible(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, patch_size: int
) -> Tensor:
    """Image (B, C, h, w), keep (B, C, K) → (B, C, K, D)."""
    return _linear(_patches(image, keep, patch_size), weight, bias) + position[keep] + channel[None, :, None]


def assemble(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    """Latent (B, C, K, D), keep (B, C, K) → (B, C, N, D)."""
    tokens = mask_token.expand(*latent.shape[:2], *position.shape).clone()
    for b, channels in enumerate(keep):
        for c, places in enumerate(channels):
            tokens[b, c, places] = latent[b, c]
    return tokens + position + channel[:, None]


def masked_loss(prediction: Tensor, image: Tensor, masked_index: Tensor) -> Tensor:
    """Prediction (B, C, M, P), image (B, C, h, w), masked_index (B, C, M) → scalar L1."""
    target = _patches(image, masked_index, math.isqrt(prediction.shape[3]))
    return (prediction - target).abs().sum() / prediction.numel()
