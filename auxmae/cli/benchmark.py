"""`auxmae benchmark`: kernels, model, scaling and data, beside other ways to do the same work."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from auxmae.cli.console import console, print_json
from auxmae.errors import AuxMAEError, DataError, MissingDependencyError, UsageError
from auxmae.places import expanded
from auxmae.writing import write_text

if TYPE_CHECKING:
    import torch

    from auxmae.benchmark.ratios import Ratio
    from auxmae.settings.schema import SettingsTree

_SUITES = ("kernels", "model", "scaling", "data")
# Suites that heed an option which not all of them do, by its parameter's name.
_HEEDED_BY = {
    "batch_size": ("model",),
    "channels": ("model",),
    "compile_": ("kernels", "model"),
    "data": ("data",),
    "recompute": ("model",),
}


def command(
    context: typer.Context,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", help="kernels, model, scaling, data or all; may be given again. Default: model."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small cases that take seconds.")] = False,
    case: Annotated[
        list[str] | None, typer.Option("--case", help="Measure cases of this name only: a part of it, or a pattern with *.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images a step, in the model suite.")] = None,
    channels: Annotated[int | None, typer.Option("--channels", min=1, help="Channels of the model suite's images.")] = None,
    visits: Annotated[
        int | None, typer.Option("--visits", min=1, help="Times that everything is built anew. Default: 7, with --quick 3.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Rounds of a visit; the providers take turns in each.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile", help="Measure compiled providers too.")] = False,
    recompute: Annotated[bool, typer.Option("--recompute", help="Measure recomputed activations too.")] = False,
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    data: Annotated[
        str | None, typer.Option("--data", help="Images of the data suite; else those of ./auxmae.toml, else the embedded ones.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=expanded, metavar="PATH", help="Write the JSON document to this file too."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", parser=expanded, metavar="PATH", help="Draw PNG figures and one HTML page into this folder."),
    ] = None,
    recorded: Annotated[
        Path | None,
        typer.Option(
            "--from", parser=expanded, metavar="PATH", help="Measure nothing; show and draw a document that --output wrote."
        ),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", parser=expanded, metavar="BEFORE AFTER", help="Measure nothing; compare two documents."),
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", min=0, help="Part by which a time may grow, for --compare.")] = 0.1,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")] = False,
) -> None:
    """Measure speed and memory against other ways to do the same work."""
    if compare is not None:
        _refuse(context, lambda name: name not in ("compare", "threshold", "json_output"), "with --compare")
        if threshold == math.inf:
            raise UsageError("--threshold inf: not a number", hint="give the part by which a time may grow, such as 0.1")
        _compare(*compare, threshold, json_output)
        return
    if recorded is not None:
        _refuse(context, lambda name: name not in ("recorded", "figures", "json_output"), "with --from")
        from auxmae.benchmark.compare import read_document

        if figures is not None:
            _check_folder(figures)
        _show(read_document(recorded, shown=True), figures, json_output)
        return
    chosen = _suites(suite or ["model"])
    _refuse(context, lambda name: name == "threshold", "without --compare")
    _refuse(context, lambda name: not {*_HEEDED_BY.get(name, chosen)} & {*chosen}, f"in the suite {', '.join(chosen)}")
    if output is not None:
        _check_writable(output)
    if figures is not None:
        _check_folder(figures)

    from auxmae_kernels import KernelUnavailableError

    from auxmae.benchmark.session import Request, run, wrong_providers
    from auxmae.device import check_backend, make_current, select_device

    target = select_device(device)
    make_current(target)
    check_backend()
    request = Request(
        suites=chosen,
        quick=quick,
        patterns=case or (),
        visits=visits or (3 if quick else 7),
        repeats=repeats,
        batch_size=batch_size,
        channels=channels,
        compile_too=compile_,
        recompute_too=recompute,
        dtype=_dtype(precision, target),
        settings=_settings(data) if "data" in chosen else None,
    )
    progress = console(json_output=True)
    try:
        document = run(
            request,
            target,
            lambda text: progress.print(text, highlight=False),
            record=None if output is None else partial(_record, output),
        )
    except KernelUnavailableError as error:
        raise AuxMAEError(str(error)) from error
    _show(document, figures, json_output)
    wrong = wrong_providers(document)
    if wrong:
        console(json_output=json_output).print(
            f"Wrong, and without figures: {', '.join(wrong)}.", highlight=False, style="red", soft_wrap=True
        )
        raise typer.Exit(1)


def _refuse(context: typer.Context, useless: Callable[[str], bool], where: str) -> None:
    """Raises UsageError where an option was given that has no effect; `useless` is told the parameter's name."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE" and useless(name):
            raise UsageError(f"{parameter.opts[0]} has no effect {where}", hint="leave it out")


