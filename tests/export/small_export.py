"""Few small images to embed, a model for them, and the command."""

from __future__ import annotations

import csv

import numpy as np
import tifffile
import torch
import typer
from typer.testing import CliRunner

from auxmae.data.statistics import Scaling
from auxmae.model.mae import AuxMAE

NAMES = ("blue", "green", "red")


def make_model(names=NAMES, **options):
    torch.manual_seed(3)
    scaling = Scaling("minmax", "none", 1.0, False, tuple(names), (10.0,) * len(names), (100.0,) * len(names))
    arguments = {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1, **options}
    return AuxMAE(names, scaling=scaling.to_dict(), **arguments).eval()


def write_tiles(folder, count=7, side=16, names=NAMES, classes=True, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(10, 110, (count, len(names), side, side)).astype(np.float32)
    for number, image in enumerate(pixels):
        path = folder / (f"class{number % 2}" if classes else ".") / f"tile_{number}.ome.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, image, metadata={"axes": "CYX", "Channel": {"Name": list(names)}})
    return pixels


def rows_of(output):
    with output.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def invoke(*arguments):
    from auxmae.cli.embed import command

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
