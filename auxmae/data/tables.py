"""Labels from a table: a CSV file with a row for each image."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from auxmae.data.pairing import ImageNames, composed, well
from auxmae.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
# Columns of these names hold labels, where a table has more than two columns.
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "classname", "category", "target", "y")
# Columns of these names may number an array's images; pandas writes its index, mostly the rows' own numbers, without a name.
INDEX_COLUMNS = ("index", "id", "image", "")
# What folders and columns call the parts that images are held out in.
PART_NAMES = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
DELIMITERS = ",;\t|"
# What a missing value is written as; pandas writes nothing, R writes NA.
MISSING = ("", "nan", "na")
# What float() takes beyond it (1_1, 2E5) are codes, which would lose their names; an exponent is as programs write it (1.0e+00).
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+|\d(\.\d*)?e[+-]\d\d+|inf)", re.ASCII | re.IGNORECASE)
_NAMES, _COLUMNS = 3, 20


@dataclass(frozen=True)
class _Table:
    """Columns by name; `lines` tells where in the file each row stands."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)


def table_labels(path: Path, column: str, names: ImageNames, notices: list[str]) -> list[str]:
    """The label that a table gives each image, as text; "" where it gives none.

    Args:
        path: CSV with a header line, in UTF-8; fields are parted by comma, semicolon, tab or bar.
        column: the one that holds the labels; "": the one called so, or the only one beside the names.
        names: of the images; one of the columns names them, by path or by file name, or the groups that they are of, wells
            for one.
        notices: told which images have none, which rows name no image, and of a split that the table gives.

    Raises:
        DataError: it cannot be read, has no header line, names no image, names one twice with two labels, or does not say
            which column is meant.
    """
    table = _read(path)
    if first := next((name for name in table.columns if _names_an_image(name, names)), None):
        raise DataError(
            f"{path}: its header line holds {first}, which names an image: it is rather a first row",
            hint="add a header line above it, such as image,label",
        )
    best, found = _rows(table, column, names)
    column = _label_column(table, best, column)
    labels, told = [""] * len(names.relative_paths), dict[int, int]()
    for row, indices in enumerate(found):
        label = table.columns[column][row].strip()
        for index in indices if label.lower() not in MISSING else ():
            if labels[index] not in ("", label):
                lines = f"{labels[index]!r} in line {told[index]} and {label!r} in line {table.lines[row]}"
                group = len(indices) > 1 or not names.find(table.columns[best][row])
                raise DataError(
                    f"{path}: {names.relative_paths[index]} is {lines}",
                    hint=f"column {best} names groups of data.group_pattern, and images of one have one label: let its group "
                    "tell such rows apart, as plate and well do together, or name each image in a column"
                    if group
                    else "an image has one label",
                )
            labels[index], told[index] = label, table.lines[row]
    known = sum(label != "" for label in labels)
    strangers = [value for value, indices in zip(table.columns[best], found, strict=True) if not indices and value.strip()]
    alike = [value for value in strangers if _differs_in_capitals(value, names)]
    notices.append(
        f"labels: column {column} of {path.name}, for {known} of {len(labels)} images, named in column {best}"
        + (f"; {len(strangers)} of its rows name no image here ({_listed(strangers, _NAMES)})" if strangers else "")
        + (f", {len(alike)} of them differ from a name here only in capitals ({_listed(alike, _NAMES)})" if alike else "")
    )
    for name in table.columns.keys() - {column, best}:
        values = {value.strip().lower() for value in table.columns[name]} - {""}
        if len(values) > 1 and values <= PART_NAMES:
            notices.append(
                f"the parts in column {name} of {path.name} are not taken; the split is drawn anew (see data.split, data.exclude)"
            )
    spelt: dict[str, set[str]] = {}
    for label in filter(None, labels):
        spelt.setdefault(label.lower(), set()).add(label)
    notices.extend(
        f"labels: {' and '.join(sorted(several))} differ only in capitals, and are classes of their own: correct {path.name} "
        "where they mean the same"
        for several in spelt.values()
        if len(several) > 1
    )
    return labels


