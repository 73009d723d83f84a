"""Settings → data and model: the one place where the settings' tables are unpacked into plain arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from auxmae.data.collection import Collection
from auxmae.data.dataset import ImageDataset
from auxmae.data.digests import digest_names
from auxmae.data.image import ReadOptions, Window, diagonal
from auxmae.data.loading import Loader
from auxmae.data.opening import open_collection
from auxmae.data.splits import Splits, resolve_image_size, split_collection
from auxmae.data.statistics import ChannelStatistics, Scaling, compute_statistics, statistics_warnings
from auxmae.errors import DataError, SettingsError
from auxmae.model.mae import AuxMAE
from auxmae.model.masking import usable_strategies
from auxmae.settings.schema import DataSettings, ModelSettings, SettingsTree
from auxmae.training.distributed import Team

Progress = Callable[[int, int], None]
# Of channel_groups = "auto": a few large groups serve 198 bands better than many small ones, and cost less; of 64 bands eight
# groups gave better features than four (`benchmarks/NOTES.md`).
AUTO_GROUPS = 8
# How many images are looked at to tell whether pixels have changed, and the side of the windows, px.
SAMPLED_IMAGES, SAMPLED_SIDE = 16, 64


@dataclass
class Data:
    """A data set, opened, split and scaled.

    Attributes:
        train, validation, test: batches; validation and test are the same on every pass, train is augmented and shuffled
            where that was asked for.  A part that holds nothing is None.
        statistics: None where a stored scaling was given.
        missing: channels of the model that the data set lacks, left out on purpose.
    """

    collection: Collection
    splits: Splits
    image_size: int
    scaling: Scaling
    statistics: ChannelStatistics | None
    train: Loader
    validation: Loader | None
    test: Loader | None
    missing: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.collection.class_names

    @property
    def digest(self) -> str:
        """Hex digest of which image or block went into which part."""
        return self.splits.digest

    @property
    def files_digest(self) -> str:
        """Hex digest of the files' names and sizes."""
        return digest_names(self.collection)

    def sample_pixels(self) -> list[list[float]]:
        """What tells that files of the same names and sizes hold other pixels, whatever was copied or decoded anew since.

        Of up to 16 images, each in three windows: the mean magnitude of the pixels (all that runs of before have noted), the same
        with a weight that grows from the first row to the last, and from the first column to the last, and that of every channel.

        Raises:
            DataError: a file cannot be read.
        """

        def numbers(window: Window) -> list[float]:
            size = np.abs(self.collection.read(item, window).pixels)
            rows, columns = (size.mean((0, axis), dtype=np.float64) for axis in (2, 1))
            ramps = [float(np.mean(line * np.linspace(0, 1, len(line)))) for line in (rows, columns)]
            return [float(size.mean(dtype=np.float64)), *ramps, *size.mean((1, 2), dtype=np.float64).tolist()]

        found = []
        for item in np.unique(np.linspace(0, len(self.collection) - 1, SAMPLED_IMAGES, dtype=np.int64)).tolist():
            windows = diagonal(*self.collection.size_of(item), SAMPLED_SIDE)
            found.append(np.mean([numbers(window) for window in windows], axis=0).tolist())
        return found

    def describe(self) -> str:
        return self.collection.describe()

    def warnings(self) -> list[str]:
        """What looks wrong with files and channels, one sentence each; of channels nothing where a stored scaling was given."""
        found = [] if self.statistics is None else statistics_warnings(self.statistics, self.collection.dtype)
        return [*self.collection.warnings, *found]


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


def open_data(data: DataSettings, *, seed: int) -> Collection:
    """Opens what [data] names."""
    nodata = None if data.nodata == "auto" else float(data.nodata)
    return open_collection(
        data.source,
        labels=data.labels,
        ignored_labels=_auto(data.ignored_labels),
        layout=data.layout,
        options=ReadOptions(key=_auto(data.key), axes=_auto(data.axes), size=_auto(data.size), nodata=nodata),
        channel_names=_auto(data.channel_names),
        channels=_auto(data.channels),
        wavelengths=_auto(data.wavelengths),
        channel_pattern=data.channel_pattern,
        group_pattern=data.group_pattern,
        exclude=data.exclude,
        allow_broken=data.allow_broken,
        synthetic_images=data.synthetic_images,
        seed=seed,
    )


def split_data(collection: Collection, data: DataSettings, *, image_size: int, seed: int) -> Splits:
    """Assigns images or blocks to parts as [data] says."""
    return split_collection(
        collection,
        method=data.split,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        image_size=image_size,
        block_size=_auto(data.block_size),
        group_pattern=data.group_pattern,
        seed=seed,
    )


def crop_size(settings: SettingsTree, collection: Collection) -> int:
    """The side of a crop that [model] asks for, px: see `resolve_image_size`."""
    return resolve_image_size(collection, _auto(settings.model.image_size), settings.model.patch_size)


