"""The macaron block with factorised attention.

Pre-norm: x + ½·FFN(x); x + attention over the patches of each channel; x + attention over the channels at each place;
x + ½·FFN(x).  The macaron arrangement is that of Conformer (arXiv 2005.08100, section 2.4).

Shapes: B batch, C channels, T tokens of a channel (CLS first), D width.
"""

from __future__ import annotations

import torch
from auxmae_kernels import attention_block, feed_forward
from torch import Tensor, nn

NORM_EPS = 1e-6


def linear_parts(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear map, whose own `forward` is never called.

    Raises:
        TypeError: the layer was replaced by another, an adapter or a quantised one, which would have no effect.
    """
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise TypeError(
            f"a {type(layer).__name__} stands for a torch.nn.Linear, whose weight alone is used: adapt the weight itself, with "
            "torch.nn.utils.parametrize"
        )
    return layer.weight, layer.bias


class FeedForward(nn.Module):
    """x + ½ · (GELU(norm(x)·w1ᵀ + b1)·w2ᵀ + b2) on the last axis."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(
            x,
            self.norm.weight,
            self.norm.bias,
            *linear_parts(self.fc1),
            *linear_parts(self.fc2),
            residual_scale=0.5,
            eps=NORM_EPS,
            dropout=self.dropout if self.training else 0.0,
        )


class QKVLinear(nn.Linear):
    """Queries, keys and values: three maps D → D, stored as one."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width)


class AxialAttention(nn.Module):
    """x + projection(attention(norm(x))) along one axis: "patch" (within a channel) or "channel" (at a place)."""

    def __init__(self, width: int, heads: int, axis: str, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = QKVLinear(width)
        self.projection = nn.Linear(width, width)
        self.heads = heads
        self.axis = axis
        self.dropout = dropout

    def forward(self, x_BCTD: Tensor, slots: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
        return attention_block(
            x_BCTD,
            self.norm.weight,
            self.norm.bias,
            *linear_parts(self.qkv),
            *linear_parts(self.projection),
            heads=self.heads,
            axis=self.axis,
            slots=slots,
            lengths=lengths,
            eps=NORM_EPS,
            dropout=self.dropout if self.training else 0.0,
        )


class MacaronBlock(nn.Module):
    """One block; (B, C, T, D) → (B, C, T, D), or (B, C, M, D) with `select`."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(width, hidden, dropout)
        self.patch_attention = AxialAttention(width, heads, "patch", dropout)
        self.channel_attention = AxialAttention(width, heads, "channel", dropout)
        self.feed_forward_out = FeedForward(width, hidden, dropout)

    def operands(self) -> list[Tensor]:
        """The weights that matrix products take in autocast's type."""
        attentions = (self.patch_attention, self.channel_attention)
        return [
            *(part for each in attentions for part in (*linear_parts(each.qkv), linear_parts(each.projection)[0])),
            *(linear_parts(layer)[0] for each in (self.feed_forward_in, self.feed_forward_out) for layer in (each.fc1, each.fc2)),
        ]

    def forward(
        self, x: Tensor, slots: Tensor | None = None, lengths: Tensor | None = None, select: Tensor | None = None
    ) -> Tensor:
        """Runs the block.

        Args:
            x: (B, C, T, D).
            slots: (B, positions, C) int32 table of the token at each place, where the channels show different places.
            lengths: (B, C) int32, real tokens of each channel, where they differ.
            select: (B, C, M) tokens to go on with after the attentions; the last decoder block needs no others.
        """
        x = self.feed_forward_in(x)
        x = self.patch_attention(x, None, lengths)
        x = self.channel_attention(x, slots, lengths)
        if select is not None:
            x = x.gather(2, select[..., None].expand(-1, -1, -1, x.shape[-1]))
        out: Tensor = self.feed_forward_out(x)
        return out


def initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases, as the masked autoencoder's authors use (arXiv 2111.06377, appendix A)."""
    if isinstance(module, nn.Linear):
        for part in module.weight.data.chunk(3 if isinstance(module, QKVLinear) else 1):
            torch.nn.init.xavier_uniform_(part)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
