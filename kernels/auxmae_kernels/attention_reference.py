"""Factorised attention in plain PyTorch: the specification, the CPU path, the fallback.

Shapes: B batch, C channels, T tokens of a channel, S places, H heads, E = D / H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The fused SDPA back ends put the batch on a grid axis that ends here (pytorch#142228).
MAX_SEQUENCES = 65_535
# Up to this length the fused CPU kernel, whose tiles are larger than such a sequence, loses to plain batched products.
SHORT = 32
# Up to this many tokens an image, a masked attention over all of them is cheaper than gathering by place.
JOINT_TOKENS = 384


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """(n, H, L, E) scaled dot-product attention, in chunks where n or H is beyond the fused back ends' limit."""
    for axis in (0, 1):
        if q.shape[axis] > MAX_SEQUENCES:
            starts = range(0, q.shape[axis], MAX_SEQUENCES)
            parts = [(start, min(MAX_SEQUENCES, q.shape[axis] - start)) for start in starts]
            whole = mask is None or mask.shape[axis] == 1
            masks = [mask if mask is None or whole else mask.narrow(axis, *part) for part in parts]
            chunks = [
                _sdpa(q.narrow(axis, *part), k.narrow(axis, *part), v.narrow(axis, *part), chosen, scale)
                for part, chosen in zip(parts, masks, strict=True)
            ]
            return torch.cat(chunks, axis)
    if mask is None and q.device.type == "cpu" and q.shape[2] <= SHORT and not torch.is_autocast_enabled("cpu"):
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
        return scores.softmax(3) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _real_tokens(lengths: Tensor, tokens: int) -> Tensor:
    """(B, C) lengths → (B, C, T) bool."""
    return torch.arange(tokens, device=lengths.device) < lengths[..., None]


def _named_tokens(slots: Tensor, tokens: int) -> Tensor:
    """(B, C, T) bool: the tokens that lie at some place."""
    token = torch.where(slots < 0, tokens, slots).transpose(1, 2).long()
    named = torch.zeros(*token.shape[:2], tokens + 1, dtype=torch.bool, device=slots.device)
    return named.scatter(2, token, True)[..., :tokens]


def _without_padding(slots: Tensor, real: Tensor) -> Tensor:
    """The table without the tokens that are padding."""
    token = slots.clamp(min=0).transpose(1, 2).long()
    return torch.where(real.gather(2, token).transpose(1, 2), slots, -1)


