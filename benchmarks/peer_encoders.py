"""Other encoders for `representation.py`: pre-trained on the same batches, with the same optimisers and schedule, and read alike.

`joint` attends over the tokens of all channels at once (as ChannelViT does), `vit-mae` is transformers' masked autoencoder with
all channels fused at the patch embedding.  Encoder and decoder have the sizes of AuxMAE's.
Their masks, losses and embeddings are their own; `vit-mae` needs `pip install 'auxmae[peers]'`.

Shape letters: B batch, C channels, N positions, D width.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from auxmae.benchmark.cases import ModelCase
from auxmae.benchmark.joint import Decoder, JointMAE, vit_mae
from auxmae.build import build_data, build_model
from auxmae.model.pooling import pool_image
from auxmae.settings.schema import SettingsTree
from auxmae.training.feed import Feed
from auxmae.training.optimization import learning_rate_at, make_optimizers

PEERS = ("joint", "vit-mae")


class PeerEncoder(nn.Module):
    """A peer behind AuxMAE's `forward_features`.

    Args:
        name: of PEERS.
        case: sizes; decoder: those of its decoder.
        scaling: of the images that it is trained on.
    """

    def __init__(self, name: str, case: ModelCase, decoder: Decoder, scaling: dict[str, Any]) -> None:
        super().__init__()
        self.name, self.scaling = name, scaling
        network = JointMAE(case, decoder) if name == "joint" else vit_mae(case, decoder)
        if network is None:
            raise SystemExit("vit-mae needs transformers: pip install 'auxmae[peers]'")
        self.network: Any = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, h, w) → scalar loss."""
        loss: Tensor = self.network(image)
        return loss

    def forward_features(self, image: Tensor, *, pool: str) -> Tensor:
        """(B, C, h, w), of any size that the patches divide → (B, D'): nothing hidden, pooled as AuxMAE's tokens are."""
        tokens = self.network.encode(image) if self.name == "joint" else self._fused_tokens(image)
        return pool_image(tokens, torch.ones_like(tokens[..., :1]), pool)

    def _fused_tokens(self, image: Tensor) -> Tensor:
        """→ (B, 1, N, D), positions in any order."""
        vit = self.network.model.vit
        hidden = vit.config.mask_ratio
        vit.config.mask_ratio = 0.0
        try:
            found = vit(pixel_values=image, interpolate_pos_encoding=True).last_hidden_state
        finally:
            vit.config.mask_ratio = hidden
        tokens: Tensor = found[:, None, 1:]
        return tokens


def train_peer(name: str, settings: SettingsTree) -> tuple[PeerEncoder, int]:
    """Pre-trains a peer for train.max_steps, or train.max_minutes of CPU time where that is set → (it, steps)."""
    data, train = build_data(settings), settings.train
    # What "auto" stands for, AuxMAE knows.
    sizes = build_model(settings, data).config
    same = ("image_size", "patch_size", "width", "hidden", "heads", "depth", "decoder_depth")
    case = ModelCase(
        name, train.batch_size, channels=len(data.collection.channel_names), **{size: sizes[size] for size in same}
    )  # fmt: skip
    torch.manual_seed(train.seed)
    decoder = Decoder(sizes["decoder_width"], sizes["decoder_hidden"], sizes["decoder_heads"])
    encoder = PeerEncoder(name, case, decoder, data.scaling.to_dict()).train()
    optimizers = make_optimizers(
        encoder.network,
        train.optimizer,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        betas=train.betas,
        device=torch.device("cpu"),
    )
    began, limit = time.process_time(), 60 * train.max_minutes
    step, progress = 0, 0.0
    batches = Feed(data.train, torch.device("cpu"))
    while progress < 1:
        rate = learning_rate_at(
            progress or 1 / train.max_steps, peak=train.learning_rate, final=train.min_learning_rate, warmup=train.warmup_fraction
        )
        encoder(next(batches).image).backward()
        nn.utils.clip_grad_norm_(encoder.parameters(), train.clip_norm or float("inf"))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"].fill_(rate)
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        progress = max(step / train.max_steps, (time.process_time() - began) / limit if limit else 0.0)
    return encoder.eval(), step
