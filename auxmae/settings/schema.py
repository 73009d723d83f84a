"""What can be set: one frozen model per TOML table, every field with a description, a unit and bounds.

`sources.py` fills `SettingsTree` from the command line, the environment, a file, a preset and the defaults given here.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Auto = Literal["auto"]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]

MASKING_STRATEGIES = ("independent", "shared", "channel", "block")


def _known_strategies(mixture: dict[str, float]) -> dict[str, float]:
    for name, weight in mixture.items():
        if name not in MASKING_STRATEGIES:
            raise ValueError(f"unknown strategy {name!r}: expected one of {', '.join(MASKING_STRATEGIES)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name!r} is {weight}: expected a number of at least 0")
    return mixture


def _as_tuples(value: object) -> object:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


class Table(BaseModel):
    """A TOML table: unknown keys are refused, values are checked, nothing changes after validation.

    Types are strict (`true` is no number, `"5"` is no integer; an integer is a number), but a list stands for a tuple.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _lists_to_tuples(cls, value: object) -> object:
        return _as_tuples(value)


class DataSettings(Table):
    """Where the images are, how to read them, how to split them."""

    source: str = Field(
        default="synthetic",
        min_length=1,
        description="a file, a folder, a glob pattern, or 'synthetic' for the embedded procedural scenes",
    )
    labels: str = Field(
        default="auto",
        min_length=1,
        description="'auto' (class folders, or an array of the image file called labels, label, targets, target or y), 'none', "
        "the path of a label raster, of a folder of them called like the images, or of a CSV table with the images' names, "
        "PATH:KEY for an array in an HDF5, MATLAB or npz file or a table's column, or :KEY for an array in the image file itself",
    )
    ignored_labels: tuple[Annotated[int, Field(ge=0)], ...] | Auto = Field(
        default="auto",
        description="label values that mean 'no label', beside negative ones and nodata ('auto': 0 in maps of two or "
        "more further classes from MATLAB files and ENVI classifications)",
    )
    layout: Literal["auto", "images", "array", "scenes"] = Field(
        default="auto",
        description="images (a folder of images), array (one array of N images), scenes (large images, cut into crops)",
    )
    key: str = Field(default="auto", description="name of the array inside an HDF5, MATLAB, npz or Zarr file")
    axes: str = Field(
        default="auto",
        pattern=r"^(auto|[NCHW()]+)$",
        description="axis order of the array: letters N (images), C (channels), H, W, none for axes of length one; axes "
        "stored as one go in parentheses, slowest first: 'C(WH)' for bands by column-major pixels",
    )
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | Auto = Field(
        default="auto", description="[height, width] in pixels, where the file stores pixels as one axis"
    )
    channel_names: tuple[str, ...] | Auto = Field(
        default="auto", description="names of all channels in the files' order, in place of those that the files carry"
    )
    channels: tuple[str, ...] | Auto = Field(
        default="auto",
        description="names of the channels to use, in this order; where the channels have no names, the names of all of them",
    )
    wavelengths: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | Auto = Field(
        default="auto", description="centre wavelengths of the channels that are used, or of all of them, nm"
    )
    channel_pattern: str = Field(
        default="",
        description="where images are stored one file a channel: a regular expression on the files' paths whose first group, or "
        "the one called channel, names the channel, such as '_(B[0-9A]+)\\.tif$'; files whose paths differ in nothing else, and "
        "in nothing that further groups match ('_w([0-9])([0-9A-F-]+)\\.tif$', an identifier behind the channel), are one image",
    )
    nodata: float | Literal["auto", "nan"] = Field(
        default="auto",
        description="pixel value, as it is stored, that means 'no data', in place of the file's own value and valid range "
        "('auto': what the file says; nan: none); NaN and infinity never count, nor what a mask or transparency leaves out",
    )
    exclude: tuple[str, ...] = Field(
        default=(),
        description="file name patterns to leave out, such as '*_mask.tif'; one with a slash is compared with the end of paths, "
        "such as 'A/2/*' for the fields of a plate's well",
    )
    allow_broken: bool = Field(default=False, description="leave out unreadable files (each is named) instead of stopping")
    split: Literal["auto", "random", "group", "block"] = Field(
        default="auto",
        description="how images are held out: at random, by group, or by spatial block (auto: by group where there is a "
        "group_pattern, by block for scenes, else at random, images that overlap on the ground together)",
    )
    group_pattern: str = Field(
        default="",
        description="regular expression on the relative path whose first group names the group of an image: a donor, a plate, "
        "a well; '(.*)' holds out whole files",
    )
    validation_fraction: Fraction = Field(
        default=0.1, description="part of the images or blocks used to choose the best checkpoint"
    )
    test_fraction: Fraction = Field(
        default=0.2, description="part of the images or blocks kept for the final figures and `auxmae eval`"
    )
    block_size: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto", description="side of a spatial block, px (split = 'block')"
    )
    synthetic_images: int = Field(default=2000, ge=16, le=1_000_000, description="number of embedded scenes to generate")
    samples_per_epoch: int = Field(
        default=512,
        ge=0,
        le=100_000_000,
        description="training samples that an epoch has at least: fewer images or windows are drawn again, with other crops "
        "and flips (0: each once)",
    )
    flips: bool = Field(default=True, description="random horizontal and vertical flips in training")
    channel_sampling: Fraction = Field(
        default=0.0, description="largest part of the channels dropped at random from a training batch (0: none)"
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=256,
        description="loader processes of the training part, and as many of the validation part (0: load in the training process)",
    )

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on: their sum must be below 1")
        if self.split == "group" and not self.group_pattern:
            raise ValueError("split = 'group' needs group_pattern")
        for name, what in (("group_pattern", "the group"), ("channel_pattern", "the channel")):
            try:
                groups = re.compile(pattern := getattr(self, name)).groups
            except re.error as error:
                raise ValueError(f"{name} is not a regular expression: {error}") from None
            if pattern and not groups:
                raise ValueError(f"{name} has no group: put parentheses around the part that names {what}")
        for key, names in (("channels", self.channels), ("channel_names", self.channel_names)):
            if names == "auto":
                continue
            if not names:
                raise ValueError(f"{key} is empty")
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise ValueError(f"{key} names {', '.join(double)} twice")
        return self

    @field_validator("nodata", mode="before")
    @classmethod
    def _name_nan(cls, value: object) -> object:
        # A word equals itself, and JSON has it: evaluations and exports tell by it whether data are read as before.
        return "nan" if isinstance(value, float) and not math.isfinite(value) else value


