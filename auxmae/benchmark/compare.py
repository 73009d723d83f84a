"""Two benchmarks side by side: what became slower, what faster, what is the same within the spread."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from auxmae.benchmark.measure import Key
from auxmae.benchmark.ratios import BASES, FEWEST, Ratio, ratios
from auxmae.benchmark.session import is_chosen
from auxmae.benchmark.suites import OURS
from auxmae.errors import DataError

NO_SPREAD = "no spread"
ANOTHER_SIZE = "another size"
OF_A_BASE = "of what the others are compared with, a ratio cannot tell load from a change of its own"
# What a row holds besides what identifies it and its times, if it is to be shown; of some suites more.
_SHOWN = ("peak_bytes", "images_per_second")
_SHOWN_OF = {"kernels": ("backend",), "scaling": ("axis", "sizes")}
# Part by which a median may differ from that of its samples: a document may have been rounded.
ROUNDED = 1e-6


@dataclass(frozen=True)
class Change:
    """One measurement in both documents; ms before and after, None where there is no figure.

    Attributes:
        key: suite, case, provider, pass.
        verdict: "slower" and "faster" beyond the threshold and the spread of both, "the same" (a ratio to the provider that it is
            compared with must have changed so too, where both documents have it: load slows both down); "undecided" (the time
            of one that the others are compared with changed so: their ratios decide); "lost" (a figure before, none now,
            although it was to be measured); "not measured after", "not measured before", "not measured" (no figure in
            either); "another machine", whose times say nothing; "another size", or type, which no ratio makes comparable.
        reason: why it was lost or is undecided; or that a verdict rests on the threshold alone.
    """

    key: Key
    before: float | None
    after: float | None
    verdict: str
    reason: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.before is None or self.after is None else self.after / self.before


def read_document(path: Path, *, shown: bool = False) -> dict[str, Any]:
    """A document that `auxmae benchmark --output` wrote.

    Args:
        path: the file.
        shown: it is to be shown, for which its rows hold more than for a comparison.

    Raises:
        DataError: it cannot be read, is something else, or has a median that its samples do not have, or another value that
            none has.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: no JSON: {error}", hint="give a file that `auxmae benchmark --output` wrote") from error
    other = _other_kind(document)
    if other is not None:
        raise DataError(f"{path}: {other[0]}, not one of a benchmark", hint=other[1])
    rows = document.get("rows") if isinstance(document, dict) else None
    whole = isinstance(rows, list) and all(
        isinstance(row, dict) and {"suite", "case", "provider", "pass", "median_ms", "samples_ms"} <= row.keys() for row in rows
    )
    if not whole:
        raise DataError(f"{path}: no benchmark's document", hint="give a file that `auxmae benchmark --output` wrote")
    if not all(isinstance(document.get(key, {}), dict | None) for key in ("device", "versions", "ceilings", "intended")):
        raise DataError(f"{path}: no benchmark's document", hint="give a file that `auxmae benchmark --output` wrote")
    for row in document["rows"]:
        fault = _fault(row, shown=shown)
        if fault is not None:
            place = " · ".join(str(row[key]) for key in ("suite", "case", "provider", "pass"))
            raise DataError(
                f"{path}: damaged: the {fault[0]} of {place} {fault[1]}",
                hint="measure again; `auxmae benchmark --output` writes no such file",
            )
    return dict(document)


def _fault(row: dict[str, Any], *, shown: bool) -> tuple[str, str] | None:
    """Which entry of a row cannot be, and why; None where all can."""
    if not _is_median(row["median_ms"], row["samples_ms"]):
        return "median_ms", "is not the median of its samples_ms"
    if not all(0 < sample < math.inf for sample in row["samples_ms"]):
        return "samples_ms", "are not all times above 0"
    if row["suite"] not in [*BASES]:
        return "suite", f"is none of {', '.join(BASES)}"
    for key in ("case", "provider", "pass"):
        if not isinstance(row[key], str):
            return key, "is no text"
    length = row.get("samples_a_visit", 1)
    if not isinstance(length, int) or (length < 1 and row["samples_ms"]):
        return "samples_a_visit", "is no number of samples"
    more = [
        *(("status", "reason") if row["median_ms"] is None else ()),
        *(("parameters",) if row["suite"] == "model" and row.get("flops") is not None else ()),
    ]
    for key in (*_SHOWN, *_SHOWN_OF.get(row["suite"], ()), *more) if shown else ():
        if key not in row:
            return key, "is missing"
    for key in ("peak_bytes", "images_per_second"):
        if not isinstance(row.get(key), int | float | None):
            return key, "is no number"
    return None


def _other_kind(document: Any) -> tuple[str, str] | None:
    """What another document of this project is, and what shows it; None for all else."""
    keys = document.keys() if isinstance(document, dict) else set()
    if keys >= {"arguments", "trainings"}:
        return (
            "a document of representation.py",
            '`python benchmarks/representation.py` with its "arguments" makes and prints it; read it as JSON',
        )
    if "rows" not in keys and "split" in keys:
        return (
            "an eval.json document",
            "`auxmae eval RUN` makes it and prints its figures; read it as JSON",
        )
    return None


def _is_median(value: Any, samples: Any) -> bool:
    if not isinstance(samples, list) or not all(isinstance(number, int | float) for number in (*samples, value or 0)):
        return False
    if not samples or value is None:
        return not samples and value is None
    return math.isclose(value, median(samples), rel_tol=ROUNDED)


