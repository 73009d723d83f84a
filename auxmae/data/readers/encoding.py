"""Stored numbers → physical ones: which of them mean "missing", and scale and offset.

Files say so with a nodata value (GDAL), or with the attributes of the CF conventions (section 2.5.1, "Missing data", and
8.1, "Packed data"): `_FillValue`, `missing_value`, `valid_min`, `valid_max`, `valid_range`, `scale_factor`, `add_offset`;
and with `_Unsigned` of the NetCDF User's Guide (appendix A, "Attribute Conventions"), as files of GOES satellites do.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from auxmae.data.image import MultiChannelImage


def real_numbers(kind: str) -> str:
    """The hint where pixels are none: what to do with those of a type, by its name."""
    if not kind.startswith("complex"):
        return "store real numbers"
    return "an image is an array of real numbers: take abs() of it, or store real and imaginary parts as channels"


@dataclass(frozen=True)
class Encoding:
    """physical = stored · scale + offset, but for what is missing.

    Attributes:
        missing: stored values that mean "no data"; one tuple for all channels, or one for each.
        scale, offset: one value for all channels, or one for each.
        lowest, highest: stored values outside of these are missing too.
        unsigned: whether the bytes of whole numbers mean unsigned ones, whatever their type; None: as their type says.
    """

    missing: tuple[tuple[float, ...], ...] = ()
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    lowest: float = -np.inf
    highest: float = np.inf
    unsigned: bool | None = None

    def with_nodata(self, nodata: float | None) -> Encoding:
        """The same with the user's nodata value in place of the file's own and of its limits; None: as it is."""
        return self if nodata is None else Encoding(((nodata,),), self.scale, self.offset, unsigned=self.unsigned)

    def signed_as_meant(self, stored: NDArray[Any]) -> tuple[NDArray[Any], Encoding]:
        """Stored pixels in the type that their bytes mean, and the encoding of these: its numbers are often of the other sign."""
        meant = {True: "u", False: "i", None: ""}[self.unsigned]
        if not meant or stored.dtype.kind not in "ui" or stored.dtype.kind == meant:
            return stored, replace(self, unsigned=None)
        dtype = np.dtype(stored.dtype.str.replace(stored.dtype.kind, meant))
        limits = np.iinfo(dtype)
        turn = float(limits.max) - float(limits.min) + 1

        def other_sign(value: float) -> float:
            if not np.isfinite(value):
                return value
            return value + turn if value < limits.min else value - turn if value > limits.max else value

        missing = tuple(tuple(map(other_sign, values)) for values in self.missing)
        return stored.view(dtype), Encoding(missing, self.scale, self.offset, other_sign(self.lowest), other_sign(self.highest))

    def valid(self, stored: NDArray[Any]) -> NDArray[np.bool_]:
        """(C, h, w) False where the stored value is missing, NaN or infinite."""
        valid = np.isfinite(stored) if stored.dtype.kind == "f" else np.ones(stored.shape, dtype=bool)
        for channel, values in enumerate(self.missing):
            part = slice(None) if len(self.missing) == 1 else slice(channel, channel + 1)
            for value in values:
                exact = _as_stored(value, stored.dtype)
                if exact is not None:
                    valid[part] &= stored[part] != exact
        if self.lowest > -np.inf:
            valid &= stored >= self.lowest
        if self.highest < np.inf:
            valid &= stored <= self.highest
        return valid

    def physical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """(C, h, w) scaled, in float64 where a scale or an offset applies."""
        if all(value == 1 for value in self.scale) and all(value == 0 for value in self.offset):
            return stored
        scale, offset = (np.asarray(values, dtype=np.float64).reshape(-1, 1, 1) for values in (self.scale, self.offset))
        scaled: NDArray[Any] = stored * scale + offset
        return scaled


def without_missing(array: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """An array of labels: −1, or NaN, where a number is missing; text as it is."""
    if array.dtype.kind not in "uif":
        return array
    array, encoding = encoding.signed_as_meant(array)
    known = encoding.valid(array)
    if known.all():
        return array
    return np.where(known, array, np.nan) if array.dtype.kind == "f" else np.where(known, array.astype(np.int64), -1)


def _as_stored(value: float, dtype: np.dtype[Any]) -> Any:
    """A missing value in the type of the pixels, for a float32 never equals 1e20 in double precision; None: cannot occur."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.float64(value).astype(dtype)
    if dtype.kind == "b" or not np.isfinite(value) or value != int(value):
        return None
    limits = np.iinfo(dtype)
    return int(value) if limits.min <= value <= limits.max else None


def to_image(
    stored: NDArray[Any],
    encoding: Encoding,
    valid: NDArray[np.bool_] | None = None,
) -> MultiChannelImage:
    """Stored pixels (C, h, w) → float32 with a validity mask; what float32 cannot hold is not valid."""
    stored, encoding = encoding.signed_as_meant(stored)
    mask = encoding.valid(stored)
    if valid is not None:
        mask &= valid
    with np.errstate(over="ignore", invalid="ignore"):
        pixels = np.where(mask, encoding.physical(stored), 0).astype(np.float32)
    finite = np.isfinite(pixels)
    if not finite.all():
        mask &= finite
        pixels[~finite] = 0
    return MultiChannelImage(pixels, mask)


def cf_encoding(attributes: Mapping[str, Any]) -> Encoding:
    """The encoding that an array's CF attributes describe; attributes that are no numbers are passed over."""

    def numbers(name: str) -> tuple[float, ...]:
        return _numbers(attributes.get(name))

    missing = tuple(dict.fromkeys(numbers("_FillValue") + numbers("missing_value")))
    lowest, highest = numbers("valid_min")[:1], numbers("valid_max")[:1]
    limits = numbers("valid_range")
    if len(limits) == 2:
        lowest, highest = limits[:1], limits[1:]
    return Encoding(
        (missing,) if missing else (),
        numbers("scale_factor") or (1.0,),
        numbers("add_offset") or (0.0,),
        lowest[0] if lowest else -np.inf,
        highest[0] if highest else np.inf,
        {"true": True, "false": False}.get(_word(attributes.get("_Unsigned"))),
    )


def _word(value: Any) -> str:
    """An attribute of text in small letters, whatever kind of text it is; "" where it is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return (value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else "").lower()


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, str):
        return _from_text(value)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return ()
    if array.dtype.kind not in "uif":
        return ()
    return tuple(array.reshape(-1).tolist())


def _from_text(text: str) -> tuple[float, ...]:
    """JSON has no NaN: Zarr's attributes hold a name for it, or, as xarray writes them, eight bytes in base 64."""
    try:
        return (float(text),)
    except ValueError:
        pass
    try:
        return tuple(struct.unpack("<d", base64.b64decode(text, validate=True)))
    except (binascii.Error, struct.error, ValueError):
        return ()


def gdal_encoding(nodata: Sequence[float | None], scales: Sequence[float], offsets: Sequence[float]) -> Encoding:
    """The encoding of a raster's bands; each may have its own nodata value, scale and offset."""
    missing = tuple(() if value is None else (value,) for value in nodata)
    return Encoding(missing if any(missing) else (), tuple(scales), tuple(offsets))
