"""Settings become the model that they describe."""

from __future__ import annotations

import pytest

from auxmae.build import model_arguments
from auxmae.model.mae import AuxMAE
from auxmae.settings.schema import ModelSettings


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
