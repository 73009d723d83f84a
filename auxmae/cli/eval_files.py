"""What `auxmae eval` leaves in the run folder: pictures and maps, and eval.json."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auxmae.errors import AuxMAEError

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import RunFolder

# Each is measured on request alone, and takes minutes.
_SECTIONS = ("finetuning", "robustness", "dense", "across_scenes")
# The latter two are of pixels, and depend on the labels to test on too.
_OF_PIXELS = _SECTIONS[2:]
# What decides, beside the data, which images are held out and how they are masked.
_HELD_OUT = (
    ("data", "split"),
    ("data", "group_pattern"),
    ("data", "validation_fraction"),
    ("data", "test_fraction"),
    ("data", "block_size"),
    ("train", "seed"),
    ("eval", "mask_seed"),
    ("eval", "max_images"),
)


def attempt(write: Callable[[], Path], unwritten: list[Path], path: Path, out: Console) -> str | None:
    """Writes a picture or map: the figures, which are worth more, come out even where that fails.

    Args:
        write: what writes it.
        unwritten: gets `path` where it fails, which is said on one line.
        path: of the file.
        out: where to say it.

    Returns:
        The path for the document; None where it failed.
    """
    try:
        write()
    except AuxMAEError as error:
        unwritten.append(path)
        out.print(f"Not written: {error.message}", style="yellow", highlight=False, soft_wrap=True)
        return None
    return str(path)


def are_own_images(own: SettingsTree, used: SettingsTree) -> bool:
    """Whether an evaluation is of the images, parts and masks that result.json is of."""
    from auxmae.run_data import describe_reading

    return describe_reading(own.data) == describe_reading(used.data) and all(
        getattr(getattr(own, table), key) == getattr(getattr(used, table), key) for table, key in _HELD_OUT
    )


def take_earlier(
    folder: RunFolder, document: dict[str, Any], out: Console, *, dense: bool, digest_test_labels: Callable[[str], str | None]
) -> dict[str, Any]:
    """The eval.json that is there, where it is of the same model, files, labels, split and [eval]; else nothing.

    One of others is set aside under another name, and so are its pictures and maps, whose names the next ones get: to be called
    before these are written, and again before eval.json is, since another call may have written one meanwhile.  So is a copy of
    it with the pixels that --dense measured, which are then no longer in it, where the labels to test on have become others.

    Args:
        folder: the run.
        document: of this call, as far as it is measured; the pictures and maps that it names are this call's, and stay.
        out: where to say what is set aside.
        dense: whether this call measures pixels, or has, on the test labels that `document` names.
        digest_test_labels: digest of the test labels of a name as they are now; None where they cannot be read.
    """
    path = folder.path / "eval.json"
    earlier: dict[str, Any] = {}
    what = ""
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if _identity(earlier) != _identity(document):
            what = "of another model, other data or other settings"
    except KeyError:
        what = "of an earlier version, which does not say all that it is of,"
    except (OSError, ValueError, TypeError):
        earlier, what = {}, "that cannot be read"
    if not what:
        same = "dense" not in earlier or _same_test_labels(earlier, document if dense else None, digest_test_labels)
        return earlier if same else _set_pixels_aside(folder, earlier, document, out)
    if path.is_file():
        stamp = _stamp(path)
        aside = path.with_name(f"eval-{stamp}.json")
        try:
            path.rename(aside)
            if earlier:
                _set_files_aside(folder, earlier, stamp, document)
                folder.write_json(aside.name, earlier)
        except OSError:
            return {}  # a run folder may be read-only
        out.print(f"The eval.json {what} is kept as {aside}", highlight=False, soft_wrap=True)
    return {}


def _stamp(path: Path) -> str:
    return time.strftime("%Y-%m-%d-%H%M%S", time.localtime(path.stat().st_mtime))


def _same_test_labels(
    earlier: dict[str, Any], document: dict[str, Any] | None, digest_test_labels: Callable[[str], str | None]
) -> bool:
    """Whether pixels were tested on the labels of `document`, or, where it is None, on labels that are still what they were."""
    name, digest = _test_labels(earlier)
    if document is not None:
        return (name, digest) == _test_labels(document)
    return name is None or (digest is not None and digest == digest_test_labels(name))


def _test_labels(document: dict[str, Any]) -> tuple[str | None, str | None]:
    """Name and digest of the labels that pixels were tested on; None where these are of the labels to train on."""
    details = document["details"]
    return details.get("test_labels"), details["digests"].get("test_labels")


def _set_pixels_aside(folder: RunFolder, earlier: dict[str, Any], document: dict[str, Any], out: Console) -> dict[str, Any]:
    """Keeps a document, with its maps, under another name → what is left of it without the pixels."""
    rest = {name: value for name, value in earlier.items() if name not in _OF_PIXELS}
    path = folder.path / "eval.json"
    stamp = _stamp(path)
    try:
        _set_files_aside(folder, {"dense": earlier["dense"]}, stamp, document)
        aside = folder.write_json(f"eval-{stamp}.json", earlier)
        folder.write_json(path.name, rest)
    except OSError:
        return rest  # a run folder may be read-only
    out.print(f"What --dense measured with other test labels is kept in {aside}", highlight=False, soft_wrap=True)
    return rest


def _set_files_aside(folder: RunFolder, document: dict[str, Any], stamp: str, own: dict[str, Any]) -> None:
    """Renames the pictures and maps of a document, in the folder and in it; those that `own` names too are written over."""
    over = {path for *_, path in _files(folder, own)}
    for part, key, path in _files(folder, document):
        aside = path.with_stem(f"{path.stem}-{stamp}")
        if path in over:
            part[key] = None
            continue
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            part[key] = str(aside)


def _files(folder: RunFolder, document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Path]]:
    """The pictures and maps of a document: the part of it and the key that name one, and where it lies."""
    for part in (document.get("robustness"), *document.get("dense", {}).values()):
        for key, place in (("map", folder.path / "maps"), ("figure", folder.figures)):
            if isinstance(part, dict) and part.get(key) is not None:
                yield part, key, place / Path(part[key]).name  # the run folder may have been moved since


def with_earlier_sections(document: dict[str, Any], earlier: dict[str, Any], out: Console) -> dict[str, Any]:
    """The document, and what `earlier`, from `take_earlier`, holds beyond it; so too the scenes that a call did not come to."""
    kept = {name: earlier[name] for name in _SECTIONS if name in earlier and name not in document}
    said = list(kept)
    name, digest = _test_labels(earlier) if "dense" in kept else (None, None)
    if name is not None:
        # Which pixels the section is of.
        details = document["details"]
        details = {**details, "test_labels": name, "digests": {**details["digests"], "test_labels": digest}}
        document = {**document, "details": details}
    if "dense" in document and (scenes := [scene for scene in earlier.get("dense", {}) if scene not in document["dense"]]):
        kept["dense"] = {**earlier["dense"], **document["dense"]}
        said.append(f"dense of {', '.join(scenes)}")
    if said:
        text = f"Kept from an earlier call on the same model and data: {', '.join(said)}"
        out.print(text, highlight=False, soft_wrap=True)
    return {**document, **kept}


def _identity(document: dict[str, Any]) -> list[Any]:
    details = document["details"]
    digests = [details["digests"][name] for name in ("files", "labels")]
    return [document["split"], digests, *(details[name] for name in ("model", "settings", "channels", "eval"))]