class ScalingSettings(Table):
    """How pixel values become numbers near [0, 1]: fitted on windows of the training part, stored with the model."""

    method: Literal["percentile", "standard", "minmax", "none"] = Field(
        default="percentile",
        description="percentile range to [0, 1], mean and standard deviation, minimum and maximum, or none; measured in windows "
        "over the training part: four a side of an image at most, and 8 × scaling.samples pixels in all at most",
    )
    transform: Literal["none", "log1p", "arcsinh"] = Field(
        default="none", description="applied before scaling: log1p or arcsinh for heavy-tailed counts"
    )
    cofactor: float = Field(default=1.0, gt=0, description="arcsinh(x / cofactor), in pixel units")
    low: float = Field(default=1.0, ge=0, lt=100, description="lower percentile, %")
    high: float = Field(default=99.0, gt=0, le=100, description="upper percentile, %")
    clip: bool = Field(default=False, description="clip scaled values to [0, 1] (percentile and minmax)")
    samples: int = Field(
        default=2_000_000, ge=1000, description="pixels per channel that the percentiles are estimated from, at most"
    )

    @model_validator(mode="after")
    def _check(self) -> ScalingSettings:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.clip and self.method in ("standard", "none"):
            raise ValueError(f"clip needs method 'percentile' or 'minmax', not {self.method!r}")
        return self


