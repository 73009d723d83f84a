"""Factorised attention in plain PyTorch: the specification, the CPU path, the fallback.

Shapes: B batch, C channels, T tokens of a channel, S places, H heads, E = D / H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The fused SDPA back ends put the batch on a grid axis that ends here (pytorch#142228).
MAX_SEQUENCES = 65_535
# Up to this many tokens an image, a masked attention over all of them is cheaper than gathering by place.
JOINT_TOKENS = 128


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """(n, H, L, E) scaled dot-product attention, in chunks where n is beyond the fused back ends' limit."""
    if q.shape[0] <= MAX_SEQUENCES:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    parts = []
    for start in range(0, q.shape[0], MAX_SEQUENCES):
        part = slice(start, start + MAX_SEQUENCES)
        chosen = None if mask is None else mask[part] if mask.shape[0] > 1 else mask
        parts.append(F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=chosen, scale=scale))
    return torch.cat(parts)


def _real_tokens(lengths: Tensor, tokens: int) -> Tensor:
    """(B, C) lengths → (B, C, T) bool."""
    return torch.arange(tokens, device=lengths.device) < lengths[..., None]


def axial_attention(
    qkv: Tensor,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `auxmae_kernels.axial_attention`."""
    _batch, channels, tokens, triple = qkv.shape
    if axis not in ("patch", "channel"):
        raise ValueError(f"axis must be 'patch' or 'channel', not {axis!r}")
    if triple % (3 * heads):
        raise ValueError(f"the last axis of qkv ({triple}) is not 3 · heads ({heads}) · head dim")
    real = None
    if lengths is not None:
        real = _real_tokens(lengths, tokens)
        # NaN in padding would survive a multiplication by zero, so it is replaced before any arithmetic.
        qkv = torch.where(real[..., None], qkv, 0.0)
    split = qkv.unflatten(3, (3, heads, triple // (3 * heads)))
    if axis == "patch":
        out = _patch_attention(split, real, scale)
    elif slots is None:
        out = _dense_channel_attention(split, real, scale)
    elif channels * tokens <= JOINT_TOKENS:
        out = _joint_channel_attention(split, slots, scale)
    else:
        out = _gathered_channel_attention(split, slots, scale)
    return out if real is None else torch.where(real[..., None], out, 0.0)


def _patch_attention(split: Tensor, real: Tensor | None, scale: float | None) -> Tensor:
    """Sequences of the T tokens of one channel; split is (B, C, T, 3, H, E)."""
    batch, channels, tokens, _, heads, dim = split.shape
    q, k, v = split.flatten(0, 1).permute(2, 0, 3, 1, 4)
    mask = None if real is None else _allow_own(real.flatten(0, 1))[:, None]
    return _sdpa(q, k, v, mask, scale).transpose(1, 2).reshape(batch, channels, tokens, heads * dim)


def _dense_channel_attention(split: Tensor, real: Tensor | None, scale: float | None) -> Tensor:
    """Sequences of the C tokens at one place, where the t-th token of every channel lies at the same place."""
    batch, channels, tokens, _, heads, dim = split.shape
    # (3, B, T, H, C, E) are strides of the same memory; merging B and T costs a copy of what SDPA reads, no more.
    q, k, v = split.permute(3, 0, 2, 4, 1, 5).flatten(1, 2).unbind(0)
    mask = None if real is None else _allow_own(real.transpose(1, 2).flatten(0, 1))[:, None]
    out: Tensor = _sdpa(q, k, v, mask, scale).view(batch, tokens, heads, channels, dim)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, channels, tokens, heads * dim)


def _allow_own(real: Tensor) -> Tensor:
    """(n, L) real tokens → (n, L, L) who may attend to whom; a padding token attends to itself, so no row is empty."""
    own = torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    return (real[:, None, :] & real[:, :, None]) | own


def _places(slots: Tensor, tokens: int) -> Tensor:
    """(B, S, C) slots → (B, C·T) place of every token, −1 − its index where it has none (so that it matches no other)."""
    batch, positions, channels = slots.shape
    alone = -1 - torch.arange(channels * (tokens + 1), device=slots.device).view(1, channels, tokens + 1)
    table = alone.expand(batch, -1, -1).contiguous()
    index = torch.where(slots < 0, tokens, slots).long().transpose(1, 2)
    place = torch.arange(positions, device=slots.device).expand(batch, channels, positions)
    return table.scatter(2, index, place)[..., :tokens].reshape(batch, channels * tokens)


def _joint_channel_attention(split: Tensor, slots: Tensor, scale: float | None) -> Tensor:
    """All tokens of an image as one sequence (a free view), attending only to their own place."""
    batch, channels, tokens, _, heads, dim = split.shape
    place = _places(slots, tokens)
    mask = (place[:, :, None] == place[:, None, :])[:, None]
    q, k, v = split.flatten(1, 2).permute(2, 0, 3, 1, 4)
    return _sdpa(q, k, v, mask, scale).transpose(1, 2).reshape(batch, channels, tokens, heads * dim)


def _gathered_channel_attention(split: Tensor, slots: Tensor, scale: float | None) -> Tensor:
    """Tokens gathered by place: (B·S) sequences as long as the fullest place."""
    batch, channels, tokens, _, heads, dim = split.shape
    positions = slots.shape[1]
    seen = slots >= 0
    # The visible tokens of a place move to the front; what is behind the fullest place's count is cut off.
    longest = max(int(seen.sum(2).amax()), 1)
    order = torch.argsort(seen.to(torch.uint8), dim=2, descending=True, stable=True)[..., :longest]
    flat = torch.where(seen, slots, 0) + torch.arange(channels, device=slots.device, dtype=slots.dtype) * tokens
    index = flat.gather(2, order).long().reshape(batch, positions * longest)
    real = seen.gather(2, order).reshape(batch * positions, longest)

    merged = split.reshape(batch, channels * tokens, 3 * heads * dim)
    rows = merged.gather(1, index[..., None].expand(-1, -1, merged.shape[2]))
    q, k, v = rows.view(batch * positions, longest, 3, heads, dim).permute(2, 0, 3, 1, 4)
    out = _sdpa(q, k, v, _allow_own(real)[:, None], scale).transpose(1, 2).reshape(batch, positions * longest, heads * dim)
    # Each token lies at one place at most, so this writes every row once; padding goes to a row that is cut off.
    target = torch.where(real.view(batch, -1), index, channels * tokens)
    result = out.new_zeros(batch, channels * tokens + 1, heads * dim)
    result = result.scatter(1, target[..., None].expand(-1, -1, heads * dim), out)
    return result[:, : channels * tokens].view(batch, channels, tokens, heads * dim)
