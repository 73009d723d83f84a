"""Slow, plain implementations that the kernels are compared with."""

from __future__ import annotations

import math

import torch


def naive_attention(qkv, heads, axis, slots=None, lengths=None):
    batch, channels, tokens, triple = qkv.shape
    width = triple // 3
    dim = width // heads
    out = torch.zeros(batch, channels, tokens, width, dtype=qkv.dtype)
    for b in range(batch):
        groups = []
        if axis == "patch":
            groups = [[(c, t) for t in range(tokens)] for c in range(channels)]
        elif slots is None:
            groups = [[(c, t) for c in range(channels)] for t in range(tokens)]
        else:
            groups = [[(c, int(slots[b, s, c])) for c in range(channels) if slots[b, s, c] >= 0] for s in range(slots.shape[1])]
        for group in groups:
            members = [(c, t) for c, t in group if lengths is None or t < lengths[b, c]]
            for h in range(heads):
                part = slice(h * dim, (h + 1) * dim)
                if not members:
                    continue
                rows = torch.stack([qkv[b, c, t] for c, t in members])
                q, k, v = rows[:, :width][:, part], rows[:, width : 2 * width][:, part], rows[:, 2 * width :][:, part]
                result = ((q @ k.T) / math.sqrt(dim)).softmax(1) @ v
                for (c, t), row in zip(members, result, strict=True):
                    out[b, c, t, part] = row
    return out


def random_slots(batch, channels, tokens, positions, generator):
    keep = torch.rand(batch, channels, positions, generator=generator).argsort(2)[..., :tokens]
    slots = torch.full((batch, positions, channels), -1, dtype=torch.int32)
    for b in range(batch):
        for c in range(channels):
            for t in range(tokens):
                slots[b, keep[b, c, t], c] = t
    return slots
