"""Results as files, written whole or not at all, and as tables."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from modeling_magnet.atomic import atomic_write


def output_file(name: str) -> Path:
    """The type of an argument `--output`: a file in a folder that exists.

    Raises:
        argparse.ArgumentTypeError: it is a folder, or in none that exists.
    """
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{name}: give a file in a folder that exists")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file, and its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, and its folder if need be."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown(["", "n"], [["texts", 3]]))
        | | n |
        |---|---|
        | texts | 3 |
    """
    lines = [
        "".join(f"| {cell} " if cell != "" else "| " for cell in row) + "|" for row in [head, *rows]
    ]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines)
