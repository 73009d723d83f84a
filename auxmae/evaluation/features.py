"""Frozen features of labelled samples: whole images, or the patches of labelled scenes.

Shape letters: B batch, C channels, D features, N patches of an image (row-major), n samples; h, w pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from auxmae.model.pooling import pool_windows

if TYPE_CHECKING:
    from auxmae.data.loading import Batch
    from auxmae.model.mae import AuxMAE

# Maps a batch to features: (B, D) of images, or (B, N, D) of their patches.
Extractor = Callable[["Batch"], Tensor]


@dataclass(frozen=True)
class Features:
    """Features of labelled samples.

    Attributes:
        x: (n, D) float32.
        y: (n,) int64 class, never negative.
        groups: (n,) int64, what a sample is alike with and not independent of: its image, its block of a scene, or the group
            (donor, plate, …) that was held out as a whole.
        pixels: (n,) uint64 digest of the pixels that a sample was made of, and of which of them are valid; None: not known.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: NDArray[np.int64]
    pixels: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.int64]) -> Features:
        """The samples at `rows`."""
        return Features(self.x[rows], self.y[rows], self.groups[rows], None if self.pixels is None else self.pixels[rows])


def extract_features(
    model: AuxMAE,
    batches: Iterable[Batch],
    *,
    pool: str,
    device: torch.device | str,
    dense: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Features:
    """Features of a frozen encoder that sees every patch.

    Args:
        model: left in the mode in which it came.
        batches: with labels, or (`dense`) with label maps, in a fixed order.
        pool: how channels become one vector; see `AuxMAE.forward_features` and `AuxMAE.dense_features`.
        device: where the model is.
        dense: one sample per patch, labelled as `patch_labels` says, instead of one per image.
        limit: samples at most, drawn at random with `seed`.
        seed: of that draw.
    """
    extractor = encoder_extractor(model, pool=pool, device=device, dense=dense)
    patch_size = model.patch_size if dense else None
    return extract_all({"": extractor}, batches, patch_size=patch_size, limit=limit, seed=seed)[""]


def encoder_extractor(model: AuxMAE, *, pool: str, device: torch.device | str, dense: bool) -> Extractor:
    """The features of a frozen encoder: (B, D), or (B, N, D) where `dense`."""

    def extract(batch: Batch) -> Tensor:
        image, valid = batch.image.to(device), batch.valid.to(device)
        was_training = model.training
        model.eval()
        try:
            if dense:
                maps = model.dense_features(image, valid=valid, channels=batch.channels, pool=pool)
                return maps.flatten(2).transpose(1, 2)
            return model.forward_features(image, valid=valid, channels=batch.channels, pool=pool)
        finally:
            model.train(was_training)

    return extract


def statistics_extractor(patch_size: int | None = None) -> Extractor:
    """Mean and standard deviation of every channel's valid pixels, of each image, or of each patch of `patch_size` px.

    A channel without a valid pixel gets 0 for both.
    """

    def extract(batch: Batch) -> Tensor:
        image = batch.image.masked_fill(~batch.valid, 0.0).to(torch.float64)
        valid = batch.valid.to(torch.float64)
        if patch_size is None:
            image, valid = image.flatten(2)[:, None], valid.flatten(2)[:, None]
        else:
            image, valid = split_patches(image, patch_size, 0.0), split_patches(valid, patch_size, 0.0)
        count = valid.sum(dim=3).clamp(min=1)
        mean = image.sum(dim=3) / count
        variance = ((image - mean[..., None]).square() * valid).sum(dim=3) / count
        features = torch.cat([mean, variance.sqrt()], dim=2).to(torch.float32)
        return features[:, 0] if patch_size is None else features

    return extract


def patch_labels(label_map: Tensor, patch_size: int) -> Tensor:
    """The commonest label of each patch, −1 where less than half of the patch is labelled.

    Args:
        label_map: (B, h, w) int64, −1 = no label.  Where the patch does not divide h or w, what is
            missing counts as unlabelled.
        patch_size: px.

    Returns:
        (B, N) int64; of labels that are equally common, the smallest.
    """
    labels_BNP = split_patches(label_map[:, None], patch_size, -1)[:, :, 0]
    best_count = torch.zeros(labels_BNP.shape[:2], dtype=torch.int64)
    best = torch.full_like(best_count, -1)
    for value in np.unique(labels_BNP.numpy()).tolist():
        if value >= 0:
            count = (labels_BNP == value).sum(dim=2)
            best = torch.where(count > best_count, value, best)
            best_count = torch.maximum(best_count, count)
    enough = 2 * (labels_BNP >= 0).sum(dim=2) >= patch_size**2
    return torch.where(enough, best, -1)


@torch.inference_mode()
def extract_all(
    extractors: Mapping[str, Extractor],
    batches: Iterable[Batch],
    *,
    patch_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Features]:
    """Several kinds of features of the same samples, in one pass over the data.

    Args:
        extractors: name → extractor; each gives one vector per image, or per patch where `patch_size` is set.
        batches: in a fixed order, windows of one image one after the other.
        patch_size: px; None for one sample per image, labelled by `Batch.label`: the mean over the image's windows,
            weighted by their valid pixels.
        limit: samples at most.  Every labelled sample draws a random number from `seed`; those with the smallest stay,
            so that memory is bounded and the choice does not depend on the order.
        seed: of the draw.
        progress: called with the number of images done, after every batch.

    Returns:
        name → features; the rows of all are the same samples.  Unlabelled samples are left out.  Those of images have `pixels`.
    """
    generator = np.random.default_rng(seed)
    names = ("key", "label", "group", *(("pixels",) if patch_size is None else ()), *(f"x {name}" for name in extractors))
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    images = 0
    # Of one image, which may have more of them in the next batch.
    windows: list[_Window] = []

    def keep(label: NDArray[np.int64], group: NDArray[np.int64], vectors: Mapping[str, Tensor]) -> None:
        columns["key"].append(generator.random(len(label)))
        columns["label"].append(label)
        columns["group"].append(group)
        for name, x in vectors.items():
            columns[f"x {name}"].append(x.numpy())

    def keep_image() -> None:
        valid = torch.stack([window.valid for window in windows])
        means = {name: pool_windows(torch.stack([window.vectors[name] for window in windows]), valid) for name in extractors}
        keep(np.array([windows[-1].label]), np.array([windows[-1].group]), {name: x[None] for name, x in means.items()})
        columns["pixels"].append(_digests([[window.pixels for window in windows]]))
        windows.clear()

    def prune(most: int | None) -> None:
        if most is None or sum(len(part) for part in columns["key"]) <= most:
            return
        # Order in time is kept: the result is a subsequence of the data.
        chosen = np.sort(np.argsort(np.concatenate(columns["key"]), kind="stable")[:limit])
        for name, parts in columns.items():
            columns[name] = [np.concatenate(parts)[chosen]]

    for batch in batches:
        size = batch.image.shape[0]
        if patch_size is None:
            label_BN = batch.label[:, None]
        elif batch.label_map is not None:
            label_BN = patch_labels(batch.label_map, patch_size)
        else:
            label_BN = torch.full((size, 1), -1, dtype=torch.int64)
        labelled = (label_BN >= 0).cpu().numpy()
        index, place = np.nonzero(labelled)
        # Images without a label never reach the encoder.
        wanted = np.unique(index)
        if len(wanted):
            rows = torch.from_numpy(np.searchsorted(wanted, index))
            positions = torch.from_numpy(place)
            part = _select(batch, torch.from_numpy(wanted))
            label = label_BN.cpu().numpy()[labelled]
            group = index + images if batch.group is None else batch.group.numpy()[index]
            found = {}
            for name, extractor in extractors.items():
                features = extractor(part).to("cpu", torch.float32)
                found[name] = features[rows] if features.dim() == 2 else features[rows, positions]
            if patch_size is not None:
                keep(label, group, found)
            elif part.image_number is None:
                keep(label, group, found)
                columns["pixels"].append(_digests([pixels] for pixels in _pixels(part)))
            else:
                counts = part.valid.flatten(1).sum(1)
                for row, (image, pixels) in enumerate(zip(part.image_number.tolist(), _pixels(part), strict=True)):
                    if windows and windows[-1].image != image:
                        keep_image()
                    vectors = {name: x[row] for name, x in found.items()}
                    windows.append(_Window(image, label[row], group[row], counts[row], vectors, pixels))
            prune(None if limit is None else 2 * limit)
        images += size
        if progress is not None:
            progress(images)
    if windows:
        keep_image()
    prune(limit)
    if not sum(len(part) for part in columns["key"]):
        empty = np.zeros(0, dtype=np.int64)
        return {name: Features(np.zeros((0, 0), dtype=np.float32), empty, empty) for name in extractors}
    label = np.concatenate(columns["label"]).astype(np.int64)
    group = np.concatenate(columns["group"]).astype(np.int64)
    digests = np.concatenate(columns["pixels"]) if patch_size is None else None
    return {name: Features(np.concatenate(columns[f"x {name}"]), label, group, digests) for name in extractors}


class _Window(NamedTuple):
    """A window: number, label and group of its image, how many of its own pixels are valid, name → vector (D,), a digest."""

    image: int
    label: int
    group: int
    valid: Tensor
    vectors: Mapping[str, Tensor]
    pixels: bytes


def _pixels(batch: Batch) -> Iterator[bytes]:
    """A digest of each image's pixels, and of which of them are valid, whatever its batch was padded to."""
    for image, valid in zip(batch.image.cpu().numpy(), batch.valid.cpu().numpy(), strict=True):
        known = valid.any(axis=0)
        height, width = (int(np.flatnonzero(known.any(axis=axis)).max(initial=-1)) + 1 for axis in (1, 0))
        own = image[:, :height, :width].tobytes() + valid[:, :height, :width].tobytes()
        yield hashlib.blake2b(f"{height}×{width}".encode() + own).digest()


def _digests(images: Iterable[Sequence[bytes]]) -> NDArray[np.uint64]:
    """(n,) one of each image, from those of its windows."""
    return np.frombuffer(b"".join(hashlib.blake2b(b"".join(windows), digest_size=8).digest() for windows in images), np.uint64)


def _select(batch: Batch, rows: Tensor) -> Batch:
    if len(rows) == batch.image.shape[0]:
        return batch
    label_map = None if batch.label_map is None else batch.label_map[rows]
    number, group = (None if tensor is None else tensor[rows] for tensor in (batch.image_number, batch.group))
    return batch._replace(
        image=batch.image[rows],
        valid=batch.valid[rows],
        label=batch.label[rows],
        label_map=label_map,
        image_number=number,
        group=group,
    )


def split_patches(pixels: Tensor, patch_size: int, fill: float) -> Tensor:
    """(B, C, h, w) → (B, N, C, patch_size²), the last patches filled up where the patch does not divide h or w."""
    height, width = pixels.shape[2:]
    padded = F.pad(pixels, (0, -width % patch_size, 0, -height % patch_size), value=fill)
    batch, channels, height, width = padded.shape
    grid = padded.reshape(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)
