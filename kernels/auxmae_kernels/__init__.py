"""The hot functions of a masked autoencoder with factorised attention.

Each is differentiable and accepts any strides.  Triton differentiates once, and so does attention where PyTorch has a fused
kernel for it; within `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` PyTorch does as often as one likes.  The transforms of
`torch.func` and forward-mode differentiation take PyTorch's path.  `reference` is the specification in plain PyTorch; `dispatch`
says which implementation runs and why.  This package knows nothing of `auxmae` and can be used alone.

Shapes: B batch, C channels or G channel groups of g channels, N positions of the patch grid, K visible and M hidden ones,
T tokens of a channel, S places that its tokens can have, D width, H heads, E head dim, P = g·p·p pixels per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from auxmae_kernels import dispatch, reference, shapes
from auxmae_kernels.casting import cast, cast_together, cast_weight, product_type
from auxmae_kernels.dispatch import Decision, KernelUnavailableError

if dispatch.triton_installed():
    # Registers the operators.
    from auxmae_kernels import assembly, attention, attention_block_operator, embed, feed_forward_operator, loss, norm

__all__ = [
    "Decision",
    "KernelUnavailableError",
    "add_norm",
    "assemble",
    "attention_block",
    "axial_attention",
    "cast_together",
    "dispatch",
    "embed_visible",
    "feed_forward",
    "masked_loss",
]


def _attention_key(axis: str, shape: torch.Size, head_dim: int) -> tuple[tuple[str, int | str], ...]:
    return (("axis", axis), ("length", int(shape[1 if axis == "channel" else 2])), ("head_dim", head_dim))


def axial_attention(
    qkv: Tensor,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention along one axis of a (channels × tokens) grid.

    softmax(scale · q kᵀ) v over the tokens of each channel (axis "patch"), or over the channels at each place ("channel").

    Args:
        qkv: (B, C, T, 3·D); the last axis is (3, H, E).
        heads: H.
        axis: "patch" or "channel".
        slots: (B, S, C) integers: slots[b, s, c] is the token of channel c that lies at place s, −1 where it is hidden.
            Channel attention then joins the tokens of the same place, each of which lies at one place at most; a token that no
            place names takes no part, as padding does not.  None: token t of every channel is the same place.
        lengths: (B, C) integers: tokens t ≥ lengths[b, c] are padding; nothing attends to them, their output and their
            gradient are 0, and NaN in them is harmless.  (NaN and ±∞ in other tokens spoil their own sequence; Triton joins short
            ones in one product, and may spoil those beside it too.)
        scale: of the logits; 1/√E by default.

    Returns:
        (B, C, T, D).

    Raises:
        ValueError: an unknown axis, a last axis that heads do not divide, slots or lengths of another shape or no integers; on a
            CPU also a token in slots that there is not.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if axis not in ("patch", "channel"):
        raise ValueError(f"axis must be 'patch' or 'channel', not {axis!r}")
    if qkv.ndim != 4 or heads < 1 or qkv.shape[3] % (3 * heads):
        raise ValueError(f"qkv must be (B, C, T, 3 · heads ({heads}) · head dim), not {tuple(qkv.shape)}")
    shapes.check_sequences("qkv", qkv, slots, lengths)
    x = cast(qkv)
    key = _attention_key(axis, x.shape, x.shape[3] // (3 * heads))
    if dispatch.choose("axial_attention", x.dtype, x.device, key) == "triton":
        return attention.axial_attention(x, heads, axis, slots, lengths, scale)
    return reference.axial_attention(x, heads, axis, slots, lengths, scale)


def feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    residual_scale: float = 1.0,
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """x + residual_scale · (GELU(LayerNorm(x)·w1ᵀ + b1)·w2ᵀ + b2), GELU by the error function.

    Args:
        x: (…, D).
        norm_weight, norm_bias: (D,); eps: of the norm.
        w1, b1: (hidden, D), (hidden,); w2, b2: (D, hidden), (D,).
        dropout: probability, after the GELU and after the second map; 0 outside training.  The masks are drawn from PyTorch's
            generator of x's device; they depend on the backend, and in Triton on nothing but the generator's state.

    Returns:
        x's shape and type.  Under autocast the products run in its type, and the sum keeps x's.

    Raises:
        ValueError: dropout is no probability, or a shape does not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    shapes.check_feed_forward(x, norm_weight, norm_bias, w1, b1, w2, b2, dropout)
    key = (("width", int(x.shape[-1])), ("hidden", int(w1.shape[0])))
    if dispatch.choose("feed_forward", product_type(x), x.device, key) == "triton":
        return feed_forward_operator.feed_forward(
            x, norm_weight, norm_bias, cast_weight(w1), b1, cast_weight(w2), b2, residual_scale, eps, dropout
        )
    return reference.feed_forward(x, norm_weight, norm_bias, w1, b1, w2, b2, residual_scale, eps, dropout)


