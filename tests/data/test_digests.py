"""What is told from a collection's files being other ones than before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from auxmae.data.digests import digest_files, digest_names
from auxmae.data.opening import open_collection
from tests.data.reader_fixtures import CUBE, write_raster


def write_later(path: Path, text: str) -> None:
    """A file of a time of its own, however fast it follows another."""
    earlier = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(earlier + 10**9, earlier + 10**9))


@pytest.mark.parametrize(("driver", "name"), [("ENVI", "s.img"), ("GTiff", "s.tif")])
def test_files_that_say_how_another_is_read_are_among_those_that_change(tmp_path: Path, driver: str, name: str) -> None:
    path, labels = write_raster(tmp_path / name, CUBE, driver), tmp_path / "masks" / "s.img"
    labels.parent.mkdir()
    write_raster(labels, (CUBE[:1] % 3).astype(np.uint8), "ENVI")

    def digests() -> tuple[str, str]:
        collection = open_collection(str(path), labels=str(labels.parent))
        assert collection.has_label_maps
        return digest_files(collection), digest_names(collection)

    seen, names = {digests()[0]}, digests()[1]
    headers = [labels.with_suffix(".hdr"), *([path.with_suffix(".hdr")] if driver == "ENVI" else [])]
    for header in headers:
        # As many bytes as before.
        write_later(header, header.read_text().replace("description", "Description"))
        seen.add(digests()[0])
    for beside in (".aux.xml", ".msk"):
        write_later(path.with_name(path.name + beside), "<PAMDataset></PAMDataset>" if beside == ".aux.xml" else "")
        seen.add(digests()[0])
    assert len(seen) == 3 + len(headers)
    write_later(path.with_name("notes.txt"), "of nothing")
    write_later(path.with_name(path.name + ".bak"), "of nothing")
    assert digests()[0] in seen
    assert digests()[1] == names
