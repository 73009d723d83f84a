"""AuxMAE: embed the visible patches → encode → put mask tokens between → decode → loss on the hidden patches.

Shapes: B batch, C channels, G channel groups (G = C where every channel is its own token), N positions of the patch grid,
K visible and M hidden positions, T = K + 1 tokens with a CLS token (K without), D width, P pixels per token, h × w image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from auxmae_kernels import assemble, boundary, cast_together, embed_visible, masked_loss
from auxmae_kernels.products import linear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from auxmae.model.arguments import complete_arguments
from auxmae.model.blocks import NORM_EPS, MacaronBlock, initialise, linear_parts
from auxmae.model.embedding import ChannelEmbedding, GroupLinear, PositionTables
from auxmae.model.embedding import channel_groups as split_into_groups
from auxmae.model.inputs import Preparation, PreparedImage, check_tensor
from auxmae.model.masking import Mask, draw_mask, everything_visible, known_visible, mask_from_keep, slots_of
from auxmae.model.patches import count_hidden, from_patches, unnormalise
from auxmae.model.pooling import CHANNEL_BY_CHANNEL, WITH_EMBEDDING, pool_image, pool_places
from auxmae.model.pretrained import Pretrained


@dataclass
class MAEOutput:
    """What a training step needs.

    Attributes:
        loss: scalar, mean over hidden valid pixels.
        prediction: (B, G, M, P), each hidden patch's pixels, ordered (channel in group, row, column).
        masked_index: (B, G, M) positions of the hidden patches, −1 as padding.
        keep: (B, G, K) positions of the visible patches, −1 as padding.
        valid: (B, G·g, h', w') bool, of the image in whole patches, its channels in the order of groups; None: all pixels are.
    """

    loss: Tensor
    prediction: Tensor
    masked_index: Tensor
    keep: Tensor
    valid: Tensor | None

    def count(self) -> Tensor:
        """How many pixels the loss is the mean of: an int64 scalar on the device."""
        return count_hidden(self.masked_index, self.valid, self.prediction.shape[3])


@dataclass
class Reconstruction:
    """Predicted pixels.

    Attributes:
        prediction: (B, C, h, w), of the model's type, in the units of the input; 0 where a pixel was visible.
        hidden: (B, C, h, w) bool, True where the pixel was hidden from the encoder.
        keep: (B, G, K) positions of the visible patches.
    """

    prediction: Tensor
    hidden: Tensor
    keep: Tensor


class AuxMAE(Pretrained):
    """Masked autoencoder with factorised attention over patches and channels.

    The masked-autoencoder scheme is that of He et al. (arXiv 2111.06377).  Channel attention is aligned by position, unless
    asked otherwise: a token attends to the visible tokens of the same place in other channels.

    Args:
        channels: names of the channels, or how many there are (then named "1", "2", …).
        image_size: side of the training images, px; any other size works too.
        patch_size: side of a patch, px.
        width, depth, heads, hidden: of the encoder; hidden defaults to 2 · width.
        decoder_width, decoder_depth, decoder_heads, decoder_hidden: of the decoder; default to half the width, as many heads as
            the encoder, and twice the decoder's width.
        dropout: probability inside the sublayers.
        cls_tokens: one CLS token per channel group.
        channel_groups: channels per token: a number, or lists of names.
        channel_embedding: "name" (learned) or "wavelength".
        wavelengths: centre wavelength of every channel, nm.
        embedding_activation: of a patch's projection: "none" or "gelu" (the published design).
        channel_attention: under independent masks, the tokens that attend to each other across channels: "aligned" (those of
            the same place) or "slotwise" (the k-th visible one of every channel, wherever it lies: the published design).
        output_activation: "none" or "sigmoid".
        mask_ratio, mask_strategy, mask_block_size, mask_mixture: see `masking.draw_mask`.
        loss_kind: "l1", "mse" or "smooth_l1"; normalize: per-patch normalised targets.
        scaling: the pixel scaling that the model was trained with (`Scaling.to_dict`), kept with the weights.

    Raises:
        SettingsError: a value is out of bounds, or contradicts another.
    """

    def __init__(
        self,
        channels: int | Sequence[str],
        *,
        image_size: int = 64,
        patch_size: int = 16,
        width: int = 256,
        depth: int = 6,
        heads: int = 8,
        hidden: int | None = None,
        decoder_width: int | None = None,
        decoder_depth: int = 2,
        decoder_heads: int | None = None,
        decoder_hidden: int | None = None,
        dropout: float = 0.0,
        cls_tokens: bool = True,
        channel_groups: int | Sequence[Sequence[str]] = 1,
        channel_embedding: str = "name",
        wavelengths: Sequence[float] | None = None,
        embedding_activation: str = "none",
        channel_attention: str = "aligned",
        output_activation: str = "none",
        mask_ratio: float = 0.75,
        mask_strategy: str = "independent",
        mask_block_size: int = 2,
        mask_mixture: dict[str, float] | None = None,
        loss_kind: str = "l1",
        normalize: bool = False,
        scaling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        config = complete_arguments(
            {
                "channels": channels,
                "image_size": image_size,
                "patch_size": patch_size,
                "width": width,
                "depth": depth,
                "heads": heads,
                "hidden": hidden,
                "decoder_width": decoder_width,
                "decoder_depth": decoder_depth,
                "decoder_heads": decoder_heads,
                "decoder_hidden": decoder_hidden,
                "dropout": dropout,
                "cls_tokens": cls_tokens,
                "channel_groups": channel_groups,
                "channel_embedding": channel_embedding,
                "wavelengths": wavelengths,
                "embedding_activation": embedding_activation,
                "channel_attention": channel_attention,
                "output_activation": output_activation,
                "mask_ratio": mask_ratio,
                "mask_strategy": mask_strategy,
                "mask_block_size": mask_block_size,
                "mask_mixture": mask_mixture,
                "loss_kind": loss_kind,
                "normalize": normalize,
                "scaling": scaling,
            }
        )
        self.config: dict[str, Any] = config
        names, hidden, decoder_width = config["channels"], config["hidden"], config["decoder_width"]
        width, patch_size, wavelengths = config["width"], config["patch_size"], config["wavelengths"]
        self.channel_names: tuple[str, ...] = tuple(names)
        self.wavelengths = None if wavelengths is None else tuple(wavelengths)
        self.image_size: int = config["image_size"]
        self.patch_size: int = patch_size
        self.num_features: int = width
        self.scaling = scaling
        self.groups = split_into_groups(names, config["channel_groups"])
        self.group_size = max(len(group) for group in self.groups)
        self._tables = PositionTables(int(config["cls_tokens"]))
        self._preparation = Preparation(self.channel_names, self.groups, patch_size)
        self._recompute = False
        self._embed_visible, self._assemble, self._masked_loss = embed_visible, assemble, masked_loss

        pixels = self.group_size * patch_size**2
        untied = len(self.groups) if self.group_size > 1 else 1
        by_name = dict(zip(names, self.wavelengths, strict=True)) if self.wavelengths else None
        self.patch_embedding = GroupLinear(pixels, width, untied)
        self.channel_embedding = ChannelEmbedding(self.groups, width, channel_embedding, by_name)
        self.cls_token = nn.Parameter(torch.randn(width) * 0.02) if cls_tokens else None
        self.encoder = nn.ModuleList(MacaronBlock(width, hidden, config["heads"], dropout) for _ in range(config["depth"]))
        self.encoder_norm = nn.LayerNorm(width, eps=NORM_EPS)

        self.decoder_embedding = nn.Linear(width, decoder_width)
        self.decoder_channel_embedding = ChannelEmbedding(self.groups, decoder_width, channel_embedding, by_name)
        self.mask_token = nn.Parameter(torch.randn(decoder_width) * 0.02)
        self.decoder = nn.ModuleList(
            MacaronBlock(decoder_width, config["decoder_hidden"], config["decoder_heads"], dropout)
            for _ in range(config["decoder_depth"])
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=NORM_EPS)
        self.head = GroupLinear(decoder_width, pixels, untied)
        self.apply(initialise)

    # ---- the way of an image -------------------------------------------------------------------------------------

    def forward(
        self,
        image: Tensor,
        keep: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        channels: Sequence[str] | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> MAEOutput:
        """Hides patches, predicts them, and compares.

        Args:
            image: (B, C, h, w) scaled pixels of any type, cast to the model's; NaN and infinity count as invalid.
            keep: (B, G, K) visible positions of each group, −1 as padding; None draws a mask.
            valid: bool, broadcastable to the image; False pixels never count: the network is shown the mean of the valid pixels
                of their patch.
            channels: which of the model's channels the image has, in its order: names or indices; None: all.
            generator: source of the mask's randomness.

        Raises:
            DataError: the image's channels are not the model's.
            TypeError: an array of numpy's, or a list, in place of a tensor.
            ValueError: `keep` is no mask, or `valid` is not bool or of a shape that does not broadcast to the image's.
        """
        inputs = self._prepare(image, valid, channels)
        mask = self._mask(inputs, generator) if keep is None else self._given(inputs, keep)
        prediction = self._decode(self._encode(self._embed(inputs, mask), mask, inputs), mask, inputs)
        loss = self._masked_loss(
            prediction,
            inputs.image,
            mask.masked_index,
            inputs.valid,
            kind=self.config["loss_kind"],
            normalize=self.config["normalize"],
        )
        return MAEOutput(loss, prediction, mask.masked_index, mask.keep, inputs.valid)

    def _prepare(
        self, image: Tensor, valid: Tensor | None, channels: Sequence[str] | Sequence[int] | Tensor | None
    ) -> PreparedImage:
        return self._preparation(image, valid, channels, self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.decoder_embedding.weight.dtype

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches that cover an image of height × width px."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def draw_mask(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        *,
        ratio: float | None = None,
        groups: int | None = None,
    ) -> Tensor:
        """`keep` (B, G, K) for images of `shape` (B, C, h, w) with so many channel groups (None: all of the model's).

        Drawn where the generator lives.
        """
        return self._draw(shape[0], groups or len(self.groups), self.grid(shape[2], shape[3]), ratio, generator, None).keep

    def _draw(
        self,
        batch: int,
        groups: int,
        grid: tuple[int, int],
        ratio: float | None,
        generator: torch.Generator | None,
        device: torch.device | None,
    ) -> Mask:
        return draw_mask(
            batch,
            groups,
            grid,
            ratio=self.config["mask_ratio"] if ratio is None else ratio,
            strategy=self.config["mask_strategy"],
            block_size=self.config["mask_block_size"],
            mixture=self.config["mask_mixture"],
            generator=generator,
            device=device,
        )

    def _mask(self, inputs: PreparedImage, generator: torch.Generator | None) -> Mask:
        device = inputs.image.device
        if generator is not None and generator.device != device:
            # A CPU generator gives the same masks on every device.
            mask = self._draw(inputs.image.shape[0], inputs.count, inputs.grid, None, generator, generator.device)
            rows = None if mask.rows is None else mask.rows.to(device)
            return Mask(mask.keep.to(device), mask.masked_index.to(device), mask.aligned, mask.ragged, rows)
        return self._draw(inputs.image.shape[0], inputs.count, inputs.grid, None, generator, device)

    def _given(self, inputs: PreparedImage, keep: Tensor) -> Mask:
        check_tensor("keep", keep)
        if keep.shape[:2] != (inputs.image.shape[0], inputs.count):
            raise ValueError(
                f"keep is {tuple(keep.shape)}, expected ({inputs.image.shape[0]}, {inputs.count}, K): one row for every "
                "image and channel group"
            )
        return mask_from_keep(keep.to(inputs.image.device), inputs.grid[0] * inputs.grid[1])

    def _positions(self, grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
        """(N, D) sine-cosine positions, with a leading row of zeros for the CLS token where there is one."""
        return self._tables(grid, width, device, self._dtype)

    def _token_keep(self, mask: Mask) -> Tensor:
        """Places of the tokens (B, G, T) among the decoder's: with CLS tokens, place 0 is theirs."""
        if self.cls_token is None:
            return mask.keep
        keep = torch.where(mask.keep < 0, -1, mask.keep + 1) if mask.ragged else mask.keep + 1
        cls = torch.zeros_like(keep[..., :1])
        if mask.ragged:
            # A channel that shows nothing has no CLS token either: nothing of it reaches the encoder.
            cls = torch.where(keep[..., :1] < 0, -1, cls)
        return torch.cat([cls, keep], 2)

    def _embed(self, inputs: PreparedImage, mask: Mask) -> Tensor:
        weight, bias = self.patch_embedding.select(inputs.groups)
        channel = self.channel_embedding(inputs.groups)
        first = 0 if self.cls_token is None else 1
        position = self._positions(inputs.grid, self.config["width"], inputs.image.device)[first:]
        activation = self.config["embedding_activation"]
        x_BGKD = self._embed_visible(inputs.image, mask.keep, weight, bias, position, channel, self.patch_size, activation)
        if self.cls_token is None:
            return x_BGKD
        cls_GD = (self.cls_token + channel).to(x_BGKD.dtype)
        return torch.cat([cls_GD[None, :, None].expand(x_BGKD.shape[0], -1, -1, -1), x_BGKD], 2)

    def _encode(self, x: Tensor, mask: Mask, inputs: PreparedImage) -> Tensor:
        """Embedded tokens (B, G, T, D) → normed latents; rows of padding tokens hold nothing of meaning."""
        slots = lengths = None
        if mask.rows is not None:
            # Whole channels are hidden: only the others go through the encoder, and all of them show every place.
            rows = mask.rows[:, :, None, None].expand(-1, -1, *x.shape[2:])
            encoded = self._run(self.encoder, x.gather(1, rows))
            return torch.zeros_like(x, dtype=encoded.dtype).scatter(1, rows, self.encoder_norm(encoded).to(encoded.dtype))
        keep = self._token_keep(mask)
        if mask.ragged:
            lengths = (keep >= 0).sum(2).int()
        if not mask.aligned and self.config["channel_attention"] == "aligned":
            slots = slots_of(keep, inputs.grid[0] * inputs.grid[1] + (self.cls_token is not None))
        out: Tensor = self.encoder_norm(self._run(self.encoder, x, slots, lengths))
        return out

    def _decode(self, latent: Tensor, mask: Mask, inputs: PreparedImage) -> Tensor:
        """(B, G, M, P): the hidden patches."""
        position = self._positions(inputs.grid, self.config["decoder_width"], latent.device)
        channel = self.decoder_channel_embedding(inputs.groups)
        latent = linear(latent, *linear_parts(self.decoder_embedding))
        x = self._assemble(latent, self._token_keep(mask), self.mask_token, position, channel)
        select = mask.masked_index.clamp(min=0) + (self.cls_token is not None)
        x = self._run(self.decoder, x, select=select)
        prediction: Tensor = self.head(self.decoder_norm(x), inputs.groups)
        return prediction.sigmoid() if self.config["output_activation"] == "sigmoid" else prediction

    def _run(
        self,
        blocks: nn.ModuleList,
        x: Tensor,
        slots: Tensor | None = None,
        lengths: Tensor | None = None,
        select: Tensor | None = None,
    ) -> Tensor:
        with nullcontext() if torch.compiler.is_compiling() else cast_together(self._operands(blocks)):
            for index, block in enumerate(blocks):
                chosen = select if index == len(blocks) - 1 else None
                if self._recompute and torch.is_grad_enabled():
                    # Without dropout nothing is drawn, and the generators' state need not be read.
                    draws = self.config["dropout"] > 0
                    x = checkpoint(block, x, slots, lengths, chosen, use_reentrant=False, preserve_rng_state=draws)
                else:
                    x = block(x, slots, lengths, chosen)
        return x

    @staticmethod
    def _operands(blocks: nn.ModuleList) -> Iterator[Tensor]:
        for block in blocks:
            assert isinstance(block, MacaronBlock)
            yield from block.operands()

    # ---- how it runs ---------------------------------------------------------------------------------------------

    def set_recompute(self, enabled: bool) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        self._recompute = enabled

    def compile_blocks(self) -> None:
        """torch.compile every block and the functions around them.

        One graph serves all blocks of the same shape, so it is quick to build.
        """
        for block in (*self.encoder, *self.decoder):
            block.compile(dynamic=False)
        self._embed_visible = torch.compile(embed_visible, dynamic=False)
        self._assemble = torch.compile(assemble, dynamic=False)
        self._masked_loss = torch.compile(masked_loss, dynamic=False)

    # ---- what one gets out of it ---------------------------------------------------------------------------------

    @torch.no_grad()
    def reconstruct(
        self,
        image: Tensor,
        keep: Tensor | None = None,
        *,
        valid: Tensor | None = None,
        channels: Sequence[str] | Sequence[int] | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """Predicted pixels of what is hidden; arguments as in `forward`.

        With per-patch normalised targets, predictions are brought back with means and deviations interpolated from the
        visible patches, so that nothing of a hidden patch leaks into its picture.
        """
        inputs = self._prepare(image, valid, channels)
        mask = self._mask(inputs, generator) if keep is None else self._given(inputs, keep)
        prediction = self._decode(self._encode(self._embed(inputs, mask), mask, inputs), mask, inputs)
        if self.config["normalize"]:
            # Sums over patches are too much for reduced precision.
            wide = torch.promote_types(self._dtype, torch.float32)
            prediction = unnormalise(prediction.to(wide), inputs.image.to(wide), inputs.valid, mask, self.patch_size)
        pixels, hidden = from_patches(
            prediction.to(self._dtype), mask.masked_index, inputs.grid, self.group_size, self.patch_size
        )
        if inputs.selection.order is not None:
            # Back to the order in which the image came.
            back = torch.tensor([inputs.selection.order.index(i) for i in range(image.shape[1])], device=image.device)
            pixels, hidden = pixels.index_select(1, back), hidden.index_select(1, back)
        height, width = image.shape[2:]
        return Reconstruction(pixels[..., :height, :width], hidden[..., :height, :width], mask.keep)

    def forward_features(
        self,
        image: Tensor,
        *,
        valid: Tensor | None = None,
        channels: Sequence[str] | Sequence[int] | Tensor | None = None,
        pool: str | None = "mean",
    ) -> Tensor:
        """Features of whole images: of every patch that has a valid pixel; what an image is padded with makes no difference
        (but where values cannot be looked at, as within torch.compile and torch.func, and then all patches take part).

        Args:
            image, valid, channels: as in `forward`.
            pool: "mean" (over channels and places that have a valid pixel), "cls" (mean of their CLS tokens), "concat" (each
                channel's mean, one after the other), "attention" (channels weighted by their agreement with the mean of
                all), "moments" ("concat", and each channel's standard deviation over its places), "moments+embedding" (those
                of the embedded tokens, before the first block, and of the encoder's), or None.

        Returns:
            (B, num_features); (B, G · num_features) for "concat"; (B, 2 · G · num_features) for "moments": all means, then all
            deviations; twice that with "+embedding"; all three in the model's order of channels, whatever the image's is.  All
            tokens (B, G, T, D), in the image's order, for None; those of patches without a valid pixel mean nothing.
        """
        tokens, weight = self._features(image, valid, channels, pool)
        return tokens if pool is None else pool_image(tokens, weight, pool)

    def dense_features(
        self,
        image: Tensor,
        *,
        valid: Tensor | None = None,
        channels: Sequence[str] | Sequence[int] | Tensor | None = None,
        pool: str = "mean",
    ) -> Tensor:
        """Features of every place: (B, D', rows, columns).

        Channels are pooled by "mean", "concat" or "attention"; "moments" is "concat" here, since one place has no spread,
        "moments+embedding" has each channel's embedded token before its latent one, and "cls" is "mean" with the mean of the
        CLS tokens behind it.
        """
        tokens, weight = self._features(image, valid, channels, pool)
        pooled = pool_places(tokens, weight, pool)
        rows, columns = self.grid(image.shape[2], image.shape[3])
        return pooled.transpose(1, 2).reshape(*pooled.shape[::2], rows, columns)

    def _features(
        self,
        image: Tensor,
        valid: Tensor | None,
        channels: Sequence[str] | Sequence[int] | Tensor | None,
        pool: str | None,
    ) -> tuple[Tensor, Tensor]:
        """All tokens that `pool` asks for (B, G, T, D), and (B, G, N, 1): 1 where a patch has a valid pixel.

        Groups stand in the image's order, or in the model's where the pooling keeps channels apart.
        """
        inputs = self._prepare(image, valid, channels)
        batch, _, height, width = inputs.image.shape
        p, positions = self.patch_size, inputs.grid[0] * inputs.grid[1]
        known = None
        if inputs.valid is not None:
            patches = inputs.valid.view(batch, inputs.count, self.group_size, height // p, p, width // p, p)
            known = patches.any(6).any(4).any(2).flatten(2)
        if known is None or not boundary.reading_is_possible(known) or bool(known.all()):
            mask = everything_visible(batch, inputs.count, positions, inputs.image.device)
        else:
            # Tokens of nothing would be answered to by those of the image: its features would depend on what it is padded with.
            # Where channels meet by the order of their tokens, all of them show the same places.
            aligned = self.config["channel_attention"] == "aligned"
            mask = known_visible(known if aligned else known.any(1, keepdim=True).expand_as(known))
        embedded = self._embed(inputs, mask)
        tokens = self._encode(embedded, mask, inputs)
        if pool in WITH_EMBEDDING:
            tokens = torch.cat([embedded.to(tokens.dtype), tokens], 3)
        if mask.masked_index.shape[2]:
            place = self._token_keep(mask)
            size = (batch, inputs.count, positions + (self.cls_token is not None) + 1, 1)
            place = torch.where(place < 0, size[2] - 1, place)[..., None]
            table = tokens.new_zeros(*size[:3], tokens.shape[3])
            tokens = table.scatter(2, place.expand_as(tokens), tokens)[:, :, :-1]
        weight = tokens.new_ones(batch, inputs.count, positions, 1) if known is None else known[..., None].to(tokens.dtype)
        present = inputs.selection.groups
        if pool in CHANNEL_BY_CHANNEL and present != sorted(present):
            order = self._preparation.index(sorted(range(len(present)), key=present.__getitem__), tokens.device, keep=False)
            return tokens.index_select(1, order), weight.index_select(1, order)
        return tokens, weight