def numbered_labels(path: Path, column: str, count: int, notices: list[str]) -> list[str]:
    """The labels of `count` images that have no names of their own, the entries of an array, as text; "" for none.

    A row for each: the one that a column of `INDEX_COLUMNS` numbers, from 0 or from 1, else in the order of the rows.  Of several
    that disagree one called index counts, else the only one with a name.

    Raises:
        DataError: there are more or fewer rows, or which column is meant is not said.
    """
    table = _read(path)
    if len(table) != count:
        raise DataError(f"{path}: {len(table)} rows below its header line, and {count} images", hint="check data.labels")
    index, order, others = _numbered(table, column)
    column = _label_column(table, index, column)
    how = "in the order of its rows" if index is None else f"numbered by column {index or 'without a name'}"
    how += f", not as column {others[0] or 'without a name'} does" if others else ""
    notices.append(f"labels: column {column} of {path.name}, the images {how}")
    values = [table.columns[column][row].strip() for row in order]
    return ["" if value.lower() in MISSING else value for value in values]


def _numbered(table: _Table, column: str) -> tuple[str | None, list[int], list[str]]:
    """The column that numbers the images, the rows in its order, and the columns that number them otherwise."""
    found = {name: _numbering(name, values) for name, values in table.columns.items() if name != (column or None)}
    orders = {name: order for name, order in found.items() if order is not None}
    index = min(orders, key=lambda name: INDEX_COLUMNS.index(name.lower()), default=None)
    if index is None:
        return None, [*range(len(table))], []
    others = [name for name, order in orders.items() if order != orders[index]]
    if index.lower() != "index" and any(others):
        raise DataError(
            f"{table.path}: columns {index} and {next(filter(None, others))} number the images differently",
            hint="call the right one index in its header line, or leave the other one out",
        )
    return index, orders[index], others


def _numbering(name: str, values: Sequence[str]) -> list[int] | None:
    """The rows in the order of a column's numbers; None where it is no column that numbers them from 0 or 1 without a gap."""
    if name.lower() not in INDEX_COLUMNS or not all(value.strip().isdecimal() for value in values):
        return None
    numbers = [int(value) for value in values]
    first = min(numbers)
    if first > 1 or sorted(numbers) != [*range(first, first + len(numbers))]:
        return None
    return sorted(range(len(numbers)), key=numbers.__getitem__)


