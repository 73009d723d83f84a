"""`auxmae data stats`: what is in the files, the labels among it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

from auxmae.cli.app import app

RNG = np.random.default_rng(3)


def stats(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["data", "stats", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_pixels_of_each_class_are_counted(tmp_path: Path) -> None:
    truth = RNG.integers(0, 4, (60, 70)).astype(np.uint8)
    savemat(tmp_path / "cube.mat", {"cube": RNG.random((60, 70, 9))})
    savemat(tmp_path / "truth.mat", {"truth": truth})
    arguments = (str(tmp_path / "cube.mat"), "--labels", str(tmp_path / "truth.mat"), "--set", "data.axes=HWC")
    document = json.loads(stats(*arguments, "--json"))
    counts = np.bincount(truth.reshape(-1), minlength=4).tolist()
    assert document["labels"] == {"1": counts[1], "2": counts[2], "3": counts[3]}
    assert document["unlabelled"] == counts[0]
    assert f"pixels of each class: 1 ({counts[1]}), 2 ({counts[2]}), 3 ({counts[3]}); without a label: {counts[0]}" in stats(
        *arguments
    )


def test_a_large_raster_is_counted_tile_by_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auxmae.data.collection.TILE", 17)
    monkeypatch.setattr("auxmae.data.labels.TILE", 13)
    truth = RNG.integers(0, 5, (50, 64))
    np.save(tmp_path / "cube.npy", RNG.random((6, 50, 64)))
    np.save(tmp_path / "truth.npy", truth)
    document = json.loads(
        stats(str(tmp_path / "cube.npy"), "--labels", str(tmp_path / "truth.npy"), "--set", "data.axes=CHW", "--json")
    )
    assert list(document["labels"].values()) == np.bincount(truth.reshape(-1)).tolist()
    assert document["unlabelled"] == 0


def test_images_of_each_class_are_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.random((20, 3, 16, 16)))
    np.save(tmp_path / "labels.npy", np.array([4, 7, 7, -1] * 5))
    arguments = (str(tmp_path / "images.npy"), "--labels", str(tmp_path / "labels.npy"), "--set", "data.axes=NCHW")
    assert json.loads(stats(*arguments, "--json"))["labels"] == {"4": 5, "7": 10}
    assert "images of each class: 4 (5), 7 (10); without a label: 5" in stats(*arguments)


def test_without_labels_nothing_is_said_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.random((20, 3, 16, 16)))
    arguments = (str(tmp_path / "images.npy"), "--set", "data.axes=NCHW")
    assert "label" not in stats(*arguments)
    document = json.loads(stats(*arguments, "--json"))
    assert (document["labels"], document["unlabelled"]) == ({}, 20)
