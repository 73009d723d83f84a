"""Autotuning of every function, in the interpreter, with a clock of our own."""

from __future__ import annotations

import json

import auxmae_kernels as kernels
import pytest
import torch

from tests.kernels import checks
from tests.kernels.checks import leaf

pytest.importorskip("triton", reason="Triton is not installed")

import triton as triton_package
from auxmae_kernels import autotuning, dropout, tuning
from auxmae_kernels.tuning import Tile

D = 8


def normal(*shape):
    return leaf(torch.randn(shape))


def cases():
    """Each function with the tensors that ask for gradients."""
    norm = [normal(D), normal(D)]
    x, latent, image = normal(2, 3, 4, D), normal(2, 3, 2, D), torch.randn(2, 3, 4, 4)
    keep = torch.tensor([[[0, 3], [1, 2], [3, 0]], [[2, 1], [0, 1], [1, 3]]])
    feed = [x, *norm, normal(12, D), normal(12), normal(D, 12), normal(D)]
    block = [x, *norm, normal(3 * D, D), normal(3 * D), normal(D, D), normal(D)]
    embedding = [normal(D, 4), normal(D), normal(4, D), normal(3, D)]
    return {
        "axial_attention": (lambda qkv: kernels.axial_attention(qkv, 2, "patch"), [normal(2, 3, 4, 3 * D)]),
        "feed_forward": (lambda *i: kernels.feed_forward(*i, dropout=0.3), feed),
        "attention_block": (lambda *i: kernels.attention_block(*i, 2, "channel", dropout=0.3), block),
        "add_norm": (kernels.add_norm, [x, normal(2, 3, 4, D), *norm]),
        "embed_visible": (lambda *i: kernels.embed_visible(image, keep, *i, 2, "gelu"), embedding),
        "assemble": (lambda x, *i: kernels.assemble(x, keep, *i), [latent, normal(D), normal(4, D), normal(3, D)]),
        "masked_loss": (lambda prediction: kernels.masked_loss(prediction, image, keep), [normal(2, 3, 2, 4)]),
    }


@pytest.mark.parametrize("function", [*cases()])
def test_the_fastest_tile_of_each_kernel_gives_the_same_and_is_kept(launched, monkeypatch, tmp_path, function):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_tuned", {})
    monkeypatch.setattr(dropout, "draw_seed", lambda *_: torch.tensor([7]))
    # Few enough to be interpreted, one of them too large for a GPU that we pretend to have.
    broken = Tile(128, 4, columns=16, chunk=16)
    tiles = [Tile(16, 1, columns=16, chunk=16), broken, Tile(32, 2, 2, columns=32, chunk=32), Tile(64, 2, columns=64, chunk=64)]
    for name in ("whole_rows", "patches", "copies"):
        monkeypatch.setattr(autotuning, name, lambda *_: tiles)
    monkeypatch.setattr(tuning, "attention_candidates", lambda *_: tiles)
    run, inputs = cases()[function]
    example = run(*inputs)
    upstream = [torch.randn_like(part) for part in (example if isinstance(example, tuple) else (example,))]
    default = checks.values_and_gradients(run, inputs, upstream)

    asked = []

    def clock(work):
        """Later tiles are faster; the large one does not run."""
        asked.append(1)
        if len(asked) % 5 == 3:
            raise RuntimeError("out of resource: shared memory")
        work()
        return 1.0 / len(asked)

    monkeypatch.setattr(triton_package.testing, "do_bench", clock)
    monkeypatch.setattr(tuning, "autotuning", lambda _: True)
    chosen = checks.values_and_gradients(run, inputs, upstream)
    checks.assert_close(chosen, default, 1e-5)
    stored = json.loads(tuning.cache_file().read_text())
    # One key for each kernel and each set of switches in it, with the last tile, which the clock likes best.
    assert len(stored) == {"masked_loss": 1, "feed_forward": 3, "attention_block": 6}.get(function, 2)
    assert all(value == {"rows": 64, "warps": 2, "stages": 1, "columns": 64, "chunk": 64} for value in stored.values())
    assert len(asked) == 5 * len(stored)
    before = len(launched)
    checks.assert_close(checks.values_and_gradients(run, inputs, upstream), chosen, 0.0)
    assert len(asked) == 5 * len(stored)
    assert len(launched) - before <= 9


@pytest.mark.parametrize("width", [2, 16, 256, 8192, 16384])
def test_whole_rows_have_candidates(width):
    tiles = autotuning.whole_rows(width)
    assert tiles
    assert all(tile.rows * width <= max(8192, width) for tile in tiles)


@pytest.mark.parametrize("length", [1, 5, 16, 17, 32, 128])
def test_candidates_of_packed_attention_hold_a_sequence(length):
    candidates = tuning.attention_candidates(length, 32, torch.bfloat16, "sm_90")
    assert {tile.rows >= length and tile.stages == 1 for tile in candidates} == {True}
    assert {tile.stages for tile in tuning.attention_candidates(129, 32, torch.bfloat16, "sm_90")} == {1, 2}


def test_candidates_have_what_their_kernels_need():
    assert all(tile.chunk and tile.columns for tile in autotuning.patches())
    assert all(tile.columns for tile in autotuning.copies())


def test_the_choice_is_not_made_anew_for_what_no_tile_depends_on(monkeypatch, tmp_path):
    """A useless key would measure in the midst of training."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_tuned", {})
    monkeypatch.setattr(tuning, "autotuning", lambda _: True)
    monkeypatch.setattr(triton_package.testing, "do_bench", lambda work: work() or 1.0)
    constants = {"WIDTH": 8, "SCALE": 0.5, "EPS": 1e-6, "DROP_BELOW": 6554, "KEEP_SCALE": 1.1, "TILE": 16, "num_warps": 4}

    def keys(**changed):
        autotuning.run_tuned("a", torch.zeros(1), Tile(16, 1), list, {**constants, **changed}, lambda _: None)
        return len(tuning._tuned)

    assert keys() == 1
    assert keys(SCALE=1.0, EPS=1e-5, DROP_BELOW=13107, KEEP_SCALE=1.25, TILE=32, num_warps=8) == 1
    assert keys(DROP_BELOW=0) == 2
    assert keys(WIDTH=16) == 3


def test_a_former_cache_is_read(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_tuned", {})
    tuning.cache_file().parent.mkdir(parents=True)
    tuning.cache_file().write_text('{"old": {"rows": 32, "warps": 2, "stages": 1}}')
    assert tuning.kept("old") == Tile(32, 2)
    assert tuning.kept("new") is None
