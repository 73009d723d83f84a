"""Inputs of the kernel suite: every function that `auxmae_kernels.reference` specifies, at the sizes that the model has.

Shapes: B batch, C channels, N positions of the patch grid, K visible and M hidden ones, T tokens of a channel, D width,
P pixels per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from auxmae.model.masking import draw_mask, slots_of


@dataclass(frozen=True)
class Shape:
    """A model's size, as far as the hot functions see it; `image_size` and `patch_size` in px."""

    name: str
    batch: int
    channels: int
    image_size: int
    patch_size: int
    width: int
    heads: int

    @property
    def positions(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def visible(self) -> int:
        return round(self.positions / 4)


@dataclass(frozen=True)
class KernelCase:
    """Arguments of one public function.

    Attributes:
        name: "function/what/shape".
        function: the public function's name.
        key: the numbers that decide which kernel is best, for the table of measured speed-ups.
        tensors: by argument name; constants: the other arguments.
        differentiable: tensors that get a gradient; batched: tensors whose first axis is the batch.
        separable: images do not depend on each other.
        shares: of a tensor, the part that has to be read.
    """

    name: str
    function: str
    key: dict[str, Any]
    tensors: dict[str, Tensor]
    constants: dict[str, Any] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    batched: tuple[str, ...] = ()
    separable: bool = True
    shares: dict[str, float] = field(default_factory=dict)


Build = Callable[[], KernelCase]


def kernel_cases(shapes: list[Shape], device: torch.device, dtype: torch.dtype) -> dict[str, Build]:
    """Name → a function that makes the case; tensors are made when it is called, for all of them would not fit a GPU."""
    builds: dict[str, Build] = {}
    for shape in shapes:
        for what, maker in _MAKERS.items():
            name = f"{what}/{shape.name}"
            builds[name] = _bind(maker, name, shape, device, dtype)
    return builds


def _bind(maker: Callable[..., KernelCase], name: str, shape: Shape, device: torch.device, dtype: torch.dtype) -> Build:
    def build() -> KernelCase:
        return maker(name, shape, _Random(device, dtype))

    return build


class _Random:
    """Tensors drawn on one device, always the same."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=self.generator, device=self.device)
        return (drawn * scale + shift).to(self.dtype)

    def keep(self, shape: Shape) -> Tensor:
        """(B, C, K) independent visible positions."""
        grid = (shape.image_size // shape.patch_size,) * 2
        keep: Tensor = self._mask(shape, grid).keep
        return keep

    def masked(self, shape: Shape) -> Tensor:
        """(B, C, M) hidden positions."""
        grid = (shape.image_size // shape.patch_size,) * 2
        index: Tensor = self._mask(shape, grid).masked_index
        return index

    def _mask(self, shape: Shape, grid: tuple[int, int]) -> Any:
        return draw_mask(
            shape.batch, shape.channels, grid, ratio=1 - shape.visible / shape.positions, generator=self.generator,
            device=self.device,
        )  # fmt: skip

    def slots(self, shape: Shape) -> Tensor:
        """(B, 1 + N, C) int32: the token at each place, the CLS token first."""
        keep = torch.nn.functional.pad(self.keep(shape) + 1, (1, 0))
        return slots_of(keep, 1 + shape.positions)


def _norm(random: _Random, width: int) -> dict[str, Tensor]:
    return {"norm_weight": random(width, scale=0.1, shift=1.0), "norm_bias": random(width, scale=0.1)}


def _attention(axis: str, aligned: bool) -> Callable[[str, Shape, _Random], KernelCase]:
    def make(name: str, shape: Shape, random: _Random) -> KernelCase:
        tokens = 1 + (shape.positions if aligned else shape.visible)
        tensors = {"qkv": random(shape.batch, shape.channels, tokens, 3 * shape.width)}
        if not aligned and axis == "channel":
            tensors["slots"] = random.slots(shape)
        length = tokens if axis == "patch" else shape.channels
        key = {"axis": axis, "length": length, "head_dim": shape.width // shape.heads, "slots": "slots" in tensors}
        return KernelCase(
            name, "axial_attention", key, tensors, {"heads": shape.heads, "axis": axis}, ("qkv",), tuple(tensors)
        )  # fmt: skip

    return make


def _attention_block(axis: str, aligned: bool) -> Callable[[str, Shape, _Random], KernelCase]:
    def make(name: str, shape: Shape, random: _Random) -> KernelCase:
        d = shape.width
        tokens = 1 + (shape.positions if aligned else shape.visible)
        tensors = {
            "x": random(shape.batch, shape.channels, tokens, d),
            **_norm(random, d),
            "w_qkv": random(3 * d, d, scale=d**-0.5),
            "b_qkv": random(3 * d, scale=0.1),
            "w_out": random(d, d, scale=d**-0.5),
            "b_out": random(d, scale=0.1),
        }
        differentiable = tuple(tensors)
        batched: tuple[str, ...] = ("x",)
        if not aligned and axis == "channel":
            tensors["slots"], batched = random.slots(shape), ("x", "slots")
        length = tokens if axis == "patch" else shape.channels
        key = {"axis": axis, "length": length, "head_dim": d // shape.heads, "width": d, "slots": "slots" in tensors}
        return KernelCase(
            name, "attention_block", key, tensors, {"heads": shape.heads, "axis": axis}, differentiable, batched
        )  # fmt: skip

    return make


def _feed_forward(name: str, shape: Shape, random: _Random) -> KernelCase:
    d, hidden = shape.width, 2 * shape.width
    tensors = {
        "x": random(shape.batch, shape.channels, 1 + shape.positions, d),
        **_norm(random, d),
        "w1": random(hidden, d, scale=d**-0.5),
        "b1": random(hidden, scale=0.1),
        "w2": random(d, hidden, scale=hidden**-0.5),
        "b2": random(d, scale=0.1),
    }
    return KernelCase(
        name, "feed_forward", {"width": d, "hidden": hidden}, tensors, {"residual_scale": 0.5}, tuple(tensors), ("x",)
    )  # fmt: skip


def _add_norm(name: str, shape: Shape, random: _Random) -> KernelCase:
    size = (shape.batch, shape.channels, 1 + shape.positions, shape.width)
    tensors = {
        "x": random(*size),
        "residual": random(*size),
        "weight": random(shape.width, scale=0.1, shift=1.0),
        "bias": random(shape.width, scale=0.1),
    }
    return KernelCase(
        name, "add_norm", {"width": shape.width}, tensors, {"residual_scale": 0.5}, tuple(tensors), ("x", "residual")
    )  # fmt: skip


def _embed_visible(name: str, shape: Shape, random: _Random) -> KernelCase:
    pixels = shape.patch_size**2
    tensors = {
        "image": random(shape.batch, shape.channels, shape.image_size, shape.image_size),
        "keep": random.keep(shape),
        "weight": random(shape.width, pixels, scale=pixels**-0.5),
        "bias": random(shape.width, scale=0.1),
        "position": random(shape.positions, shape.width),
        "channel": random(shape.channels, shape.width),
    }
    key = {"pixels": pixels, "width": shape.width}
    learned = ("weight", "bias", "channel")
    shares = {"image": shape.visible / shape.positions}
    return KernelCase(
        name, "embed_visible", key, tensors, {"patch_size": shape.patch_size}, learned, ("image", "keep"), shares=shares
    )


def _assemble(name: str, shape: Shape, random: _Random) -> KernelCase:
    tensors = {
        "latent": random(shape.batch, shape.channels, shape.visible, shape.width),
        "keep": random.keep(shape),
        "mask_token": random(shape.width),
        "position": random(shape.positions, shape.width),
        "channel": random(shape.channels, shape.width),
    }
    learned = ("latent", "mask_token", "channel")
    return KernelCase(name, "assemble", {"width": shape.width}, tensors, {}, learned, ("latent", "keep"))


def _masked_loss(name: str, shape: Shape, random: _Random) -> KernelCase:
    pixels = shape.patch_size**2
    hidden = shape.positions - shape.visible
    tensors = {
        "prediction": random(shape.batch, shape.channels, hidden, pixels),
        "image": random(shape.batch, shape.channels, shape.image_size, shape.image_size),
        "masked_index": random.masked(shape),
    }
    # A mean over all images.
    batched = ("prediction", "image", "masked_index")
    shares = {"image": hidden / shape.positions}
    return KernelCase(
        name, "masked_loss", {"pixels": pixels}, tensors, {}, ("prediction",), batched, separable=False, shares=shares
    )


_MAKERS: dict[str, Callable[[str, Shape, _Random], KernelCase]] = {
    "axial_attention/patch": _attention("patch", aligned=True),
    "axial_attention/channel": _attention("channel", aligned=True),
    "axial_attention/channel-slots": _attention("channel", aligned=False),
    "attention_block/patch": _attention_block("patch", aligned=True),
    "attention_block/patch-visible": _attention_block("patch", aligned=False),
    "attention_block/channel": _attention_block("channel", aligned=True),
    "attention_block/channel-slots": _attention_block("channel", aligned=False),
    "feed_forward": _feed_forward,
    "add_norm": _add_norm,
    "embed_visible": _embed_visible,
    "assemble": _assemble,
    "masked_loss": _masked_loss,
}
