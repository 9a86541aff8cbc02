"""Vectors as .npy, .parquet or .jsonl: one file, or a folder of shards where a rerun resumes."""

import contextlib
import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from ..atomic import atomic_write
from ..version import __version__
from .extras import require
from .reading import Row

MANIFEST = "manifest.json"

SKIPPED = "skipped.jsonl"

REPORTED = 100
"""So many faulty rows are reported one by one; further ones are counted."""


class RowsFile(ABC):
    """Rows and what was computed of them, written in the input's order."""

    def __init__(self, file: BinaryIO, keep_text: bool = False):
        self.file, self.keep_text = file, keep_text
        self.rows = 0
        self.next_index = 0  # of the first row that is not in the file

    def write(self, rows: Sequence[Row], vectors: Any) -> None:
        """Add rows with their vectors (rows, dimensions), or in JSONL a dict of fields each."""
        self._add(rows, vectors)
        self.rows += len(rows)
        self.next_index = rows[-1].index + 1 if rows else self.next_index

    @abstractmethod
    def _add(self, rows: Sequence[Row], vectors: Any) -> None: ...

    def close(self) -> None:
        """Complete the file."""
        self.file.flush()


class NpyFile(RowsFile):
    """An array (rows, dimensions). Its header says how many rows, so it is written again at the end."""

    def _add(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        if not self.rows:
            self.like = vectors[:0]
            self._write_header()
        self.file.write(np.ascontiguousarray(vectors).tobytes())

    def close(self) -> None:
        """Complete the file."""
        end = self.file.tell()
        self.file.seek(0)
        self._write_header()
        self.file.seek(end)

    def _write_header(self) -> None:
        descr = np.lib.format.dtype_to_descr(self.like.dtype)
        shape = (self.rows, self.like.shape[1])  # the header is as long for any number of rows
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)


