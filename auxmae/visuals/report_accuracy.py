"""Accuracies of eval.json as report.html shows them: a table for each set of samples, a row for each kind of features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

# A split whose figures flatter is told as such beside them.
_LEAKING = "random pixels"


class AccuracyTable(NamedTuple):
    """What was measured on the same samples.

    Attributes:
        title: of the table.
        notes: sentences before it: the verdict first.
        cases: heads of its columns, probe and labels a class.
        rows: kind of features → accuracies, with the interval in the first row, the model's own.
    """

    title: str
    notes: list[str]
    cases: list[str]
    rows: list[tuple[str, list[str]]]


def accuracy_tables(evaluation: Mapping[str, Any]) -> list[AccuracyTable]:
    """Those of eval.json's object; what is missing or no such thing is left out."""
    found = []
    details = table_in(evaluation, "details")
    notes = [evaluation.get("verdict"), details.get("probe_reason"), *_list(details, "probe_notices")]
    found.append(_accuracies("Probes on frozen features", evaluation, details, "probe_samples", notes))
    finetuning = table_in(evaluation, "finetuning")
    notes = [finetuning.get("reason"), *_list(finetuning, "notices")]
    found.append(
        _accuracies("The whole network trained on labels", {"probes": finetuning.get("results")}, finetuning, "samples", notes)
    )
    for name, scene in table_in(evaluation, "dense").items():
        found += _of_splits(f"Pixels of {name}", scene)
    found += _of_splits("Pixels across scenes", evaluation.get("across_scenes"))
    return [table for table in found if table.rows or table.notes]


def _of_splits(title: str, content: object) -> Iterator[AccuracyTable]:
    content = content if isinstance(content, dict) else {}
    for number, (name, split) in enumerate(table_in(content, "splits").items()):
        if not isinstance(split, dict):
            continue
        leaks = [content.get("warning")] if name == _LEAKING else []
        shared = _list(content, "notices") if number == 0 else []
        notes = [*leaks, split.get("verdict"), split.get("reason"), *shared, *_list(split, "notices")]
        yield _accuracies(f"{title}, {name}", split, {"samples": split}, "samples", notes)


def _accuracies(
    title: str, content: Mapping[str, Any], samples: Mapping[str, Any], key: str, notes: list[object]
) -> AccuracyTable:
    """A table of the results under "probes" of `content`; `samples[key]` says of how many samples they are."""
    cells: dict[str, dict[str, str]] = {}
    for result in _list(content, "probes"):
        if not isinstance(result, dict) or not isinstance(accuracy := result.get("accuracy"), float):
            continue
        labels = result.get("labels_per_class")
        case = ", ".join(filter(None, (str(result.get("probe") or ""), f"{labels} a class" if labels else "all labels")))
        row = cells.setdefault(str(result.get("features")), {})
        first = row is next(iter(cells.values()))
        row[case] = f"{accuracy:.3f}" + (_interval(result.get("interval")) if first else "")
    counts = table_in(samples, key)
    if cells and {"train", "test"} <= counts.keys():
        title += f": {counts['train']} training, {counts['test']} test samples"
    cases = list(next(iter(cells.values()), {}))
    lines = [line for note in notes if isinstance(note, str) for line in note.splitlines() if line]
    return AccuracyTable(title, lines, cases, [(name, [row.get(case, "–") for case in cases]) for name, row in cells.items()])


def _interval(value: object) -> str:
    ends = value if isinstance(value, list) and len(value) == 2 else []
    known = len(ends) == 2 and all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends)
    return f" ({ends[0]:.2f}–{ends[1]:.2f})" if known else ""


def table_in(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _list(content: Mapping[str, Any], key: str) -> list[Any]:
    value = content.get(key)
    return value if isinstance(value, list) else []