def axial_attention(
    qkv: Tensor,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `auxmae_kernels.axial_attention`."""
    triple = qkv.shape[3]
    if triple % (3 * heads):
        raise ValueError(f"the last axis of qkv ({triple}) is not 3 · heads ({heads}) · head dim")
    q, k, v = qkv.chunk(3, dim=3)
    return attend(q, k, v, heads, axis, slots, lengths, scale)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """`axial_attention` with queries, keys and values apart, each (B, C, T, D).

    Where each lies in memory by itself no path but the gathering one copies a token: every sequence is a strided view.
    """
    batch, channels, tokens, width = q.shape
    if axis not in ("patch", "channel"):
        raise ValueError(f"axis must be 'patch' or 'channel', not {axis!r}")
    real = None if lengths is None else _real_tokens(lengths, tokens)
    if slots is not None and axis == "channel":
        if real is not None:
            slots = _without_padding(slots, real)
        real = _named_tokens(slots, tokens)
    if real is not None:
        # NaN in what takes no part would survive a multiplication by zero, so it is replaced before any arithmetic.
        q, k, v = (torch.where(real[..., None], part, 0.0) for part in (q, k, v))
    parts = tuple(part.unflatten(3, (heads, width // heads)) for part in (q, k, v))
    if axis == "patch":
        out = _patch_attention(parts, real, scale)
    elif slots is None:
        out = _dense_channel_attention(parts, real, scale)
    elif channels * tokens <= JOINT_TOKENS:
        out = _joint_channel_attention(parts, slots, scale)
    else:
        out = _gathered_channel_attention(parts, slots, scale)
    out = out.reshape(batch, channels, tokens, width)
    return out if real is None else torch.where(real[..., None], out, 0.0)


# q, k and v, each (B, C, T, H, E).
Parts = tuple[Tensor, ...]


def _patch_attention(parts: Parts, real: Tensor | None, scale: float | None) -> Tensor:
    """Sequences of the T tokens of one channel."""
    q, k, v = (part.flatten(0, 1).transpose(1, 2) for part in parts)
    mask = None if real is None else _allow_own(real.flatten(0, 1))[:, None]
    return _sdpa(q, k, v, mask, scale).transpose(1, 2)


def _dense_channel_attention(parts: Parts, real: Tensor | None, scale: float | None) -> Tensor:
    """Sequences of the C tokens at one place, where the t-th token of every channel lies at the same place."""
    heads = parts[0].shape[3]
    # Places and heads merge into one axis of "heads", so that (B, T · H, C, E) are strides of the same memory.
    q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in parts)
    mask = None if real is None else _allow_own(real.transpose(1, 2)).repeat_interleave(heads, 1)
    return _sdpa(q, k, v, mask, scale).transpose(1, 2)


def _allow_own(real: Tensor) -> Tensor:
    """(…, L) real tokens → (…, L, L) who may attend to whom; a padding token attends to itself, so no row is empty."""
    own = torch.eye(real.shape[-1], dtype=torch.bool, device=real.device)
    return (real[..., None, :] & real[..., :, None]) | own


def _places(slots: Tensor, tokens: int) -> Tensor:
    """(B, S, C) slots → (B, C·T) place of every token, −1 − its index where it has none (so that it matches no other)."""
    batch, positions, channels = slots.shape
    alone = -1 - torch.arange(channels * (tokens + 1), device=slots.device).view(1, channels, tokens + 1)
    table = alone.expand(batch, -1, -1).contiguous()
    index = torch.where(slots < 0, tokens, slots).long().transpose(1, 2)
    place = torch.arange(positions, device=slots.device).expand(batch, channels, positions)
    return table.scatter(2, index, place)[..., :tokens].reshape(batch, channels * tokens)


def joint_mask(slots: Tensor, tokens: int) -> Tensor:
    """(B, S, C) slots → (B, C·T, C·T) bool, True between tokens of one place."""
    place = _places(slots, tokens)
    return place[:, :, None] == place[:, None, :]


def _joint_channel_attention(parts: Parts, slots: Tensor, scale: float | None) -> Tensor:
    """All tokens of an image as one sequence (a free view), attending only to their own place."""
    mask = joint_mask(slots, parts[0].shape[2])[:, None]
    q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in parts)
    return _sdpa(q, k, v, mask, scale).transpose(1, 2)


def _gathered_channel_attention(parts: Parts, slots: Tensor, scale: float | None) -> Tensor:
    """Tokens gathered by place: (B·S) sequences as long as the fullest place."""
    batch, channels, tokens, heads, dim = parts[0].shape
    positions, width = slots.shape[1], heads * dim
    seen = slots >= 0
    # The visible tokens of a place move to the front; what is behind the fullest place's count is cut off.
    longest = max(int(seen.sum(2).amax()), 1)
    order = torch.argsort(seen.to(torch.uint8), dim=2, descending=True, stable=True)[..., :longest]
    flat = torch.where(seen, slots, 0) + torch.arange(channels, device=slots.device, dtype=slots.dtype) * tokens
    index = flat.gather(2, order).long().reshape(batch, positions * longest)
    real = seen.gather(2, order).reshape(batch * positions, longest)

    def gathered(part: Tensor) -> Tensor:
        rows = part.reshape(batch, channels * tokens, width).gather(1, index[..., None].expand(-1, -1, width))
        return rows.view(batch * positions, longest, heads, dim).transpose(1, 2)

    q, k, v = (gathered(part) for part in parts)
    out = _sdpa(q, k, v, _allow_own(real)[:, None], scale).transpose(1, 2).reshape(batch, positions * longest, width)
    # Each token lies at one place at most, so this writes every row once; padding goes to a row that is cut off.
    target = torch.where(real.view(batch, -1), index, channels * tokens)
    result = out.new_zeros(batch, channels * tokens + 1, width)
    return result.scatter(1, target[..., None].expand(-1, -1, width), out)[:, : channels * tokens]
