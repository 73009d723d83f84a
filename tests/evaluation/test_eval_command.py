"""`auxmae eval` on a small untrained run: the document, the written file, the errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import typer
from typer.testing import CliRunner, Result

from auxmae.errors import DataError, UsageError


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from auxmae.build import build_data, build_model
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import create_run

    settings = SettingsTree.model_validate(
        {
            "data": {"synthetic_images": 120, "test_fraction": 0.4},
            "model": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
            "eval": {"labels_per_class": (3, 0), "bootstrap": 20, "neighbours": 3},
            "run": {"device": "cpu"},
        }
    )
    torch.manual_seed(0)
    data = build_data(settings)
    model = build_model(
        settings,
        channels=data.collection.channel_names,
        wavelengths=data.collection.wavelengths,
        image_size=data.image_size,
        scaling=data.scaling,
    )
    run = create_run(str(tmp_path_factory.mktemp("runs") / "run"), settings)
    model.save_pretrained(run.path / "checkpoints" / "last")
    return run.path


def invoke(*arguments: str) -> Result:
    from auxmae.cli.eval import command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


def test_the_document_is_the_agreed_one(run_folder: Path) -> None:
    result = invoke(str(run_folder), "--json", "--batch-size", "16")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert set(document) == {"split", "reconstruction", "probes", "comparisons", "verdict"}
    assert set(document["reconstruction"]) == {"masked_l1", "per_channel", "floors"}
    assert set(document["reconstruction"]["floors"]) == {"mean", "interpolation"}
    assert len(document["reconstruction"]["per_channel"]) == 13
    assert len(document["probes"]) == 2 * 2 * 6
    assert len(document["comparisons"]) == 2 * 2
    assert {probe["features"] for probe in document["probes"]} == {
        "encoder",
        "channel statistics",
        "raw pixels",
        "PCA of patches",
        "random convolutions",
        "random initialisation",
    }
    for probe in document["probes"]:
        documented = {"features", "probe", "labels_per_class", "accuracy", "average_accuracy", "interval"}
        assert set(probe) == documented | {"macro_f1", "kappa", "spread", "draws"}
        assert 0 <= probe["interval"][0] <= probe["interval"][1] <= 1
    written = json.loads((run_folder / "eval.json").read_text())
    assert {key: written[key] for key in document} == document
    assert written["verdict"]
    assert "channel statistics" in result.stderr


def test_figures_repeat_and_do_not_depend_on_the_batch_size(run_folder: Path) -> None:
    first, second = (json.loads(invoke(str(run_folder), "--json", "--batch-size", size).stdout) for size in ("8", "48"))
    assert first["split"] == second["split"]
    assert first["reconstruction"]["masked_l1"] == pytest.approx(second["reconstruction"]["masked_l1"], rel=1e-5)
    assert first["reconstruction"]["floors"] == pytest.approx(second["reconstruction"]["floors"], rel=1e-5)
    changed = invoke(str(run_folder), "--json", "--set", "eval.mask_seed=9", "--set", "eval.labels_per_class=[0]")
    document = json.loads(changed.stdout)
    assert document["reconstruction"]["masked_l1"] != first["reconstruction"]["masked_l1"]
    assert {probe["labels_per_class"] for probe in document["probes"]} == {0}


def test_tables_are_printed_for_people(run_folder: Path) -> None:
    result = invoke(str(run_folder))
    assert result.exit_code == 0, result.output
    for token in ("B8A", "interpolation", "k-NN", "logistic", "eval.json"):
        assert token in result.stdout


def write_images(folder: Path, channels: int, count: int = 8) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(count):
        pixels = generator.integers(0, 4000, (channels, 16, 16), dtype=np.uint16)
        tifffile.imwrite(folder / f"image_{i}.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack")
    return folder


def test_unlabelled_data_give_no_probes_and_the_reason(run_folder: Path, tmp_path: Path) -> None:
    result = invoke(str(run_folder), "--json", "--data", str(write_images(tmp_path / "images", 13)))
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["probes"] == []
    assert "no labels" in result.stderr


def test_data_without_the_models_channels_are_refused(run_folder: Path, tmp_path: Path) -> None:
    result = invoke(str(run_folder), "--data", str(write_images(tmp_path / "images", 5)))
    assert isinstance(result.exception, DataError)
    assert "channels" in str(result.exception)


def test_a_missing_run_and_a_run_without_checkpoint_are_said(run_folder: Path, tmp_path: Path) -> None:
    assert isinstance(invoke(str(tmp_path / "nowhere")).exception, UsageError)
    bare = tmp_path / "bare"
    shutil.copytree(run_folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    result = invoke(str(bare))
    assert "no checkpoint" in str(result.exception)
