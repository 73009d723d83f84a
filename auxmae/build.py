"""Settings → data and model: the one place where the settings' tables are unpacked into plain arguments."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from auxmae_kernels import dispatch

from auxmae.data.collection import Collection, open_collection
from auxmae.data.dataset import ImageDataset
from auxmae.data.image import ReadOptions
from auxmae.data.loading import Loader
from auxmae.data.splits import Splits, resolve_image_size, split_collection
from auxmae.data.statistics import ChannelStatistics, Scaling, compute_statistics, statistics_warnings
from auxmae.errors import DataError, SettingsError
from auxmae.model.embedding import ChannelSelection
from auxmae.model.mae import AuxMAE
from auxmae.settings import load_settings
from auxmae.settings.schema import DataSettings, ModelSettings, SettingsTree
from auxmae.training.distributed import Team
from auxmae.training.run import SETTINGS_NAME, RunFolder

Progress = Callable[[int, int], None]
# Of channel_groups = "auto": a few large groups serve 198 bands better than many small ones, and cost less; of 64 bands eight
# groups gave better features than four (`benchmarks/NOTES.md`).
AUTO_GROUPS = 8


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
        digest = hashlib.sha256()
        for file in self.collection.files:
            for path in file.paths:
                size = path.stat().st_size if path.is_file() else 0
                digest.update(os.fsencode(path.name) + f" {size}\n".encode())
        return digest.hexdigest()[:16]

    def describe(self) -> str:
        return self.collection.describe()

    def warnings(self) -> list[str]:
        """What looks wrong with the channels, one sentence each; nothing where a stored scaling was given."""
        return [] if self.statistics is None else statistics_warnings(self.statistics, self.collection.dtype)


def select_device(name: str, local_rank: int | None = None) -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:N" → a device that is there.

    Args:
        name: what run.device says.
        local_rank: where several processes train together, which one this is on its machine: each takes the GPU of its number.

    Raises:
        SettingsError: it is not.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise SettingsError(f"there is no device {name!r}", hint="one of auto, cpu, mps, cuda, cuda:N")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise SettingsError(
            f"run.device = {name!r}, and PyTorch sees no CUDA GPU", hint="set run.device = 'auto'; see `auxmae doctor`"
        )
    if local_rank is not None and name.startswith("cuda"):
        if name != "cuda":
            raise SettingsError(
                f"run.device = {name!r} is one GPU, and every process takes one of its own",
                hint="set run.device = 'auto' or 'cuda'",
            )
        if local_rank >= torch.cuda.device_count():
            raise SettingsError(
                f"this machine has {torch.cuda.device_count()} GPUs, too few for a process {local_rank + 1}",
                hint="start as many processes as there are GPUs, or set run.device = 'cpu'",
            )
        name = f"cuda:{local_rank}"
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise SettingsError(f"run.device = {name!r}, and there are {torch.cuda.device_count()} GPUs")
    if name == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("run.device = 'mps', and PyTorch sees no such device", hint="set run.device = 'auto'")
    return torch.device(name)


def configure(settings: SettingsTree, local_rank: int | None = None) -> torch.device:
    """Applies what is global to the process: threads, kernels' backend.  Returns the device (see `select_device`)."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    if "AUXMAE_KERNELS" not in os.environ:
        dispatch.set_backend(settings.kernels.backend)
    return select_device(settings.run.device, local_rank)


def _auto(value: Any) -> Any:
    return None if value == "auto" else value


def open_data(data: DataSettings, *, seed: int) -> Collection:
    """Opens what [data] names."""
    return open_collection(
        data.source,
        labels=data.labels,
        ignored_labels=_auto(data.ignored_labels),
        layout=data.layout,
        options=ReadOptions(key=_auto(data.key), axes=_auto(data.axes), size=_auto(data.size), nodata=_auto(data.nodata)),
        channels=_auto(data.channels),
        wavelengths=_auto(data.wavelengths),
        channel_pattern=data.channel_pattern,
        group_pattern=data.group_pattern,
        exclude=data.exclude,
        allow_broken=data.allow_broken,
        synthetic_images=data.synthetic_images,
        seed=seed,
    )