def compare(before: dict[str, Any], after: dict[str, Any], threshold: float) -> list[Change]:
    """Every measurement of either document; `threshold` is the part by which a median may grow on the same machine."""
    comparable = same_machine(before, after)
    old, new = _by_key(before), _by_key(after)
    beside = {key: (one, two) for key, one, two in agreement(before, after) if one.agrees(two) is not None}
    bases = {(suite, case, BASES[suite], pass_) for suite, case, _, pass_ in beside}
    return [
        _change(
            key, old.get(key), new.get(key), threshold if comparable else None, beside.get(key),
            missed=_is_missed(key, after), is_base=key in bases,
        )
        for key in dict.fromkeys([*old, *new])
    ]  # fmt: skip


def _by_key(document: dict[str, Any]) -> dict[Key, dict[str, Any]]:
    return {(row["suite"], row["case"], row["provider"], row["pass"]): row for row in document["rows"]}


def _same_work(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two rows are of one size and type, as far as both tell; documents of before tell less."""
    one, two = (
        {name: row[name] for name in ("batch", "dtype", "shapes") if name in row} | row.get("sizes", {}) | row.get("key", {})
        for row in (old, new)
    )
    return all(one[name] == two[name] for name in one.keys() & two.keys())


def _is_missed(key: Key, document: dict[str, Any]) -> bool:
    """Whether a document lacks a pass of a case that it was to measure: by ours, which no option leaves out, or by everyone.

    Another provider may well be missing: options say which there are.
    """
    suite, case, provider, pass_ = key
    rows = document["rows"]
    if document.get("intended") is not None:
        asked = case in document["intended"].get(suite, ())
    else:
        # Documents of before they told what was asked for hold at least something of each suite.
        asked = suite in document.get("suites", [row["suite"] for row in rows]) and is_chosen(case, document.get("cases", ()))
    found = [row["provider"] for row in rows if (row["suite"], row["case"], row["pass"]) == (suite, case, pass_)]
    return asked and (OURS not in found if provider == OURS else not found)


def _change(
    key: Key,
    old: dict[str, Any] | None,
    new: dict[str, Any] | None,
    threshold: float | None,
    beside: tuple[Ratio, Ratio] | None,
    *,
    missed: bool,
    is_base: bool,
) -> Change:
    before, after = (None if row is None else row["median_ms"] for row in (old, new))
    if old is not None and new is not None and not _same_work(old, new):
        return Change(key, before, after, ANOTHER_SIZE)
    if after is None or new is None:
        if before is None:
            return Change(key, None, None, "not measured")
        if new is None:
            return Change(key, before, None, *(("lost", "not measured") if missed else ("not measured after", "")))
        return Change(key, before, None, "lost", f"{new.get('status')}: {new.get('reason')}")
    if before is None or old is None:
        return Change(key, None, after, "not measured before")
    if threshold is None:
        return Change(key, before, after, "another machine")
    unsure = min(len(old["samples_ms"]), len(new["samples_ms"])) < FEWEST
    apart = unsure or not _overlap(_visit_medians(old), _visit_medians(new))
    growth = [after / before]
    if beside is not None:
        one, two = beside
        # The providers took turns, so what slowed all of them down is not in the ratio.
        apart, growth = not one.agrees(two), [*growth, two.value / one.value]
    slower = apart and min(growth) > 1 + threshold
    faster = apart and 1 / max(growth) > 1 + threshold
    if not (slower or faster):
        return Change(key, before, after, "the same")
    if is_base:
        return Change(key, before, after, "undecided", OF_A_BASE)
    return Change(key, before, after, "slower" if slower else "faster", NO_SPREAD if unsure else "")


def _visit_medians(row: dict[str, Any]) -> list[float]:
    """The median of each visit, whose rounds are alike; of one visit its rounds."""
    samples = row["samples_ms"]
    length = row.get("samples_a_visit") or len(samples)
    medians = [median(samples[start : start + length]) for start in range(0, len(samples), length)]
    return medians if len(medians) > 1 else samples


def _overlap(one: list[float], other: list[float]) -> bool:
    """Whether the middle halves of two sets of samples touch."""
    return _quartiles(one)[0] <= _quartiles(other)[1] and _quartiles(other)[0] <= _quartiles(one)[1]


def _quartiles(samples: list[float]) -> tuple[float, float]:
    """The outermost of the middle half of the samples; with three or fewer of all."""
    ordered = sorted(samples)
    cut = len(ordered) // 4
    return ordered[cut], ordered[-1 - cut]


def agreement(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[Key, Ratio, Ratio]]:
    """What both documents measured at one size beside its base, with the ratio of times in either: unlike times, ratios of
    different machines and days can be compared.
    """
    old, new, rows, others = ratios(before), ratios(after), _by_key(before), _by_key(after)
    return [(key, old[key], new[key]) for key in old if key in new and _same_work(rows[key], others[key])]


def same_machine(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether the times of two documents can be compared: device, threads, and what multiplies matrices are the same."""
    one, two = (document.get("device") or {} for document in (before, after))
    # Older documents do not have the last two.
    told = [key for key in ("processor", "products") if key in one and key in two]
    return all(one.get(key) == two.get(key) for key in ("type", "name", "threads", *told))


def grown(pairs: list[tuple[Key, Ratio, Ratio]], threshold: float) -> list[tuple[Key, Ratio, Ratio]]:
    """The pairs of `agreement` whose ratio grew beyond the threshold and the spread of both: slower, whatever the machines."""
    return [pair for pair in pairs if pair[1].agrees(pair[2]) is False and pair[2].value > pair[1].value * (1 + threshold)]


def regressions(changes: list[Change]) -> list[Change]:
    """What became slower or was lost."""
    return [change for change in changes if change.verdict in ("slower", "lost")]
