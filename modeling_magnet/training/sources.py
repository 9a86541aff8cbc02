"""Reads rows from files, folders and ids of `datasets`. Bad rows are counted, broken files raise."""

import glob
import gzip
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet
from datasets import load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

logger = logging.getLogger(__name__)

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compressed text and JSON files. `.zst` needs the package `zstandard`."""

SURROGATE = re.compile("[\ud800-\udfff]")

GIVE = (
    "give files (.txt, .jsonl, .json, .parquet; patterns with *), one folder of such files, or one "
    "id of `datasets` (owner/name)"
)

Row = dict[str, Any]


def read_rows(
    source: list[str],
    columns: tuple[str, ...],
    config: str | None = None,
    split: str = "train",
    *,
    keys: tuple[str, ...] = (),
    distinct: bool = False,
    streaming: bool = True,
    counts: Counter,
) -> Iterator[Row]:
    """Read the rows that have a text in all columns, in the source's order.

    Files are read in place, row by row. Nothing is copied, and nothing is read that is not asked for.

    Args:
        source: files, patterns, one folder, or one id of `datasets`.
        columns: columns of text.
        config: of a folder or an id.
        split: of a folder or an id.
        keys: further columns, with any values.
        distinct: leave out rows that have the same text in two columns.
        streaming: whether an id is read over the network instead of being downloaded first.
        counts: gets `rows read`, `dropped: ` with each reason, and `empty files`. The first row that
            is dropped for a reason is logged.

    Yields:
        Rows with all columns of text; a key may be missing.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: a file is of another kind or cannot be parsed, a column is missing, or there are no rows.
    """
    found = find(source, config, split)
    needed = tuple(dict.fromkeys(columns + keys))
    rows = (
        _rows_of_id(found, config, split, streaming, needed)
        if isinstance(found, str)
        else _rows_of_files(found, needed, counts)
    )
    yield from usable_rows(rows, columns, distinct, counts)
    if not counts["rows read"]:
        raise ValueError(f"{source} has no rows")


def usable_rows(
    rows: Iterable[tuple[str, Row]], columns: tuple[str, ...], distinct: bool, counts: Counter
) -> Iterator[Row]:
    """Yield the rows that have a text in all columns. Count the others, and log the first of each kind."""
    for where, row in rows:
        counts["rows read"] += 1
        reason = text_fault(row, columns, distinct)
        if reason is None:
            yield row
        else:
            if not counts[f"dropped: {reason}"]:
                logger.warning("%s is left out: %s. All such rows are counted", where, reason)
            counts[f"dropped: {reason}"] += 1


def find(source: list[str], config: str | None = None, split: str = "train") -> list[Path] | str:
    """The files of a source, or its id.

    As in `datasets`, file names or the README.md say which files of a folder belong to a split.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the source is empty, has another kind of file, or is a folder without this split.
    """
    if not source:
        raise ValueError(f"the source is empty: {GIVE}")
    files: list[Path] = []
    for name in source:
        matching = [name] if Path(name).exists() else sorted(glob.glob(name, recursive=True))
        paths = [Path(match) for match in matching]
        if not paths and len(source) == 1 and _is_id(name):
            return name
        if not paths:
            raise FileNotFoundError(f"{name} does not exist: {GIVE}")
        files += paths
    if len(files) == 1 and files[0].is_dir():
        splits = load_dataset_builder(str(files[0]), config).config.data_files
        if split not in splits:
            raise ValueError(
                f"{files[0]} has the splits {[*map(str, splits)]}, but not {split!r}: name one of them"
            )
        files = [Path(name) for name in splits[split]]
    for path in files:
        if path.is_dir() or _kind(path) not in READERS:
            raise ValueError(f"{path} cannot be read: {GIVE}")
    return files


def identify(source: list[str], config: str | None, split: str) -> list:
    """A value that changes when a source changes: paths, sizes and times of files, or an id's revision."""
    found = find(source, config, split)
    if isinstance(found, str):
        with _named(found):
            return [found, config, split, load_dataset_builder(found, config).hash]
    return [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in found]


def text_fault(row: Row, columns: tuple[str, ...], distinct: bool = False) -> str | None:
    """What is wrong with the texts of a row; None if nothing is."""
    for column in columns:
        text = row.get(column)
        if text is None:
            return f"{column} missing"
        if not isinstance(text, str):
            return f"{column} not a string"
        if not text.strip():
            return f"{column} blank"
        if SURROGATE.search(text):  # JSON can hold half a character
            return f"{column} not Unicode"
    if distinct and len({row[column].strip() for column in columns}) < len(columns):
        return "texts identical"
    return None


def _is_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and _kind(Path(name)) not in READERS


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def _rows_of_files(
    files: list[Path], needed: tuple[str, ...], counts: Counter
) -> Iterator[tuple[str, Row]]:
    for path in files:
        number = 0
        try:
            rows = READERS[_kind(path)](path, needed) if path.stat().st_size else iter(())
            for row in rows:
                if number == 0:
                    _check_columns(row, needed)
                number += 1
                yield f"{path}, row {number}", row
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}, row {number + 1}: {error}") from error
        if number == 0:
            logger.warning("%s is empty", path)
            counts["empty files"] += 1


def _rows_of_id(
    name: str, config: str | None, split: str, streaming: bool, needed: tuple[str, ...]
) -> Iterator[tuple[str, Row]]:
    number = 0
    try:
        with _named(name):
            table = load_dataset(name, config, split=split, streaming=streaming)
        if table.column_names is not None:  # None: not known before the first row
            _check_columns(table.column_names, needed)
            table = table.select_columns(list(needed))
        for row in table:
            if number == 0:
                _check_columns(row, needed)
            number += 1
            yield f"{name}, row {number}", row
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name} is neither a file nor an id of `datasets`: {error}"
        ) from error
    except (ValueError, DatasetsError) as error:
        raise ValueError(f"{name}, row {number + 1}: {error}") from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is not a file or folder: {GIVE}. {error}") from error


def _check_columns(columns, needed: tuple[str, ...]) -> None:
    if not set(needed) <= set(columns):
        raise ValueError(f"the columns are {list(columns)}, but {list(needed)} are needed")


def _read_lines(path: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
        for line in file:
            yield {"text": line.rstrip("\n")}


def _read_json(path: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    with fsspec.open(path, "rt", encoding="utf-8-sig", compression="infer") as file:
        is_list = file.read(1) == "["
        file.seek(0)
        rows = json.load(file) if is_list else (json.loads(s) for s in file if not s.isspace())
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{row!r:.80} is not an object with columns")
            yield row


def _read_parquet(path: Path, needed: tuple[str, ...]) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, needed)
        for batch in file.iter_batches(batch_size=1000, columns=list(needed)):
            yield from batch.to_pylist()


READERS = {
    ".txt": _read_lines,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
