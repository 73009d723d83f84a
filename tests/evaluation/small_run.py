"""A small untrained run on the embedded data, and `auxmae eval` on it."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from typer.testing import CliRunner, Result


def make_run(path: Path) -> Path:
    """The folder of a small untrained run."""
    from auxmae.build import build_data, build_model
    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import create_run

    settings = SettingsTree.model_validate(
        {
            "data": {"synthetic_images": 120, "test_fraction": 0.4},
            "model": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1},
            "eval": {"labels_per_class": (3, 0), "bootstrap": 100, "neighbours": 3},
            "run": {"device": "cpu"},
        }
    )
    torch.manual_seed(0)
    data = build_data(settings)
    model = build_model(settings, data)
    run = create_run(str(path), settings)
    model.save_pretrained(run.path / "checkpoints" / "last")
    return run.path


def invoke(*arguments: str) -> Result:
    from auxmae.cli.eval import command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))
