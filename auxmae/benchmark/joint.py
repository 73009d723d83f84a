"""Two other ways to put many channels into a masked autoencoder.

`JointMAE` attends over all C·N tokens at once, as ChannelViT does (arXiv 2309.16108); `vit_mae` is the masked autoencoder of
He et al. (arXiv 2111.06377) in transformers' implementation, with all channels fused at the patch embedding: far fewer tokens,
and nothing of one channel can be hidden alone.

Shapes: B batch, C channels, N positions, K visible, L tokens in all, D width.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from auxmae_kernels.products import linear
from torch import Tensor, nn

from auxmae.benchmark.cases import MASK_RATIO, ModelCase
from auxmae.errors import MissingDependencyError
from auxmae.model.embedding import sincos_positions


class _Linear(nn.Linear):
    """Multiplies as ours does, so that the kind of attention alone makes the difference."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _JointBlock(nn.Module):
    """The macaron block with one attention over all tokens in the place of two."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = (
            nn.Sequential(nn.LayerNorm(width), _Linear(width, hidden), nn.GELU(), _Linear(hidden, width)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.qkv = _Linear(width, 3 * width)
        self.projection = _Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        x = x + 0.5 * self.first(x)
        q, k, v = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.projection(attended)
        out: Tensor = x + 0.5 * self.second(x)
        return out


@dataclass(frozen=True)
class Decoder:
    """A decoder's width, that of its feed-forward sublayers, and its heads, where they are not the encoder's."""

    width: int
    hidden: int
    heads: int


def _blocks(size: ModelCase | Decoder, depth: int) -> nn.Sequential:
    blocks = (_JointBlock(size.width, size.hidden, size.heads) for _ in range(depth))
    return nn.Sequential(*blocks, nn.LayerNorm(size.width))


class JointMAE(nn.Module):
    """Masked autoencoder of a case's size with joint attention over the tokens of all channels; `forward(image)` → loss."""

    positions: Tensor
    decoder_positions: Tensor

    def __init__(self, case: ModelCase, decoder: Decoder | None = None) -> None:
        super().__init__()
        side, width, light = case.image_size // case.patch_size, case.width, decoder or case
        self.patch_size, self.kept = case.patch_size, round(side * side * (1 - MASK_RATIO))
        self.embed = _Linear(case.patch_size**2, width)
        self.channel = nn.Parameter(torch.randn(case.channels, 1, width) * 0.02)
        self.decoder_channel = nn.Parameter(torch.randn(case.channels, 1, light.width) * 0.02)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.mask = nn.Parameter(torch.randn(light.width) * 0.02)
        self.register_buffer("positions", sincos_positions(side, side, width).float())
        self.register_buffer("decoder_positions", sincos_positions(side, side, light.width).float())
        self.encoder = _blocks(case, case.depth)
        self.decoder_embed = _Linear(width, light.width)
        self.decoder = _blocks(light, case.decoder_depth)
        self.head = _Linear(light.width, case.patch_size**2)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) → scalar L1 of the hidden patches."""
        patches = self._patches(image)
        batch, channels = patches.shape[:2]
        order = torch.rand(batch, channels, patches.shape[2], device=image.device).argsort(2)
        keep, hidden = order[..., : self.kept], order[..., self.kept :]

        def at(tensor: Tensor, index: Tensor) -> Tensor:
            return tensor.gather(2, index[..., None].expand(-1, -1, -1, tensor.shape[-1]))

        # Only visible patches are embedded and only hidden ones are predicted, as AuxMAE does.
        x = self.embed(at(patches, keep)) + self.positions[keep] + self.channel
        d = x.shape[-1]
        x = self.encoder(torch.cat([self.cls.expand(batch, 1, d).to(x.dtype), x.flatten(1, 2)], 1))
        x = self.decoder_embed(x)
        d = x.shape[-1]
        first, visible = (
            x[:, :1],
            x[:, 1:].view(batch, channels, -1, d) + (self.decoder_positions[keep] + self.decoder_channel).to(x.dtype),
        )
        masked = (self.mask + self.decoder_positions[hidden] + self.decoder_channel).to(x.dtype)
        tokens = torch.cat([visible, masked], 2).flatten(1, 2)
        x = self.decoder(torch.cat([first, tokens], 1))[:, 1:].view(batch, channels, -1, d)
        prediction = self.head(x[:, :, self.kept :]).sigmoid()
        loss: Tensor = (prediction - at(patches, hidden)).abs().mean()
        return loss

    def encode(self, image: Tensor) -> Tensor:
        """(B, C, h, w), of any size that the patches divide, nothing hidden → (B, C, N, D)."""
        patches = self._patches(image)
        rows, columns = (side // self.patch_size for side in image.shape[2:])
        positions = sincos_positions(rows, columns, self.positions.shape[1]).to(self.positions)
        x = self.embed(patches) + positions + self.channel
        x = self.encoder(torch.cat([self.cls.expand(len(x), 1, -1), x.flatten(1, 2)], 1))
        tokens: Tensor = x[:, 1:].view(*patches.shape[:3], -1)
        return tokens

    def _patches(self, image: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, N, pixels)."""
        batch, channels, height, width = image.shape
        p = self.patch_size
        return image.view(batch, channels, height // p, p, width // p, p).permute(0, 1, 2, 4, 3, 5).flatten(4).flatten(2, 3)


class _Fused(nn.Module):
    """transformers' model behind `forward(image)` → loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        loss: Tensor = self.model(pixel_values=image).loss
        return loss


def has_vit_mae() -> bool:
    """Whether transformers is installed.

    Raises:
        MissingDependencyError: it is, and its ViTMAE cannot be imported.
    """
    if importlib.util.find_spec("transformers") is None:
        return False
    try:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"transformers is installed and cannot be imported: {' '.join(str(error).split())[:200]}",
            hint="pip install 'auxmae[peers]' mends it, pip uninstall transformers leaves its ViTMAE out",
        ) from error
    return True


def vit_mae(case: ModelCase, decoder: Decoder | None = None) -> nn.Module | None:
    """transformers' ViTMAE with all channels in one token; None where transformers is not installed.

    Raises:
        MissingDependencyError: it is, and cannot be imported.
    """
    if not has_vit_mae():
        return None
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    light = decoder or case
    config: Any = ViTMAEConfig(
        hidden_size=case.width,
        num_hidden_layers=case.depth,
        num_attention_heads=case.heads,
        intermediate_size=case.hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        image_size=case.image_size,
        patch_size=case.patch_size,
        num_channels=case.channels,
        decoder_hidden_size=light.width,
        decoder_num_hidden_layers=case.decoder_depth,
        decoder_num_attention_heads=light.heads,
        decoder_intermediate_size=light.hidden,
        mask_ratio=MASK_RATIO,
        norm_pix_loss=False,
    )
    return _Fused(ViTMAEForPreTraining(config))
