"""An image as it is given → as the network takes it: channels by name, whole patches, nothing that is not valid.

Shapes: B batch, G channel groups of g channels, h × w image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from auxmae_kernels import boundary
from auxmae_kernels.shapes import check_valid
from torch import Tensor, nn

from auxmae.errors import DataError
from auxmae.model.embedding import ChannelSelection
from auxmae.model.patches import fill_patches

# Sets of channels whose selection is remembered: more than data has, and fewer than channel sampling draws.
_REMEMBERED = 64


@dataclass
class PreparedImage:
    """An image as the network takes it: padded to whole patches, channels in group order, gaps filled (`fill_patches`).

    Attributes:
        image: (B, G·g, h, w), whole patches, of the groups that the image has.
        valid: (B, G·g, h, w) bool; None where every pixel is known to be valid.
        grid: (rows, columns) of patches.
        groups: (G,) indices of these groups among the model's; None where they are the model's own, in its order.
        count: how many groups.
        selection: which of the model's channels the image has.
    """

    image: Tensor
    valid: Tensor | None
    grid: tuple[int, int]
    groups: Tensor | None
    count: int
    selection: ChannelSelection


def check_tensor(name: str, given: object) -> None:
    """Says that an argument is no tensor.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(given).__name__}: torch.from_numpy makes one of an array")


class Preparation:
    """Prepares images for one model.

    Args:
        names: of the model's channels.
        groups: names of the channels in every group.
        patch_size: px.
    """

    def __init__(self, names: tuple[str, ...], groups: list[list[str]], patch_size: int) -> None:
        self._names, self._groups, self._patch_size = names, groups, patch_size
        self._selections: dict[tuple[str, ...], ChannelSelection] = {}
        self._indices: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self,
        image: Tensor,
        valid: Tensor | None,
        channels: Sequence[str] | Sequence[int] | Tensor | None,
        dtype: torch.dtype,
    ) -> PreparedImage:
        """Prepares an image, in the type of the network's parameters; arguments and errors as in `AuxMAE.forward`."""
        for name, given in (("image", image), ("valid", valid)):
            if given is not None:
                check_tensor(name, given)
        if image.ndim != 4:
            raise ValueError(f"image must be (B, C, h, w), not {tuple(image.shape)}")
        if 0 in image.shape[2:]:
            raise ValueError(f"image {tuple(image.shape)} has no pixels")
        if valid is not None:
            check_valid(valid, image)
        image = image.to(dtype)
        selection = self.select(channels, image.shape[1])
        order = None if selection.order is None else self.index(selection.order, image.device, keep=channels is None)
        p = self._patch_size
        rows, columns = -(-image.shape[2] // p), -(-image.shape[3] // p)
        bottom, right = rows * p - image.shape[2], columns * p - image.shape[3]
        lacking = selection.order is not None and min(selection.order) < 0
        if not (lacking or bottom or right) and _known_valid(image, valid):
            image, valid = image if order is None else image.index_select(1, order), None
        else:
            finite = torch.isfinite(image)
            valid = finite if valid is None else finite & valid
            image = torch.where(valid, image, 0.0)
            if order is not None:
                image = image.index_select(1, order.clamp(min=0))
                valid = valid.index_select(1, order.clamp(min=0))
                padding = (order < 0)[None, :, None, None]
                image, valid = image.masked_fill(padding, 0.0), valid & ~padding
            if bottom or right:
                image = nn.functional.pad(image, (0, right, 0, bottom))
                valid = nn.functional.pad(valid, (0, right, 0, bottom), value=False)
            image = fill_patches(image, valid, p)
        groups = None
        if selection.groups != list(range(len(self._groups))):
            groups = self.index(selection.groups, image.device, keep=channels is None)
        return PreparedImage(image, valid, (rows, columns), groups, len(selection.groups), selection)

    def select(self, channels: Sequence[str] | Sequence[int] | Tensor | None, given: int) -> ChannelSelection:
        """The model's channels that an image of `given` channels has; arguments and errors as in `AuxMAE.forward`."""
        if channels is None:
            if given != len(self._names):
                raise DataError(
                    f"the image has {given} channels, the model {len(self._names)} ({', '.join(self._names)})",
                    hint="say which ones they are: channels=[…]",
                )
            names = self._names
        else:
            if isinstance(channels, str):
                # Its letters would be taken for names.
                raise DataError(f"channels is one text, {channels!r}", hint=f"give a list: channels=[{channels!r}]")
            entries = channels.tolist() if isinstance(channels, Tensor) else list(channels)
            names = tuple(self._name(entry) for entry in entries)
            if len(names) != given:
                raise DataError(f"{len(names)} channels are named for an image of {given}")
        selection = self._selections.get(names)
        if selection is None:
            selection = ChannelSelection(self._groups, self._names, names)
            if len(self._selections) >= _REMEMBERED:
                self._selections.clear()
            self._selections[names] = selection
        return selection

    def _name(self, entry: object) -> str:
        """The channel at an index, of Python's or of numpy's; whatever else `entry` is, it is the name itself."""
        if not isinstance(entry, Integral) or isinstance(entry, bool):
            return str(entry)
        index = int(entry)
        if not 0 <= index < len(self._names):
            raise DataError(f"channel index {index} is outside 0 … {len(self._names) - 1}")
        return self._names[index]

    def index(self, values: Sequence[int], device: torch.device, *, keep: bool) -> Tensor:
        """Indices on a device; with `keep` made once, so that a graph of a GPU's work finds them in their place."""
        key = (*values, device)
        if key in self._indices:
            return self._indices[key]
        # Indices made for inference could not take part in a backward pass later.
        with torch.inference_mode(False):
            index = torch.tensor(values, device="cpu")
            # From page-locked memory, so that the host need not wait for a GPU to take them.
            index = index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index.to(device)
        if keep:
            self._indices[key] = index
        return index


def _known_valid(image: Tensor, valid: Tensor | None) -> bool:
    """Whether every pixel is valid and finite; False as well where to look would mean to wait for a device."""
    if not boundary.reading_is_free(image):
        return False
    if valid is not None and not (boundary.reading_is_free(valid) and valid.numpy().all()):
        return False
    # One value that is not finite makes the sum so. Read as an array: that is no operator, which would look like a wait.
    return bool(np.isfinite(image.detach().sum(dtype=torch.float32).numpy()))
