"""The picture of a map: which colour is which class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from auxmae.visuals.maps import map_figure


@pytest.mark.parametrize("count", [1, 10, 20, 21, 100, 256])
def test_every_class_has_a_colour_of_its_own_in_the_map_and_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("auxmae.visuals.maps.save_figure", lambda figure, path: drawn.append(figure) or path)
    names = [f"class {number}" for number in range(count)]
    classes = np.arange(-1, count)[None]
    map_figure(classes, classes, names, tmp_path / "a.png", title="a")
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    of_legend = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    for axis in figure.axes:
        colours = np.asarray(axis.images[0].get_array())[0]
        np.testing.assert_allclose(colours[1:], of_legend)
        # In the bytes of a PNG, and none of them is that of no class.
        assert len(np.unique(np.round(255 * colours), axis=0)) == count + 1
