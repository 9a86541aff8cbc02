"""Rows from files and standard input, one at a time; a row that cannot be read says why."""

import contextlib
import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .extras import require

STANDARD_INPUT = "-"

BOM = b"\xef\xbb\xbf"

SURROGATE = re.compile("[\ud800-\udfff]")

GIVE = "give .txt, .jsonl, .csv, .tsv or .parquet files, or - for standard input"

MAY_LACK = 100
"""So many first rows of JSON may lack a column before it is called missing."""


@dataclass
class Row:
    """One row of the input."""

    index: int  # over all inputs, from 0; rows with a fault count too
    file: str
    line: int  # in the file (of Parquet the row), from 1
    value: Any = None  # what was read; None where there is a fault
    fault: str | None = None  # why it cannot be used


def check_inputs(inputs: Sequence[str], output: str, columns: Sequence[str]) -> None:
    """Check input files before a model is loaded, by reading their first rows.

    Args:
        inputs: as in `read_rows`.
        output: the file or folder to write.
        columns: of which a file needs one.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: it is of another kind or the output too, it has none of the columns, or standard
            input is named twice.
    """
    for name in inputs:
        if name == STANDARD_INPUT:
            continue
        path = Path(name)
        if path.resolve() == Path(output).resolve():
            raise ValueError(f"{name} is both input and output: give another output")
        if not path.exists():
            raise FileNotFoundError(f"{name} does not exist: {GIVE}")
        if path.is_dir() or _kind(name) not in READERS:
            raise ValueError(f"{name} cannot be read: {GIVE}")
        if path.is_file():  # what comes through a pipe is read once
            next(READERS[_kind(name)](name, columns), None)
    if list(inputs).count(STANDARD_INPUT) > 1:
        raise ValueError("standard input (-) is named twice: it can be read once")


def read_rows(
    inputs: Sequence[str], columns: Sequence[str], standard_input: str = ".jsonl"
) -> Iterator[Row]:
    """Read all rows in order; each value is an object with some of the columns.

    Args:
        inputs: files; `-` is standard input.
        columns: a line of text becomes the first of them; the others are read too where there are.
        standard_input: as which kind of file that is read, `.txt` or `.jsonl`.

    Raises:
        ValueError: a file has none of the columns, or is broken.
    """
    index = 0
    for name in inputs:
        kind = standard_input if name == STANDARD_INPUT else _kind(name)
        shown = "standard input" if name == STANDARD_INPUT else name
        for line, value, fault in READERS[kind](name, columns):
            yield Row(index, shown, line, value, fault)
            index += 1


def read_texts(inputs: Sequence[str], column: str | None) -> Iterator[Row]:
    """Read one text per row, from the column `text` by default, of all kinds but `.txt`.

    Standard input is JSONL where a column is named, lines of text where none is.
    """
    name = column or "text"
    for row in read_rows(inputs, [name], ".txt" if column is None else ".jsonl"):
        if row.fault is None:
            row.value = row.value.get(name)
            row.fault = text_fault(row.value, name)
        yield row


def text_fault(value: Any, name: str) -> str | None:
    """Why a value is no text, or None."""
    if value is None:
        return f"{name} is missing"
    if not isinstance(value, str):
        return f"{name} is {type(value).__name__}, not a string"
    if SURROGATE.search(value):  # JSON can hold half a character
        return f"{name} is not Unicode: it holds half a surrogate pair"
    return None


def count_rows(inputs: Sequence[str]) -> int | None:
    """How many rows a progress bar has to go; None where only reading tells."""
    if any(name == STANDARD_INPUT or _kind(name) in DELIMITERS for name in inputs):
        return None
    total = 0
    for name in inputs:
        if _kind(name) == ".parquet":
            total += require("pyarrow.parquet", f"reading {name}").read_metadata(name).num_rows
        else:
            with open(name, "rb") as file:
                total += sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return total


