"""What a benchmark found, for the terminal: tables, and the result in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from auxmae.benchmark.compare import Change
    from auxmae.benchmark.ratios import Ratio

Row = dict[str, Any]

# Columns that the tables may need, and the most that they take.
MIN_WIDTH, MAX_WIDTH = 80, 100
# Load over cores beyond which a machine was not quiet.
BUSY = 0.5
_PASSES = {"forward": "forward pass", "step": "training step", "backward": "backward pass", "both": "both", "batch": "a batch"}
_COLOURS = {"faster": "green", "less": "green", "slower": "red", "more": "red", "lost": "red"}


def tables(rows: list[Row], device: str) -> list[Table]:
    """One table for each case."""
    cases = dict.fromkeys((row["suite"], row["case"]) for row in rows)
    return [_table([row for row in rows if (row["suite"], row["case"]) == case], device) for case in cases]


def _title(row: Row, device: str) -> str:
    sizes = row.get("sizes")
    if not sizes:
        return f"{row['suite']}: {row['case']}, on {device}"
    return f"{row['case']}: {sizes['channels']} channels, {sizes['image_size']} px, batch {sizes['batch']}, on {device}"


def _table(rows: list[Row], device: str) -> Table:
    kernels = rows[0]["suite"] == "kernels"
    from auxmae.benchmark.ratios import base_of

    table = Table(
        title=_title(rows[0], device), box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False
    )  # fmt: skip
    for name in ("provider", "ms", "±", "% peak" if kernels else "images/s", "MiB", "time ×", "spread", "memory ×"):
        table.add_column(name, justify="left" if name == "provider" else "right", no_wrap=True)
    for name in dict.fromkeys(row["pass"] for row in rows):
        table.add_section()
        table.add_row(Text(_PASSES.get(name, name), "bold"))
        for row in rows:
            # A back end of SDPA that does not run here is no news; the document has its reason.
            if row["pass"] == name and not (kernels and row.get("status") == "failed" and row["provider"].startswith("sdpa")):
                _add(table, row, base_of(rows, row), kernels)
    return table


def _add(table: Table, row: Row, base: Row | None, kernels: bool) -> None:
    if row["median_ms"] is None:
        table.add_row(f"  {row['provider']}", Text(row["status"], "red"))
        return
    samples, peak = row["samples_ms"], row["peak_bytes"]
    compared = base is not None and peak is not None and base["peak_bytes"]
    found = None if base is None else _ratio(row, base)
    table.add_row(
        f"  {row['provider']}",
        _figure(row["median_ms"]),
        f"{50 * (max(samples) - min(samples)) / row['median_ms']:.0f}%" if len(samples) > 1 else "–",
        _share(row) if kernels else _figure(row["images_per_second"]),
        "–" if peak is None else f"{peak / 2**20:.0f}",
        "–" if found is None else Text(f"{found.value:.2f}", _COLOURS.get(found.verdict, "")),
        "–" if found is None or found.interval is None or row is base else f"{found.low:.2f}–{found.high:.2f}",
        Text(f"{peak / base['peak_bytes']:.2f}", _COLOURS.get(_memory(row, base), "")) if compared and base else "–",
    )


def _ratio(row: Row, base: Row) -> Ratio:
    from auxmae.benchmark.ratios import ratio

    return ratio(row, base)


def _share(row: Row) -> str:
    """The nearer of the two ceilings."""
    shares = [row[key] for key in ("flops_of_ceiling", "bytes_of_ceiling") if row.get(key) is not None]
    return f"{100 * max(shares):.0f}" if shares else "–"


def _figure(value: float) -> str:
    """At least three significant digits."""
    return (
        f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
    )


def _memory(row: Row, base: Row) -> str:
    # As it is shown: a difference that two decimals hide is none.
    ratio = round(row["peak_bytes"] / base["peak_bytes"], 2)
    return "less" if ratio < 1 else "more" if ratio > 1 else "the same"


def _memory_words(row: Row, base: Row) -> str:
    if row["peak_bytes"] is None or not base["peak_bytes"]:
        return ""
    return f" and {row['peak_bytes'] / base['peak_bytes']:.2f} × the memory ({_memory(row, base)})"


def sentences(document: dict[str, Any]) -> list[str]:
    """The result in words; losses are said like wins."""
    rows = document["rows"]
    said = []
    for suite, words in (("kernels", _kernel_words), ("model", _model_words), ("scaling", _scaling_words), ("data", _data_words)):
        own = [row for row in rows if row["suite"] == suite]
        said += words(own) if own else []
    said += _without_figures(rows)
    said += _left_out(document)
    device = document.get("device") or {}
    if device.get("load") and device.get("cores") and device["load"] > BUSY * device["cores"]:
        said.append(
            f"Other work was running on this machine when this run began (load {device['load']:.1f} on {device['cores']} cores): "
            "the figures scatter, and their spreads are what counts."
        )
    limits = document.get("ceilings")
    if limits:
        said.append(
            f"This machine's ceilings, measured in this run: {limits['copy_bytes_per_second'] / 1e9:.4g} GB/s (copy), "
            f"{limits['matmul_flops_per_second'] / 1e12:.3g} TFLOP/s (matrix product, {limits['dtype']}). "
            "Where other work slowed that down they are too low, and parts of them may exceed 100%."
        )
    return said


def _model_words(rows: list[Row]) -> list[str]:
    from auxmae.benchmark.ratios import base_of
    from auxmae.benchmark.suites import OURS

    said = []
    several = len({row["case"] for row in rows}) > 1
    for case, provider in dict.fromkeys((row["case"], row["provider"]) for row in rows):
        own = [row for row in rows if (row["case"], row["provider"]) == (case, provider) and row["median_ms"] is not None]
        pairs = [(row, base) for row in sorted(own, key=lambda row: row["pass"] != "step") if (base := base_of(rows, row))]
        if not provider.startswith(OURS) or not pairs:
            continue
        parts = [
            f"a {_PASSES.get(row['pass'], row['pass'])} takes {found.value:.2f} × the time ({found.verdict})"
            f"{_memory_words(row, base)}"
            for row, base, found in ((row, base, _ratio(row, base)) for row, base in pairs)
        ]
        parts[0] += " of the plain published design"
        said.append(f"{f'{case}, ' if several else ''}{provider}: {'; '.join(parts)}.")
    for case in dict.fromkeys(row["case"] for row in rows):
        beside = _peer_words([row for row in rows if row["case"] == case])
        said += [f"{case}, {words}" if several else words for words in beside]
    return said + _work_words(rows)


def _peer_words(rows: list[Row]) -> list[str]:
    """Of one case: ours beside the other peers; memory is said where it is more."""
    from auxmae.benchmark.suites import FUSED, JOINT, OURS

    measured = {(row["provider"], row["pass"]): row for row in rows if row["median_ms"] is not None}
    said = []
    for peer in (JOINT, FUSED):
        parts = []
        for pass_ in ("step", "forward"):
            own, base = measured.get((OURS, pass_)), measured.get((peer, pass_))
            if own is None or base is None:
                continue
            found = _ratio(own, base)
            part = f"a {_PASSES[pass_]} takes {found.value:.2f} × the time ({found.verdict})"
            known = own["peak_bytes"] is not None and base["peak_bytes"]
            if known and _memory(own, base) == "more":
                part += f" and uses {own['peak_bytes'] / base['peak_bytes']:.2f} × the memory"
            parts.append(part)
        if parts:
            said.append(f"{OURS} beside {peer}: {'; '.join(parts)}.")
    return said


def _work_words(rows: list[Row]) -> list[str]:
    """Parameters and arithmetic of every provider's training step, and what a GPU and its host do meanwhile."""
    said = []
    for row in rows:
        if row["pass"] != "step" or row.get("flops") is None:
            continue
        text = (
            f"{row['case']}, {row['provider']}: {row['parameters'] / 1e6:.3g} M parameters, "
            f"{row['flops'] / 1e9:.4g} GFLOP a training step"
        )
        if row.get("kernel_launches") is not None:
            text += f", {row['kernel_launches']} kernels"
            idle = row.get("device_idle_share"), row.get("host_idle_share")
            text += "".join(
                f", {who} idle {100 * part:.0f}%" for who, part in zip(("GPU", "host"), idle, strict=True) if part is not None
            )
        said.append(text + ".")
    return said


