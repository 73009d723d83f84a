"""The same work done the way others do it: a plain implementation of the published design.

AuxiliaryMAE's design as published: per-channel tokens and CLS tokens, a macaron block with attention over patches and then
over channels, independent masks, a decoder of the encoder's kind, sigmoid output, L1 on the hidden patches.  Written
straightforwardly: `nn.MultiheadAttention` with permuted copies, every patch embedded, every patch decoded by the head, and
channel attention between the k-th kept patches of all channels.  Nothing is shared with AuxMAE itself, so that a change there
is noticed where the two are compared.

Shapes: B batch, C channels, N positions, K visible, T tokens of a channel, D width, P pixels of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sincos_table(side: int, width: int) -> Tensor:
    """(N, D) float64: sine and cosine of row and column at D/4 frequencies from 1 down to 10⁻⁴ (arXiv 2111.06377, code)."""
    angle = torch.arange(side).double()[:, None] * 1e4 ** (-torch.arange(width // 4).double() / (width // 4))
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    return torch.cat([wave.repeat_interleave(side, 0), wave.repeat(side, 1)], 1)


class _Norm(nn.LayerNorm):
    """With the epsilon of the masked autoencoder's authors (arXiv 2111.06377, code)."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)


class _FeedForward(nn.Sequential):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            _Norm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )


class _Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first = _FeedForward(width, hidden, dropout)
        self.patch_norm = _Norm(width)
        self.patch = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.channel_norm = _Norm(width)
        self.channel = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.second = _FeedForward(width, hidden, dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, tokens, width = x.shape
        x = x + 0.5 * self.first(x)
        y = self.patch_norm(x).reshape(batch * channels, tokens, width)
        x = x + self.patch(y, y, y, need_weights=False)[0].reshape(batch, channels, tokens, width)
        y = self.channel_norm(x).permute(0, 2, 1, 3).reshape(batch * tokens, channels, width)
        y = self.channel(y, y, y, need_weights=False)[0].reshape(batch, tokens, channels, width)
        x = x + y.permute(0, 2, 1, 3)
        out: Tensor = x + 0.5 * self.second(x)
        return out


class PlainAuxiliaryMAE(nn.Module):
    """The published design in plain PyTorch; `forward(image)` → loss.

    Args:
        channels, image_size, patch_size: of the images, px.
        width, hidden, heads: of encoder and decoder; depth, decoder_depth: their blocks.
        dropout: probability; mask_ratio: part hidden.
    """

    positions: Tensor

    def __init__(
        self,
        channels: int,
        *,
        image_size: int = 64,
        patch_size: int = 16,
        width: int = 256,
        hidden: int = 512,
        heads: int = 8,
        depth: int = 6,
        decoder_depth: int = 6,
        dropout: float = 0.0,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        side = image_size // patch_size
        self.patch_size, self.mask_ratio = patch_size, mask_ratio
        self.embed = nn.Linear(patch_size**2, width)
        self.channel = nn.Parameter(torch.randn(channels, 1, width) * 0.02)
        self.decoder_channel = nn.Parameter(torch.randn(channels, 1, width) * 0.02)
        self.cls = nn.Parameter(torch.randn(1, 1, 1, width) * 0.02)
        self.mask = nn.Parameter(torch.randn(1, 1, 1, width) * 0.02)
        self.register_buffer("positions", sincos_table(side, width).float())
        self.encoder = nn.Sequential(*(_Block(width, hidden, heads, dropout) for _ in range(depth)), _Norm(width))
        self.decoder_embed = nn.Linear(width, width)
        self.decoder = nn.Sequential(*(_Block(width, hidden, heads, dropout) for _ in range(decoder_depth)), _Norm(width))
        self.head = nn.Linear(width, patch_size**2)

    def forward(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, h, w) → scalar L1 of the hidden patches; those of the smallest noise (B, C, N) are kept, by default drawn."""
        prediction, patches, masked = self.predict(image, noise)
        loss: Tensor = ((prediction - patches).abs() * masked).sum() / (masked.sum() * prediction.shape[-1])
        return loss

    def predict(self, image: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward` → every patch predicted (B, C, N, P), the patches themselves, and (B, C, N, 1) bool: it was hidden."""
        batch, channels, height, width = image.shape
        p = self.patch_size
        patches = image.view(batch, channels, height // p, p, width // p, p).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)
        positions = patches.shape[2]
        x = self.embed(patches) + self.positions + self.channel
        noise = torch.rand(batch, channels, positions, device=image.device) if noise is None else noise
        order = noise.argsort(2)
        back = order.argsort(2)
        kept = round(positions * (1 - self.mask_ratio))
        d = x.shape[-1]
        x = x.gather(2, order[..., :kept, None].expand(-1, -1, -1, d))
        x = torch.cat([(self.cls + self.channel).expand(batch, channels, 1, d), x], 2)
        x = self.decoder_embed(self.encoder(x))
        hidden = self.mask.expand(batch, channels, positions - kept, d)
        tokens = torch.cat([x[:, :, 1:], hidden], 2).gather(2, back[..., None].expand(-1, -1, -1, d)) + self.positions
        x = torch.cat([x[:, :, :1], tokens], 2) + self.decoder_channel
        prediction = self.head(self.decoder(x)[:, :, 1:]).sigmoid()
        return prediction, patches, (back >= kept)[..., None]