def identify(inputs: Sequence[str]) -> list[list] | None:
    """What differs when an input does: paths, sizes and times. None for standard input."""
    if STANDARD_INPUT in inputs:
        return None
    paths = [Path(name).resolve() for name in inputs]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def batches(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Lists of up to `size` rows; nothing beyond the list at hand is read."""
    while batch := list(islice(rows, size)):
        yield batch


Read = Iterator[tuple[int, Any, str | None]]  # line, value, fault


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if name == STANDARD_INPUT else open(name, "rb")


def _read_lines(name: str) -> Iterator[tuple[int, str, str | None]]:
    with _open(name) as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(BOM) if number == 1 else line
            try:
                yield number, line.decode("utf-8").rstrip("\r\n"), None
            except UnicodeDecodeError as error:
                yield number, "", f"not UTF-8 from byte {error.start + 1} on"


def _read_text(name: str, columns: Sequence[str]) -> Read:
    for number, line, fault in _read_lines(name):
        yield number, {columns[0]: line}, fault


def _read_json(name: str, columns: Sequence[str]) -> Read:
    """The objects of a file; one whose first ones all lack the columns has other columns."""
    rows = _read_objects(name)
    held: list[tuple] = []
    found: dict[str, None] = {}
    while len(held) < MAY_LACK and found.keys().isdisjoint(columns) and (row := next(rows, None)):
        held.append(row)
        found |= dict.fromkeys(row[1] or ())
    if found and found.keys().isdisjoint(columns):
        raise _missing(name, found, columns)
    yield from held
    yield from rows


def _read_objects(name: str) -> Read:
    for number, line, fault in _read_lines(name):
        if fault:
            yield number, None, fault
        elif line.strip():
            try:
                value = json.loads(line)
                fault = (
                    None if isinstance(value, dict) else f"not an object with columns: {line:.40}"
                )
            except (ValueError, RecursionError) as error:
                value, fault = None, f"not JSON: {str(error).replace('line 1 ', '')}"
            yield number, None if fault else value, fault


def _read_delimited(name: str, columns: Sequence[str]) -> Read:
    """Rows of .csv or .tsv, whose first names the columns; all values are strings."""
    csv.field_size_limit(2**31 - 1)
    with open(name, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, delimiter=DELIMITERS[_kind(name)], strict=True)
        line = 1
        try:
            header = next(rows, [])
            if not any(column in header for column in columns):
                raise _missing(name, header, columns)
            line = rows.line_num + 1
            for cells in rows:
                if len(cells) not in (0, len(header)):
                    yield line, None, f"{len(cells)} columns, the header has {len(header)}"
                elif SURROGATE.search("".join(cells)):
                    yield line, None, "not UTF-8"
                elif cells:
                    yield line, dict(zip(header, cells, strict=True)), None
                line = rows.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{name}, line {line}: {error}") from error


def _read_parquet(name: str, columns: Sequence[str]) -> Read:
    parquet = require("pyarrow.parquet", f"reading {name}")
    number = 0
    try:
        with parquet.ParquetFile(name) as file:
            there = file.schema_arrow.names
            found = [column for column in columns if column in there]
            for batch in file.iter_batches(batch_size=1000, columns=found) if found else ():
                for number, value in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                    yield number, value, None
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}, after row {number}: {error}") from error
    if not found:
        raise _missing(name, there, columns)


def _missing(name: str, there: Iterable[str], columns: Sequence[str]) -> ValueError:
    shown = "standard input" if name == STANDARD_INPUT else name
    has = f"it has {', '.join(there) or 'none'}"
    if len(columns) == 1:
        return ValueError(f"{shown} has no column {columns[0]}; {has}: name one with --column")
    return ValueError(f"{shown} has none of the columns {', '.join(columns)}; {has}")


def _kind(name: str) -> str:
    return Path(name).suffix.lower()


DELIMITERS = {".csv": ",", ".tsv": "\t"}

READERS = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
    **dict.fromkeys(DELIMITERS, _read_delimited),
}