def _kernel_words(rows: list[Row]) -> list[str]:
    """In how many of the measurements ours is fastest, and in how many it is not."""
    from auxmae.benchmark.kernel_suite import EAGER, OURS, TRITON

    counts = {"faster": 0, "slower": 0, "neither": 0}
    # Over the eager reference where that is the same code.
    dispatched: list[float] = []
    for row in rows:
        if row["provider"] != OURS or row["median_ms"] is None:
            continue
        # Where dispatch takes PyTorch, the eager reference is the same code: no win and no loss.
        itself = {OURS, TRITON} | ({EAGER} if row["backend"] == "torch" else set())
        twin = next((other for other in _others(row, rows) if other["provider"] == EAGER), None)
        if EAGER in itself and twin is not None:
            dispatched.append(_ratio(row, twin).value)
        others = [other for other in _others(row, rows) if other["provider"] not in itself]
        if others:
            verdict = _ratio(row, min(others, key=lambda other: float(other["median_ms"]))).verdict
            counts[verdict if verdict in counts else "neither"] += 1
    said = []
    if sum(counts.values()):
        said.append(
            f"Of {sum(counts.values())} measurements, ours is faster than the best other provider in {counts['faster']}, slower "
            f"in {counts['slower']}, and neither (within the spread, the same, or too few samples) in {counts['neither']}."
        )
    if dispatched:
        said.append(
            "Where ours runs PyTorch, it is the eager provider's code behind the dispatch: it takes "
            f"{min(dispatched):.2f} to {max(dispatched):.2f} × its time, {statistics.median(dispatched):.2f} × in the median of "
            f"{len(dispatched)} measurements; what the dispatch costs a call weighs most on the shortest."
        )
    return said


