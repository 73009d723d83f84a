"""Saving a model with its configuration, loading it again, and the Hugging Face hub.

A saved model is a folder with `config.json` (the constructor's arguments, channel names, wavelengths, scaling and the
package's version) and `model.safetensors`.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path
from typing import Any, Self

import safetensors.torch
from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from auxmae.errors import CheckpointError, SettingsError, UsageError
from auxmae.model.embedding import channel_groups
from auxmae.model.folders import CONFIG_NAME, WEIGHTS_NAME, find_model

# The arguments by which a network computes something else with the same weights.
_UNSEEN_IN_WEIGHTS = (
    "heads", "decoder_heads", "channel_groups", "embedding_activation", "channel_attention", "output_activation",
)  # fmt: skip


class Pretrained(nn.Module, PyTorchModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for a module that keeps its arguments in `config`."""

    config: dict[str, Any]

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the model into a folder, from which `from_pretrained` loads it.

        Args:
            save_directory: the folder, made where there is none.
            options: those of `huggingface_hub.PyTorchModelHubMixin.save_pretrained`.

        Raises:
            UsageError: a weight is parametrised (`torch.nn.utils.parametrize`): a new model has no such weights to load.
        """
        # Before the folder is touched: it may hold another model.
        for name, module in self.named_modules():
            if is_parametrized(module):
                tensor = next(iter(module.parametrizations))
                weight = f"{name}.{tensor}" if name else tensor
                raise UsageError(
                    f"{save_directory}: not saved: {weight} is parametrised, and could not be loaded",
                    hint=f'call torch.nn.utils.parametrize.remove_parametrizations(layer, "{tensor}") first; its value stays',
                )
        saved: str | None = super().save_pretrained(save_directory, **options)
        return saved

    def _save_pretrained(self, save_directory: Path) -> None:
        from auxmae import __version__

        config = {"auxmae_version": __version__, **self.config}
        (save_directory / CONFIG_NAME).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        safetensors.torch.save_model(self, str(save_directory / WEIGHTS_NAME))
        with contextlib.suppress(PermissionError):  # of a file system without modes
            # safetensors leaves it to the owner alone; who may read the configuration, made as any file, may read this too.
            (save_directory / WEIGHTS_NAME).chmod((save_directory / CONFIG_NAME).stat().st_mode)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Loads a model from a folder, or from the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: a folder written by `save_pretrained` or a checkpoint of a run; a run folder
                (its best checkpoint is taken), or "last" for the newest one under runs/; or the name of a hub repository.
            options: of a download: passed to `huggingface_hub.snapshot_download` (revision, token, cache_dir, …).

        Raises:
            CheckpointError: nothing there, or what is there is broken or of another kind.
            TypeError: options for a folder, or unknown ones.
            UsageError: "last", and there is no run.
        """
        folder = find_model(pretrained_model_name_or_path, **options)
        config = read_config(folder)
        known = inspect.signature(cls.__init__).parameters
        try:
            model = cls(**{key: value for key, value in config.items() if key in known})
        except (ValueError, TypeError, AttributeError, SettingsError) as error:
            raise CheckpointError(f"{folder / CONFIG_NAME}: broken: {error}") from error
        load_weights(model, folder)
        return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments of a saved model.

    Raises:
        CheckpointError: missing or broken.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: broken: {error}") from error
    return config


def check_architecture(model: Pretrained, folder: Path) -> None:
    """Compares with a saved model of the same channels what neither the names nor the shapes of its weights show.

    Raises:
        CheckpointError: the first that differs, by its setting; or the configuration is missing or broken.
    """
    parameters = inspect.signature(type(model).__init__).parameters
    config = read_config(folder)
    for key in _UNSEEN_IN_WEIGHTS:
        saved, own = config.get(key, parameters[key].default), model.config[key]
        if saved != own and not (key == "channel_groups" and _same_groups(model.config["channels"], saved, own, folder)):
            # In TOML a number, a text and a list of lists are written as in JSON.
            value, here = (json.dumps(each, ensure_ascii=False) for each in (saved, own))
            raise CheckpointError(
                f"{folder} was trained with model.{key} = {value}, and here it is {here}", hint=f"set model.{key} = {value}"
            )


def _same_groups(channels: list[str], saved: Any, own: Any, folder: Path) -> bool:
    """Whether they mean the same, as a number and lists of names may."""
    try:
        return channel_groups(channels, saved) == channel_groups(channels, own)
    except (ValueError, TypeError, SettingsError) as error:
        raise CheckpointError(f"{folder / CONFIG_NAME}: broken: {error}") from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Reads `model.safetensors` of a folder into a model of the same shape.

    Raises:
        CheckpointError: missing, truncated, or of another architecture; the first difference is named.
    """
    path = folder / WEIGHTS_NAME
    try:
        with path.open("rb"):
            pass  # safetensors says of every file that it may not read that there is none
        missing, unexpected = safetensors.torch.load_model(model, str(path), strict=False)
    except (OSError, safetensors.SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise CheckpointError(f"{path}: other shapes than this model's: {(lines or [str(error)])[0]}") from error
    if missing or unexpected:
        names = sorted([*missing, *unexpected])
        raise CheckpointError(f"{path}: another architecture: {len(names)} tensors differ, the first is {names[0]}")
