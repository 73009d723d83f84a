"""The same work done the way others do it, in plain PyTorch.

Shapes: B batch, C channels, N positions of the patch grid, K visible and M hidden positions, D width, P pixels per patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MASK_RATIO = 0.75


class PlainBlock(nn.Module):
    """The macaron block, with `nn.MultiheadAttention` and the permutes that its (sequence, width) layout asks for."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.feed_forward_in = _feed_forward(width, hidden, dropout)
        self.norm_patch = nn.LayerNorm(width)
        self.patch_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm_channel = nn.LayerNorm(width)
        self.channel_attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm_out = nn.LayerNorm(width)
        self.feed_forward_out = _feed_forward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCND: Tensor) -> Tensor:
        """(B, C, N, D) → (B, C, N, D)."""
        B, C, N, D = x_BCND.shape
        x = x_BCND + 0.5 * self.feed_forward_in(self.norm_in(x_BCND))

        y = self.norm_patch(x).reshape(B * C, N, D)
        # Weights that nobody reads would keep it from its fused path.
        y, _ = self.patch_attention(y, y, y, need_weights=False)
        x = x + self.dropout(y.reshape(B, C, N, D))

        y = self.norm_channel(x).permute(0, 2, 1, 3).reshape(B * N, C, D)
        y, _ = self.channel_attention(y, y, y, need_weights=False)
        x = x + self.dropout(y.reshape(B, N, C, D).permute(0, 2, 1, 3))

        return x + 0.5 * self.feed_forward_out(self.norm_out(x))


class PlainAuxiliaryMAE(nn.Module):
    """A straightforward implementation of the published AuxiliaryMAE design.

    Written from the published description (github.com/kaitosuzuki-CS/AuxiliaryMAE), without its code: one token per patch
    and channel, a CLS token per channel, sinusoidal positions and learned channel embeddings, encoder and decoder of the same
    width, independent masks, sigmoid output, L1 on the hidden patches.  All patches are embedded and then the visible ones
    gathered; channel attention mixes the k-th visible token of every channel, whatever its place; every patch is decoded.

    Args:
        channels, image_size, patch_size: of the images; the size is a multiple of the patch.
        width, hidden, heads: of every block; the width is even.
        depth, decoder_depth: blocks of the encoder and of the decoder.
        dropout: probability inside the sublayers.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        image_size: int,
        patch_size: int,
        width: int,
        hidden: int,
        heads: int,
        depth: int,
        decoder_depth: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size ({image_size}) is not a multiple of patch_size ({patch_size})")
        self.patch_size = patch_size
        self.count = (image_size // patch_size) ** 2
        self.visible = max(1, self.count - int(_MASK_RATIO * self.count))
        self.patch_embedding = nn.Linear(patch_size**2, width)
        self.channel_embedding = nn.Parameter(torch.randn(channels, 1, width) * 0.02)
        self.cls_token = nn.Parameter(torch.randn(1, 1, 1, width) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, 1, width) * 0.02)
        self.register_buffer("positions", _sinusoids(self.count + 1, width), persistent=False)
        self.encoder = nn.Sequential(*(PlainBlock(width, hidden, heads, dropout) for _ in range(depth)))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.Sequential(*(PlainBlock(width, hidden, heads, dropout) for _ in range(decoder_depth)))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patch_size**2)

    def draw_mask(self, batch: int, channels: int, device: torch.device) -> Tensor:
        """`keep` (B, C, K): each channel its own random quarter of the patches."""
        return torch.rand(batch, channels, self.count, device=device).argsort(2)[..., : self.visible]

    def forward(self, image: Tensor, keep: Tensor | None = None) -> Tensor:
        """The loss of one batch.

        Args:
            image: (B, C, h, w), pixels in [0, 1].
            keep: (B, C, K) visible positions, row-major; None draws a mask.

        Returns:
            Mean absolute error over the hidden pixels, a scalar.
        """
        B, C = image.shape[:2]
        patches_BCNP = self.patchify(image)
        if keep is None:
            keep = self.draw_mask(B, C, image.device)

        x = self.patch_embedding(patches_BCNP) + self.positions[1:] + self.channel_embedding
        index_BCKD = keep[..., None].expand(-1, -1, -1, x.shape[-1])
        x = x.gather(2, index_BCKD)
        cls = (self.cls_token + self.positions[:1] + self.channel_embedding).expand(B, -1, -1, -1)
        x = self.encoder_norm(self.encoder(torch.cat([cls, x], 2)))

        y = self.mask_token.to(x.dtype).expand(B, C, self.count, -1).scatter(2, index_BCKD, x[:, :, 1:])
        y = torch.cat([x[:, :, :1], y], 2) + self.positions + self.channel_embedding
        y = self.decoder_norm(self.decoder(y))
        prediction_BCNP = self.head(y[:, :, 1:]).sigmoid()

        hidden_BCN = torch.ones(B, C, self.count, device=image.device).scatter(2, keep, 0.0)
        error_BCN = (prediction_BCNP - patches_BCNP).abs().mean(-1)
        return (error_BCN * hidden_BCN).sum() / hidden_BCN.sum()

    def patchify(self, image: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, N, P), patches and their pixels row-major."""
        B, C, h, w = image.shape
        p = self.patch_size
        patches = image.reshape(B, C, h // p, p, w // p, p).permute(0, 1, 2, 4, 3, 5)
        return patches.reshape(B, C, -1, p * p)


def _feed_forward(width: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
    )


def _sinusoids(count: int, width: int) -> Tensor:
    """(count, width) sine-cosine positions (arXiv 1706.03762, section 3.5)."""
    rate = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10_000.0)) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).reshape(count, width)