class ModelSettings(Table):
    """The network. A preset sets the values that are not set anywhere else."""

    preset: Literal["tiny", "scene", "reference", "small", "base", "large"] = Field(
        default="tiny", description="a named set of model and training values: `auxmae config show` prints them"
    )
    image_size: Annotated[int, Field(ge=1, le=16384)] | Auto = Field(
        default="auto", description="side of a training crop, px ('auto': from the data, at most 64)"
    )
    patch_size: int = Field(default=8, ge=1, le=512, description="side of a patch, px")
    channel_groups: Annotated[int, Field(ge=1, le=4096)] | Auto | tuple[tuple[str, ...], ...] = Field(
        default=1,
        description="channels per token: a number of neighbouring channels, 'auto' (so many that eight groups hold all), "
        "or lists of channel names",
    )
    channel_embedding: Literal["auto", "name", "wavelength"] = Field(
        default="auto", description="learned by channel name, or computed from wavelength ('auto': by name)"
    )
    cls_tokens: bool = Field(default=True, description="one CLS token per channel (or channel group)")
    width: int = Field(default=96, ge=4, le=8192, description="token width of the encoder")
    depth: int = Field(default=4, ge=1, le=128, description="blocks of the encoder")
    heads: int = Field(default=4, ge=1, le=256, description="attention heads of the encoder")
    hidden: Annotated[int, Field(ge=4, le=65536)] | Auto = Field(
        default="auto",
        description="hidden width of each of a block's two feed-forward halves ('auto': twice the width)",
    )
    decoder_width: Annotated[int, Field(ge=4, le=8192)] | Auto = Field(
        default="auto", description="token width of the decoder ('auto': half the encoder's, in multiples of its heads)"
    )
    decoder_depth: int = Field(default=2, ge=1, le=128, description="blocks of the decoder")
    decoder_heads: Annotated[int, Field(ge=1, le=256)] | Auto = Field(default="auto", description="heads of the decoder")
    decoder_hidden: Annotated[int, Field(ge=4, le=65536)] | Auto = Field(
        default="auto", description="hidden width of the decoder"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout probability inside attention and feed-forward sublayers")
    embedding_activation: Literal["none", "gelu"] = Field(
        default="none", description="what follows the projection of a patch ('gelu': the published design)"
    )
    channel_attention: Literal["aligned", "slotwise"] = Field(
        default="aligned",
        description="tokens that attend to each other across channels under independent masks: aligned (those of the same "
        "place) or slotwise (the k-th visible one of every channel, wherever it lies)",
    )
    output_activation: Literal["none", "sigmoid"] = Field(default="none", description="what follows the linear head")

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) is not divisible by heads ({self.heads})")
        if self.width % 4:
            raise ValueError(f"width ({self.width}) must be a multiple of 4, for 2-D sine-cosine positions")
        if self.decoder_width != "auto":
            heads = self.heads if self.decoder_heads == "auto" else self.decoder_heads
            if self.decoder_width % heads:
                raise ValueError(f"decoder_width ({self.decoder_width}) is not divisible by decoder_heads ({heads})")
            if self.decoder_width % 4:
                raise ValueError(f"decoder_width ({self.decoder_width}) must be a multiple of 4")
        if self.image_size != "auto" and self.image_size < self.patch_size:
            raise ValueError(f"image_size ({self.image_size} px) is smaller than patch_size ({self.patch_size} px)")
        if isinstance(self.channel_groups, tuple):
            names = [name for group in self.channel_groups for name in group]
            if not names or any(not group for group in self.channel_groups):
                raise ValueError("channel_groups has an empty group")
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise ValueError(f"channel_groups names {', '.join(double)} twice")
        return self


class MaskingSettings(Table):
    """Which patches are hidden from the encoder."""

    ratio: float = Field(default=0.75, gt=0, lt=1, description="part of the patches that is hidden")
    strategy: Literal["independent", "shared", "channel", "block", "mixed"] = Field(
        default="independent",
        description="independent (each channel its own), shared (the same positions in every channel), "
        "channel (whole channels), block (contiguous squares), mixed (drawn anew for every batch, by "
        "[masking.mixture])",
    )
    block_size: int = Field(default=2, ge=1, le=1024, description="side of a hidden square, patches (strategy 'block')")
    mixture: Annotated[dict[str, float], AfterValidator(_known_strategies)] = Field(
        default_factory=lambda: {"independent": 0.5, "shared": 0.25, "channel": 0.25},
        description="relative frequency of each strategy (strategy 'mixed')",
    )

    @model_validator(mode="after")
    def _check(self) -> MaskingSettings:
        if self.strategy == "mixed" and sum(self.mixture.values()) <= 0:
            raise ValueError("strategy 'mixed' needs at least one positive weight in [masking.mixture]")
        return self


