"""Pixels → tokens: channel groups, positions, channel embeddings.

Shapes: B batch, C channels, G channel groups of g channels (the last may be padded), N positions, D width.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from auxmae_kernels.products import linear
from torch import Tensor, nn

from auxmae.errors import DataError, SettingsError

# Position tables that are remembered: the encoder's and the decoder's of sixteen image sizes.
_REMEMBERED = 32


def channel_groups(names: Sequence[str], groups: int | Sequence[Sequence[str]]) -> list[list[str]]:
    """The names of the channels in every group.

    Args:
        names: the model's channels.
        groups: a number of neighbouring channels, or lists of channel names.

    Raises:
        SettingsError: a list names an unknown channel, leaves one out, or names one twice; or a group is empty.
    """
    if isinstance(groups, int):
        return [list(names[start : start + groups]) for start in range(0, len(names), groups)]
    listed = [name for group in groups for name in group]
    for name in listed:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise SettingsError(
                f"model.channel_groups names the unknown channel {name!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"the channels are {', '.join(names)}",
            )
    missing = [name for name in names if name not in listed]
    if missing:
        raise SettingsError(
            f"model.channel_groups leaves out {', '.join(missing)}",
            hint="put every channel in a group, or choose channels with data.channels",
        )
    if len(listed) != len(names) or not all(groups):
        twice = sorted({name for name in listed if listed.count(name) > 1})
        raise SettingsError(f"model.channel_groups names {', '.join(twice)} twice" if twice else "a group of channels is empty")
    return [list(group) for group in groups]


class ChannelSelection:
    """Which channels an image has, in terms of the model's groups.

    Attributes:
        groups: indices of the groups present, in the image's order.
        order: (groups · g,) index of each group member among the image's channels, or −1 where the group is padded;
            None where the image already lies as the model wants it.
        names: the image's channel names, in its order.
    """

    def __init__(self, groups: Sequence[Sequence[str]], known: Sequence[str], names: Sequence[str]) -> None:
        self.names = tuple(names)
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise DataError(
                    f"channel {name!r} is unknown to this model",
                    hint=f"did you mean {near[0]!r}?" if near else f"it was trained on {', '.join(known)}",
                )
        if len(set(self.names)) != len(self.names):
            raise DataError(f"a channel is named twice in {', '.join(self.names)}")
        size = max(len(group) for group in groups)
        place = {name: index for index, name in enumerate(self.names)}
        present: dict[int, int] = {}
        for index, group in enumerate(groups):
            found = [place[name] for name in group if name in place]
            if found and len(found) < len(group):
                absent = [name for name in group if name not in place]
                raise DataError(
                    f"channel {absent[0]!r} is missing: it shares a token with {', '.join(n for n in group if n in place)}",
                    hint="give all channels of a group, or train with model.channel_groups = 1",
                )
            if found:
                present[index] = min(found)
        if not present:
            raise DataError("the image has none of the model's channels")
        self.groups = sorted(present, key=present.__getitem__)
        order = [place[groups[g][member]] if member < len(groups[g]) else -1 for g in self.groups for member in range(size)]
        self.order = None if order == list(range(len(self.names))) else order


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (arXiv 2111.06377): (rows · columns, D) float64; half of D for each direction.

    They depend on the patch's row and column alone, so every image size and aspect has them.
    """
    # On the CPU, whatever PyTorch's default device is.
    quarter, row, column = (torch.arange(count, dtype=torch.float64, device="cpu") for count in (width // 4, rows, columns))
    frequency = 1.0 / 10000 ** (quarter / (width / 4))
    row, column = row[:, None] * frequency, column[:, None] * frequency
    row_RD = torch.cat([row.sin(), row.cos()], 1)[:, None].expand(rows, columns, -1)
    column_RD = torch.cat([column.sin(), column.cos()], 1)[None].expand(rows, columns, -1)
    return torch.cat([row_RD, column_RD], 2).reshape(rows * columns, width)


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being made of what is called."""
    return device.type == "cuda" and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()


class PositionTables:
    """`sincos_positions` as a network adds them, each made once; they are left out of copies and of what is pickled.

    Args:
        leading: rows of zeros before those of the grid, for CLS tokens.
    """

    def __init__(self, leading: int) -> None:
        self._leading = leading
        self._tables: dict[tuple[object, ...], Tensor] = {}
        self._captured: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, grid: tuple[int, int], width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(leading + N, D) for a grid of (rows, columns)."""
        key = (*grid, width, device, dtype)
        table = self._tables.get(key)
        if table is None:
            # A table made for inference could not take part in a backward pass later.
            with torch.inference_mode(False):
                table = nn.functional.pad(sincos_positions(*grid, width).to(dtype), (0, 0, self._leading, 0)).to(device)
            if type(table) is not Tensor:
                return table  # one without numbers, as `torch.export` traces with
            if len(self._tables) - len(self._captured) >= _REMEMBERED:
                self._tables = dict(self._captured)
            self._tables[key] = table
        if _capturing(device):
            # The graph will read this one in its place, for as long as it lives.
            self._captured[key] = table
        return table

    def __reduce__(self) -> tuple[type[PositionTables], tuple[int]]:
        return PositionTables, (self._leading,)


class ChannelEmbedding(nn.Module):
    """One vector per channel group: learned by name, or computed from the centre wavelength.

    Args:
        groups: names of the channels in every group.
        width: D.
        kind: "name" or "wavelength".
        wavelengths: centre wavelength of every channel by name, nm; a group's is the mean of its channels'.

    Raises:
        SettingsError: "wavelength" without wavelengths.
    """

    features: Tensor

    def __init__(self, groups: Sequence[Sequence[str]], width: int, kind: str, wavelengths: dict[str, float] | None) -> None:
        super().__init__()
        self.kind = kind
        if kind == "name":
            self.weight = nn.Parameter(torch.randn(len(groups), width) * 0.02)
            return
        if not wavelengths:
            raise SettingsError(
                "model.channel_embedding = 'wavelength' needs wavelengths, and the data has none",
                hint="set data.wavelengths (nm), or model.channel_embedding = 'name'",
            )
        self.centres = [sum(wavelengths[name] for name in group) / len(group) for group in groups]
        self.register_buffer("features", self._features().float(), persistent=False)
        self.projection = nn.Linear(16, width)

    def _features(self, device: str | None = None) -> Tensor:
        """(G, 16) float64, on PyTorch's default device unless one is given."""
        # Log scale: 10 nm matter more at 450 nm than at 2 200 nm.  Octaves from the whole range down to about 1%.
        centre = torch.tensor(self.centres, dtype=torch.float64, device=device)
        phase = centre.log()[:, None] * 2.0 ** torch.arange(8, device=device)[None] * math.pi / 4
        return torch.cat([phase.sin(), phase.cos()], 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.kind == "wavelength":
            # In a wider type they are not the rounded ones of a narrower.  Made for inference, as when a model is moved
            # there, they could not take part in a backward pass later.
            with torch.inference_mode(False):
                self.features = self._features("cpu").to(self.features.dtype).to(self.features.device)
        return self

    def forward(self, index: Tensor | None = None) -> Tensor:
        """(G, D), or the rows at `index`."""
        table: Tensor = self.weight if self.kind == "name" else self.projection(self.features)
        return table if index is None else table.index_select(0, index)


class GroupLinear(nn.Module):
    """A linear map of the last axis: one for all groups, or one each (weight (G, out, in))."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        shape = (groups,) if groups > 1 else ()
        bound = math.sqrt(6.0 / (inputs + outputs))
        self.weight = nn.Parameter(torch.empty(*shape, outputs, inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(*shape, outputs))

    def select(self, index: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weight and bias of the groups at `index`."""
        if index is None or self.weight.ndim == 2:
            return self.weight, self.bias
        return self.weight.index_select(0, index), self.bias.index_select(0, index)

    def forward(self, x_BGMD: Tensor, index: Tensor | None = None) -> Tensor:
        weight, bias = self.select(index)
        if weight.ndim == 2:
            return linear(x_BGMD, weight, bias)
        return torch.einsum("bgmd,gpd->bgmp", x_BGMD, weight) + bias[:, None]