def _suites(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in (*_SUITES, "all"):
            raise UsageError(f"there is no suite {name!r}", hint=f"one of {', '.join(_SUITES)}, all")
    return _SUITES if "all" in names else tuple(name for name in _SUITES if name in names)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    import torch

    from auxmae.training.optimization import autocast_dtype

    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise UsageError(f"there is no precision {precision!r}", hint="one of auto, fp32, bf16, fp16")
    return autocast_dtype(precision, device) or torch.float32


def _settings(data: str | None) -> SettingsTree:
    from auxmae.settings import load_settings

    return load_settings(None, options={} if data is None else {"data.source": data}).settings


def _record(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def _check_writable(path: Path) -> None:
    """Raises AuxMAEError where the file could not be written; leaves what is there as it is."""
    try:
        existed = path.exists()
        with path.open("a", encoding="utf-8"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        raise AuxMAEError(
            f"{path}: cannot be written: {error.strerror}", hint="give --output a file in a folder where you may write"
        ) from error


def _check_folder(path: Path) -> None:
    """Raises AuxMAEError where no figure could be written into the folder; makes it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "--figures needs matplotlib, which is not installed",
            hint="pip install matplotlib, or draw later, where it is: auxmae benchmark --from FILE --figures FOLDER",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuxMAEError(
            f"{path}: cannot be written: {error.strerror}", hint="give --figures a folder where you may write"
        ) from error
    _check_writable(path / "benchmark.html")


def _show(document: dict[str, Any], figures: Path | None, json_output: bool) -> None:
    """Figures, then the document as JSON or as tables and in words."""
    from rich.measure import Measurement

    from auxmae.cli.benchmark_tables import MAX_WIDTH, MIN_WIDTH, sentences, tables

    if figures is not None:
        from auxmae.visuals.benchmark import draw

        for path in draw(document, figures):
            console(json_output=True).print(f"wrote {path}", highlight=False, soft_wrap=True)
    if json_output:
        print_json(document)
        return
    wide = console()
    # In a narrower terminal the lines run on instead of losing figures; a wider one is no reason for longer lines.
    width = min(max(wide.width, MIN_WIDTH), MAX_WIDTH)
    for table in tables(document["rows"], str((document.get("device") or {}).get("type", "an unknown device"))):
        # Long names of providers take more.
        wide.width = max(width, Measurement.get(wide, wide.options.update(max_width=2 * MAX_WIDTH), table).maximum)
        wide.print(table, highlight=False)
        wide.print()
    out = console()
    for sentence in sentences(document):
        out.print(sentence, highlight=False)


def _compare(before: Path, after: Path, threshold: float, json_output: bool) -> None:
    from auxmae.benchmark.compare import (
        ANOTHER_SIZE,
        NO_SPREAD,
        OF_A_BASE,
        agreement,
        compare,
        grown,
        read_document,
        regressions,
        same_machine,
    )

    old, new = read_document(before), read_document(after)
    changes = compare(old, new, threshold)
    if not changes:
        raise UsageError(f"{before} and {after} hold no measurement")
    bad, pairs = regressions(changes), agreement(old, new)
    lost = len([change for change in bad if change.verdict == "lost"])
    slower = len(bad) - lost
    count = len([change for change in changes if change.ratio is not None and change.verdict != ANOTHER_SIZE])
    other_machine = not same_machine(old, new)
    if other_machine:
        count = len([pair for pair in pairs if pair[1].agrees(pair[2]) is not None])
        slower = len(grown(pairs, threshold))
    if json_output:
        print_json(
            {
                "threshold": threshold,
                "compared": count,
                "regressions": slower + lost,
                "changes": [asdict(change) for change in changes],
                "ratios": [
                    {"key": key, "before": _ratio(one), "after": _ratio(two), "agree": one.agrees(two)} for key, one, two in pairs
                ],
            }
        )
    else:
        from auxmae.cli.benchmark_tables import MAX_WIDTH, MIN_WIDTH, comparison, ratio_words, unmeasured_words

        wide = console()
        wide.width = min(max(wide.width, MIN_WIDTH), MAX_WIDTH)
        wide.print(comparison(changes), highlight=False)
        if other_machine:
            wide.print(
                "Another device, other threads, or another library of matrix products: not times but ratios are compared.",
                highlight=False,
            )
        for line in unmeasured_words(changes):
            wide.print(line, highlight=False, style="red" if line.startswith("Lost") else None)
        wide.print(
            f"{count} compared, {slower} regressions beyond {100 * threshold:g}% and beyond the spread, {lost} lost.",
            highlight=False,
        )
        unsure = len([change for change in changes if change.reason == NO_SPREAD])
        if unsure:
            wide.print(
                f"{unsure} of the verdicts rest on the threshold alone: fewer than three samples have no spread.", highlight=False
            )
        undecided = len([change for change in changes if change.verdict == "undecided"])
        if undecided:
            wide.print(f"{undecided} undecided: {OF_A_BASE}.", highlight=False)
        for line in ratio_words(pairs):
            wide.print(line, highlight=False)
    if not count:
        why, remedy = _why_nothing([change.verdict for change in changes if change.ratio is not None], bool(pairs))
        raise DataError(f"{before} and {after}: nothing was compared, for {why}", hint=remedy)
    if slower or lost:
        raise typer.Exit(1)


def _why_nothing(verdicts: Sequence[str], has_ratios: bool) -> tuple[str, str]:
    """Why no two figures could be compared, and what to do.

    Args:
        verdicts: of those figures that are in both documents.
        has_ratios: whether both documents hold ratios of the same providers.
    """
    from auxmae.benchmark.compare import ANOTHER_SIZE

    if not verdicts:
        return "no measurement has a figure in both", "measure the same suites and cases for either"
    if set(verdicts) == {ANOTHER_SIZE}:
        return "all that is in both was measured at other sizes or types", "measure with the same --batch-size, sizes and types"
    machines = "they are of different machines, of which only ratios are compared, and "
    if not has_ratios:
        return machines + "no provider was measured beside the same other one", "measure the same providers in either"
    return machines + "those of fewer than three samples have no spread", "measure with --visits 3 or more"


def _ratio(ratio: Ratio) -> dict[str, Any]:
    low, high = ratio.interval or (None, None)
    return asdict(ratio) | {"low": low, "high": high}
