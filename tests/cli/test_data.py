"""`auxmae data stats`: what is in the files, the labels among it."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
    monkeypatch.setattr("auxmae.data.label_rasters.TILE", 13)
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


def test_bands_read_as_images_are_a_warning_here_and_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for row, band in itertools.product(range(6), ("SR_B2", "SR_B3")):
        path = tmp_path / "data" / f"LC08_{row}_{band}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (32, 32)).astype(np.uint8)).save(path)
    shown = stats("data")
    assert "nothing looks wrong" not in shown
    (pattern,) = re.findall(r"warning: the files look like .* --set (data.channel_pattern=\S+(?: \S+)*) joins them", shown)
    assert "2 channels (SR_B2, SR_B3)" in stats("data", "--set", *shlex.split(pattern))
    done = CliRunner().invoke(app, ["train", "--data", "data", "--preset", "tiny", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "warning: the files look like the channels of images" in done.output


def test_images_whose_names_look_like_groups_are_a_warning_with_the_pattern(tmp_path: Path) -> None:
    for well, field in itertools.product(("A01", "A02", "B01", "B02", "C01", "C02"), (1, 2, 3)):
        path = tmp_path / "data" / f"plate1_{well}_f{field}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(path)
    source = str(tmp_path / "data")
    shown = stats(source)
    assert "plate1_A01_f1.png and plate1_A01_f2.png look like several of one thing (6 sets)" in shown
    assert "nothing looks wrong" not in shown
    (pattern,) = re.findall(r"--set (data.group_pattern='.*') keeps", shown)
    grouped = stats(source, "--set", *shlex.split(pattern))
    assert "split: group" in grouped
    assert "look like several" not in grouped + stats(source, "--set", "data.split=random")


def test_a_name_that_is_no_utf8_is_one_line_that_says_so(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9\nnoir.tif"
    with open(path, "wb") as file:
        file.write(b"II*\0 broken")
    done = subprocess.run([sys.executable, "-m", "auxmae", "data", "stats", str(tmp_path)], capture_output=True, check=False)
    (line,) = done.stderr.decode("ascii").splitlines()
    assert done.returncode == 1
    assert r"/caf\xe9\nnoir.tif: cannot be read" in line
    assert "rename it: its name is not UTF-8" in line


def test_copies_and_what_is_no_file_are_told(tmp_path: Path) -> None:
    for number in range(20):
        np.save(tmp_path / f"{number:02d}.npy", RNG.random((3, 32, 32)))
    assert "nothing looks wrong" in stats(str(tmp_path), "--set", "data.axes=CHW")
    shutil.copy(tmp_path / "03.npy", tmp_path / "12.npy")
    (tmp_path / "dir.tif").mkdir()
    os.mkfifo(tmp_path / "pipe.tif")
    document = json.loads(stats(str(tmp_path), "--set", "data.axes=CHW", "--json"))
    assert [text for text in document["warnings"] if text.startswith("1 of 20 images are copies of others, as 12.npy of 03.npy")]
    assert [text for text in document["notices"] if "dir.tif is a folder" in text]
    assert [text for text in document["notices"] if "pipe.tif is no regular file" in text]


def test_a_few_pixels_that_are_not_valid_are_counted(tmp_path: Path) -> None:
    image = RNG.random((2, 128, 128)).astype(np.float32)
    image[1, 3, 4], image[1, 5, 6] = np.inf, np.nan
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", image + number)
    settings = (
        "--set",
        "data.axes=CHW",
        "--set",
        "data.split=random",
        "--set",
        "data.layout=images",
        "--set",
        "model.image_size=128",
    )
    (row,) = [line for line in stats(str(tmp_path), *settings).splitlines() if "C2" in line and "all but" in line]
    assert re.search(r"all but [2468]\b", row)


def test_the_share_of_the_pixels_that_statistics_are_of_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", RNG.random((8, 3, 100, 80)))
    source = (str(tmp_path / "images.npy"), "--set", "data.axes=NCHW", "--set")
    # Four windows a side at most.
    share = (4 * 8) ** 2 / (100 * 80)
    assert f"from windows that hold {share:.0%} of the training part's pixels" in stats(*source, "model.image_size=8")
    assert json.loads(stats(*source, "model.image_size=8", "--json"))["share_of_pixels"] == pytest.approx(share)
    assert "from windows" not in stats(*source, "model.image_size=104")
    np.save(tmp_path / "large.npy", RNG.integers(0, 255, (8, 1, 700, 700), dtype=np.uint8))
    printed = stats(str(tmp_path / "large.npy"), "--set", "data.axes=NCHW", "--set", "model.image_size=8")
    assert "from windows that hold less than 1% of the training part's pixels" in printed


def test_the_share_of_a_scene_that_statistics_are_of_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "scene.npy", RNG.integers(0, 255, (2, 320, 256), dtype=np.uint8))
    settings = ("data.axes=CHW", "data.block_size=64", "model.image_size=16")
    source = (str(tmp_path / "scene.npy"), *(one for setting in settings for one in ("--set", setting)), "--set")
    assert "from windows" not in stats(*source, "scaling.samples=20000")
    # Eight times as many pixels are read, in windows of 16 × 16, which fill the blocks.
    share = math.ceil(8 * 1000 / 16**2) / json.loads(stats(*source, "scaling.samples=1000", "--json"))["split"]["train"]
    assert 0.1 < share < 0.2
    printed = stats(*source, "scaling.samples=1000")
    assert f"from windows that hold {share:.0%} of the training part's pixels" in printed


def test_what_windows_leave_out_is_not_spoken_of(tmp_path: Path) -> None:
    images = RNG.integers(1, 255, (6, 2, 64, 64), dtype=np.uint8)
    # Of 64 px four windows of 8 px a side look at rows 0 to 7, 19 to 26 and so on.
    images[:, 1], images[:, 1, 10:12] = 0, 200
    np.save(tmp_path / "a.npy", images)
    printed = stats(str(tmp_path / "a.npy"), "--set", "model.image_size=8")
    assert "Valid pixels in windows of the training part" in printed
    assert "C2: dead, every pixel looked at is 0" in printed
