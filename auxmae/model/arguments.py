"""The model's arguments: checked, and those that follow from others filled in."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from auxmae.errors import SettingsError
from auxmae.model.masking import STRATEGIES

_SIZES = (
    "image_size", "patch_size", "width", "depth", "heads", "hidden", "decoder_width", "decoder_depth", "decoder_heads",
    "decoder_hidden", "mask_block_size",
)  # fmt: skip
_CHOICES = {
    "channel_embedding": ("name", "wavelength"),
    "embedding_activation": ("none", "gelu"),
    "channel_attention": ("aligned", "slotwise"),
    "output_activation": ("none", "sigmoid"),
    "mask_strategy": (*STRATEGIES, "mixed"),
    "loss_kind": ("l1", "mse", "smooth_l1"),
}
_SETTINGS = {
    "mask_strategy": "masking.strategy",
    "mask_block_size": "masking.block_size",
    "mask_ratio": "masking.ratio",
    "loss_kind": "loss.kind",
}


def complete_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `AuxMAE`, every one by name → the same, JSON-able, none of the sizes left to its default.

    Raises:
        SettingsError: a value is out of bounds, or contradicts another.
    """
    config = dict(given)
    config["channels"] = names = _names(given["channels"])
    for key, choices in _CHOICES.items():
        if config[key] not in choices:
            expected = f"expected one of {', '.join(map(repr, choices))}"
            raise SettingsError(f"unknown {_setting(key)} {config[key]!r}", hint=expected)
    for key in _SIZES:
        if config[key] is not None:
            config[key] = _size(key, config[key])
    config["mask_ratio"] = float(given["mask_ratio"])
    if not 0 < config["mask_ratio"] < 1:
        raise SettingsError(f"masking.ratio must lie between 0 and 1, and is {given['mask_ratio']}")
    config["dropout"] = float(given["dropout"])
    if not 0 <= config["dropout"] < 1:
        raise SettingsError(f"model.dropout must be a probability of at least 0 and below 1, and is {given['dropout']}")
    _check_mixture(given["mask_strategy"], given["mask_mixture"] or {})
    _complete_sizes(config)
    groups = config["channel_groups"]
    config["channel_groups"] = (
        _size("channel_groups", groups) if isinstance(groups, Integral) else [[str(name) for name in group] for group in groups]
    )
    config["wavelengths"] = _wavelengths(given["wavelengths"], names)
    return config


def _check_mixture(strategy: str, mixture: Mapping[str, float]) -> None:
    for name, weight in mixture.items():
        if name not in STRATEGIES:
            raise SettingsError(
                f"masking.mixture names the unknown strategy {name!r}",
                hint=f"expected some of {', '.join(map(repr, STRATEGIES))}",
            )
        if not 0 <= weight < math.inf:
            raise SettingsError(f"masking.mixture: the weight of {name} must be a number of at least 0, and is {weight}")
    if strategy == "mixed" and not any(mixture.values()):
        raise SettingsError(
            "masking.strategy = 'mixed' needs at least one positive weight in masking.mixture",
            hint='such as mask_mixture={"independent": 1, "block": 1}',
        )


def _setting(key: str) -> str:
    return _SETTINGS.get(key, f"model.{key}")


def _names(channels: Any) -> list[str]:
    names = [str(i + 1) for i in range(int(channels))] if isinstance(channels, Integral) else [str(name) for name in channels]
    if not names or len(set(names)) != len(names):
        raise SettingsError("channels must be named, each once")
    return names


def _size(key: str, value: Any) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if size < 1:
        raise SettingsError(f"{_setting(key)} must be a whole number of at least 1, and is {value!r}")
    return size


def _complete_sizes(config: dict[str, Any]) -> None:
    width = config["width"]
    config["hidden"] = config["hidden"] or 2 * width
    heads = config["decoder_heads"] = config["decoder_heads"] or config["heads"]
    # Half the width, rounded up to what the heads and the 2-D positions divide.
    step = 4 * heads
    config["decoder_width"] = config["decoder_width"] or max(step, -(-(width // 2) // step) * step)
    config["decoder_hidden"] = config["decoder_hidden"] or 2 * config["decoder_width"]
    for label, count in (("width", config["heads"]), ("decoder_width", heads)):
        if config[label] % count or config[label] % 4:
            raise SettingsError(f"model.{label} ({config[label]}) must be divisible by its heads ({count}) and by 4")


def _wavelengths(given: Sequence[float] | None, names: list[str]) -> list[float] | None:
    if given is None:
        return None
    wavelengths = [float(value) for value in given]
    if len(wavelengths) != len(names):
        raise SettingsError(f"{len(wavelengths)} wavelengths for {len(names)} channels", hint="set data.wavelengths")
    for name, value in zip(names, wavelengths, strict=True):
        if not 0 < value < math.inf:
            raise SettingsError(f"the wavelength of channel {name!r} is {value} nm", hint="set data.wavelengths")
    return wavelengths
