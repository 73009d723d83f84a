"""Factorised attention in plain PyTorch: the specification, the CPU path, the fallback.

Shapes: B batch, C channels, T tokens of a channel, S places, H heads, E = D / H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from auxmae_kernels import boundary

# The fused SDPA back ends put the batch on a grid axis that ends here (pytorch#142228).
MAX_SEQUENCES = 65_535
# Up to this length the backward pass of the fused CPU kernel, whose tiles are larger than such a sequence, loses to that of plain
# batched products by more than its forward pass wins.
SHORT = 32
# Up to this many tokens an image, a masked attention over all of them is cheaper than gathering by place.
JOINT_TOKENS = 384
# Places are gathered together down to this part of the fullest one's tokens.
PADDED_TO = 0.8


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
    if (
        mask is None
        and q.shape[2] <= SHORT
        and _learns(q, k, v)
        and q.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
    ):
        scores = q @ k.transpose(2, 3) * (q.shape[3] ** -0.5 if scale is None else scale)
        return scores.softmax(3) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _learns(*tensors: Tensor) -> bool:
    """Whether there will be a backward pass."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def real_tokens(lengths: Tensor, tokens: int) -> Tensor:
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
    real = None if lengths is None else real_tokens(lengths, tokens)
    if slots is not None and axis == "channel":
        if real is not None:
            slots = _without_padding(slots, real)
        real = _named_tokens(slots, tokens)
    # Read as an array: that is no operator, which a profile of a step would show as a wait for the device.
    if real is not None and boundary.reading_is_free(real) and real.numpy().all():
        real = None
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
    mask = None
    if real is not None:
        # The same for every query: what padding attends to is cut off, and T × T of them would fill the memory.  A sequence of
        # nothing but padding attends to all of it, since a row of which nothing may be attended to has no softmax.
        real = real.flatten(0, 1)
        mask = (real | ~real.any(1, keepdim=True))[:, None, None]
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


def _fullest_first(seen: Tensor, tokens: int) -> list[int]:
    """(B, S, C) whether a channel shows a place → how many tokens the fullest place of an image holds at most, the next one, ….

    On a CPU they are counted.  A GPU would have to be waited for, and a graph of its work could not be captured, so there the
    bound follows from the shapes: r places that are at least as full share the C · T tokens of an image.
    """
    _, positions, channels = seen.shape
    if seen.numel() and boundary.reading_is_free(seen):
        counts: list[int] = seen.sum(2).sort(dim=1, descending=True).values.amax(0).tolist()
        return counts
    return [min(channels, channels * tokens // rank) for rank in range(1, positions + 1)]


def _batches(fullest: list[int]) -> list[tuple[int, int, int]]:
    """(first rank, rank behind the last, length) of places that are gathered together, all of them padded to the fullest one."""
    found: list[tuple[int, int, int]] = []
    first = 0
    for rank, count in enumerate([*fullest, 0]):
        # Padding to more than this costs more than one more call of the attention.
        if rank > first and count < PADDED_TO * fullest[first]:
            found.append((first, rank, fullest[first]))
            first = rank
        if count == 0:
            break
    return found or [(0, 1, 1)]


def _gathered_channel_attention(parts: Parts, slots: Tensor, scale: float | None) -> Tensor:
    """Tokens gathered by place: a sequence for every place, those of like fullness together."""
    batch, channels, tokens, heads, dim = parts[0].shape
    width, total = heads * dim, batch * channels * tokens
    seen = slots >= 0
    fullest = _fullest_first(seen, tokens)
    # The fullest places come first, and in each of them its visible tokens.
    place = torch.argsort(seen.sum(2), dim=1, descending=True, stable=True)[..., None].expand(-1, -1, channels)
    seen = seen.gather(1, place)
    order = torch.argsort(seen.to(torch.uint8), dim=2, descending=True, stable=True)
    first = torch.arange(batch * channels, device=slots.device).view(batch, 1, channels) * tokens
    row = torch.where(seen, slots.gather(1, place) + first, total).gather(2, order)
    bounds = _batches(fullest)
    rows = [row[:, start:end, :length].reshape(-1, length) for start, end, length in bounds]
    target = torch.cat([each.flatten() for each in rows])
    # Padding reads some token and writes to a row that is cut off.
    source = target.clamp(max=total - 1)[:, None].expand(-1, width)
    sizes = [each.numel() for each in rows]
    gathered = [part.reshape(total, width).gather(0, source).split(sizes) for part in parts]
    outs = []
    for own, *pieces in zip(rows, *gathered, strict=True):
        q, k, v = (piece.view(*own.shape, heads, dim).transpose(1, 2) for piece in pieces)
        out = _sdpa(q, k, v, _allow_own(own < total)[:, None], scale)
        outs.append(out.transpose(1, 2).reshape(-1, width))
    # Each token lies at one place at most, so this writes every row once.
    result = outs[0].new_zeros(total + 1, width).index_copy(0, target, torch.cat(outs))
    return result[:total].view(batch, channels, tokens, width)
