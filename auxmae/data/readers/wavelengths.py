"""Centre wavelengths of a raster's bands, in nm, from what the file says about them."""

from __future__ import annotations

import re
from typing import Any

# Centre wavelengths of Sentinel-2A's bands in nm (ESA, Sentinel-2 User Handbook).
SENTINEL2 = {
    "B01": 443.0, "B02": 490.0, "B03": 560.0, "B04": 665.0, "B05": 705.0, "B06": 740.0, "B07": 783.0, "B08": 842.0,
    "B8A": 865.0, "B09": 945.0, "B10": 1375.0, "B11": 1610.0, "B12": 2190.0,
}  # fmt: skip
# nm in one unit of length.
_LENGTHS = {
    **dict.fromkeys(("nanometers", "nanometer", "nanometres", "nanometre", "nm"), 1.0),
    **dict.fromkeys(("micrometers", "micrometer", "micrometres", "micrometre", "microns", "micron", "um", "µm", "μm"), 1e3),
    **dict.fromkeys(("millimeters", "millimeter", "millimetres", "millimetre", "mm"), 1e6),
    **dict.fromkeys(("centimeters", "centimeter", "centimetres", "centimetre", "cm"), 1e7),
    **dict.fromkeys(("meters", "meter", "metres", "metre", "m"), 1e9),
    **dict.fromkeys(("angstroms", "angstrom", "ångström", "å", "a"), 0.1),
}
_PER_CENTIMETRE = frozenset({"wavenumber", "wavenumbers", "cm-1", "cm^-1", "1/cm"})
# Without a unit: no sensor has bands at less than 100 nm, nor, in micrometres, so far in the infrared.
_LARGEST_MICROMETRES = 100.0


def to_nanometres(values: list[float], unit: str) -> tuple[float, ...] | None:
    """Wavelengths in nm; None where the unit is no length ("Index", "GHz"), or a value is not positive.

    Args:
        values: one for each band.
        unit: as ENVI names it ("Nanometers", "Micrometers", "Wavenumber" in 1/cm …); empty: by the size of the values.
    """
    if not values or min(values) <= 0:
        return None
    unit = unit.strip().lower()
    if unit in _PER_CENTIMETRE:
        return tuple(1e7 / value for value in values)
    if not unit:
        factor: float | None = 1e3 if max(values) < _LARGEST_MICROMETRES else 1.0
    else:
        factor = _LENGTHS.get(unit)
    return None if factor is None else tuple(value * factor for value in values)


def band_wavelengths(source: Any, name: str, notices: list[str]) -> tuple[float, ...] | None:
    """Centre wavelengths (nm) of the bands of an open rasterio data set called `name`, or None; told where only some are."""
    bands = [{key.lower(): value for key, value in source.tags(band).items()} for band in range(1, source.count + 1)]
    numbers = [re.match(r"[0-9.eE+-]+", band.get("wavelength", "").strip()) for band in bands]
    if all(numbers):
        # GDAL repeats only units of length at the bands: what the header of an ENVI file says comes first.
        header = {key.lower(): value for key, value in source.tags(ns="ENVI").items()}
        unit = header.get("wavelength_units") or bands[0].get("wavelength_units") or ""
        values = [float(number.group()) for number in numbers if number is not None]
        bad = [str(band) for band, value in enumerate(values, 1) if value <= 0]
        if bad and to_nanometres([value for value in values if value > 0], unit) is not None:
            listed = ", ".join(bad[:8]) + (f" and {len(bad) - 8} more" if len(bad) > 8 else "")
            notices.append(
                f"{name}: its wavelengths are not used, since those of {len(bad)} of {len(values)} bands are not above 0: "
                f"{listed}; where they are wanted, leave these out with data.channels, and set data.wavelengths"
            )
        return to_nanometres(values, unit)
    micrometres = [source.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM") for band in range(1, source.count + 1)]
    return to_nanometres([float(value) for value in micrometres], "um") if all(micrometres) else None
