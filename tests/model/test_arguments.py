"""The constructor's arguments: what cannot be is named, and NumPy's numbers are numbers."""

from __future__ import annotations

import numpy as np
import pytest

from auxmae.errors import CheckpointError, SettingsError
from auxmae.model.mae import AuxMAE
from tests.model.small import tiny


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        *((f"{setting} 'other'", {key: "other"}) for setting, key in (
            ("model.output_activation", "output_activation"), ("model.channel_embedding", "channel_embedding"),
            ("loss.kind", "loss_kind"), ("masking.strategy", "mask_strategy"),
        )),
        *((f"model.{key} .* 0", {key: 0}) for key in (
            "patch_size", "image_size", "heads", "depth", "decoder_depth", "decoder_heads", "channel_groups",
        )),
        ("model.depth .* 1.5", {"depth": 1.5}),
        ("divisible", {"heads": 3}),
        ("divisible", {"decoder_width": 12, "decoder_heads": 8}),
        ("masking.ratio .* 1.0", {"mask_ratio": 1.0}),
        ("masking.ratio .* 0", {"mask_ratio": 0}),
        *((f"model.dropout .* {value}", {"dropout": value}) for value in (1.5, -0.1, 1.0, float("nan"))),
        ("unknown strategy 'channels'", {"mask_mixture": {"independent": 1, "channels": 1}}),
        ("weight of shared .* -1", {"mask_strategy": "mixed", "mask_mixture": {"independent": 1, "shared": -1}}),
        ("needs at least one positive weight", {"mask_strategy": "mixed"}),
        ("needs at least one positive weight", {"mask_strategy": "mixed", "mask_mixture": {"shared": 0.0}}),
        ("wavelength of channel '2' is 0.0", {"wavelengths": [450, 0, 1, 1]}),
        ("wavelength of channel '1' is nan", {"wavelengths": [float("nan"), 1, 1, 1]}),
        ("3 wavelengths for 4", {"wavelengths": [1, 2, 3]}),
        ("names 2 twice", {"channel_groups": [["1", "2"], ["2", "3", "4"]]}),
        ("leaves out 4", {"channel_groups": [[1, 2], [3]]}),
        ("empty", {"channel_groups": [[1, 2, 3, 4], []]}),
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_named(named, arguments):
    with pytest.raises(SettingsError, match=named):
        tiny(4, **arguments)


def test_numbers_of_numpy_and_channels_by_number(tmp_path):
    model = tiny(np.int64(4), channel_groups=[[1, 3], [2, 4]], depth=np.int32(1), mask_ratio=np.float32(0.5))
    assert model.groups == [["1", "3"], ["2", "4"]]
    assert len(tiny(4, channel_groups=np.int64(2)).groups) == 2
    model.save_pretrained(tmp_path)
    assert AuxMAE.from_pretrained(tmp_path).config == model.config
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace('"l1"', '"l3"'))
    with pytest.raises(CheckpointError, match=r"config\.json: broken: unknown loss.kind"):
        AuxMAE.from_pretrained(tmp_path)