def build_data(
    settings: SettingsTree,
    *,
    image_size: int | None = None,
    scaling: Scaling | None = None,
    augment: bool = True,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Data:
    """Opens, splits and scales the data set.

    Args:
        settings: the whole tree.
        image_size: side of the crops, px, over the settings'.
        scaling: a stored scaling to use instead of fitting one.
        augment: random crops, flips and order for the training part.
        progress: told (done, total) while statistics are computed.
        team: the processes that build it together; the first one computes the statistics for all.
    """
    data, train = settings.data, settings.train
    collection = open_data(data, seed=train.seed)
    size = image_size or resolve_image_size(collection, _auto(settings.model.image_size), settings.model.patch_size)
    splits = split_collection(
        collection,
        method=data.split,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        image_size=size,
        block_size=_auto(data.block_size),
        group_pattern=data.group_pattern,
        seed=train.seed,
    )
    statistics = None
    if scaling is None:
        table = settings.scaling
        plain = ImageDataset(collection, splits.train, image_size=size, scaling=None, augment=False)
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

    def loader(part: Any, *, random: bool) -> Loader | None:
        dataset = ImageDataset(
            collection,
            part,
            image_size=size,
            scaling=scaling,
            augment=random,
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
        loader(splits.validation, random=False),
        loader(splits.test, random=False),
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
        SettingsError: an image is one patch, of which nothing can be hidden.
    """
    patch = settings.model.patch_size
    if data.image_size <= patch and settings.masking.strategy != "channel":
        raise SettingsError(
            f"crops of {data.image_size} px are one patch of model.patch_size = {patch} px, and none of it can be hidden",
            hint="lower model.patch_size, or raise model.image_size",
        )
    return AuxMAE(
        data.collection.channel_names,
        image_size=data.image_size,
        wavelengths=data.collection.wavelengths,
        mask_ratio=settings.masking.ratio,
        mask_strategy=settings.masking.strategy,
        mask_block_size=settings.masking.block_size,
        mask_mixture=dict(settings.masking.mixture),
        loss_kind=settings.loss.kind,
        normalize=settings.loss.normalize,
        scaling=data.scaling.to_dict(),
        **model_arguments(settings.model, len(data.collection.channel_names)),
    )


# How the files of one data set are read; another one's are other files.  The channels' names and wavelengths stay: they are
# the model's.
_READING = (
    "layout", "key", "axes", "size", "channel_pattern", "split", "group_pattern", "nodata", "exclude", "allow_broken",
)  # fmt: skip


def absolute_place(name: str) -> str:
    """What data.source or data.labels names, wherever it is said: paths absolute, other words as they are."""
    words = name in ("synthetic", "auto", "none") or name.startswith(":")
    return name if words else str(Path(name).expanduser().absolute())


def describe_reading(data: DataSettings) -> dict[str, Any]:
    """Every setting that decides which pixels are read and which label they have, by its full name, JSON-able."""
    names = ("source", "labels", "ignored_labels", *_READING, "channels", "wavelengths", "synthetic_images")
    values = data.model_copy(update={name: absolute_place(getattr(data, name)) for name in ("source", "labels")})
    return {f"data.{name}": value for name, value in values.model_dump(mode="json", include=set(names)).items()}


def settings_on_data(
    run: RunFolder,
    *,
    source: str | None = None,
    labels: str | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
) -> SettingsTree:
    """The settings of a run, on its own data set or on another one.

    On other files, what the run says of labels and of how its own files are read falls back to the defaults; on other labels
    alone, the values to ignore do.  What is set anew stays.

    Args:
        run: the run.
        source, labels: another data set, in place of the run's.
        overrides: further settings, "table.key=value".
        batch_size: images per batch, over the settings'.

    Raises:
        DataError: the run's own data set is gone.
    """
    settings = load_settings(run.path / SETTINGS_NAME, overrides=overrides, environ={}).settings
    own, data, train = run.settings.data, settings.data, settings.train
    given = {text.partition("=")[0].strip() for text in overrides}

    def forget(*names: str) -> None:
        nonlocal data
        defaults = DataSettings()
        data = data.model_copy(update={name: getattr(defaults, name) for name in names if f"data.{name}" not in given})

    if source is not None:
        data = data.model_copy(update={"source": source})
    if absolute_place(data.source) != absolute_place(own.source):
        forget("labels", *_READING)
    elif data.source != "synthetic" and not Path(data.source).exists() and not any(c in data.source for c in "*?["):
        raise DataError(f"{data.source}: the run's data set is no longer there", hint="name it with --data")
    if labels is not None:
        data = data.model_copy(update={"labels": labels})
    if any(absolute_place(getattr(data, name)) != absolute_place(getattr(own, name)) for name in ("source", "labels")):
        forget("ignored_labels")
    if batch_size is not None:
        train = train.model_copy(update={"batch_size": batch_size})
    return settings.model_copy(update={"data": data, "train": train})


def find_channels(
    settings: SettingsTree, model: AuxMAE, *, overrides: Sequence[str] = (), allow_missing: bool = False
) -> tuple[SettingsTree, tuple[str, ...]]:
    """Chooses the model's channels from a data set by name: another order or further channels change nothing.

    Args:
        settings: of the data set.
        model: whose channels are wanted.
        overrides: where they set data.channels, those names stand (a data set without names is named by them).
        allow_missing: leave out channels that the data set lacks.

    Returns:
        The settings with data.channels chosen, and the model's channels that are left out.

    Raises:
        DataError: a channel is missing and `allow_missing` is False, or none is there.
    """

    def choose(names: Sequence[str]) -> SettingsTree:
        changes: dict[str, Any] = {"channels": tuple(names)}
        if len(names) < len(model.channel_names):
            changes["wavelengths"] = "auto"  # the settings' list is of all channels
        return settings.model_copy(update={"data": settings.data.model_copy(update=changes)})

    wanted = f"the model was trained on the channels {', '.join(model.channel_names)}"
    hint = "--allow-missing goes on without them"
    if settings.data.channels != "auto" and any(text.partition("=")[0].strip() == "data.channels" for text in overrides):
        named = settings.data.channels
        unknown = [name for name in named if name not in model.channel_names]
        if unknown:
            raise DataError(f"data.channels names {', '.join(unknown)}, and {wanted}")
    elif not allow_missing:
        return choose(model.channel_names), ()
    else:
        try:
            plain = {"channels": "auto", "wavelengths": "auto"}
            found = open_data(settings.data.model_copy(update=plain), seed=settings.train.seed)
        except SettingsError as error:
            raise DataError(f"{settings.data.source} does not fit: {error.message}", hint=error.hint) from error
        unnamed = all(file.channel_names is None for file in found.files)
        if unnamed and len(found.channel_names) == len(model.channel_names):
            return choose(model.channel_names), ()
        named = tuple(name for name in model.channel_names if name in found.channel_names)
        if not named:
            raise DataError(
                f"{settings.data.source} has none of the model's channels: it has {', '.join(found.channel_names)}; {wanted}",
                hint="name the channels of the data with --set data.channels=[…]",
            )
    missing = tuple(name for name in model.channel_names if name not in named)
    if missing and not allow_missing:
        raise DataError(f"{settings.data.source} lacks the channels {', '.join(missing)}; {wanted}", hint=hint)
    # A group of channels is one token: it cannot be there in part.
    ChannelSelection(model.groups, model.channel_names, named)
    return choose(named), missing


def open_run_data(
    run: RunFolder,
    model: AuxMAE,
    *,
    source: str | None = None,
    labels: str | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
    allow_missing: bool = False,
) -> Data:
    """The data set of a run, or another one, as the run's model takes it: its scaling, its crop size, no augmentation.

    Args:
        run, model: the run and a model loaded from it.
        source, labels, overrides, batch_size: see `settings_on_data`.
        allow_missing: do without the model's channels that the data set lacks (`Data.missing`).

    Raises:
        DataError: the data set lacks a channel that the model was trained on.
    """
    settings = settings_on_data(run, source=source, labels=labels, overrides=overrides, batch_size=batch_size)
    scaling = Scaling.from_dict(model.scaling) if model.scaling else Scaling.identity(model.channel_names)
    changed, missing = find_channels(settings, model, overrides=overrides, allow_missing=allow_missing)
    with fitting(settings.data.source, model):
        found = build_data(changed, image_size=model.image_size, scaling=scaling, augment=False)
    found.collection.notices.extend(left_behind(run, settings))
    names = changed.data.channels
    if tuple(names) != tuple(model.channel_names):
        found.missing = missing
        for loader in (found.train, found.validation, found.test):
            if loader is not None:
                loader.channels = torch.tensor([model.channel_names.index(name) for name in names])
    return found


def left_behind(run: RunFolder, used: SettingsTree) -> list[str]:
    """What a run says of reading its own files and is not said of others, in a sentence for people; nothing where all is."""
    own, default = run.settings.data, DataSettings()
    names = [
        name for name in (*_READING, "ignored_labels") if getattr(own, name) != getattr(used.data, name) == getattr(default, name)
    ]
    if not names:
        return []
    said = ", ".join(f"data.{name}" for name in names)
    return [f"the run's {said} {'are' if len(names) > 1 else 'is'} not taken over: set again, with --set, what is needed here"]


@contextmanager
def fitting(source: str, model: AuxMAE) -> Iterator[None]:
    """A channel that is not found is the data set's fault: the names come from the model, not from the user's settings."""
    try:
        yield
    except SettingsError as error:
        wanted = f"the model was trained on the channels {', '.join(model.channel_names)}"
        hint = f"{error.hint + '; ' if error.hint else ''}--allow-missing drops channels that are not there"
        raise DataError(f"{source} does not fit: {wanted}; {error.message}", hint=hint) from error
