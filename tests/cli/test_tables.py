"""Tables for people: whatever the terminal, figures are whole."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from auxmae.cli import data as data_command
from auxmae.cli.app import app
from auxmae.cli.console import print_table
from auxmae.cli.eval_tables import finetune_table, probe_table, ratio_table, reconstruction_table, robustness_table
from auxmae.data.statistics import ChannelStatistics
from auxmae.evaluation.finetuning import FinetuneReport
from auxmae.evaluation.probes import ENCODER, ProbeReport, ProbeResult
from auxmae.evaluation.reconstruction import ReconstructionResult
from auxmae.evaluation.robustness import COUNT, RobustnessResult

NAME = "a_marker_with_a_long_name"
FLOORS = ("mean", "interpolation", "linear in all channels")


def statistics() -> Table:
    figures = {field.name: (-12345.678,) for field in dataclasses.fields(ChannelStatistics)[2:16]}
    found = ChannelStatistics((NAME,), (98,), **{**figures, "fraction_valid": (0.98,)})
    return data_command._table(found)


def reconstruction() -> Table:
    floors = dict(zip(FLOORS, (1234.5678, 234.5678, 34.5678), strict=True))
    per_channel = {name: {NAME: value} for name, value in floors.items()}
    return reconstruction_table(ReconstructionResult(0.1234, {NAME: 0.2345}, floors, per_channel, 4), "4 images")


def ratios() -> Table:
    result = ReconstructionResult(
        1234.5678, {}, {"mean": 2345.6789}, {}, 4, 9, 23.45, 123.45, 0.678,
        floors_psnr={"mean": 12.34}, floors_spectral_angle={"mean": 134.56}, floors_ssim={"mean": 0.567},
    )  # fmt: skip
    return ratio_table({"0.75": result}, "4 images")


def probes() -> Table:
    found = [
        ProbeResult(name, "logistic regression", 0, 0.9123, 0.8341, (0.7123, 0.9456), 0.6234, 0.5341)
        for name in (ENCODER, "random initialisation")
    ]
    return probe_table(ProbeReport(found, majority=0.1))


def finetuning() -> Table:
    found = [ProbeResult("fine-tuned", "", 20, 0.9123, 0.8341, (0.7123, 0.9456), 0.6234, 0.5341, 0.0123, 3)]
    return finetune_table(FinetuneReport(found, [], steps={20: 1500}, seeds=3))


def robustness() -> Table:
    return robustness_table([RobustnessResult(COUNT, f"without {NAME}", 12, {ENCODER: 0.9123}, 0.0512, 0.0634, 0.0423)])


TABLES = {
    statistics: "-1.235e+04 98.0%",
    reconstruction: "0.1234 0.2345 1234.5678 234.5678 34.5678",
    ratios: "1234.5678 2345.6789 23.45 12.34 123.45 134.56 0.678 0.567",
    probes: "0.912 0.834 0.712–0.946 0.623 0.534",
    finetuning: "1500 0.912 0.834 0.712–0.946 0.012 0.623 0.534",
    robustness: "0.912 0.0512 0.0634 0.0423",
}


@pytest.mark.parametrize("make", TABLES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_narrow_terminal_folds_names_and_cuts_nothing(make, width: int) -> None:
    file = io.StringIO()
    print_table(Console(width=width, file=file, force_terminal=True, color_system=None), make())
    printed = file.getvalue()
    assert "…" not in printed
    words = printed.split()
    assert [figure for figure in TABLES[make].split() if figure not in words] == []


def test_names_get_what_a_terminal_leaves_them() -> None:
    def lines(width: int) -> list[str]:
        file = io.StringIO()
        print_table(Console(width=width, file=file, force_terminal=True, color_system=None), probes())
        return file.getvalue().splitlines()

    assert max(map(len, lines(70))) <= 70
    assert any("random initialisation" in line for line in lines(90))


@pytest.mark.parametrize("columns", ["60", "100"])
def test_a_pipe_gets_the_whole_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", -12345.678 - np.random.default_rng(0).random((20, 1, 16, 16)))
    given = ("--set", "data.axes=NCHW", "--set", f"data.channels=['{NAME}']")
    done = CliRunner().invoke(app, ["data", "stats", "images.npy", *given])
    assert done.exit_code == 0, done.output
    (row,) = [line for line in done.stdout.splitlines() if "-1.235e+04" in line]
    assert NAME in row
    assert row.split().count("-1.235e+04") >= 5
    shown = CliRunner().invoke(app, ["config", "show", "--set", f"data.source={'long/' * 20}"]).stdout
    assert any("data.source" in line and "long/" * 20 in line and "--set" in line for line in shown.splitlines())
