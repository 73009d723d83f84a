"""Rows of an export: the features are the model's, in every format, window by window."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch

from auxmae.data.collection import memory_file
from auxmae.data.opening import open_collection
from auxmae.export.embed import embed
from auxmae.export.units import Window, cut, make_layout, plan_units
from tests.export.small_export import NAMES, make_model, rows_of, write_tiles


@pytest.mark.parametrize("pool", ["mean", "concat", "attention", "cls"])
def test_a_row_is_what_forward_features_gives(tmp_path, pool):
    write_tiles(tmp_path / "tiles")
    model, collection = make_model(), open_collection(str(tmp_path / "tiles"))
    output = tmp_path / "out.npy"
    done = embed(model, collection, output, pool=pool, batch_size=3)
    stored, rows = np.load(output), rows_of(output)
    assert done.rows == len(stored) == len(rows) == 7
    for vector, row in zip(stored, rows, strict=True):
        pixels = torch.from_numpy(tifffile.imread(tmp_path / "tiles" / row["path"]))
        expected = model.forward_features((pixels[None] - 10) / 100, pool=pool)[0].detach().numpy()
        np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-5)
        assert row["class"] == row["path"].split("/")[0]
        assert (row["height"], row["width"], row["valid"]) == ("16", "16", "1.0")
    assert not list(tmp_path.glob(".*"))


def test_dense_rows_are_the_places_in_row_major_order(tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.uniform(10, 110, (1, 3, 38, 21)).astype(np.float32)
    pixels[0, :, :4, 4:8] = np.nan
    np.save(tmp_path / "scene.npy", pixels)
    labels = np.arange(38)[:, None] // 4 * np.ones((1, 21), dtype=np.int64)
    np.save(tmp_path / "labels.npy", labels.astype(np.int64))
    collection = open_collection(
        str(tmp_path / "scene.npy"), labels=str(tmp_path / "labels.npy"), layout="scenes", channels=NAMES
    )
    model, output = make_model(), tmp_path / "dense.npy"
    embed(model, collection, output, dense=True, batch_size=2)
    stored, rows = np.load(output), rows_of(output)
    assert len(stored) == 10 * 6
    assert [(int(row["top"]), int(row["left"])) for row in rows] == [(y, x) for y in range(0, 38, 4) for x in range(0, 21, 4)]
    assert (rows[1]["valid"], rows[0]["valid"]) == ("0.0", "1.0")
    assert [int(row["label"] or -1) for row in rows[::6]] == list(range(10))
    # Nothing is of a class where no channel has a pixel.
    assert int(rows[1]["label"] or -1) == -1
    # Each window by itself, as the encoder was trained to see it.
    scaled = torch.from_numpy((pixels - 10) / 100)
    for top, left in [(0, 0), (16, 16), (32, 0)]:
        maps = model.dense_features(scaled[:, :, top : top + 16, left : left + 16])[0].detach().numpy()
        got = stored.reshape(10, 6, -1)[top // 4 :, left // 4 :][: maps.shape[1], : maps.shape[2]]
        np.testing.assert_allclose(got, maps.transpose(1, 2, 0), rtol=1e-4, atol=1e-5)


def test_large_images_are_the_mean_of_their_windows_and_scenes_a_row_each(tmp_path):
    pixels = write_tiles(tmp_path / "tiles", count=20, side=24, classes=False)
    model = make_model()
    images = open_collection(str(tmp_path / "tiles"), layout="images")
    scenes = open_collection(str(tmp_path / "tiles"), layout="scenes")
    embed(model, images, tmp_path / "images.npy", batch_size=5)
    embed(model, scenes, tmp_path / "scenes.npy", batch_size=5)
    of_images, of_scenes = np.load(tmp_path / "images.npy"), np.load(tmp_path / "scenes.npy")
    assert (len(of_images), len(of_scenes)) == (len(pixels), 4 * len(pixels))
    weights = np.array([16 * 16, 16 * 8, 8 * 16, 8 * 8]) / 24**2
    expected = (of_scenes.reshape(20, 4, -1) * weights[None, :, None]).sum(1)
    np.testing.assert_allclose(of_images, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (16, 33), (15, 16), (47, 3)])
def test_windows_cover_every_pixel_once(height, width):
    seen = np.zeros((height, width), dtype=int)
    for window in cut(Window(0, 0, height, width), 16, 16):
        seen[window.top : window.top + window.height, window.left : window.left + window.width] += 1
    assert (seen == 1).all()
    pixels = np.zeros((1, 2, height, width), dtype=np.float32)
    collection = open_collection("synthetic", synthetic_images=1)
    collection.files = (memory_file(pixels, collection.files[0].path, names=("a", "b")),)
    units = plan_units(collection, make_layout(17, 4, dense=True))
    assert sum(unit.rows for unit in units) == -(-height // 4) * -(-width // 4)


def test_every_format_holds_the_same(tmp_path):
    pq, zarr = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("zarr")
    write_tiles(tmp_path / "tiles")
    model, collection = make_model(), open_collection(str(tmp_path / "tiles"))
    for suffix in (".npy", ".parquet", ".zarr"):
        # A byte of a path that is no UTF-8.
        embed(model, collection, tmp_path / f"out{suffix}", about={"part": "all", "data.source": "caf\udce9"})
    expected, rows = np.load(tmp_path / "out.npy"), rows_of(tmp_path / "out.npy")
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), expected)
    for name in rows[0]:
        assert [str(value) for value in table[name].to_pylist()] == [row[name] for row in rows]
    about = json.loads(table.schema.metadata[b"auxmae"])
    assert (about["pool"], about["data.source"]) == ("mean", "caf\udce9")
    group = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    assert group.metadata.zarr_format == 3
    assert group.attrs["auxmae"] == about
    np.testing.assert_array_equal(group["features"][:], expected)
    assert [group.attrs["paths"][number] for number in group["path"][:]] == [row["path"] for row in rows]
    assert group["label"][:].tolist() == [int(row["label"]) for row in rows]