class ParquetFile(RowsFile):
    """The columns `index`, `text` where it is kept, and `vector`, a list of fixed size."""

    writer: Any = None

    def _add(self, rows: Sequence[Row], vectors: np.ndarray) -> None:
        pa = require("pyarrow", "writing Parquet")
        columns = {"index": pa.array([row.index for row in rows], pa.int64())}
        if self.keep_text:
            columns["text"] = pa.array([row.value for row in rows], pa.string())
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table(columns)
        if self.writer is None:
            parquet = require("pyarrow.parquet", "writing Parquet")
            self.writer = parquet.ParquetWriter(self.file, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        """Complete the file."""
        self.writer.close()


class JsonlFile(RowsFile):
    """An object a line: `index`, `text` where it is kept, and `vector`, or what the vectors are of."""

    def _add(self, rows: Sequence[Row], vectors: Sequence[Any]) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            text = {"text": row.value} if self.keep_text else {}
            fields = vector if isinstance(vector, dict) else {"vector": vector.tolist()}
            self.file.write(json_line({"index": row.index, **text, **fields}))
        self.file.flush()


FORMATS: dict[str, type[RowsFile]] = {"npy": NpyFile, "parquet": ParquetFile, "jsonl": JsonlFile}


def json_line(content: dict[str, Any]) -> bytes:
    """A line of a JSONL file, in UTF-8 whatever the terminal's encoding."""
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place when all of it is written; until then, an older one stays."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        yield file


def _no_link(path: str, flags: int) -> int:
    """Opens a file for `open`, but not where a symbolic link leads."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


class Skipped:
    """Rows that could not be used: reported on standard error, counted, and listed in a file.

    Args:
        path: the list, an object a line with `index`, `file`, `line` and `fault`; made when there is
            something to list. None: no list.
        keep: how many lines of an existing list stay, as those of an earlier run.
    """

    def __init__(self, path: Path | None = None, keep: int = 0):
        self.path = path
        self.count = self.earlier = keep
        if path is not None and path.exists():
            with open(path, "r+b", opener=_no_link) as file:
                for _ in range(keep):
                    file.readline()
                file.truncate(file.tell())
            if not keep:
                path.unlink()

    def filter(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows without a fault."""
        for row in rows:
            if row.fault is None:
                yield row
            else:
                self.add(row, row.fault)

    def read(
        self, rows: Iterable[Row], function: Callable[[Any], Any]
    ) -> Iterator[tuple[Row, Any]]:
        """Each row and what a function makes of its value; where that raises a ValueError, it is skipped."""
        for row in self.filter(rows):
            try:
                yield row, function(row.value)
            except ValueError as error:
                self.add(row, str(error))

    def add(self, row: Row, fault: str) -> None:
        """Report a row."""
        self.count += 1
        reported = self.count - self.earlier
        if reported <= REPORTED:
            tqdm.write(f"{row.file}, line {row.line} is skipped: {fault}", file=sys.stderr)
        if reported == REPORTED:
            tqdm.write("further skipped lines are counted only", file=sys.stderr)
        if self.path is not None:
            line = {"index": row.index, "file": row.file, "line": row.line, "fault": fault}
            with open(self.path, "ab", opener=_no_link) as file:
                file.write(json_line(line))

    def put(self, path: Path) -> None:
        """Copy the list into place; where nothing was skipped, an older one goes."""
        if self.count and self.path is not None:
            with atomic_write(path) as temporary:
                shutil.copyfile(self.path, temporary)
        else:
            path.unlink(missing_ok=True)

    def require_some(self, done: int) -> None:
        """Raise ValueError if all rows were skipped."""
        if self.count and not done:
            raise ValueError(f"none of the {self.count} rows could be used")


class Refused(Skipped):
    """Used instead of `Skipped` for a single row, which must be usable."""

    def add(self, row: Row, fault: str) -> None:
        """Raise ValueError."""
        raise ValueError(fault)


class ShardFolder:
    """A folder of shards, each written whole or not at all, and a manifest of the finished ones.

    A folder that was started with the same settings and input continues after its last finished shard.

    Args:
        path: the folder, which exists and which only this process writes to.
        settings: what decides the vectors and how they are written, `format` and `keep_text` among them.
        inputs: of `identify`.

    Raises:
        ValueError: the folder was started with other settings or another input, or holds other files;
            or what it says of itself is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], inputs: list[list] | None):
        self.path, self.settings = path, settings
        self.manifest: dict[str, Any] = {
            "magnet_version": __version__,
            "settings": settings,
            "inputs": inputs,
            "complete": False,
            "rows": 0,
            "skipped": 0,
            "shards": [],
        }
        if (path / MANIFEST).exists():
            self._resume()
        elif any(not file.name.startswith(".magnet") for file in path.iterdir()):
            raise ValueError(f"{path} holds files but no {MANIFEST}: give a new folder")
        else:
            self._write_manifest()
        self.skipped = Skipped(path / SKIPPED, keep=self.manifest["skipped"])

    @property
    def next_index(self) -> int:
        """The first row of the input that is in no finished shard."""
        return self.manifest["shards"][-1]["next_index"] if self.manifest["shards"] else 0

    @contextlib.contextmanager
    def shard(self) -> Iterator[RowsFile]:
        """The next shard, which counts once the block is left without an error."""
        kind = self.settings["format"]
        name = f"part-{len(self.manifest['shards']):05d}.{kind}"
        with whole_file(self.path / name) as file:
            shard = FORMATS[kind](file, self.settings["keep_text"])
            yield shard
            shard.close()
        entry = {"file": name, "rows": shard.rows, "next_index": shard.next_index}
        self.manifest["shards"].append(entry)
        self.manifest["rows"] += shard.rows
        self.manifest["skipped"] = self.skipped.count
        self._write_manifest()

    def finish(self) -> None:
        """Note that the input has no further rows."""
        self.manifest |= {"complete": True, "skipped": self.skipped.count}
        self._write_manifest()

    def stands(self) -> str:
        """What there is after a stop, for its message."""
        return (
            f"{len(self.manifest['shards'])} finished shards with {self.manifest['rows']} rows stay in "
            f"{self.path}, and the same command resumes after them"
        )

    def _read_manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for name, value in self.manifest.items():
                if name != "inputs" and not isinstance(found[name], type(value)):
                    raise ValueError(f"{name} is {found[name]!r:.40}")
            names = [shard["file"] for shard in found["shards"] if shard["next_index"] >= 0]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}: {error}), so it is unknown which shards are "
                f"complete: delete {self.path}, or give a new folder"
            ) from error
        gone = [name for name in names if not (self.path / name).is_file()]
        if gone:
            raise ValueError(
                f"{path} lists {', '.join(gone[:3])}, which {self.path} does not contain: give a new "
                "folder, or delete this one"
            )
        return found

    def _resume(self) -> None:
        found, own = self._read_manifest(), self.manifest
        other = [
            f"{name} was {found['settings'].get(name)!r} and is {value!r}"
            for name, value in own["settings"].items()
            if found["settings"].get(name) != value
        ]
        why = None
        if own["inputs"] is None:
            why = "already holds a part, and standard input cannot be read again: give files, or"
        elif other:
            why = f"was started with other settings ({'; '.join(other)}): give those, or"
        elif found["inputs"] != own["inputs"]:
            why = "was started with another input, or it changed since (size or time): give"
        if why:
            raise ValueError(f"{self.path} {why} a new folder")
        self.manifest = found

    def _write_manifest(self) -> None:
        with whole_file(self.path / MANIFEST) as file:
            file.write((json.dumps(self.manifest, indent=2) + "\n").encode())
