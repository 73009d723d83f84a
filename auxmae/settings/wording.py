"""How messages and comments speak of settings: what a key expects, how a value is shown, which key was meant."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, cast

from auxmae.settings.schema import SettingsTree, Table

LONGEST_VALUE = 60

# What other libraries call a setting.
SYNONYMS = {
    "lr": "train.learning_rate",
    "min_lr": "train.min_learning_rate",
    "wd": "train.weight_decay",
    "warmup": "train.warmup_fraction",
    "grad_clip": "train.clip_norm",
    "amp": "train.precision",
    "bs": "train.batch_size",
    "steps": "train.max_steps",
    "mask_ratio": "masking.ratio",
    "mask": "masking.strategy",
    "dim": "model.width",
    "embed_dim": "model.width",
    "num_heads": "model.heads",
    "img_size": "model.image_size",
    "mlp_dim": "model.hidden",
    "num_workers": "data.workers",
    "path": "data.source",
    "root": "data.source",
    "dataset": "data.source",
    "bands": "data.channels",
    "band_names": "data.channel_names",
    "output": "run.folder",
    "norm_pix_loss": "loss.normalize",
}


@cache
def tables() -> dict[str, type[Table]]:
    """The tables by name, in the schema's order."""
    return {name: cast("type[Table]", field.annotation) for name, field in SettingsTree.model_fields.items()}


@cache
def keys() -> tuple[str, ...]:
    """Every setting as `table.key`, in the schema's order."""
    return tuple(f"{name}.{key}" for name, table in tables().items() for key in table.model_fields)


@cache
def _schema(table: str) -> dict[str, Any]:
    return tables()[table].model_json_schema()["properties"]  # type: ignore[no-any-return]


def expectation(table: str, key: str) -> str:
    """What a setting takes, in words: "an integer ≥ 1", "one of 'l1', 'mse', 'smooth_l1'", "true or false"."""
    return _phrase(_schema(table)[key])


def takes_text(table: str, key: str) -> bool:
    """Whether any text is a value of this setting (a path, a name), as opposed to a choice or a number."""
    schema = _schema(table)[key]
    return schema.get("type") == "string" and "enum" not in schema and "const" not in schema


def _phrase(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_phrase(choice) for choice in schema["anyOf"])
    if "const" in schema:
        return show(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(show(value) for value in schema["enum"])
    kind = schema.get("type")
    if kind == "string":
        if "pattern" in schema:
            return f"text that matches {schema['pattern']}"
        return "non-empty text" if schema.get("minLength") else "text"
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _bounds(schema)
    if kind == "array":
        if "prefixItems" in schema:
            items = schema["prefixItems"]
            return f"a list of {len(items)}, each {_phrase(items[0])}"
        return f"a list, each item {_phrase(schema['items'])}"
    if kind == "object":
        return f"a table, each value {_phrase(schema['additionalProperties'])}"
    return "true or false"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [(sign, schema[name]) for name, sign in signs if name in schema]
    found = [f"{sign} {int(limit) if limit == int(limit) else limit}" for sign, limit in limits]
    return " " + " and ".join(found) if found else ""


def choices(table: str, key: str) -> list[str]:
    """The words that a setting accepts, where it accepts only some."""
    schema = _schema(table)[key]
    found = ["true", "false"] if schema.get("type") == "boolean" else []
    for part in schema.get("anyOf", [schema]):
        found.extend(part.get("enum", [part["const"]] if "const" in part else []))
    return found


def meant_value(table: str, key: str, text: str) -> str | None:
    """A number or list that was meant by a text that the setting does not take, as TOML: ".5", "B04,B08", "[B04, B08]"."""
    schema = _schema(table)[key]
    kinds = {part.get("type"): part for part in schema.get("anyOf", [schema])}
    found = next((_number(text, kind) for kind in ("integer", "number") if kind in kinds), None)
    if found is not None or "array" not in kinds:
        return found
    array = kinds["array"]
    kind = (array.get("prefixItems") or [array["items"]])[0].get("type")
    parts = [part.strip(" '\"") for part in text.strip("[]() ").split(",")]
    if not array.get("minItems", 0) <= len(parts) <= array.get("maxItems", len(parts)):
        return None
    if kind == "string":
        items = [json.dumps(part, ensure_ascii=False) if part else None for part in parts]
    else:
        items = [_number(part, kind) for part in parts]
    return None if None in items else "[" + ", ".join(map(str, items)) + "]"


def _number(text: str, kind: str) -> str | None:
    """The number that a text is to Python, as TOML writes it; None where it is none of this kind."""
    try:
        if kind == "integer":
            return str(int(text))
        value = float(text) if kind == "number" else math.nan
    except ValueError:
        return None
    return repr(value) if math.isfinite(value) else None


def show(value: object, *, longest: int = LONGEST_VALUE) -> str:
    """A value on one line, as TOML writes it but for single quotes; cut after `longest` letters."""
    text = _written(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _written(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        inner = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"')
        return f"'{inner}'" if value.isprintable() else repr(value)
    if isinstance(value, float):
        return f"{int(value)}" if math.isfinite(value) and value == int(value) and abs(value) >= 100 else repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_written(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_written(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, int) else " ".join(str(value).split())


def is_utf8(value: object) -> bool:
    """Whether every text in a value can be written as UTF-8: what the system names in other bytes cannot."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, Mapping):
        return all(is_utf8(key) and is_utf8(item) for key, item in value.items())
    return all(map(is_utf8, value)) if isinstance(value, (list, tuple)) else True


def meant_key(table: str, key: str) -> str | None:
    """The setting nearest to the unknown `table.key`, or None.

    The same name in another table comes first, then what is alike in this table, then what is alike anywhere.
    """
    word = key.lower().replace("-", "_")
    by_name: dict[str, list[str]] = {}
    for full in keys():
        by_name.setdefault(full.partition(".")[2], []).append(full)
    if table in tables() and word not in by_name:
        near = nearest(word, tables()[table].model_fields)
        if near:
            return f"{table}.{near}"
    if word in SYNONYMS:
        return SYNONYMS[word]
    near = nearest(word, by_name)
    if near is None:
        return None
    likely = nearest(f"{table}.{near}", by_name[near]) if table else None
    return likely or by_name[near][0]


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that looks most like `word`, or None where none does."""
    names = {name.lower(): name for name in candidates}
    # Swapped letters weigh too much in a short word's ratio.
    swapped = [name for lower, name in names.items() if sorted(lower) == sorted(word.lower())]
    if swapped:
        return swapped[0]
    found = get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return names[found[0]] if found else None


def did_you_mean(name: str | None) -> str:
    """The end of a message that proposes `name`; nothing for None."""
    return f"; did you mean '{name}'?" if name else ""
