"""Dense labels across scenes: pixels of some scenes are trained on, those of the others tested on, both ways.

Shape letters: C channels, D features, n positions; H, W of a scene, px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from auxmae.evaluation.classifiers import FEWEST_TO_FOLD
from auxmae.evaluation.features import Features
from auxmae.evaluation.pixel_probes import PixelProbes, describe_splits
from auxmae.evaluation.pixel_windows import FIT_WINDOWS, LabelledScene, PixelWindows
from auxmae.evaluation.probes import ENCODER, ProbeReport
from auxmae.evaluation.scores import FEWEST_GROUPS

if TYPE_CHECKING:
    from auxmae.model.mae import AuxMAE

# The floors are fitted on windows of so many scenes, at most.
_FIT_SCENES = 16


@dataclass(frozen=True)
class AcrossResult:
    """Probes trained on one half of the scenes and tested on the other.

    Attributes:
        reports: split → probes, both ways.
        digests: split → hex digest of which pixels of which scenes were trained and tested on.
        halves: the names of the scenes of each half.
        labelled, used: valid pixels that have a label, of the scenes that were read, and those of them that were drawn for the
            probes.
        resampled: what intervals resample: "scenes" or "windows".
        folded: what the choice of the penalty keeps together: "scenes" or "windows".
    """

    reports: dict[str, ProbeReport]
    digests: dict[str, str]
    halves: tuple[list[str], list[str]]
    labelled: int
    used: int
    resampled: str
    folded: str

    def to_dict(self) -> dict[str, object]:
        """The result as `auxmae eval --dense --json` prints it."""
        return {
            "halves": list(self.halves),
            "labelled_pixels": self.labelled,
            "used_pixels": self.used,
            "resampled": self.resampled,
            "folded": self.folded,
            "splits": describe_splits(self.reports, self.digests),
        }


def evaluate_across(
    model: AuxMAE,
    read: Callable[[int], LabelledScene],
    names: Sequence[str],
    groups: NDArray[np.int64],
    probes: PixelProbes,
    *,
    progress: Callable[[str], None] | None = None,
) -> AcrossResult:
    """Probes pixels of one half of the scenes by what was learned from the labels of the other half, and the other way round.

    Features and floors are those of `evaluate_scene`; PCA and filters are fitted on windows of 16 scenes at most.  Every scene
    gives as many labelled pixels, as far as it has them.  Where each half has ten groups or more, intervals resample whole
    groups, else windows, which is told; the penalty is chosen on whole groups where each half has six or more, else on windows.

    Args:
        model: the encoder, left in the mode in which it came.
        read: gives a scene by its number; called once for a scene, and once more for those that the floors are fitted on.
        names: of the scenes.
        groups: (scenes,) scenes of one number stay in one half, as they show the same place or belong together.
        probes: how they are probed; of each half at most `max_samples` labelled pixels are used.
        progress: told what is being done.

    Raises:
        ValueError: all scenes are of one group.
    """
    say = progress or (lambda text: None)
    seed = probes.seed
    first = _first_half(groups, seed)
    quota = _quota(first, probes.max_samples, seed)

    say("the floors")
    picked = np.random.default_rng([seed, 2]).permutation(len(names))[:_FIT_SCENES]
    shown = []
    for number in picked.tolist():
        scene = read(number)
        windows = PixelWindows(scene.image, scene.valid, model, probes.channels)
        places = np.argwhere(scene.valid.any(dim=0).numpy())
        if len(places):
            rows = np.random.default_rng([seed, 2, number]).permutation(len(places))[: -(-FIT_WINDOWS // len(picked))]
            shown.append(windows.batch(places[rows]))
    kinds = {ENCODER: probes.encoder(model), **(probes.floors(model, shown) if shown else {})}

    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in kinds}
    drawn = []  # scene, row, column, class, window
    labelled = 0
    for number, name in enumerate(names):
        if not quota[number]:
            continue
        say(f"{name} ({number + 1} of {len(names)})")
        scene = read(number)
        positions = probes.find(scene.valid.any(dim=0).numpy(), scene.labels)
        labelled += positions.labelled
        order = np.random.default_rng([seed, 3, number]).permutation(len(positions.places))
        places = positions.places[np.sort(order[: quota[number]])]
        if not len(places):
            continue
        windows = PixelWindows(scene.image, scene.valid, model, probes.channels)
        for kind, features in windows.extract(places, kinds).items():
            found[kind].append(features)
        y = scene.labels[places[:, 0], places[:, 1]]
        drawn.append(np.column_stack([np.full(len(places), number), places, y, windows.tiles(places)]))

    table = np.concatenate(drawn) if drawn else np.zeros((0, 5), dtype=np.int64)
    in_first = first[table[:, 0]]
    least = min(len(np.unique(groups[table[part, 0]])) for part in (in_first, ~in_first))
    together = {
        "scenes": groups[table[:, 0]].astype(np.int64),
        "windows": np.unique(table[:, [0, 4]], axis=0, return_inverse=True)[1].astype(np.int64),
    }
    resampled, folded = ("scenes" if least >= fewest else "windows" for fewest in (FEWEST_GROUPS, FEWEST_TO_FOLD))
    x = {kind: np.concatenate(parts) if parts else np.zeros((0, 1), np.float32) for kind, parts in found.items()}
    samples = {kind: Features(features, table[:, 3], together[resampled]) for kind, features in x.items()}
    halves = (
        [name for name, chosen in zip(names, first, strict=True) if chosen],
        [name for name, chosen in zip(names, first, strict=True) if not chosen],
    )
    reports, digests = {}, {}
    for split, train in zip(_split_names(halves), (in_first, ~in_first), strict=True):
        reports[split], digests[split] = probes.run(
            samples,
            table[:, :3],
            train,
            ~train,
            lambda what, split=split: say(f"{split}: {what}"),  # type: ignore[misc]
            folded=together[folded],
        )
        if reports[split].results and resampled == "windows":
            reports[split].notices.append(
                f"A half has {least} scene{'s' * (least > 1)} or groups of scenes, fewer than {FEWEST_GROUPS}: intervals and "
                "tests are of windows, and tell nothing of other scenes."
            )
    return AcrossResult(reports, digests, halves, labelled, len(table), resampled, folded)


def _quota(first: NDArray[np.bool_], most: int, seed: int) -> NDArray[np.int64]:
    """How many pixels each scene gives of at most so many of its half; of more scenes than these, drawn ones give one."""
    quota = np.zeros(len(first), dtype=np.int64)
    for number, half in enumerate((np.flatnonzero(first), np.flatnonzero(~first))):
        drawn = np.random.default_rng([seed, 4, number]).permutation(half)[:most]
        quota[drawn] = max(most // max(len(half), 1), 1)
    return quota


def _first_half(groups: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """(scenes,) whether a scene is in the first half: whole groups, drawn, each for the half that has fewer scenes."""
    kinds, sizes = np.unique(groups, return_counts=True)
    if len(kinds) < 2:
        raise ValueError("all scenes are of one group")
    order = np.random.default_rng([seed, 1]).permutation(len(kinds))
    first, counts = set[int](), [0, 0]
    for index in order[np.argsort(-sizes[order], kind="stable")].tolist():
        half = 0 if counts[0] <= counts[1] else 1
        counts[half] += int(sizes[index])
        if half == 0:
            first.add(int(kinds[index]))
    return np.isin(groups, list(first))


def _split_names(halves: tuple[list[str], list[str]]) -> tuple[str, str]:
    one, other = (names[0] if len(names) == 1 else f"{len(names)} scenes" for names in halves)
    return (f"{one} → {other}", f"{other} → {one}") if one != other else (f"{one} → {other}", f"{other} → {one}, back")
