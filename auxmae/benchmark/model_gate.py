"""The model suite's correctness check: with the same weights ours computes what the plain published design does.

The two pair other tokens across channels unless all channels show the same places, so that is what they are compared on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from auxmae.benchmark.backend import forced
from auxmae.benchmark.gate import EXACT, FREE, Results, Verdict, judge
from auxmae.benchmark.peers import PlainAuxiliaryMAE, sincos_table
from auxmae.model.mae import AuxMAE
from auxmae.training.optimization import autocast

# Behind the names of what is computed where ours looks tokens up by place, as it does under the independent masks that are timed.
LOOKED_UP = ", by place"
# Of the gradients: they would be too small for fp16.
LOSS_SCALE = 1024.0
# Parameters whose gradients are compared: first and last, and every kind of sublayer.
_COMPARED = (
    "patch_embedding.weight", "encoder.0.feed_forward_in.fc1.weight", "encoder.0.patch_attention.qkv.weight",
    "encoder.0.channel_attention.qkv.weight", "mask_token", "decoder.0.channel_attention.projection.weight",
    "decoder.0.feed_forward_out.fc2.weight", "head.weight",
)  # fmt: skip


def counterparts(plain: PlainAuxiliaryMAE) -> dict[str, Tensor]:
    """Name of AuxMAE's parameter → the plain design's of the same meaning and size, its shape perhaps another."""
    found: dict[str, Tensor] = {
        "channel_embedding.weight": plain.channel,
        "decoder_channel_embedding.weight": plain.decoder_channel,
        "cls_token": plain.cls,
        "mask_token": plain.mask,
    }
    modules = {"patch_embedding": plain.embed, "decoder_embedding": plain.decoder_embed, "head": plain.head}
    stacks: dict[str, list[Any]] = {"encoder": list(plain.encoder), "decoder": list(plain.decoder)}
    for part, (*blocks, norm) in stacks.items():
        modules[f"{part}_norm"] = norm
        for index, block in enumerate(blocks):
            own = f"{part}.{index}"
            for name, layers in (("feed_forward_in", block.first), ("feed_forward_out", block.second)):
                modules |= {f"{own}.{name}.{what}": layers[at] for what, at in (("norm", 0), ("fc1", 1), ("fc2", 4))}
            for name, attention, before in (
                ("patch_attention", block.patch, block.patch_norm),
                ("channel_attention", block.channel, block.channel_norm),
            ):
                modules |= {f"{own}.{name}.norm": before, f"{own}.{name}.projection": attention.out_proj}
                found |= {f"{own}.{name}.qkv.weight": attention.in_proj_weight, f"{own}.{name}.qkv.bias": attention.in_proj_bias}
    for name, module in modules.items():
        found |= {f"{name}.{what}": parameter for what, parameter in module.named_parameters()}
    return found


@torch.no_grad()
def share_weights(ours: AuxMAE, plain: PlainAuxiliaryMAE) -> None:
    """Gives ours the plain design's weights, whose norms and biases are drawn first: as they start they would hide faults."""
    for parameter in plain.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    weights = counterparts(plain)
    for name, parameter in ours.named_parameters():
        parameter.copy_(weights[name].view_as(parameter))


def check_model(ours: AuxMAE, plain: PlainAuxiliaryMAE, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Compares loss and gradients, in fp64 on the CPU and in autocast's `dtype` (fp32: none) on the device.

    Args:
        ours, plain: of the same size, small and fp32 on the CPU; both get other weights, and end on the device.
    """
    share_weights(ours, plain)
    channels, size = len(ours.groups), ours.config["image_size"]
    # Predictions lie between 0 and 1: where one came near its target, rounding alone would turn the gradient of L1 round.
    image = torch.rand(1, channels, size, size).round()
    noise = torch.rand(1, 1, (size // ours.patch_size) ** 2).expand(-1, channels, -1)
    cpu = torch.device("cpu")
    plain.double()
    # Its table was rounded to fp32, and would stay so.
    plain.positions = sincos_table(size // ours.patch_size, plain.positions.shape[1])
    expected = _of_plain(plain, image.double(), noise, cpu, torch.float32)
    # Triton may have been asked for, which a CPU does not run.
    with forced("torch"):
        exact = _of_ours(ours.double(), image.double(), noise, cpu, torch.float32)
    verdict = judge(exact, expected, expected, EXACT)
    if not verdict.correct:
        return verdict
    ours.float().to(device)
    plain.float().to(device)
    found = _of_ours(ours, image, noise, device, dtype)
    return judge(found, _of_plain(plain, image, noise, device, dtype), expected, torch.finfo(dtype).eps)


def _of_ours(model: AuxMAE, image: Tensor, noise: Tensor, device: torch.device, dtype: torch.dtype) -> Results:
    """Losses and gradients, flat; noise (1, C, N), the smallest are shown."""
    visible = round(noise.shape[2] * (1 - model.config["mask_ratio"]))
    keep = noise.argsort(2)[..., :visible]
    # An image without a valid pixel counts for nothing; that its channels show different places decides how all are read.
    nothing = torch.full_like(image, torch.nan)
    elsewhere = torch.stack([place.roll(shift) for shift, place in enumerate(noise[0])]).argsort(1)[None, :, :visible]
    batches = {"": (image, keep), LOOKED_UP: (torch.cat([image, nothing]), torch.cat([keep, elsewhere]))}
    weights = dict(model.named_parameters())
    found: Results = {}
    for way, (images, places) in batches.items():
        images, places = images.to(device), places.to(device)
        with autocast(None if dtype is torch.float32 else dtype, device):
            with torch.no_grad():
                free = model(images, places).loss
            loss = model(images, places).loss
        found |= named(way, loss, free, weights)
    return found


def _of_plain(model: PlainAuxiliaryMAE, image: Tensor, noise: Tensor, device: torch.device, dtype: torch.dtype) -> Results:
    """As `_of_ours`; the plain design has one way."""
    image, noise = image.to(device), noise.to(device)
    with autocast(None if dtype is torch.float32 else dtype, device):
        with torch.no_grad():
            free = model(image, noise)
        loss = model(image, noise)
    found = named("", loss, free, counterparts(model))
    return found | {f"{name}{LOOKED_UP}": tensor for name, tensor in found.items()}


def named(way: str, loss: Tensor, free: Tensor, weights: Mapping[str, Tensor]) -> Results:
    """A loss, its value where no gradients follow, and its gradients by some of the weights, flat and on the CPU."""
    compared = [weights[name] for name in _COMPARED]
    gradients = torch.autograd.grad(loss, compared, torch.full_like(loss, LOSS_SCALE), materialize_grads=True)
    found = {"loss": loss.detach(), f"loss{FREE}": free}
    found |= {f"gradient of {name}": gradient for name, gradient in zip(_COMPARED, gradients, strict=True)}
    return {f"{name}{way}": tensor.flatten().cpu() for name, tensor in found.items()}
