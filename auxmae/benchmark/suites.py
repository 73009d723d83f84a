"""What is measured: the training step and the forward pass of the model, beside a plain implementation."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from auxmae import __version__
from auxmae.benchmark.measure import interleaved
from auxmae.benchmark.peers import PlainAuxiliaryMAE
from auxmae.model.mae import AuxMAE

OURS = "auxmae"
# The published design in plain PyTorch (`peers.PlainAuxiliaryMAE`).
PLAIN = "plain design"


@dataclass(frozen=True)
class ModelCase:
    """A size of the model suite: the same numbers for every provider; dropout is 0 for all."""

    name: str
    batch: int
    channels: int = 13
    image_size: int = 64
    patch_size: int = 16
    width: int = 256
    hidden: int = 512
    heads: int = 8
    depth: int = 6
    decoder_depth: int = 6


REFERENCE = ModelCase("reference", 16)
QUICK = ModelCase("quick", 8, width=64, hidden=128, heads=4, depth=2, decoder_depth=2)


def _our_model(case: ModelCase, device: torch.device) -> AuxMAE:
    return AuxMAE(
        case.channels,
        image_size=case.image_size,
        patch_size=case.patch_size,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        hidden=case.hidden,
        decoder_width=case.width,
        decoder_depth=case.decoder_depth,
        decoder_hidden=case.hidden,
        output_activation="sigmoid",
    ).to(device)


def _plain_model(case: ModelCase, device: torch.device) -> PlainAuxiliaryMAE:
    return PlainAuxiliaryMAE(
        case.channels,
        image_size=case.image_size,
        patch_size=case.patch_size,
        width=case.width,
        hidden=case.hidden,
        heads=case.heads,
        depth=case.depth,
        decoder_depth=case.decoder_depth,
    ).to(device)


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:

    def work() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def model_suite(
    case: ModelCase,
    *,
    device: torch.device,
    repeats: int,
    compile_too: bool = False,
    recompute_too: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the model suite for one case: every provider, "forward" (no gradients) and "step" (with AdamW).

    Returns:
        {"suite", "case", "provider", "pass", "median_ms", "samples_ms", "peak_bytes", "images_per_second", "parameters"}.
    """
    torch.manual_seed(0)
    image = torch.rand(case.batch, case.channels, case.image_size, case.image_size, device=device)
    models: dict[str, nn.Module] = {OURS: _our_model(case, device), PLAIN: _plain_model(case, device)}
    if compile_too:
        compiled = _our_model(case, device)
        compiled.compile_blocks()
        models[f"{OURS} (compiled)"] = compiled
    if recompute_too:
        recomputed = _our_model(case, device)
        recomputed.set_recompute(True)
        models[f"{OURS} (recompute)"] = recomputed

    def loss_of(model: nn.Module) -> Callable[[], torch.Tensor]:
        if isinstance(model, AuxMAE):
            return lambda: model(image).loss
        return lambda: model(image)

    def forward(model: nn.Module) -> Callable[[], object]:
        @torch.no_grad()
        def work() -> None:
            loss_of(model)()

        return work

    optimizers = {key: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for key, model in models.items()}

    def resident(key: str) -> Callable[[], list[torch.Tensor]]:
        def tensors() -> list[torch.Tensor]:
            # Empty until the first step, so that a forward pass is not charged for an optimiser.
            moments = [
                value for state in optimizers[key].state.values() for value in state.values() if isinstance(value, torch.Tensor)
            ]
            return [image, *models[key].parameters(), *models[key].buffers(), *moments]

        return tensors

    rows = []
    for name, works in (
        ("forward", {key: forward(model) for key, model in models.items() if "recompute" not in key}),
        ("step", {key: _step(optimizers[key], loss_of(model)) for key, model in models.items()}),
    ):
        timings = interleaved(
            works, device=device, repeats=repeats, resident={key: resident(key) for key in works}, progress=progress
        )
        for provider, timing in timings.items():
            rows.append(
                {
                    "suite": "model",
                    "case": case.name,
                    "provider": provider,
                    "pass": name,
                    "median_ms": timing.median_ms,
                    "samples_ms": timing.samples_ms,
                    "peak_bytes": timing.peak_bytes,
                    "images_per_second": 1e3 * case.batch / timing.median_ms,
                    "parameters": sum(parameter.numel() for parameter in models[provider].parameters()),
                }
            )
    return rows


def environment(device: torch.device) -> dict[str, Any]:
    """Where figures come from, for the record.

    Returns:
        {"device", "versions", "commit", "dirty"}: `commit` and `dirty` as `source_state` tells them of AuxMAE's own source.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    commit, dirty = source_state(Path(__file__).resolve())
    return {
        "device": {"type": device.type, "name": name, "threads": torch.get_num_threads()},
        "versions": {"auxmae": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": commit,
        "dirty": dirty,
    }


def source_state(file: Path) -> tuple[str | None, bool | None]:
    """The commit that a source file belongs to, and whether Python files of its repository differ from that commit.

    Args:
        file: absolute path.

    Returns:
        (hash, dirty); (None, None) where git does not track the file: an installed copy may lie in a virtual environment
        inside a repository that is another project's.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", "--", file.name) is None:
        return None, None
    commit = _git(file.parent, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    # New files count too: they are imported like the others.
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=all", "--", ":(top)*.py")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is not there."""
    # Set inside git's hooks, where they would stand for the repository that is being committed to.
    hidden = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    # Without its optional locks git does not get in the way of what the user does in the repository meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