def classes(labels: Sequence[str], ignored: Sequence[int] | None, where: Path | str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class numbers, −1 for "no label", and the classes' names, in the order of numbers where all are numbers.

    "1" and "1.0" are one class; "01" is another, as leading zeros are of codes.  Numbers below 0 and those to ignore mean
    "no label" among words too.

    Raises:
        DataError: the labels are measurements, or all of them mean "no label".
    """
    texts = sorted({label for label in labels if label})
    numbers = [text for text in texts if _NUMBER.fullmatch(text)]
    values = {text: int(Decimal(text)) for text in numbers if float(text).is_integer()}
    unlabelled = {text for text, value in values.items() if value < 0 or value in (ignored or ())}
    name_of = {text: text for text in texts if text not in unlabelled}
    if len(numbers) == len(texts):
        if len(values) < len(texts):
            raise DataError(f"{where}: its labels are no whole numbers, so they are no classes", hint="check data.labels")
        texts.sort(key=values.__getitem__)
        name_of = {text: _whole(text, values[text]) for text in texts if text not in unlabelled}
    names = tuple(dict.fromkeys(name_of.values()))
    if not names:
        raise DataError(f"{where}: no image has a label", hint="check data.labels and data.ignored_labels")
    place = {name: index for index, name in enumerate(names)}
    return np.array([place.get(name_of.get(label, ""), -1) for label in labels], dtype=np.int64), names


def _whole(text: str, value: int) -> str:
    """The digits of a whole number, as they are but for the sign and what follows the point."""
    return str(value) if "e" in text.lower() else text.lstrip("+-").partition(".")[0] or "0"


def _read(path: Path) -> _Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            delimiter = max(DELIMITERS, key=header.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            rows = [(reader.line_num, [*map(composed, row)]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text", hint="save the table as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table: {error}", hint="save it as CSV, with a header line") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if len(rows) < 2:
        raise DataError(f"{path}: no row below its header line", hint="a label table has a header line and a row for each image")
    names = [name.strip() for name in rows[0][1]]
    if len(set(names)) < len(names):
        raise DataError(f"{path}: two columns have the same name", hint="rename one in its header line")
    for line, row in rows:
        if len(row) > len(names):
            raise DataError(
                f"{path}: line {line} has {len(row)} fields, the header line {len(names)}", hint="quote fields with commas"
            )
    columns = {name: [row[i] if i < len(row) else "" for _, row in rows[1:]] for i, name in enumerate(names)}
    return _Table(path, columns, [line for line, _ in rows[1:]])


def _rows(table: _Table, column: str, names: ImageNames) -> tuple[str, list[list[int]]]:
    """The column that names images, or else groups of them, and the images that each row means."""

    def group(value: str) -> list[int]:
        # Of a table's A1 to A12 the last three alone are called exactly like A01 to A12.
        return names.groups.get(value.strip()) or names.wells.get(well(value) or "", [])

    def groups_named(name: str) -> tuple[int, int]:
        """By a column, and how many of them exactly."""
        values = {value.strip() for value in table.columns[name]}
        return sum(map(bool, map(group, values))), len(names.groups.keys() & values)

    grouped = max((name for name in table.columns if name != column), key=groups_named, default=None)
    most = 0 if grouped is None else groups_named(grouped)[0]
    best = _name_column(table, column, names)
    if best is not None:
        try:
            found = [names.one(value) for value in table.columns[best]]
        except DataError as error:
            raise DataError(f"{table.path}: column {best}: {error.message}", hint=error.hint) from error
        # Of wells that are files, A10 to A12 alone are called like a table's.
        if len({index for index in found if index is not None}) >= most:
            return best, [[] if index is None else [index] for index in found]
    if grouped is not None and most:
        return grouped, [group(value) for value in table.columns[grouped]]
    for value in (value for name, values in table.columns.items() if name != column for value in values):
        if _differs_in_capitals(value, names):
            raise DataError(
                f"{table.path}: no row names an image of the source; names such as {value.strip()} differ only in capitals",
                hint=f"write names as the source has them, such as {names.relative_paths[0]}",
            )
    for value in (value for name, values in table.columns.items() if name != column for value in values):
        if names.find(folderless := PurePosixPath(value.strip().replace("\\", "/")).name) and names.is_file_name(folderless):
            raise DataError(
                f"{table.path}: no row names an image of the source; {value.strip()} is of another folder than "
                f"{names.relative_paths[names.find(folderless)[0]]}",
                hint="write folders as the source has them, or file names alone",
            )
    raise DataError(
        f"{table.path}: no row names an image of the source, such as {names.relative_paths[0]}",
        hint=f"one of its columns ({_listed(list(table.columns), _COLUMNS)}) has to hold paths or file names; or names of "
        + (
            f"groups as data.group_pattern finds them, such as {next(iter(names.groups))}"
            if names.groups
            else "groups, as wells are, which data.group_pattern finds in the paths"
        ),
    )


def _names_an_image(text: str, names: ImageNames) -> bool:
    """Whether a text is the path or file name of an image, an ending among it, or the name of a group."""
    from auxmae.data.readers import is_readable

    path = Path(text.replace("\\", "/"))
    return text in names.groups or (bool(names.find(text)) and (is_readable(path) or path.name != text))


def _differs_in_capitals(text: str, names: ImageNames) -> bool:
    """Whether a name that names nothing would do so in small letters."""
    text, small = text.strip().lower(), names.in_small_letters
    return text in small.groups or bool(small.find(text))


def _name_column(table: _Table, column: str, names: ImageNames) -> str | None:
    """The column, not the one named for the labels, that names most files by their full names, else most images at all."""
    best, most = None, (0, 0)
    for name, values in table.columns.items():
        files = sum(names.is_file_name(value) for value in values)
        images = len({index for value in values for index in names.find(value)})
        if name != column and images and (files, images) > most:
            best, most = name, (files, images)
    return best


def _label_column(table: _Table, named: str | None, column: str) -> str:
    """Which column holds the labels, beside the one that names the images."""
    # A column without a name numbers the rows, as pandas writes it.
    others = [name for name in table.columns if name not in (named, "")] or [name for name in table.columns if name != named]
    if column:
        if column not in table.columns:
            raise DataError(f"{table.path}: no column {column!r}", hint=f"it has {_listed(others, _COLUMNS)}")
        return column
    called = [name for name in others if name.lower() in LABEL_COLUMNS]
    chosen = called if len(called) == 1 else others
    if len(chosen) != 1:
        raise DataError(
            f"{table.path}: which column holds the labels? It has {_listed(others, _COLUMNS) or 'none beside the names'}",
            hint=f"name it: --labels {table.path}:COLUMN",
        )
    return chosen[0]


def _listed(values: Sequence[str], most: int) -> str:
    return ", ".join(values[:most]) + (" …" if len(values) > most else "")
