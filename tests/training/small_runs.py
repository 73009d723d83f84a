"""A small training for tests, and what is asked of its run."""

from __future__ import annotations

import numpy as np

from auxmae.settings.schema import SettingsTree
from auxmae.training.progress import SilentReporter
from auxmae.training.run import open_run


def settings_for(folder, **tables):
    tree = {
        "data": {"source": "synthetic", "synthetic_images": 48},
        "model": {"patch_size": 16, "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "dropout": 0.1},
        "train": {"batch_size": 8, "max_steps": 9, "figure_every": 0},
        "run": {"folder": str(folder), "device": "cpu"},
        "eval": {"bootstrap": 100},
    }
    for table, values in tables.items():
        tree[table] = {**tree.get(table, {}), **values}
    return SettingsTree.model_validate(tree)


def weights(run, which="last"):
    return open_run(run).load_model(which).state_dict()


def folder_of_images(folder, *names, constant=None):
    folder.mkdir(exist_ok=True)
    for name in names:
        random = np.random.default_rng(sum(name.encode()))
        array = random.uniform(size=(3, 32, 32)).astype(np.float32)
        if constant is not None:
            array[constant] = 7
        np.save(folder / f"{name}.npy", array)
    return folder


class Heard(SilentReporter):
    def __init__(self):
        self.messages = []

    def warning(self, text):
        self.message(f"warning: {text}")

    def message(self, text):
        self.messages.append(text)