class LossSettings(Table):
    """What the model is taught with, on hidden valid pixels only."""

    kind: Literal["l1", "mse", "smooth_l1"] = Field(default="l1", description="absolute, squared, or Huber error (beta = 1)")
    normalize: bool = Field(default=False, description="target: each patch less its mean, over its standard deviation")


class TrainSettings(Table):
    """The training loop."""

    epochs: int = Field(default=100, ge=1, le=1_000_000, description="passes over the training images, at most")
    max_steps: int = Field(
        default=0,
        ge=0,
        description="optimiser steps, at most; when set, epochs has no say (0: as many as the epochs have)",
    )
    max_minutes: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="training time, minutes, at most; the schedule follows it (0: no limit); a preset's limit holds only "
        "where neither epochs nor max_steps is set",
    )
    batch_size: int = Field(default=64, ge=1, le=1_000_000, description="images of a batch, over all processes together")
    accumulation: int = Field(default=1, ge=1, le=65536, description="batches per optimiser step")
    optimizer: Literal["adamw", "adam", "muon"] = Field(
        default="adamw",
        description="AdamW, Adam (weight decay as L2 penalty), or Muon for the matrices of the blocks and AdamW for the rest",
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=10, description="peak learning rate")
    min_learning_rate: float = Field(default=1e-5, ge=0, le=10, description="learning rate at the end of the cosine")
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1, description="part of the steps with a linearly rising learning rate")
    weight_decay: float = Field(
        default=0.05,
        ge=0,
        le=10,
        description="weight decay of the matrices of linear maps, of those that embed patches too (never of norms, biases, "
        "learned tokens, embeddings of channels)",
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.95), description="Adam's moment coefficients"
    )
    clip_norm: float = Field(default=1.0, ge=0, description="largest gradient norm (0: no clipping)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="autocast type on a GPU ('auto': bf16 where the GPU has it, else fp32); the CPU computes in fp32",
    )
    compile: bool = Field(default=False, description="torch.compile the blocks")
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="replay the whole step as one CUDA graph: auto (on a GPU, where every step does the same), on (an error "
        "where it cannot), off",
    )
    recompute: bool = Field(default=False, description="recompute activations in the backward pass: less memory, more time")
    patience: int = Field(default=0, ge=0, description="stop after this many validations without improvement (0: never)")
    tolerance: float = Field(default=1e-4, ge=0, lt=1, description="relative improvement of the validation loss that counts")
    validate_every: int = Field(default=1, ge=1, description="epochs between validations")
    validation_samples: int = Field(
        default=1000, ge=0, description="images or windows that a validation takes at most, always the same (0: all)"
    )
    probe_every: int = Field(
        default=0,
        ge=0,
        description="epochs between probes of the frozen features: effective rank, k-NN on held-out labels (0: never)",
    )
    figure_every: int = Field(default=10, ge=0, description="epochs between reconstruction figures (0: at the end only)")
    checkpoint_minutes: float = Field(
        default=10.0, ge=0, description="minutes between checkpoints within an epoch (0: at its end only)"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of weights, masks, crops and order")
    deterministic: bool = Field(default=False, description="deterministic algorithms only: slower on a GPU")

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(f"min_learning_rate ({self.min_learning_rate}) must not exceed learning_rate ({self.learning_rate})")
        return self


class RunSettings(Table):
    """Where a run is kept and on what it runs."""

    folder: str = Field(default="auto", min_length=1, description="the run's folder ('auto': runs/DATE-TIME)")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cuda, cuda:N, cpu or mps")
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads (0: PyTorch's own choice)")
    tensorboard: bool = Field(default=False, description="write TensorBoard events too (needs the extra 'tensorboard')")


class EvalSettings(Table):
    """How `auxmae eval` measures a trained model."""

    mask_seed: int = Field(
        default=1234, ge=0, lt=2**32, description="seed of the fixed masks used for every reconstruction error"
    )
    max_images: int = Field(
        default=2000,
        ge=0,
        description="held-out images or windows whose reconstruction is measured at most, always the same (0: all)",
    )
    mask_ratios: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.5, 0.75, 0.9), description="mask ratios at which up to 200 held-out images are reconstructed as well"
    )
    labels_per_class: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(1, 5, 20, 0), description="labelled samples per class given to the probes (0: all)"
    )
    neighbours: int = Field(
        default=5, ge=1, le=1000, description="k of the k-NN probe; at most the labels per class (their median)"
    )
    max_samples: int = Field(default=4000, ge=10, description="labelled samples per part used by the probes, at most")
    # Of n resamples the paired test's least p-value is 2 / (n + 1): of few, no lead could ever be called beyond chance.
    bootstrap: int = Field(
        default=1000, ge=100, le=100_000, description="resamples behind the 95% intervals and the paired comparison"
    )
    pool: Literal["mean", "cls", "concat", "attention", "moments", "moments+embedding"] = Field(
        default="moments",
        description="how an image's tokens become one feature vector: mean over channels and places, mean of the CLS tokens, "
        "concat (each channel's mean over places), attention (channels weighted), moments (concat, and each channel's standard "
        "deviation over places), moments+embedding (moments of the embedded tokens, before the first block, beside those of the "
        "encoder's)",
    )
    finetune_labels: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(20, 0), description="labelled samples per class that `auxmae eval --finetune` trains on (0: all)"
    )
    finetune_steps: Annotated[int, Field(ge=1)] | Auto = Field(
        default="auto",
        description="optimiser steps of each training by `auxmae eval --finetune` ('auto': 150, or as many as show every "
        "labelled image or window once)",
    )
    finetune_seeds: int = Field(
        default=2, ge=1, le=5, description="trainings by `auxmae eval --finetune` for each figure: other labels, weights, order"
    )
    finetune_learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="highest learning rate of `auxmae eval --finetune`, the same for both ways"
    )
    stride: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="pixels between the windows of `auxmae eval --dense` (0: 1, or as many as leave 20 000 of a scene)",
    )