def attention_block(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor | None,
    w_out: Tensor,
    b_out: Tensor | None,
    heads: int,
    axis: str,
    slots: Tensor | None = None,
    lengths: Tensor | None = None,
    residual_scale: float = 1.0,
    eps: float = 1e-6,
    dropout: float = 0.0,
) -> Tensor:
    """x + residual_scale · (axial_attention(LayerNorm(x)·w_qkvᵀ + b_qkv)·w_outᵀ + b_out).

    Args:
        x: (B, C, T, D).
        w_qkv, b_qkv: (3·D, D), (3·D,); w_out, b_out: (D, D), (D,).
        heads, axis, slots, lengths: see `axial_attention`; at padding tokens the result is x + residual_scale · b_out.
        dropout: probability, after the output projection; see `feed_forward`.

    Returns:
        x's shape and type.  Under autocast the products run in its type, and the sum keeps x's.

    Raises:
        ValueError: an unknown axis, a width that heads do not divide, a dropout that is no probability, or a shape that does not
            fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    if axis not in ("patch", "channel"):
        raise ValueError(f"axis must be 'patch' or 'channel', not {axis!r}")
    if x.ndim != 4 or heads < 1 or x.shape[3] % heads:
        raise ValueError(f"x must be (B, C, T, heads ({heads}) · head dim), not {tuple(x.shape)}")
    shapes.check_attention_block(x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, slots, lengths, dropout)
    key = (*_attention_key(axis, x.shape, x.shape[3] // heads), ("width", int(x.shape[3])))
    if dispatch.choose("attention_block", product_type(x), x.device, key) == "triton":
        b_qkv = None if b_qkv is None else cast_weight(b_qkv)
        return attention_block_operator.attention_block(
            x, norm_weight, norm_bias, cast_weight(w_qkv), b_qkv, cast_weight(w_out), b_out,
            heads, axis, slots, lengths, residual_scale, eps, dropout,
        )  # fmt: skip
    return reference.attention_block(
        x, norm_weight, norm_bias, w_qkv, b_qkv, w_out, b_out, heads, axis, slots, lengths, residual_scale, eps, dropout
    )


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, residual_scale: float = 1.0, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Returns (s, LayerNorm(s)) with s = residual + residual_scale · x; all (…, D), weight and bias (D,).

    Both have the type that x and residual are promoted to; autocast on a GPU makes the norm fp32.

    Raises:
        ValueError: a shape does not fit.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    shapes.check_add_norm(x, residual, weight, bias)
    if dispatch.choose("add_norm", x.dtype, x.device, (("width", int(x.shape[-1])),)) == "triton":
        total, normed = norm.add_norm(x, residual, weight, bias, residual_scale, eps)
        reduced = total.dtype in (torch.float16, torch.bfloat16)
        return total, normed.float() if reduced and x.is_cuda and torch.is_autocast_enabled("cuda") else normed
    return reference.add_norm(x, residual, weight, bias, residual_scale, eps)


def embed_visible(
    image: Tensor, keep: Tensor, weight: Tensor, bias: Tensor, position: Tensor, channel: Tensor, patch_size: int,
    activation: str = "none",
) -> Tensor:  # fmt: skip
    """Projects the visible patches of an image and adds their position's and channel's embedding.

    No other pixel is read, so NaN in a hidden patch is harmless, in the gradient too.

    Args:
        image: (B, G·g, h, w), h and w multiples of `patch_size`.
        keep: (B, G, K) integer positions, row-major in the patch grid; −1 is padding and gives a row of zeros.
        weight: (D, P), or (G, D, P) with one map per group; P is ordered (g, row, column).
        bias: (D,), or (G, D) where there is a map per group.
        position: (N, D); channel: (G, D).
        activation: of the projection, ahead of the embeddings: "none" or "gelu" (by the error function).

    Returns:
        (B, G, K, D).

    Raises:
        ValueError: the image is no multiple of the patch size, its channels do not divide into the groups, another shape does
            not fit, or the activation is unknown; on a CPU also a position that is out of range.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    shapes.check_embedding(image, keep, weight, bias, position, channel, patch_size, activation)
    key = (("width", int(channel.shape[-1])), ("pixels", int(weight.shape[-1])))
    if dispatch.choose("embed_visible", product_type(image), image.device, key) == "triton":
        return embed.embed_visible(image, keep, cast(weight), cast(bias), position, channel, patch_size, activation)
    return reference.embed_visible(image, keep, weight, bias, position, channel, patch_size, activation)


