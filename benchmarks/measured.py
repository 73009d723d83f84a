"""Writes dispatch's table of measured wins from recorded benchmarks.

    python benchmarks/measured.py benchmarks/results/*-kernels*.json

For every function, architecture, type and class of sizes it takes the kernel suite's rows of all documents.  The Triton kernel
is entered where it won in every one of them, forward and backward together, against the best of PyTorch's providers, and beyond
the spread: its slowest sample is faster than the other's fastest.  Compiled and eager code and each back end of SDPA count.
Two conclusions are drawn from that.  An attention sublayer that was not measured is entered where its attention won, and where
sublayers of its width and heads did: the rest of them is the same.  And where it won for two classes that differ in one size
alone, and nothing between them was measured, it is entered for those too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent.parent / "kernels" / "auxmae_kernels" / "measured.json"
TRITON, OURS = "triton", "auxmae"
# What training does; a forward pass alone that loses must not hide behind it.
PASSES = ("forward", "both")
# What a row says about its inputs besides the sizes that dispatch asks about.
NOT_ASKED = ("slots",)

Row = dict[str, Any]


def kernel_rows(documents: Iterable[dict[str, Any]]) -> list[list[Row]]:
    """The kernel suite's rows, one list for each case and pass of each document."""
    groups: list[list[Row]] = []
    for document in documents:
        cases: dict[tuple[str, str], list[Row]] = {}
        for row in document.get("rows", []):
            if row.get("suite") == "kernels" and row["pass"] in PASSES:
                cases.setdefault((row["case"], row["pass"]), []).append(row)
        groups += cases.values()
    return groups


def speedup(rows: list[Row]) -> float | None:
    """Of Triton over the best other provider of one case and pass; below 1 where it did not win beyond the spread.

    None where there was nothing to compare: Triton was not measured, or is all there is.
    """
    triton = next((row for row in rows if row["provider"] == TRITON), None)
    others = [
        row for row in rows
        if row["provider"] != TRITON and not (row["provider"] == OURS and row["backend"] == "triton")
        and row["median_ms"] is not None
    ]  # fmt: skip
    if triton is None or not others:
        return None
    if triton["median_ms"] is None:
        # Wrong, or it did not run: that is no win, and no other case of the class may say so.
        return 0.0
    best = min(others, key=lambda row: float(row["median_ms"]))
    ratio = float(best["median_ms"]) / float(triton["median_ms"])
    beyond = all(max(triton["samples_ms"]) < min(row["samples_ms"]) for row in others)
    return ratio if beyond else min(ratio, 0.99)


def _class_of(row: Row) -> str:
    """Sizes count as alike up to the next power of two, as they do for dispatch."""
    key = {
        name: (value - 1).bit_length() if isinstance(value, int) else value
        for name, value in row["key"].items()
        if name not in NOT_ASKED
    }
    return json.dumps([row["function"], row["arch"], row["dtype"], key], sort_keys=True)


Found = dict[str, tuple[Row, float]]


def _composed(found: Found) -> Found:
    """Attention sublayers of which all parts won, and which were not measured themselves; the lesser of the two speed-ups."""
    concluded: Found = {}
    won = [(json.loads(name), row, gain) for name, (row, gain) in found.items() if gain > 1]
    blocks = [(place, key, row, gain) for (function, *place, key), row, gain in won if function == "attention_block"]
    for (function, *place, key), row, gain in won:
        for block_place, block_key, block_row, block_gain in blocks if function == "axial_attention" else ():
            if place == block_place and key["head_dim"] == block_key["head_dim"]:
                name = _named("attention_block", *place, {**key, "width": block_key["width"]})
                new_row = {**row, "function": "attention_block", "key": {**row["key"], "width": block_row["key"]["width"]}}
                least = min(gain, block_gain, concluded[name][1] if name in concluded else gain)
                if name not in found:
                    concluded[name] = (new_row, least)
    return concluded


def _between(found: Found) -> Iterator[tuple[Row, float]]:
    """Rows of classes between two that won, and the lesser of their speed-ups; a size there stands for its power of two."""
    for one, (row, gain) in found.items():
        function, arch, dtype, key = json.loads(one)
        for name in (name for name, value in key.items() if isinstance(value, int)):
            higher = [size for size in range(key[name] + 1, 64) if _named(function, arch, dtype, {**key, name: size}) in found]
            if not higher:
                continue
            _, other = found[_named(function, arch, dtype, {**key, name: higher[0]})]
            if min(gain, other) > 1:
                for size in range(key[name] + 1, higher[0]):
                    yield {**row, "key": {**row["key"], name: 2**size}}, min(gain, other)


def _named(*parts: Any) -> str:
    return json.dumps([*parts], sort_keys=True)


def table(documents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries {"function", "arch", "dtype", "key", "speedup"}; the speed-up is the least that was measured in the class."""
    classes: dict[str, list[tuple[Row, float]]] = {}
    for rows in kernel_rows(documents):
        found = speedup(rows)
        if found is not None:
            classes.setdefault(_class_of(rows[0]), []).append((rows[0], found))
    found = {name: min(members, key=lambda member: member[1]) for name, members in classes.items()}
    found |= _composed(found)
    entries = []
    for row, least in [*found.values(), *_between(found)]:
        if least > 1:
            key = {name: value for name, value in row["key"].items() if name not in NOT_ASKED}
            entries.append(
                {
                    "function": row["function"],
                    "arch": row["arch"],
                    "dtype": row["dtype"],
                    "key": key,
                    "speedup": round(least, 3),
                }
            )
    return sorted(entries, key=lambda entry: json.dumps(entry, sort_keys=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("documents", nargs="+", type=Path, help="what `auxmae benchmark --suite kernels --output` wrote")
    parser.add_argument("--output", type=Path, default=TABLE, help="the table; by default dispatch's own")
    arguments = parser.parse_args()
    documents = []
    for path in arguments.documents:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            print(f"error: {path}: cannot be read: {error}", file=sys.stderr)
            return 1
        if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
            print(f"error: {path}: no benchmark's document", file=sys.stderr)
            return 1
        documents.append(document)
    entries = table(documents)
    compared = sum(speedup(rows) is not None for rows in kernel_rows(documents))
    if not compared and arguments.output.resolve() == TABLE.resolve():
        # An empty table would take away what was measured before.
        print("error: these documents hold no comparison of a Triton kernel with PyTorch", file=sys.stderr)
        return 1
    try:
        arguments.output.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"error: {arguments.output}: cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {len(entries)} classes of sizes in which Triton won, from {compared} comparisons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
