"""Tokens → features: over places, over channels, over the windows of an image.

Shapes: B batch, G channel groups, N positions, T tokens with a CLS token (N without), D width, W windows of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auxmae.errors import SettingsError

# Poolings that keep channels apart, so that a feature's place says which channel it is of.
CHANNEL_BY_CHANNEL = ("concat", "moments", "moments+embedding")
# Poolings of the tokens as they were embedded, beside those that the encoder made of them.
WITH_EMBEDDING = ("moments+embedding",)
_MOMENTS = ("moments", *WITH_EMBEDDING)


def pool_image(tokens: Tensor, weight: Tensor, pool: str) -> Tensor:
    """(B, G, T, D) → (B, D'): see `AuxMAE.forward_features`.

    Args:
        tokens: the last N of a channel's T tokens are its patches; one before them is its CLS token.
        weight: (B, G, N, 1), 1 where a patch counts.
        pool: "mean", "cls", "concat", "attention" or "moments"; "moments+embedding" is "moments" of wider tokens.

    Raises:
        SettingsError: another pooling, or "cls" without CLS tokens.
    """
    first = tokens.shape[2] - weight.shape[2]
    if pool == "cls":
        if not first:
            raise SettingsError("pool = 'cls' needs a model with CLS tokens", hint="choose another pooling, such as 'mean'")
        has_any = (weight.sum(2) > 0).to(tokens.dtype)
        return (tokens[:, :, 0] * has_any).sum(1) / has_any.sum(1).clamp(min=1)
    places, count = tokens[:, :, first:], weight.sum(2).clamp(min=1)
    x_BGD = (places * weight).sum(2) / count
    if pool in _MOMENTS:
        variance = ((places - x_BGD[:, :, None]).square() * weight).sum(2) / count
        # The slope of a root is infinite at 0, where a channel has one patch that counts, or none.
        flat = variance == 0
        deviation = variance.masked_fill(flat, 1.0).sqrt().masked_fill(flat, 0.0)
        return torch.cat([x_BGD.flatten(1), deviation.flatten(1)], 1)
    return _pool_channels(x_BGD, (weight.sum(2) > 0).to(x_BGD.dtype), pool)


def pool_places(tokens: Tensor, weight: Tensor, pool: str) -> Tensor:
    """(B, G, T, D) → (B, N, D'), arguments as in `pool_image`.

    "moments" is "concat", since one place has no spread, and "moments+embedding" the same of wider tokens.  "cls" is "mean",
    followed by the mean of the CLS tokens, the same at every place.
    """
    x_BNGD = tokens[:, :, tokens.shape[2] - weight.shape[2] :].transpose(1, 2)
    if pool == "cls":
        whole = pool_image(tokens, weight, "cls")
        places = _pool_channels(x_BNGD, weight.transpose(1, 2), "mean")
        return torch.cat([places, whole[:, None].expand(-1, places.shape[1], -1)], 2)
    return _pool_channels(x_BNGD, weight.transpose(1, 2), "concat" if pool in _MOMENTS else pool)


def pool_windows(features: Tensor, valid: Tensor) -> Tensor:
    """(W, …, D) → (…, D) float32 on the CPU: the mean of an image's features over its windows, weighted by their valid pixels.

    Windows without a valid pixel say nothing, unless all of an image's are such: then they count alike.

    Args:
        features: of the windows.
        valid: (W, …) how many pixels of each are valid, over all channels.
    """
    # In float64, a single window's features come back to the bit; not every accelerator has it.
    weight = valid.cpu().double()
    weight = torch.where(weight.sum(0) > 0, weight, 1.0)[..., None]
    return ((features.cpu() * weight).sum(0) / weight.sum(0)).float()


def _pool_channels(x: Tensor, weight: Tensor, pool: str) -> Tensor:
    """(…, G, D) with weights broadcastable to (…, G, 1) → (…, D), or (…, G · D)."""
    if pool == "concat":
        return x.flatten(-2)
    mean = (x * weight).sum(-2) / weight.sum(-2).clamp(min=1)
    if pool == "mean":
        return mean
    if pool == "attention":
        score = (x * mean.unsqueeze(-2)).sum(-1, keepdim=True) / x.shape[-1] ** 0.5
        score = score.masked_fill(weight == 0, torch.finfo(score.dtype).min)
        weighted: Tensor = (score.softmax(-2) * x).sum(-2)
        return weighted
    raise SettingsError(f"unknown pooling {pool!r}", hint="one of mean, cls, concat, attention, moments, moments+embedding")
