"""A run folder whose model embeds `small_export`'s images."""

from __future__ import annotations

import pytest

from auxmae.settings.schema import SettingsTree
from auxmae.training.run import create_run
from tests.export.small_export import make_model, write_tiles


@pytest.fixture
def run(tmp_path):
    write_tiles(tmp_path / "tiles")
    tree = {
        "data": {"source": str(tmp_path / "tiles")},
        "model": {"image_size": 16, "patch_size": 4, "width": 16, "heads": 2},
        "train": {"batch_size": 3},
        "run": {"device": "cpu"},
    }
    folder = create_run(str(tmp_path / "run"), SettingsTree.model_validate(tree))
    make_model().save_pretrained(folder.path / "checkpoints" / "last")
    return folder.path
