"""Frozen features: one row per labelled sample, the same rows for every kind of features."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxmae.data.loading import Batch
from auxmae.evaluation.features import extract_all, extract_features, patch_labels, statistics_extractor
from auxmae.evaluation.probes import untrained


def make(count: int, size: int, *, seed: int = 0, height: int = 16, width: int = 16, maps: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, height, width, generator=generator)
    valid = torch.rand(image.shape, generator=generator) > 0.1
    label = torch.randint(-1, 3, (count,), generator=generator)
    label_map = torch.randint(-1, 3, (count, height, width), generator=generator) if maps else None
    return [
        Batch(
            image[i : i + size],
            valid[i : i + size],
            label[i : i + size],
            None if label_map is None else label_map[i : i + size],
        )
        for i in range(0, count, size)
    ]


@pytest.fixture(scope="module")
def model():
    from auxmae.model.mae import AuxMAE

    torch.manual_seed(0)
    return AuxMAE(3, image_size=16, patch_size=4, width=16, depth=1, heads=2, decoder_depth=1)


@given(st.integers(0, 10_000), st.integers(1, 11), st.integers(1, 11), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_patch_labels_are_the_majority_where_half_is_labelled(seed: int, height: int, width: int, patch: int) -> None:
    label_map = torch.randint(-1, 3, (2, height, width), generator=torch.Generator().manual_seed(seed))
    result = patch_labels(label_map, patch)
    columns = -(-width // patch)
    assert result.shape == (2, -(-height // patch) * columns)
    for b in range(2):
        for n, found in enumerate(result[b].tolist()):
            top, left = n // columns * patch, n % columns * patch
            counts = Counter(v for v in label_map[b, top : top + patch, left : left + patch].flatten().tolist() if v >= 0)
            if 2 * sum(counts.values()) < patch**2:
                assert found == -1
            else:
                most = max(counts.values())
                assert found == min(v for v, c in counts.items() if c == most)


def test_statistics_are_those_of_valid_pixels() -> None:
    batch = make(3, 3)[0]
    poisoned = batch._replace(image=batch.image.masked_fill(~batch.valid, float("nan")))
    found = statistics_extractor()(poisoned).numpy()
    for b in range(3):
        values = [batch.image[b, c].double().numpy()[batch.valid[b, c].numpy()] for c in range(3)]
        np.testing.assert_allclose(found[b], [*(v.mean() for v in values), *(v.std() for v in values)], atol=1e-5)
    patches = statistics_extractor(4)(poisoned)
    assert patches.shape == (3, 16, 6)
    pixels, valid = batch.image[1, 2, 4:8, 8:12], batch.valid[1, 2, 4:8, 8:12]
    assert float(patches[1, 6, 2]) == pytest.approx(float(pixels[valid].mean()), abs=1e-5)
    assert (statistics_extractor()(batch._replace(valid=torch.zeros_like(batch.valid))) == 0).all()


def test_image_features_are_rows_of_forward_features(model) -> None:
    data = make(11, 4)
    model.train()
    features = extract_features(model, data, pool="mean", device="cpu")
    assert model.training
    image, valid, label = (torch.cat([getattr(b, name) for b in data]) for name in ("image", "valid", "label"))
    with torch.no_grad():
        expected = model.eval().forward_features(image, valid=valid, pool="mean")
    rows = np.flatnonzero(label.numpy() >= 0)
    assert 0 < len(rows) < 11
    np.testing.assert_allclose(features.x, expected[rows].numpy(), atol=1e-5)
    np.testing.assert_array_equal(features.y, label.numpy()[rows])
    np.testing.assert_array_equal(features.groups, rows)


@pytest.mark.parametrize("pool", ["mean", "concat", "cls"])
def test_dense_features_stand_at_their_patches(model, pool: str) -> None:
    data = make(5, 2, height=10, width=14, maps=True)
    features = extract_features(model, data, pool=pool, device="cpu", dense=True)
    label = torch.cat([patch_labels(b.label_map, 4) for b in data if b.label_map is not None])
    assert len(features) == int((label >= 0).sum())
    image, valid = torch.cat([b.image for b in data]), torch.cat([b.valid for b in data])
    with torch.no_grad():
        maps = model.eval().dense_features(image, valid=valid, pool=pool)
    if pool == "cls":
        # The position's own features, then the image's CLS tokens.
        with torch.no_grad():
            own, whole = model.dense_features(image, valid=valid), model.forward_features(image, valid=valid, pool="cls")
        torch.testing.assert_close(maps, torch.cat([own, whole[:, :, None, None].expand_as(own)], 1))
    image_index, place = np.nonzero(label.numpy() >= 0)
    row, column = place // maps.shape[3], place % maps.shape[3]
    np.testing.assert_allclose(features.x, maps.permute(0, 2, 3, 1)[image_index, row, column].numpy(), atol=1e-5)
    np.testing.assert_array_equal(features.groups, image_index)


def test_the_limit_draws_the_same_rows_for_every_kind_whatever_the_batch_size(model) -> None:
    kinds = {"a": statistics_extractor(4), "b": lambda batch: torch.ones(len(batch.image), 16, 1)}
    results = [extract_all(kinds, make(24, n, maps=True), patch_size=4, limit=30, seed=3) for n in (1, 5, 24)]
    for result in results:
        assert len(result["a"]) == len(result["b"]) == 30
        np.testing.assert_array_equal(result["a"].y, result["b"].y)
        np.testing.assert_array_equal(result["a"].groups, results[0]["a"].groups)
        np.testing.assert_allclose(result["a"].x, results[0]["a"].x, atol=1e-6)
    other = extract_all(kinds, make(24, 5, maps=True), patch_size=4, limit=30, seed=4)
    assert not np.array_equal(other["a"].groups, results[0]["a"].groups)


def test_no_labels_give_no_rows() -> None:
    data = [b._replace(label=torch.full_like(b.label, -1)) for b in make(4, 2)]
    assert len(extract_all({"a": statistics_extractor()}, data)["a"]) == 0
    assert len(extract_all({"a": statistics_extractor(4)}, data, patch_size=4)["a"]) == 0
    assert len(extract_all({"a": statistics_extractor()}, [])["a"]) == 0


def test_untrained_is_another_draw_of_the_same_network(model) -> None:
    state = torch.random.get_rng_state()
    first, again, other = untrained(model, seed=1), untrained(model, seed=1), untrained(model, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [m.forward_features(x) for m in (first, again, other, model.eval())]
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[3])


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_windows_of_an_image_are_averaged_by_their_valid_pixels(size: int) -> None:
    """Whatever the batches; an unlabelled image is left out, one without a valid pixel is the plain mean."""
    numbers = torch.tensor([3, 3, 4, 7, 7, 7, 8, 9, 9, 9, 9, 12])
    batches = make(12, size, seed=3)
    labels = torch.tensor([{3: 1, 4: 0, 7: -1, 8: 2, 9: 1, 12: 0}[number] for number in numbers.tolist()])
    whole = make(12, 12, seed=3)[0]
    valid = whole.valid.clone()
    valid[7] = False
    valid[9, :, :8] = False
    valid[11] = False
    given = [
        batch._replace(
            valid=valid[i : i + size],
            label=labels[i : i + size],
            image_number=numbers[i : i + size],
            group=numbers[i : i + size] * 2,
        )
        for batch, i in zip(batches, range(0, 12, size), strict=True)
    ]
    found = extract_all({"statistics": statistics_extractor()}, given)["statistics"]
    vectors = statistics_extractor()(whole._replace(valid=valid)).double()
    weight = valid.flatten(1).sum(1).double()
    expected = []
    for number in (3, 4, 8, 9, 12):
        mine = numbers == number
        w = weight[mine] if weight[mine].sum() > 0 else torch.ones(int(mine.sum()), dtype=torch.float64)
        expected.append((vectors[mine] * w[:, None]).sum(0) / w.sum())
    assert found.groups.tolist() == [6, 8, 16, 18, 24]
    assert found.y.tolist() == [1, 0, 2, 1, 0]
    np.testing.assert_allclose(found.x, torch.stack(expected).numpy(), rtol=1e-5, atol=1e-6)
