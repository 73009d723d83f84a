"""What the tests of the readers write and compare."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import rasterio

from auxmae.data.image import ReadOptions, Window
from auxmae.data.readers import open_image

RNG = np.random.default_rng(5)
CUBE = RNG.integers(1, 60000, (4, 17, 23)).astype(np.uint16)
WINDOW = Window(3, 5, 7, 11)
PART = np.s_[:, 3:10, 5:16]


def write_raster(path: Path, cube: np.ndarray, driver: str = "GTiff", **profile: object) -> Path:
    sizes = {"count": len(cube), "height": cube.shape[1], "width": cube.shape[2], "dtype": cube.dtype.name}
    with rasterio.open(path, "w", driver=driver, **{**sizes, **profile}) as file:
        file.write(cube)
    return path


def write_v73(path: Path, **arrays: np.ndarray | list[str]) -> Path:
    """As MATLAB does: its header in 512 bytes before the HDF5 signature, axes in reverse, the class as an attribute.

    A list is a cell of texts, an array of text is one of characters.
    """

    def characters(texts: list[str]) -> np.ndarray:
        return np.array([[ord(character) for character in text] for text in texts], dtype=np.uint16)

    def write(file: h5py.File, name: str, array: np.ndarray, kind: str) -> h5py.Dataset:
        file[name] = array.T
        file[name].attrs["MATLAB_class"] = np.bytes_(kind)
        return file[name]

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            if isinstance(array, list):
                parts = [write(file, f"#refs#/{name}{i}", characters([text]), "char").ref for i, text in enumerate(array)]
                file.create_dataset(name, (1, len(parts)), dtype=h5py.ref_dtype)[0] = parts
                file[name].attrs["MATLAB_class"] = np.bytes_("cell")
            elif array.dtype.kind == "U":
                width = array.dtype.itemsize // 4
                write(file, name, characters([text.ljust(width) for text in array.tolist()]), "char")
            else:
                write(file, name, array, {"u": "uint16", "f": "double"}[array.dtype.kind])
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


def assert_reads(path: Path, cube: np.ndarray, options: ReadOptions | None = None, index: int = 0) -> None:
    """Whole and by a window, all of it valid, in a loader process too."""
    file = pickle.loads(pickle.dumps(open_image(path, options or ReadOptions())))
    image = file.read(index, None)
    assert (file.channels, file.height, file.width) == cube.shape
    assert np.array_equal(image.pixels, cube.astype(np.float32))
    assert image.valid.all()
    assert np.array_equal(file.read(index, WINDOW).pixels, cube[PART].astype(np.float32))
