"""OME-TIFF: axes, and images in several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from auxmae.data.digests import digest_files
from auxmae.data.image import ReadOptions
from auxmae.data.opening import open_collection
from auxmae.data.readers import open_image
from auxmae.errors import DataError
from tests.data.reader_fixtures import CUBE, RNG, assert_reads


def test_axes_of_ome_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    stack = np.stack([CUBE, CUBE + 1])
    tifffile.imwrite(path, stack, metadata={"axes": "TCYX"}, byteorder=">", compression="zlib")
    assert_reads(path, stack[1], index=1)
    tifffile.imwrite(path, stack, metadata={"axes": "ZCYX"})
    # The file says which axis holds the channels: the other order would make images of them.
    with pytest.raises(DataError, match=r"ZCYX") as caught:
        open_image(path)
    assert str(caught.value.hint).startswith('set data.axes = "NCHW" ')
    assert "CNHW" not in str(caught.value.hint)
    assert_reads(path, stack[1], ReadOptions(axes="NCHW"), index=1)
    assert not [notice for notice in open_image(path, ReadOptions(axes="NCHW")).notices if "ZCYX" in notice]
    against = open_image(path, ReadOptions(axes="CNHW"))
    assert any("ZCYX" in notice and "CNHW" in notice for notice in against.notices)
    # Samples of colour are no images more than channels are.
    tifffile.imwrite(path, RNG.integers(0, 255, (4, 24, 30, 3), dtype=np.uint8), metadata={"axes": "CYXS"}, photometric="rgb")
    with pytest.raises(DataError, match="CYXS") as caught:
        open_image(path)
    assert caught.value.hint == 'set data.axes = "NHWC" or "CHWN" (N: images, C: channels)'
    assert not [notice for notice in open_image(path, ReadOptions(axes="NHWC")).notices if "CYXS" in notice]
    with tifffile.TiffWriter(path) as file:
        for image in stack:
            file.write(image, metadata={"axes": "CYX"})
    assert_reads(path, stack[1], index=1)


def write_ome_set(folder: Path, name: str, cube: np.ndarray, described: int, compression: str | None = None) -> None:
    """An OME-TIFF of one file a channel; all but the last `described` files leave its description to the last one."""
    planes = "".join(
        f'<TiffData FirstC="{number}" IFD="0" PlaneCount="1"><UUID FileName="{name}{number}.ome.tif">urn:uuid:{number}</UUID>'
        "</TiffData>"
        for number in range(4)
    )
    names = "".join(f'<Channel ID="Channel:0:{n}" SamplesPerPixel="1" Name="{name}"/>' for n, name in enumerate("abcd"))
    for number, plane in enumerate(cube):
        text = (
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="23" SizeY="17" SizeC="4" '
            f'SizeZ="1" SizeT="1">{names}{planes}</Pixels></Image>'
        )
        if number < 4 - described:
            text = f'<BinaryOnly MetadataFile="{name}3.ome.tif" UUID="urn:uuid:3"/>'
        text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{number}">{text}</OME>'
        path = folder / f"{name}{number}.ome.tif"
        tifffile.imwrite(path, plane, description=text, metadata=None, compression=compression)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff_in_several_files(tmp_path: Path, compression: str | None) -> None:
    write_ome_set(tmp_path, "", CUBE, 4, compression)
    assert_reads(tmp_path / "0.ome.tif", CUBE)
    assert open_image(tmp_path / "0.ome.tif").channel_names == tuple("abcd")


@pytest.mark.parametrize(("described", "first"), [(4, 0), (1, 3)])
def test_a_folder_has_an_ome_tiff_in_several_files_once(tmp_path: Path, described: int, first: int) -> None:
    write_ome_set(tmp_path, "a", CUBE, described)
    write_ome_set(tmp_path, "b", CUBE + 1, described)
    tifffile.imwrite(tmp_path / "c.ome.tif", CUBE + 2, metadata={"axes": "CYX", "Channel": {"Name": list("abcd")}})
    collection = open_collection(str(tmp_path))
    assert collection.relative_paths == (f"a{first}.ome.tif", f"b{first}.ome.tif", "c.ome.tif")
    for item in range(3):
        assert np.array_equal(collection.read(item).pixels, CUBE + item)
    assert f"a{first}.ome.tif: one OME-TIFF with 3 other files (2 files)" in collection.notices
    assert {path.name for path in collection.files[0].paths} == {f"a{number}.ome.tif" for number in range(4)}
    # One alone is the whole image too.
    assert np.array_equal(open_collection(str(tmp_path / "b3.ome.tif")).read(0).pixels, CUBE + 1)


def test_a_folder_of_ome_tiffs_that_describe_each_other_has_each_image_once(tmp_path: Path) -> None:
    """One image a file, and all files describe all images: positions as Micro-Manager and Bio-Formats write them."""
    sizes, names = [(17, 23), (17, 23), (19, 21)], ["ab", "ba", "ab"]
    cubes = [RNG.integers(0, 4000, (2, *size), dtype=np.uint16) for size in sizes]
    described = "".join(
        f'<Image ID="Image:{k}" Name="Pos{k}"><Pixels ID="Pixels:{k}" DimensionOrder="XYCZT" Type="uint16" SizeX="{size[1]}" '
        f'SizeY="{size[0]}" SizeC="2" SizeZ="1" SizeT="1">'
        + "".join(f'<Channel ID="Channel:{k}:{c}" SamplesPerPixel="1" Name="{name}"/>' for c, name in enumerate(names[k]))
        + f'<TiffData IFD="0" PlaneCount="2"><UUID FileName="s{k}.ome.tif">urn:uuid:{k}</UUID></TiffData></Pixels></Image>'
        for k, size in enumerate(sizes)
    )
    for k, cube in enumerate(cubes):
        text = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{k}">{described}</OME>'
        tifffile.imwrite(tmp_path / f"s{k}.ome.tif", cube, description=text, metadata=None, photometric="minisblack")
    collection = open_collection(str(tmp_path))
    assert collection.relative_paths == ("s0.ome.tif", "s1.ome.tif", "s2.ome.tif")
    assert (len(collection), collection.channel_names) == (3, ("a", "b"))
    for item, cube in enumerate(cubes):
        assert np.array_equal(collection.read(item).pixels, cube[::-1] if item == 1 else cube)
    # One alone knows its own names too.
    (tmp_path / "s0.ome.tif").unlink()
    assert open_image(tmp_path / "s1.ome.tif").channel_names == ("b", "a")


def test_an_ome_tiff_in_several_files_below_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep" / "real").mkdir(parents=True)
    write_ome_set(tmp_path / "disk" / "deep" / "real", "", CUBE, 4)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep", target_is_directory=True)
    collection = open_collection(str(tmp_path / "link" / "real"))
    assert len(collection) == 1
    assert collection.files[0].parts == tuple(tmp_path / "link" / "real" / f"{number}.ome.tif" for number in range(4))
    assert digest_files(collection)
    assert np.array_equal(collection.read(0).pixels, CUBE)
