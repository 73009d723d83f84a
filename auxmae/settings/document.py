"""Reading a TOML file so that every key is known with its line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from auxmae.errors import SettingsError, first_line

KeyPath = tuple[str, ...]


@dataclass
class Document:
    """A parsed TOML file.

    Attributes:
        name: the file as messages call it.
        data: what tomli read.
        lines: the line, counted from 1, where each table and key is set; keys of an inline table included.
    """

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """`file:line` of a key, of its nearest parent where the key itself has no line, or `file`."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name


def read_document(path: Path, name: str) -> Document:
    """Read and parse `path`.

    Raises:
        SettingsError: the file is missing, unreadable, not UTF-8 or not TOML, with the line where there is one.
    """
    if path.is_dir():
        raise SettingsError(f"{name}: is a folder, expected a TOML file")
    if not path.exists():
        raise SettingsError(f"{name}: no such file", hint="`auxmae init` writes one with every setting explained")
    if not path.is_file():
        raise SettingsError(f"{name}: is not a regular file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: cannot be read: {error.strerror or error}") from None
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{name}:{line}: not UTF-8 text, which TOML must be") from None
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise SettingsError(f"{name}:{error.lineno}: not valid TOML: {_explain(text, error)}") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{name}: not valid TOML: {first_line(error)}") from None
    return Document(name, data, _key_lines(text))


def _explain(text: str, error: tomli.TOMLDecodeError) -> str:
    lines = text.split("\n")
    line = lines[error.lineno - 1].strip() if 0 < error.lineno <= len(lines) else ""
    # '\n' is not the only character that would break the one line of a message.
    fault = " ".join(f"{error.msg[:1].lower()}{error.msg[1:]}".split()) + f" (column {error.colno})"
    setting = re.match(r"([\w.-]+)\s*=\s*(.*?)\s*(#.*)?$", line)
    if setting is None:
        return fault
    key, value = setting.group(1), setting.group(2)
    if error.msg == "Cannot overwrite a value":
        return f"{key} is set twice"
    if value.lower() in ("true", "false"):
        return f"{fault}; did you mean '{key} = {value.lower()}'?"
    if re.fullmatch(r"[A-Za-z_/.~*][\w/.~*-]*", value) and "nvalid value" in fault:
        return f"{fault}; did you mean '{key} = \"{value}\"'?"
    return f"{key}: {fault}"


def _key_lines(text: str) -> dict[KeyPath, int]:
    """The line of every table and key of a valid TOML text.

    Statements are cut out one by one: a line starts one, and it is complete as soon as it parses by itself. One of
    several lines can only end in a bracket, a brace or quotes, so that long arrays are not parsed again for every line.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    pending: list[str] = []
    start = 1
    for number, line in enumerate(text.split("\n"), start=1):
        if not pending:
            start = number
        elif not re.search(r"[\]}\"']", line):
            pending.append(line)
            continue
        pending.append(line)
        try:
            parsed = tomli.loads("\n".join(pending))
        except ValueError:
            continue
        if pending[0].lstrip().startswith("["):
            table = _header_path(parsed)
            for length in range(1, len(table) + 1):
                lines.setdefault(table[:length], start)
        else:
            for path in _paths(parsed):
                lines.setdefault(table + path, start + _offset(pending, path[-1]))
        pending = []
    return lines


def _header_path(parsed: dict[str, Any]) -> KeyPath:
    path: list[str] = []
    node: Any = parsed
    while node:
        if isinstance(node, list):
            node = node[0]
            continue
        key = next(iter(node))
        path.append(key)
        node = node[key]
    return tuple(path)


def _paths(node: dict[str, Any]) -> list[KeyPath]:
    found: list[KeyPath] = []
    for key, value in node.items():
        found.append((key,))
        if isinstance(value, dict):
            found.extend((key, *rest) for rest in _paths(value))
    return found


def _offset(statement: list[str], key: str) -> int:
    """In which line of a statement an inline table's key stands."""
    pattern = re.compile(rf"(?<![\w-]){re.escape(key)}[\"']?\s*=")
    return next((index for index, line in enumerate(statement) if pattern.search(line)), 0)