def _others(row: Row, rows: list[Row]) -> list[Row]:
    """Every provider's figure of a row's case and pass."""
    same = [other for other in rows if (other["case"], other["pass"]) == (row["case"], row["pass"])]
    return [other for other in same if other["median_ms"] is not None]


def _scaling_words(rows: list[Row]) -> list[str]:
    from auxmae.benchmark.scaling import AXES, break_even, curves
    from auxmae.benchmark.suites import JOINT, OURS

    said = []
    for axis in AXES:
        lines = curves(rows, axis)
        if not lines.keys() >= {OURS, JOINT}:
            continue
        grows = f"As {axis} {'grows' if axis == 'width' else 'grow'}"
        crossing = break_even(rows, axis)
        if crossing is not None:
            said.append(f"{grows}, factorised attention is faster than joint attention from {crossing:.0f} on.")
            continue
        ours, joint = dict(lines[OURS]), dict(lines[JOINT])
        times = {size: joint[size] / ours[size] for size in sorted(ours.keys() & joint.keys())}
        if times:
            ahead = {"factorised" if time > 1 else "joint" for time in times.values()}
            told = dict.fromkeys((min(times), max(times)))
            which = f"{ahead.pop()} attention stays ahead" if len(ahead) == 1 else "joint attention gets ahead"
            if len(ahead) > 1 and times[min(times)] <= 1:
                # There is no size from which on one of them is ahead, so all are told.
                which, told = "neither attention stays ahead", dict.fromkeys(sorted(times))
            ends = [f"at {size} {times[size]:.2f} ×" for size in told]
            said.append(f"{grows}, {which}: joint attention takes {', '.join(ends)} our time.")
    return said + _scaling_memory_words(rows)


def _scaling_memory_words(rows: list[Row]) -> list[str]:
    from auxmae.benchmark.ratios import base_of
    from auxmae.benchmark.suites import OURS

    own = [row for row in rows if row["provider"] == OURS and row.get("peak_bytes")]
    found = [row["peak_bytes"] / base["peak_bytes"] for row in own if (base := base_of(rows, row)) and base["peak_bytes"]]
    if not found:
        return []
    more = len([ratio for ratio in found if round(ratio, 2) > 1])
    span = f"{min(found):.2f} to {max(found):.2f} × the memory of joint attention"
    return [f"Factorised attention uses {span}: more of it in {more} of {len(found)} cases."]


