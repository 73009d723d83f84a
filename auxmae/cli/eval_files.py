"""What `auxmae eval` leaves in the run folder: pictures and maps, and eval.json."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auxmae.errors import AuxMAEError

if TYPE_CHECKING:
    from rich.console import Console

    from auxmae.settings.schema import SettingsTree
    from auxmae.training.run import RunFolder

# Each is measured on request alone, and takes minutes.
_SECTIONS = ("finetuning", "robustness", "dense", "across_scenes")
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


def take_earlier(folder: RunFolder, document: dict[str, Any], out: Console) -> dict[str, Any]:
    """The eval.json that is there, where it is of the same model, files, labels, split and [eval]; else nothing.

    One of others is set aside under another name, and so are its pictures and maps, whose names the next ones get: to be called
    before these are written.
    """
    path = folder.path / "eval.json"
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if _identity(earlier) == _identity(document):
            return earlier
    except KeyError:
        pass  # of another version
    except (OSError, ValueError, TypeError):
        earlier = {}  # missing or broken
    if path.is_file():
        stamp = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(path.stat().st_mtime))
        aside = path.with_name(f"eval-{stamp}.json")
        try:
            path.rename(aside)
            if earlier:
                _set_files_aside(folder, earlier, stamp)
                folder.write_json(aside.name, earlier)
        except OSError:
            return {}  # a run folder may be read-only
        text = f"The eval.json of another model, other data or other settings is kept as {aside}"
        out.print(text, highlight=False, soft_wrap=True)
    return {}


def _set_files_aside(folder: RunFolder, document: dict[str, Any], stamp: str) -> None:
    """Renames the pictures and maps of a document, in the folder and in it."""
    for part in (document.get("robustness"), *document.get("dense", {}).values()):
        for key, place in (("map", folder.path / "maps"), ("figure", folder.figures)):
            if not isinstance(part, dict) or part.get(key) is None:
                continue
            path = place / Path(part[key]).name  # the run folder may have been moved since
            aside = path.with_stem(f"{path.stem}-{stamp}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside)
                part[key] = str(aside)


def with_earlier_sections(document: dict[str, Any], earlier: dict[str, Any], out: Console) -> dict[str, Any]:
    """The document, and what `earlier`, from `take_earlier`, holds beyond it."""
    kept = {name: earlier[name] for name in _SECTIONS if name in earlier and name not in document}
    if "dense" in kept and "test_labels" in earlier["details"]:
        # Which pixels the section is of.
        document = {**document, "details": {**document["details"], "test_labels": earlier["details"]["test_labels"]}}
    if kept:
        text = f"Kept from an earlier call on the same model and data: {', '.join(kept)}"
        out.print(text, highlight=False, soft_wrap=True)
    return {**document, **kept}


def _identity(document: dict[str, Any]) -> list[Any]:
    details = document["details"]
    return [document["split"], *(details[name] for name in ("model", "settings", "digests", "channels", "eval"))]
