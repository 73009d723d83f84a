"""What takes the place of a file: whole or not at all."""

from __future__ import annotations

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from auxmae.errors import AuxMAEError
from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run
from auxmae.visuals.figures import save_figure
from auxmae.visuals.report import write_report
from auxmae.writing import write_text


@contextmanager
def full_disk(free=100):
    """No file can grow beyond `free` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_what_a_run_holds(tmp_path):
    run = create_run(str(tmp_path / "run"), SettingsTree())
    for step in range(10):
        run.log({"kind": "train", "step": step, "loss": 1.0})
    save_figure(Figure(), run.figures / "curves.png")
    run.write_json("result.json", {"steps": 10})
    write_report(run.path)
    before = files(run.path)
    with full_disk():
        for write in (
            lambda: run.write_json("result.json", {"steps": list(range(100))}),
            lambda: run.truncate_metrics(8),
            lambda: save_figure(Figure(), run.figures / "curves.png"),
            lambda: write_report(run.path),
        ):
            with pytest.raises((OSError, AuxMAEError)) as told:
                write()
            assert str(run.path) in str(told.value)
    assert files(run.path) == before


def test_what_is_written_has_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "text", "words")
    finally:
        os.umask(before)
    assert (tmp_path / "text").stat().st_mode & 0o777 == 0o640


def test_links_and_devices_stay_what_they_are(tmp_path):
    target, link = tmp_path / "there" / "file.json", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in ("1", "2"):
        write_text(link, content)
        assert json.loads(target.read_text()) == int(content)
    assert link.is_symlink()
    write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(AuxMAEError, match="there: cannot be written: Is a directory"):
        write_text(target.parent, "")
