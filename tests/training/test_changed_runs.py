"""A run goes on with its own data, channels and settings alone."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import rasterio
import torch

from auxmae.errors import DataError, UsageError
from auxmae.settings.schema import SettingsTree
from auxmae.training.session import train
from tests.training.small_runs import folder_of_images, settings_for


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    data = folder_of_images(tmp_path / "data", *"abcdefghij")
    run = train(settings_for(tmp_path / "run", data={"source": str(data)}, train={"max_steps": 2})).run
    settings = run / "settings.toml"
    settings.write_text(settings.read_text().replace("max_steps = 2", "max_steps = 3"))
    folder_of_images(data, "k")
    with pytest.raises(DataError, match=r"changed since .* was started with 10 images, .*32×32 px") as told:
        train(SettingsTree(), resume=run)
    assert f"--init-from {run}" in told.value.hint
    (data / "k.npy").unlink()
    np.save(data / "j.npy", np.ones((3, 40, 40)))
    with pytest.raises(DataError, match="changed since"):
        train(SettingsTree(), resume=run)
    folder_of_images(data, "j")
    assert train(SettingsTree(), resume=run).outcome.step == 3


def test_a_run_whose_data_have_moved_says_how_it_goes_on(tmp_path):
    data = folder_of_images(tmp_path / "data", *"abcdefghij")
    run = train(settings_for(tmp_path / "run", data={"source": str(data), "layout": "images"}, train={"max_steps": 2})).run
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="the run's data set is no longer there") as told:
        train(SettingsTree(), resume=run)
    assert told.value.hint == f"put it back, or write its new place into {run / 'settings.toml'}"
    path = run / "settings.toml"
    path.write_text(path.read_text().replace(str(data), str(moved)))
    assert train(SettingsTree(), resume=run).outcome.step == 2


@pytest.mark.parametrize("name", ["images.npy", "images.zarr"])
def test_a_run_goes_on_with_its_own_pixels_alone(tmp_path, name):
    """Written anew, in the same shape: refused where the pixels are others, whenever it was written."""
    place = tmp_path / name
    images = np.random.default_rng(0).normal(size=(20, 3, 32, 32)).astype(np.float32)

    def write(array):
        if name.endswith("npy"):
            np.save(place, array)
        else:
            zarr = pytest.importorskip("zarr")
            zarr.create_array(str(place), data=array, overwrite=True)

    write(images)
    settings = settings_for(tmp_path / "run", data={"source": str(place), "axes": "NCHW"}, train={"max_steps": 1})
    run = train(settings).run
    others = [np.roll(images, 1, axis=0), images[:, ::-1], images[..., ::-1], images[:, :, ::-1], images.swapaxes(2, 3)]
    for other in others:
        write(other)
        with pytest.raises(DataError, match=r"changed since .* was started with 20 images"):
            train(SettingsTree(), resume=run)
    # Runs of before have noted one number of each image.
    noted = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**noted, "pixels": [numbers[0] for numbers in noted["pixels"]]}))
    write(others[0])
    with pytest.raises(DataError, match="changed since"):
        train(SettingsTree(), resume=run)
    write(images)
    os.utime(place, (1e9, 1e9))
    assert train(SettingsTree(), resume=run).outcome.step == 1


def test_a_run_does_not_go_on_with_its_bands_in_another_order(tmp_path):
    """Whose pixels tell nothing, as all bands hold the same."""
    pixels = np.random.default_rng(0).uniform(size=(1, 64, 64)).astype(np.float32).repeat(3, 0)

    def write(*names):
        for number in range(6):
            with rasterio.open(folder / f"{number}.tif", "w", "GTiff", 64, 64, 3, dtype="float32") as file:
                file.write(pixels)
                file.descriptions = names

    folder = tmp_path / "data"
    folder.mkdir()
    write("red", "nir", "blue")
    run = train(settings_for(tmp_path / "run", data={"source": str(folder)}, train={"max_steps": 1})).run
    write("red", "blue", "nir")
    with pytest.raises(DataError, match=rf"channel 2 is blue now, and {run} was trained with nir") as told:
        train(SettingsTree(), resume=run)
    assert f"--init-from {run}" in told.value.hint


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("model.depth", "1", "2"),
        ("scaling.method", "'percentile'", "'standard'"),
        ("masking.ratio", "0.75", "0.5"),
        ("train.optimizer", "'muon'", "'adamw'"),
        ("train.batch_size", "4", "2"),
        ("data.flips", "true", "false"),
        ("data.channels", "['B04', 'B08']", "['B08', 'B04']"),
        ("data.nodata", "'auto'", "0.0"),
        ("data.validation_fraction", "0.1", "0.2"),
    ],
)
def test_a_run_whose_settings_were_changed_does_not_go_on(tmp_path, name, old, new):
    """What comes from the checkpoint would not be what the file says, and what does not would be of two trainings."""
    tables = {"train": {"max_steps": 2, "optimizer": "muon", "batch_size": 4}, "data": {"channels": ["B04", "B08"]}}
    run = train(settings_for(tmp_path / "run", **tables)).run
    path, key = run / "settings.toml", name.partition(".")[2]
    written = path.read_text()
    assert f"\n{key} = {old}\n".replace("'", '"') in written
    path.write_text(written.replace(f"\n{key} = {old}\n".replace("'", '"'), f"\n{key} = {new}\n".replace("'", '"'), 1))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=re.escape(f"{name} = {new}, and the run was trained with {old}: ")) as told:
        train(SettingsTree(), resume=run)
    assert str(path) in str(told.value)
    assert f"--init-from {run}" in told.value.hint
    assert (run / "metrics.jsonl").read_bytes() == before
    # How long it trains is no such setting.
    path.write_text(written.replace("max_steps = 2", "max_steps = 3"))
    assert train(SettingsTree(), resume=run).outcome.step == 3


def test_a_run_of_before_goes_on_though_its_checkpoint_says_nothing_of_how_files_are_read(tmp_path):
    run = train(settings_for(tmp_path / "run", train={"max_steps": 1})).run
    path, settings = run / "checkpoints" / "last" / "training_state.pt", run / "settings.toml"
    state = torch.load(path, weights_only=True)
    del state["settings"]["data.nodata"]
    torch.save(state, path)
    settings.write_text(settings.read_text().replace('nodata = "auto"', "nodata = 0.0"))
    assert train(SettingsTree(), resume=run).outcome.step == 1