def build_data(
    settings: SettingsTree,
    *,
    collection: Collection | None = None,
    image_size: int | None = None,
    scaling: Scaling | None = None,
    augment: bool = True,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Data:
    """Opens, splits and scales the data set.

    Args:
        settings: the whole tree.
        collection: the data set that they name, where it is open already.
        image_size: side of the crops, px, over the settings'.
        scaling: a stored scaling to use instead of fitting one.
        augment: random crops, flips and order for the training part, and a validation part in windows side by side; else all
            parts are to be measured, and the windows of scenes cover their blocks, as those of the test part always do.
        progress: told (done, total) while statistics are computed.
        team: the processes that build it together; the first one computes the statistics for all.
    """
    data, train = settings.data, settings.train
    if collection is None:
        collection = open_data(data, seed=train.seed)
    size = image_size or crop_size(settings, collection)
    splits = split_data(collection, data, image_size=size, seed=train.seed)
    statistics = None
    if scaling is None:
        table = settings.scaling
        plain = ImageDataset(collection, splits.train, image_size=size, edges=True)
        statistics = (team or Team()).by_first(
            lambda: compute_statistics(
                plain,
                transform=table.transform,
                cofactor=table.cofactor,
                low=table.low,
                high=table.high,
                samples=table.samples,
                progress=progress,
            )
        )
        scaling = Scaling.fit(
            statistics, method=table.method, transform=table.transform, cofactor=table.cofactor, clip=table.clip
        )

    def loader(part: Any, *, random: bool = False, cover: bool = not augment) -> Loader | None:
        dataset = ImageDataset(
            collection,
            part,
            image_size=size,
            scaling=scaling,
            augment=random,
            cover=cover,
            flips=data.flips,
            samples=data.samples_per_epoch,
            seed=train.seed,
        )
        if len(dataset) == 0:
            return None
        return Loader(
            dataset,
            train.batch_size,
            shuffle=random,
            seed=train.seed,
            workers=data.workers,
            drop_last=random and len(dataset) >= train.batch_size,
            channel_sampling=data.channel_sampling if random else 0.0,
            pin_memory=torch.cuda.is_available(),
        )

    training = loader(splits.train, random=augment)
    if training is None:
        raise DataError(
            f"{data.source}: nothing is left to train on", hint="lower data.validation_fraction and data.test_fraction"
        )
    return Data(
        collection,
        splits,
        size,
        scaling,
        statistics,
        training,
        loader(splits.validation),
        loader(splits.test, cover=True),
    )


def model_arguments(model: ModelSettings, channels: int) -> dict[str, Any]:
    """The constructor's arguments that [model] sets, for so many channels."""
    groups = model.channel_groups
    return {
        "patch_size": model.patch_size,
        "width": model.width,
        "depth": model.depth,
        "heads": model.heads,
        "hidden": _auto(model.hidden),
        "decoder_width": _auto(model.decoder_width),
        "decoder_depth": model.decoder_depth,
        "decoder_heads": _auto(model.decoder_heads),
        "decoder_hidden": _auto(model.decoder_hidden),
        "dropout": model.dropout,
        "cls_tokens": model.cls_tokens,
        "channel_groups": -(-channels // AUTO_GROUPS) if groups == "auto" else groups,
        "channel_embedding": "name" if model.channel_embedding == "auto" else model.channel_embedding,
        "embedding_activation": model.embedding_activation,
        "channel_attention": model.channel_attention,
        "output_activation": model.output_activation,
    }


def build_model(settings: SettingsTree, data: Data) -> AuxMAE:
    """The model that the settings describe, for the channels and the scaling that the data has.

    Raises:
        SettingsError: nothing can be hidden, of an image that is one patch or of a single channel; or see `AuxMAE`.
    """
    return _model(settings, data.collection, data.image_size, data.scaling)


def outline_model(settings: SettingsTree, collection: Collection, image_size: int) -> AuxMAE:
    """The model that `build_model` will make, on PyTorch's meta device: without numbers, and without memory for them.

    Raises:
        SettingsError: see `build_model`.
    """
    with torch.device("meta"):
        return _model(settings, collection, image_size, None)


def _model(settings: SettingsTree, collection: Collection, image_size: int, scaling: Scaling | None) -> AuxMAE:
    patch, masking, sampling = settings.model.patch_size, settings.masking, settings.data.channel_sampling
    if image_size <= patch and masking.strategy != "channel":
        raise SettingsError(
            f"crops of {image_size} px are one patch of model.patch_size = {patch} px, and none of it can be hidden",
            hint="lower model.patch_size, or raise model.image_size",
        )
    model = AuxMAE(
        collection.channel_names,
        image_size=image_size,
        wavelengths=collection.wavelengths,
        mask_ratio=masking.ratio,
        mask_strategy=masking.strategy,
        mask_block_size=masking.block_size,
        mask_mixture=dict(masking.mixture),
        loss_kind=settings.loss.kind,
        normalize=settings.loss.normalize,
        scaling=None if scaling is None else scaling.to_dict(),
        **model_arguments(settings.model, len(collection.channel_names)),
    )
    groups = len(model.groups)
    usable = usable_strategies(masking.strategy, masking.mixture, groups)
    if list(usable) == ["channel"] and groups - math.floor(sampling * groups) < 2:
        raise SettingsError(
            f"data.channel_sampling = {sampling} leaves one of {groups} channels at times, and hiding whole channels needs two",
            hint="lower data.channel_sampling, or set masking.strategy to independent, shared or block",
        )
    return model
