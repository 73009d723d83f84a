"""Batches are the same whatever the number of workers, and after resuming in the middle of an epoch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from auxmae.data import loading
from auxmae.data.collection import Collection, memory_file
from auxmae.data.dataset import ImageDataset
from auxmae.data.image import MultiChannelImage, Window
from auxmae.data.loading import Batch, Loader
from auxmae.data.splits import Part
from auxmae.errors import AuxMAEError, DataError, ResourceError


def make(count: int = 11, *, augment: bool = True) -> ImageDataset:
    array = np.random.default_rng(2).random((count, 4, 11, 11)).astype(np.float32)
    items = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    collection = Collection(
        "memory", "array", ("a", "b", "c", "d"), None, ("x", "y"), (memory_file(array, Path("array")),), [], items, (None,),
        labels=np.arange(count) % 2,
    )  # fmt: skip
    part = Part("train", np.arange(count), np.zeros((0, 5), np.int64))
    return ImageDataset(collection, part, image_size=8, augment=augment, seed=1)


def same(a: Batch, b: Batch) -> bool:
    pairs = zip(a, b, strict=True)
    return all((x is None and y is None) or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


def broken(kind: type[AuxMAEError], index: int, window: Window | None) -> MultiChannelImage:
    raise kind("broken.tif: cannot be read", hint="leave it out")


def test_every_sample_once() -> None:
    loader = Loader(make(augment=False), 4, shuffle=True, seed=3)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    sums = sorted(float(image.sum()) for batch in batches for image in batch.image)
    expected = sorted(float(make(augment=False)[i].image.sum()) for i in range(11))
    assert sums == pytest.approx(expected)
    assert len(Loader(make(), 4, shuffle=True, drop_last=True)) == 2


def test_order_changes_with_the_epoch_and_repeats_with_the_seed() -> None:
    first, second = (Loader(make(), 4, shuffle=True, seed=3) for _ in range(2))
    runs = [[list(loader) for _ in range(2)] for loader in (first, second)]
    assert all(same(a, b) for x, y in zip(*runs, strict=True) for a, b in zip(x, y, strict=True))
    assert not same(runs[0][0][0], runs[0][1][0])


@pytest.mark.parametrize("stop", range(7))
def test_resume_is_exact(stop: int) -> None:
    def stream(loader: Loader, count: int) -> list[Batch]:
        found: list[Batch] = []
        while len(found) < count:
            for batch in loader:
                found.append(batch)
                if len(found) == count:
                    break
        return found

    full = stream(Loader(make(), 4, shuffle=True, seed=3, channel_sampling=0.5), 9)
    before = Loader(make(), 4, shuffle=True, seed=3, channel_sampling=0.5)
    stream(before, stop)
    after = Loader(make(), 4, shuffle=True, seed=3, channel_sampling=0.5)
    after.load_state_dict(before.state_dict())
    rest = stream(after, 9 - stop)
    assert all(same(a, b) for a, b in zip(full[stop:], rest, strict=True))


def test_epoch_is_over_when_its_last_batch_is_handed_out() -> None:
    loader = Loader(make(), 4, shuffle=True)
    assert [loader.epoch for _ in loader] == [0, 0, 1]


def test_a_validation_pass_always_starts_anew() -> None:
    loader = Loader(make(augment=False), 4, shuffle=False)
    first = next(iter(loader))
    again = list(loader)
    assert len(again) == 3
    assert same(first, again[0])
    assert again[0].label.tolist() == [0, 1, 0, 1]


def test_channel_sampling() -> None:
    loader, plain = (Loader(make(augment=False), 4, shuffle=True, channel_sampling=share) for share in (0.5, 0.0))
    kept = set()
    for _ in range(8):
        for batch, whole in zip(loader, plain, strict=True):
            assert batch.channels is not None
            assert torch.equal(batch.image, whole.image[:, batch.channels])
            assert batch.channels.tolist() == sorted(set(batch.channels.tolist()))
            kept.add(len(batch.channels))
    assert kept == {2, 3, 4}


def test_fewer_samples_and_a_part_of_them_go_together() -> None:
    whole = Loader(make(augment=False), 4, shuffle=True, drop_last=True, channel_sampling=0.5, seed=3)
    next(iter(whole))
    few = list(whole.limited(6))
    assert [len(batch.image) for batch in few] == [4, 2]
    assert all(batch.channels is None for batch in few)
    assert len(whole.limited(6).limited(0)) == 3
    for parts in (
        [whole.limited(6).dealt(rank, 2) for rank in range(2)],
        [whole.dealt(rank, 2).limited(6) for rank in range(2)],
    ):
        for batch, *shares in zip(few, *parts, strict=True):
            assert torch.equal(batch.image, torch.cat([share.image for share in shares]))
    assert [len(batch.image) for batch in whole] == [4]  # goes on where it was


@pytest.mark.slow
def test_workers_change_nothing() -> None:
    alone = Loader(make(), 3, shuffle=True, seed=3, channel_sampling=0.5)
    helped = Loader(make(), 3, shuffle=True, seed=3, channel_sampling=0.5, workers=2)
    for _ in range(2):
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 4
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.slow
def test_processes_that_do_not_last_end_with_every_pass() -> None:
    before = {*multiprocessing.active_children()}
    alone = Loader(make(augment=False), 3, shuffle=False, seed=3)
    helped = Loader(make(augment=False), 3, shuffle=False, seed=3, workers=1)
    passing = helped.limited(7, lasting=False)
    for _ in range(2):
        assert all(same(a, b) for a, b in zip(alone.limited(7), passing, strict=True))
        assert {*multiprocessing.active_children()} == before
    next(iter(passing))
    assert {*multiprocessing.active_children()} == before
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))
    assert len({*multiprocessing.active_children()} - before) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kind"), [(0, DataError), (1, DataError), (1, ResourceError)])
def test_errors_arrive_as_themselves(workers: int, kind: type[AuxMAEError]) -> None:
    dataset = make()
    collection = dataset.collection
    files = (replace(collection.files[0], read=partial(broken, kind)),)
    dataset = ImageDataset(replace(collection, files=files), dataset.part, image_size=8)
    with pytest.raises(kind) as caught:
        list(Loader(dataset, 4, shuffle=False, workers=workers))
    assert caught.value.message == "broken.tif: cannot be read"
    assert caught.value.hint == "leave it out"


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (RuntimeError("Pin memory thread exited unexpectedly"), True),
        (EOFError(), True),
        (ConnectionRefusedError(111, "Connection refused"), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback"), False),
        (EOFError("Caught EOFError in DataLoader worker process 0.\nOriginal Traceback"), False),
    ],
)
def test_a_dead_loader_process_is_told_from_one_that_passes_an_error_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception, dead: bool
) -> None:
    """In the words of PyTorch."""

    def processes(*arguments: object, **options: object) -> Iterator[Batch]:
        raise error
        yield

    monkeypatch.setattr(loading, "DataLoader", processes)
    with pytest.raises(ResourceError if dead else type(error)) as told:
        list(Loader(make(), 4, shuffle=True, workers=1))
    assert ("data.workers" in str(told.value)) == dead


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_death_of_a_loader_process_is_told_where_a_batch_is_asked_for() -> None:
    loader = Loader(make(40), 1, shuffle=True, workers=1)
    batches = iter(loader)
    next(batches)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
    sum(range(10**6))  # PyTorch's own words would interrupt whatever is done here
    with pytest.raises(ResourceError, match="a loader process was killed") as told:
        list(batches)
    assert told.value.hint is not None
    assert "data.workers" in told.value.hint
