"""Parameter groups, the learning-rate schedule, and precision."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from auxmae.errors import SettingsError
from auxmae.training.muon import Muon


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for the matrices of linear maps, of those that embed patches and tokens too; none for norms, biases, learned
    tokens and the embeddings of channels."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name.endswith(".weight") and "channel_embedding" not in name
            # A bias of untied groups is (G, D), a matrix by its shape only.
            (decayed if matrix else others).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def block_matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The linear maps within encoder and decoder blocks → (those that stack queries, keys and values, the others).

    Embeddings and the head are no hidden layers: their inputs or outputs have scales of their own.
    """
    stacked: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if name.startswith(("encoder.", "decoder.")) and parameter.ndim == 2 and parameter.requires_grad:
            (stacked if name.endswith("qkv.weight") else others).append(parameter)
    return stacked, others


def make_optimizers(
    model: nn.Module,
    kind: str,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    device: torch.device,
) -> list[torch.optim.Optimizer]:
    """AdamW or Adam for all parameters; or Muon for the matrices of the blocks, and AdamW for the rest.

    One fused kernel for Adam's parameters where the device has it, with the learning rate as a tensor there: on a GPU the step
    can be captured in a graph, which would keep a rate that is a number for ever.
    """
    fused = device.type in ("cpu", "cuda")
    rate = torch.tensor(learning_rate, device=device) if fused else learning_rate
    groups = parameter_groups(model, weight_decay)
    optimizers: list[torch.optim.Optimizer] = []
    if kind == "muon":
        stacked, matrices = block_matrices(model)
        taken = {id(parameter) for parameter in (*stacked, *matrices)}
        for group in groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in taken]
        own = [{"params": stacked, "parts": 3}, {"params": matrices, "parts": 1}]
        optimizers.append(Muon(own, lr=rate, weight_decay=weight_decay))
    kind_of: Any = {"muon": torch.optim.AdamW, "adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[kind]
    optimizers.append(kind_of(groups, lr=rate, betas=betas, fused=fused, capturable=device.type == "cuda"))
    return optimizers


class JointOptimizer:
    """Several optimisers as one, for `torch.amp.GradScaler`: what overflows in the gradients of one skips the step of all.

    Asked about each by itself it would let the others step, with gradients clipped by a norm that is infinite.

    Args:
        optimizers: all of which leave it to their step to skip, as fused Adam and Muon do.
    """

    _step_supports_amp_scaling = True

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """A step of each, told what the scaler tells this one."""
        told = {name: getattr(self, name) for name in ("grad_scale", "found_inf") if hasattr(self, name)}
        for optimizer in self.optimizers:
            vars(optimizer).update(told)
            optimizer.step()


def state_bytes(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Memory of the weights, their gradients, and what the optimisers keep of each: Adam two moments, Muon one."""
    total = 2 * sum(parameter.nbytes for parameter in model.parameters())
    for optimizer in optimizers:
        kept = sum(parameter.nbytes for group in optimizer.param_groups for parameter in group["params"])
        total += kept if isinstance(optimizer, Muon) else 2 * kept
    return total


def learning_rate_at(progress: float, *, peak: float, final: float, warmup: float) -> float:
    """Linear warm-up, then a half cosine (arXiv 1608.03983).

    Args:
        progress: part of the training that is done, 0 … 1.
        peak, final: highest and last learning rate.
        warmup: part of the training with a rising rate.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return peak * progress / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type on this device, or None for plain fp32.

    Raises:
        SettingsError: a reduced precision that the device cannot compute.
    """
    if device.type != "cuda":
        if precision in ("auto", "fp32"):
            return None
        raise SettingsError(
            f"train.precision = {precision!r} needs a CUDA GPU, and the device is {device.type}",
            hint="set train.precision = 'auto' (auxmae benchmark: --precision auto)",
        )
    if precision == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingsError("train.precision = 'bf16', and this GPU has no bf16", hint="set train.precision = 'fp16' or 'auto'")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context, or one that does nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