class KernelSettings(Table):
    """Which implementation of the hot functions runs."""

    backend: Literal["auto", "triton", "torch"] = Field(
        default="auto",
        description="auto (Triton where it is known to win), triton (or an error that says why not), torch; the environment "
        "variable AUXMAE_KERNELS stands over it",
    )


class SettingsTree(Table):
    """Every table, and the checks that need more than one of them."""

    model_config = ConfigDict(strict=False)  # a dict may stand for a table

    data: DataSettings = Field(default_factory=lambda: DataSettings(), description="the images")
    scaling: ScalingSettings = Field(default_factory=lambda: ScalingSettings(), description="pixel values → network inputs")
    model: ModelSettings = Field(default_factory=lambda: ModelSettings(), description="the network")
    masking: MaskingSettings = Field(default_factory=lambda: MaskingSettings(), description="what is hidden")
    loss: LossSettings = Field(default_factory=lambda: LossSettings(), description="what is minimised")
    train: TrainSettings = Field(default_factory=lambda: TrainSettings(), description="the training loop")
    run: RunSettings = Field(default_factory=lambda: RunSettings(), description="where and on what")
    eval: EvalSettings = Field(default_factory=lambda: EvalSettings(), description="evaluation")
    kernels: KernelSettings = Field(default_factory=lambda: KernelSettings(), description="implementation of the hot functions")

    @model_validator(mode="after")
    def _check(self) -> SettingsTree:
        if self.model.output_activation == "sigmoid":
            if self.scaling.method not in ("percentile", "minmax"):
                raise ValueError(
                    "model.output_activation = 'sigmoid' reaches only 0 to 1: it needs scaling.method 'percentile' or "
                    f"'minmax', not {self.scaling.method!r}"
                )
            if self.loss.normalize:
                raise ValueError(
                    "model.output_activation = 'sigmoid' reaches only 0 to 1, and loss.normalize = true asks for values around 0"
                )
        if self.model.channel_groups != 1 and self.data.channel_sampling > 0:
            raise ValueError("data.channel_sampling drops single channels: it needs model.channel_groups = 1")
        return self