def assemble(latent: Tensor, keep: Tensor, mask_token: Tensor, position: Tensor, channel: Tensor) -> Tensor:
    """Puts tokens at their places and the mask token at all others; adds position and channel embedding everywhere.

    Args:
        latent: (B, C, T, D).
        keep: (B, C, T) integer places in [0, S); −1 is padding, whose token is left out.
        mask_token: (D,) or (C, D).
        position: (S, D); channel: (C, D).

    Returns:
        (B, C, S, D), of latent's type.

    Raises:
        ValueError: a shape does not fit; on a CPU also a place that is out of range.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    shapes.check_assembly(latent, keep, mask_token, position, channel)
    if dispatch.choose("assemble", latent.dtype, latent.device, (("width", int(latent.shape[-1])),)) == "triton":
        return assembly.assemble(latent, keep, mask_token, position, channel)
    return reference.assemble(latent, keep, mask_token, position, channel)


def masked_loss(
    prediction: Tensor,
    image: Tensor,
    masked_index: Tensor,
    valid: Tensor | None = None,
    kind: str = "l1",
    normalize: bool = False,
) -> Tensor:
    """Mean error over the valid pixels of the hidden patches; the target is read from the image.

    Args:
        prediction: (B, G, M, P), P ordered (g, row, column).
        image: (B, G·g, h, w), h and w multiples of the patch side √(P / g).
        masked_index: (B, G, M) integer positions of the hidden patches; −1 is padding.
        valid: bool, broadcastable to the image; NaN or anything else at False pixels is harmless.
        kind: "l1", "mse" or "smooth_l1" (Huber with beta 1).
        normalize: target is each patch less the mean of its valid pixels, over their standard deviation.

    Returns:
        A scalar, fp32 for reduced precisions; 0 with zero gradient where nothing counts.

    Raises:
        ValueError: an unknown kind, or shapes that do not fit; on a CPU also a position that is out of range.
        KernelUnavailableError: Triton was asked for and cannot run here.
    """
    shapes.check_loss(prediction, image, masked_index, valid, kind)
    of_image = int(image.requires_grad and torch.is_grad_enabled())
    key = (("pixels", int(prediction.shape[3])), ("image_gradient", of_image))
    if dispatch.choose("masked_loss", prediction.dtype, prediction.device, key) == "triton":
        return loss.masked_loss(prediction, image, masked_index, valid, kind, normalize)
    return reference.masked_loss(prediction, image, masked_index, valid, kind, normalize)
