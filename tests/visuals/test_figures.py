"""Reconstruction figures and curves."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from auxmae.errors import AuxMAEError, UsageError
from auxmae.evaluation.robustness import LEFT_OUT, RobustnessResult
from auxmae.visuals import figures
from auxmae.visuals.figures import batch_to_show, curves_figure, reconstruction_figure
from auxmae.visuals.maps import map_figure
from auxmae.visuals.robustness import robustness_figure

NAMES = ("B02", "B03", "B04", "B08")


def _inputs(count: int = 2, seed: int = 0):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand((count, 4, 16, 24), generator=generator)
    hidden = (torch.rand((count, 4, 4, 6), generator=generator) < 0.75).repeat_interleave(4, 2).repeat_interleave(4, 3)
    prediction = torch.where(hidden, image + 0.25, 0.0)
    return image, SimpleNamespace(prediction=prediction, hidden=hidden, keep=None), torch.ones_like(hidden)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[figures.Figure]:
    """The figures that are saved, for a look at what is in them."""
    seen: list[figures.Figure] = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (seen.append(figure), save(figure, path))[1])
    return seen


class Batches:
    """A loader of batches with these shares of valid pixels, one for each image; what is asked of it is counted."""

    def __init__(self, *shares: tuple[float, ...]) -> None:
        self.shares, self.read, self.dataset = shares, 0, SimpleNamespace(in_parts=False)

    def limited(self, limit: int, workers: int) -> Batches:
        assert limit == workers == 0
        return self

    def __iter__(self):  # type: ignore[no-untyped-def]
        for number, shares in enumerate(self.shares):
            self.read += 1
            valid = torch.stack([(torch.arange(100) < 100 * share).reshape(1, 10, 10) for share in shares])
            yield SimpleNamespace(valid=valid, number=number)


@pytest.mark.parametrize(
    ("shares", "chosen", "read"),
    [
        (((1.0, 1.0), (1.0, 1.0)), 0, 1),
        (((0.0, 1.0), (0.4, 0.9), (0.6, 0.7), (1.0, 1.0)), 2, 3),
        (((0.0, 0.0), (0.3, 0.2), (0.1, 0.1)), 1, 3),
        (((0.0, 0.0),) * 30, 0, 20),
    ],
)
def test_a_picture_is_of_images_that_are_there(shares: tuple[tuple[float, ...], ...], chosen: int, read: int) -> None:
    loader = Batches(*shares)
    batch = batch_to_show(loader, 2)  # type: ignore[arg-type]
    assert batch is not None
    assert (batch.number, loader.read) == (chosen, read)  # type: ignore[attr-defined]
    assert batch_to_show(Batches(), 2) is None  # type: ignore[arg-type]


def _panels(figure: figures.Figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes]


def _draw(path: Path, image, reconstruction, valid, **options):  # type: ignore[no-untyped-def]
    return reconstruction_figure(image, reconstruction, valid, channel_names=NAMES, wavelengths=None, path=path, **options)


def test_panels_show_what_they_say(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    image, reconstruction, valid = _inputs()
    path = _draw(tmp_path / "new" / "a.png", image, reconstruction, valid)
    assert Image.open(path).size[0] > 600
    panels = _panels(drawn[0])
    assert len(panels) == 8
    original, masked, alone, merged = panels[:4]
    hidden = reconstruction.hidden[0, [2, 1, 0]].permute(1, 2, 0).numpy()
    assert (masked[hidden] == 0.5).all()
    np.testing.assert_array_equal(masked[~hidden], original[~hidden])
    assert (alone[~hidden] == 0.5).all()
    np.testing.assert_array_equal(alone[hidden], merged[hidden])
    np.testing.assert_array_equal(merged[~hidden], original[~hidden])
    assert (merged[hidden] >= original[hidden]).all()
    assert "B04, B03, B02" in drawn[0].get_supxlabel()


def test_what_is_hidden_leaves_no_trace_in_the_masked_panel(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    """In principal components too, a pixel that is hidden in every channel is plain grey."""
    image, reconstruction, valid = _inputs(1)
    reconstruction.hidden[:, :, :8] = True
    reconstruction_figure(image, reconstruction, valid, channel_names=list("abcd"), wavelengths=None, path=tmp_path / "a.png")
    assert (_panels(drawn[0])[1][:8] == 0.5).all()


def test_channel_rows_carry_their_error(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    image, reconstruction, valid = _inputs()
    reconstruction.prediction[1] += 0.5 * reconstruction.hidden[1]
    # Invalid pixels do not count.
    valid[:, 3, :8] = False
    reconstruction.prediction[:, 3, :8] = 99.0
    _draw(tmp_path / "a.png", image, reconstruction, valid, channels=["B08"], rows=2)
    labels = [axis.get_ylabel() for axis in drawn[0].axes if axis.get_ylabel()]
    assert labels == ["image 1", "B08\nL1 0.250", "image 2", "B08\nL1 0.750"]
    assert "Hatched" in drawn[0].get_supxlabel()
    rows = _panels(drawn[0])[4]
    assert set(np.unique(rows[:8])) == {0.80, 0.95}


def test_rows_limit_the_images(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    _draw(tmp_path / "a.png", *_inputs(5), rows=3)
    assert len(drawn[0].axes) == 12


def test_text_does_not_overlap(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    image, reconstruction, valid = _inputs(1)
    valid[..., :2] = False
    _draw(tmp_path / "a.png", image, reconstruction, valid, channels=list(NAMES), title="a title")
    figure = drawn[0]
    texts = [axis.title for axis in figure.axes[:4]] + [figure._supxlabel, figure._suptitle]
    boxes = [text.get_window_extent() for text in texts]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_everything_invalid(tmp_path: Path) -> None:
    image, reconstruction, valid = _inputs(1)
    assert _draw(tmp_path / "a.png", image * 0, reconstruction, valid & False, channels=["B02"]).exists()


def test_unknown_channel_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="B9") as caught:
        _draw(tmp_path / "a.png", *_inputs(), channels=["B9"])
    assert "B0" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="the channels are B02"):
        _draw(tmp_path / "a.png", *_inputs(), channels=["infrared"])


def test_dollars_in_names_are_no_mathematics(tmp_path: Path) -> None:
    name = "a$1_$2 $x$"
    assert reconstruction_figure(
        *_inputs(1), channel_names=[name, *NAMES[1:]], wavelengths=None, path=tmp_path / "a.png", channels=[name], title=name
    ).is_file()
    classes = np.arange(4).reshape(2, 2) % 2
    assert map_figure(classes, classes, (name, "b"), tmp_path / "b.png", title=name).is_file()
    left_out = [RobustnessResult(LEFT_OUT, f"without {name}", value, masked_l1=0.1) for value in (0.0, 1.0)]
    assert robustness_figure(left_out, tmp_path / "c.png").is_file()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuxMAEError, match="cannot be written"):
        _draw(tmp_path / "file" / "a.png", *_inputs())


def test_curves_show_the_records(tmp_path: Path, drawn: list[figures.Figure]) -> None:
    metrics = [{"kind": "train", "step": step, "epoch": 0, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 9)]
    metrics += [
        {"kind": "validation", "step": 4, "epoch": 0, "loss": 0.5},
        {"kind": "train", "step": 9, "loss": math.nan},
    ]
    curves_figure(metrics, tmp_path / "c.png")
    losses, rates = drawn[0].axes
    training, validation = losses.lines
    np.testing.assert_allclose(training.get_ydata(), [1 / step for step in range(1, 9)])
    np.testing.assert_allclose(validation.get_xydata(), [[4, 0.5]])
    np.testing.assert_allclose(rates.lines[0].get_ydata(), 1e-3)


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"kind": "train"}],
        [{"kind": "validation", "step": 1, "loss": None}],
        [{"kind": "train", "step": 1, "loss": 0.0}],
        [{"kind": "validation", "step": 1, "loss": 0.3}],
    ],
)
def test_curves_of_little(tmp_path: Path, metrics: list[dict[str, object]]) -> None:
    assert curves_figure(metrics, tmp_path / "c.png").stat().st_size > 1000
