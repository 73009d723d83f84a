"""Names that stand for images."""

from __future__ import annotations

from auxmae.data.pairing import ImageNames, shorter_names


def test_a_name_means_one_image_or_several():
    names = ImageNames(["x/a.tif", "y/a.tif", "y/b.tif"])
    found = {"b": [2], "y/a.tif": [1], "/q/y/a.png": [1], "q/y/a.png": [], "a.tif": [0, 1], "q/a.tif": [], "c": []}
    assert {name: names.find(name) for name in found} == found
    assert shorter_names("p/a_b-mask.png") == ["p/a_b-mask.png", "p/a_b", "p/a"]
