"""The pictures of a benchmark come from its document alone, with intervals, ceilings and the break-even."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from auxmae.benchmark.kernel_suite import EAGER
from auxmae.benchmark.suites import JOINT, OURS, PLAIN
from auxmae.cli.app import app
from auxmae.errors import AuxMAEError
from auxmae.visuals.benchmark import draw, roofline_figure, scaling_figure, speedup_figure, speedups


def row(suite, case, provider, pass_, samples, **more):
    median = sorted(samples)[len(samples) // 2] if samples else None
    return {
        "suite": suite, "case": case, "provider": provider, "pass": pass_, "samples_ms": samples, "median_ms": median,
        "peak_bytes": 2**20, "images_per_second": 1.0, "status": "ok" if samples else "wrong",
        "reason": "" if samples else "<b>off", "backend": "torch", **more,
    }  # fmt: skip


def scaling_row(provider, channels, median):
    sizes = {"channels": channels, "image_size": 64, "patch_size": 8, "width": 32, "batch": 2}
    return row("scaling", f"channels/C={channels}", provider, "step", [median], axis="channels", sizes=sizes)


KERNEL = {"flops": 2e6, "bytes": 1e5, "flops_per_second": 2e9}
DOCUMENT = {
    "device": {"type": "cpu", "name": "a processor"}, "versions": {"torch": "2.0"}, "commit": "abc", "dirty": False,
    "ceilings": {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": 1e11, "dtype": "float32"},
    "rows": [
        row("model", "quick", OURS, "step", [4.0, 5.0, 6.0]),
        row("model", "quick", PLAIN, "step", [10.0, 10.0, 10.0]),
        *(row("kernels", "add_norm/quick", name, "forward", [1.0], **KERNEL) for name in (OURS, EAGER)),
        row("kernels", "add_norm/quick", OURS, "both", [1.0], **KERNEL | {"backend": "triton"}),
        row("kernels", "add_norm/quick", EAGER, "both", [2.0], **KERNEL),
        *(row("kernels", "assemble/quick", name, "both", [1.0], **KERNEL) for name in (OURS, EAGER)),
        row("kernels", "add_norm/quick", "broken", "both", []),
        *(scaling_row(OURS, size, 16.0 * size) for size in (8, 32)),
        *(scaling_row(JOINT, size, 1.0 * size**2) for size in (8, 32)),
    ],
}  # fmt: skip


def test_speed_ups_have_the_spread_of_the_rounds():
    found = {label: values for label, *values in speedups(DOCUMENT)}
    assert found[f"quick: {OURS}"] == pytest.approx([2.0, 10 / 6, 10 / 4])
    assert found[f"add_norm/quick: {OURS}"] == [2.0, 2.0, 2.0]
    # The same code twice is no speed-up, but what the dispatch costs is drawn, and called what it is.
    assert found[f"assemble/quick: {OURS} (PyTorch)"] == [1.0, 1.0, 1.0]
    assert not any("broken" in label for label in found)


def test_the_break_even_is_marked():
    (panel,) = scaling_figure(DOCUMENT).axes
    assert [text.get_text() for text in panel.texts] == ["break-even 16"]
    assert {line.get_label() for line in panel.lines} >= {"factorised", "joint"}


def test_the_roof_is_that_of_the_run():
    (axes,) = roofline_figure(DOCUMENT).axes
    assert max(axes.lines[0].get_ydata()) == 1e11
    left = axes.lines[0].get_xydata()[0]
    assert left[1] / left[0] == pytest.approx(1e10)
    assert [tuple(point) for point in axes.collections[0].get_offsets()] == [(20.0, 2e9)]


def test_nothing_is_drawn_of_nothing():
    empty = DOCUMENT | {"rows": []}
    assert speedup_figure(empty) is roofline_figure(empty) is scaling_figure(empty) is None


def test_the_page_holds_everything(tmp_path):
    done = CliRunner().invoke(app, ["benchmark", "--from", str(write(tmp_path)), "--figures", str(tmp_path / "new" / "figures")])
    assert done.exit_code == 0, done.exception
    files = {path.name for path in (tmp_path / "new" / "figures").iterdir()}
    assert files == {"speedup.png", "roofline.png", "scaling.png", "benchmark.html"}
    page = (tmp_path / "new" / "figures" / "benchmark.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    # A reason is text, not markup.
    assert "wrong: &lt;b&gt;off" in page
    assert "a processor" in page
    assert "stopped before its end" not in page


def write(folder):
    path = folder / "document.json"
    path.write_text(json.dumps(DOCUMENT))
    return path


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AuxMAEError, match="cannot be written"):
        draw(DOCUMENT, tmp_path / "file" / "figures")
