"""Settings become the model that they describe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from auxmae.build import build_data, model_arguments
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import ModelSettings, SettingsTree


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [(1, [1]), (5, [1] * 5), (8, [1] * 8), (13, [2] * 6 + [1]), (64, [8] * 8), (198, [25] * 7 + [23])],
)
def test_automatic_groups_hold_all_channels_in_eight_at_most(channels: int, sizes: list[int]) -> None:
    settings = ModelSettings(channel_groups="auto", width=8, heads=2, depth=1, decoder_depth=1)
    names = [f"band {number}" for number in range(channels)]
    model = AuxMAE(names, image_size=8, **model_arguments(settings, channels))
    assert [len(group) for group in model.groups] == sizes
    assert [name for group in model.groups for name in group] == names
    # A checkpoint holds what was chosen, so that it means the same wherever it is opened.
    assert model.config["channel_groups"] == sizes[0]


def test_given_groups_stay_as_they_are() -> None:
    listed = (("a", "c"), ("b",))
    assert model_arguments(ModelSettings(channel_groups=listed), 3)["channel_groups"] == listed
    assert model_arguments(ModelSettings(channel_groups=2), 3)["channel_groups"] == 2


def test_what_is_measured_of_scenes_is_all_of_it_and_statistics_stay(tmp_path: Path) -> None:
    np.save(tmp_path / "scene.npy", np.random.default_rng(0).random((145, 145, 3), dtype=np.float32))
    data = {"source": str(tmp_path / "scene.npy"), "layout": "scenes", "axes": "HWC"}
    tree = SettingsTree.model_validate({"data": data, "model": {"image_size": 10, "patch_size": 2}})
    trained, measured = build_data(tree), build_data(tree, augment=False)
    # 15 × 17 px hold one window of 10 px, and four cover them.
    for loader in (measured.train, measured.validation, measured.test, trained.test):
        assert loader is not None
        seen = np.zeros((145, 145), dtype=bool)
        for index in range(len(loader.dataset)):
            _, window = loader.dataset.place(index)
            seen[window.top : window.top + window.height, window.left : window.left + window.width] = True
        assert seen.sum() == loader.dataset.part.blocks[:, 3:].prod(axis=1).sum()
    assert trained.statistics == measured.statistics
    assert trained.validation is not None
    assert len(trained.validation.dataset) == len(trained.splits.validation)


@pytest.mark.parametrize("layout", ["array", "scenes"])
def test_statistics_are_of_all_that_crops_are_drawn_from(layout: str, tmp_path: Path) -> None:
    """Edges that a window in the middle does not hold: an unmarked margin, as of a scene's edge, lies there."""
    array = np.random.default_rng(1).uniform(1, 9, (10, 64, 64, 2)).astype(np.float32)
    array[:, :6] = array[:, :, -5:] = -9999
    array[:, 7] = np.nan
    np.save(tmp_path / "tiles.npy", array if layout == "array" else array[0])
    data = {"source": str(tmp_path / "tiles.npy"), "layout": layout, "axes": "NHWC" if layout == "array" else "HWC"}
    part = {"validation_fraction": 0, "test_fraction": 0, "block_size": 64 if layout == "scenes" else "auto"}
    built = build_data(SettingsTree.model_validate({"data": data | part, "model": {"image_size": 48, "patch_size": 8}}))
    values = (array if layout == "array" else array[:1])[..., 1].astype(np.float64)
    s = built.statistics
    assert s is not None
    assert s.count[1] == np.isfinite(values).sum()
    assert s.fraction_valid[1] == pytest.approx(np.isfinite(values).mean())
    assert (s.mean[1], s.std[1]) == pytest.approx((np.nanmean(values), np.nanstd(values)), rel=1e-9)
    assert s.minimum[1] == -9999