def _data_words(rows: list[Row]) -> list[str]:
    from auxmae.benchmark.data_suite import LOADER, MODEL, TOGETHER, limit

    cases = {case: [row for row in rows if row["case"] == case] for case in dict.fromkeys(row["case"] for row in rows)}
    whole = {LOADER, MODEL, TOGETHER}
    return [f"{case}: {limit(own)}." for case, own in cases.items() if {row["provider"] for row in own} >= whole]


def _without_figures(rows: list[Row]) -> list[str]:
    """Every provider that got no figure, and why; once for all its passes."""
    found = {
        (row["case"], row["provider"]): f"{row['case']}, {row['provider']}: {row['status']}: {row['reason']}"
        for row in rows
        if row["median_ms"] is None and not (row["status"] == "failed" and row["provider"].startswith("sdpa"))
    }
    return list(found.values())


def _left_out(document: dict[str, Any]) -> list[str]:
    """What a reader of the tables would take for all there is."""
    from auxmae.benchmark.suites import FUSED

    providers = {row["provider"] for row in document["rows"] if row["suite"] == "model"}
    versions = document.get("versions") or {}
    said = []
    if providers and FUSED not in providers and versions.get("transformers", "") is None:
        said.append(f"{FUSED}: not measured, for transformers was not installed (pip install 'auxmae[peers]').")
    if document.get("complete") is False:
        said.append("The benchmark was stopped before its end: these are the measurements that it had made.")
    return said


def comparison(changes: list[Change]) -> Table:
    """What two documents say about the same measurements; the changed ones first."""
    from auxmae.benchmark.compare import NO_SPREAD

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    for name in ("measurement", "before ms", "after ms", "×", "verdict"):
        table.add_column(name, justify="left" if name in ("measurement", "verdict") else "right", no_wrap=name != "measurement")
    for change in sorted(changes, key=lambda change: change.verdict == "the same"):
        before, after = ("–" if value is None else _figure(value) for value in (change.before, change.after))
        ratio = "–" if change.ratio is None else f"{change.ratio:.2f}"
        verdict = f"{change.verdict}, {NO_SPREAD}" if change.reason == NO_SPREAD else change.verdict
        table.add_row(" · ".join(change.key), before, after, ratio, Text(verdict, _COLOURS.get(change.verdict, "")))
    return table


def unmeasured_words(changes: list[Change]) -> list[str]:
    """What was lost, case for case with the reason; and how much was measured on one side only, or otherwise on the other."""
    from auxmae.benchmark.compare import ANOTHER_SIZE

    lost = [(*change.key[:2], change.reason) for change in changes if change.verdict == "lost"]
    said = [
        f"Lost: {suite} · {case}: {lost.count((suite, case, why))} figures: {why}" for suite, case, why in dict.fromkeys(lost)
    ]
    verdicts = [change.verdict for change in changes]
    counts = {name: verdicts.count(name) for name in ("not measured before", "not measured after")}
    counts["of another size or type"] = verdicts.count(ANOTHER_SIZE)
    return said + [f"{count} {words}, and not compared." for words, count in counts.items() if count]


def ratio_words(pairs: Sequence[tuple[tuple[str, ...], Ratio, Ratio]]) -> list[str]:
    """In how many comparisons two documents agree on the ratio of times, where they do not, and where nobody can tell."""
    known = [pair for pair in pairs if pair[1].agrees(pair[2]) is not None]
    apart = [pair for pair in known if not pair[1].agrees(pair[2])]
    unknown = [pair for pair in pairs if pair not in known]
    said = []
    if known:
        agreed = f"{len(known) - len(apart)} of {len(known)} agree within their spread."
        said += [f"Ratios to the provider that each is compared with: {agreed}", *map(_ratio_line, apart)]
        if any(ratio.visits == 1 for _, *both in known for ratio in both):
            said.append("Spreads of a single visit are those of its rounds, on the same tensors: two runs differ by more.")
    if unknown:
        said.append("Ratios that neither agree nor disagree, for fewer than three visits or rounds have no spread:")
        said += map(_ratio_line, unknown)
    return said


def _ratio_line(pair: tuple[tuple[str, ...], Ratio, Ratio]) -> str:
    key, *both = pair
    one, two = (f"{each.value:.2f}" + (f" ({each.low:.2f}–{each.high:.2f})" if each.interval else "") for each in both)
    return f"  {' · '.join(key)}: {one}, then {two}"
