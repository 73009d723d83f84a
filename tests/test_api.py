"""`auxmae.train`: settings given as tables."""

from __future__ import annotations

import pytest

from auxmae import api
from auxmae.errors import SettingsError


@pytest.mark.parametrize("settings", [{"trian": {}}, {"trian": 5}, {"trian": {"max_steps": 3}}])
def test_a_table_that_there_is_none_of_is_named(settings):
    with pytest.raises(SettingsError, match=r"^trian.*did you mean 'train"):
        api.train(settings)
