"""What is found before there is a run folder: settings that no step could follow, and too little space for what is learned."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from auxmae_kernels import KernelUnavailableError, dispatch

from auxmae.build import Data
from auxmae.compiler import cpp_compiler
from auxmae.errors import CheckpointError, DataError, MissingDependencyError, SettingsError
from auxmae.model.folders import RUNS, find_checkpoint
from auxmae.model.mae import AuxMAE
from auxmae.places import expanded
from auxmae.run_data import with_absolute_places
from auxmae.settings import wording
from auxmae.settings.schema import SettingsTree
from auxmae.training.graph import graphs_wanted
from auxmae.training.optimization import autocast_dtype, make_optimizers, state_bytes


def check_settings(settings: SettingsTree, device: torch.device, processes: int = 1) -> None:
    """Finds, before there is a run folder, what else a step, a probe or a log would find wrong.

    `auxmae.device.configure` has applied what is global to the process.

    Raises:
        MissingDependencyError: run.tensorboard without TensorBoard.
        SettingsError: what is asked for cannot be on this device, or by this model; or the run's settings, which are UTF-8,
            cannot name the data.
    """
    data = with_absolute_places(settings.data)
    for key in ("source", "labels"):
        place = getattr(data, key)
        if not wording.is_utf8(place):
            raise SettingsError(
                f"data.{key}: {wording.show(place, longest=10_000)} is not valid UTF-8 text, which a run's settings are",
                hint="rename the folder whose name is not",
            )
    _check_kernels(settings, device)
    graphs_wanted(settings, device, processes)
    autocast_dtype(settings.train.precision, device)
    if settings.train.compile and device.type == "cpu":
        compiler, found = cpp_compiler()
        if not found:
            raise SettingsError(
                f"train.compile = true needs the C++ compiler {compiler} on a CPU, and it is not there",
                hint="install it, set CXX in the environment to another, or set train.compile = false",
            )
    if settings.run.tensorboard:
        tensorboard_writer()
    if settings.train.probe_every and settings.eval.pool == "cls" and not settings.model.cls_tokens:
        raise SettingsError(
            "eval.pool = 'cls', by which train.probe_every pools too, needs a model with CLS tokens",
            hint="set eval.pool = 'mean', or model.cls_tokens = true",
        )


def _check_kernels(settings: SettingsTree, device: torch.device) -> None:
    """Raises SettingsError where a hot function cannot run on this device by the backend in force."""
    for function in dispatch.FUNCTIONS:
        try:
            dispatch.explain(function, device=device)
        except KernelUnavailableError as error:
            if os.environ.get("AUXMAE_KERNELS") or settings.kernels.backend != "triton":
                raise SettingsError(str(error)) from error
            raise SettingsError(f"kernels.backend = 'triton': {error.message}", hint="set kernels.backend = 'auto'") from error


def check_probe(settings: SettingsTree, data: Data) -> None:
    """Finds, before there is a run folder, that the first probe would lack a package.

    Raises:
        MissingDependencyError: the data have labels to look for neighbours by, and scikit-learn is not installed.
    """
    if settings.train.probe_every and can_classify(data) and importlib.util.find_spec("sklearn") is None:
        raise MissingDependencyError(
            f"train.probe_every = {settings.train.probe_every} on labelled data needs scikit-learn, which is not installed",
            hint="pip install scikit-learn, or set train.probe_every = 0",
        )


def check_shares(data: Data, processes: int) -> None:
    """Finds, before there is a run folder, that a process would have nothing to train on.

    Raises:
        DataError: there are fewer images or windows than processes.
    """
    if data.train.samples < processes:
        raise DataError(
            f"{data.train.samples} images or windows to train on are fewer than the {processes} processes",
            hint="start fewer processes",
        )


def can_classify(data: Data) -> bool:
    """Whether there are labels for a probe to learn from, and held-out images to tell them of."""
    return bool(data.class_names) and data.validation is not None


def tensorboard_writer() -> Any:
    """The class that writes for TensorBoard.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "run.tensorboard = true needs TensorBoard, which is not installed", hint="pip install 'auxmae[tensorboard]'"
        ) from error
    return SummaryWriter


def check_space(folder: Path, model: AuxMAE, optimizer: str, *, validated: bool) -> None:
    """Says before any step that what is learned could not be saved: one checkpoint is written before the other is deleted.

    Args:
        folder: of the run, which may not have been made; "auto" for a new one.
        model, optimizer: what is saved of them.
        validated: whether the weights of the best validation are kept too.

    Raises:
        CheckpointError: there is too little space.
    """
    device = next(model.parameters()).device
    optimizers = make_optimizers(model, optimizer, learning_rate=0.0, weight_decay=0.0, betas=(0.9, 0.95), device=device)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # Gradients are not saved.
    size = state_bytes(model, optimizers) - weights
    last, best = (find_checkpoint(folder / "checkpoints" / which) for which in ("last", "best"))
    there = sum(path.stat().st_size for checkpoint in (last, best) if checkpoint.is_dir() for path in checkpoint.iterdir())
    needed = 2 * size + (weights if validated else 0) - there
    place = (RUNS if str(folder) == "auto" else expanded(folder)).absolute()
    usage = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.is_dir()))
    if usage.total > 0 and usage.free < needed:  # some network file systems tell nothing
        raise CheckpointError(
            f"{place}: two checkpoints, the last and the next one{', and the best one' if validated else ''}, take "
            f"{needed / 2**20:.1f} MiB more, and {usage.free / 2**20:.1f} MiB are free there",
            hint="free some space" if last.is_dir() else "free some space, or choose another --output",
        )
