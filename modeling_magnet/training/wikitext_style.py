"""Rewrites plain text in the typography of WikiText-103 (Merity et al. 2016), on which the paper trains.

    python -m modeling_magnet.training.wikitext_style --input wiki/*.parquet --keep title --output wikitext-style.jsonl

Moses tokens with spaces between them, `@-@`, `@,@` and `@.@` inside words and numbers, `<unk>` for
words that occur fewer than three times in the input (`--rare`). Needs `pip install -e ".[paraphrase]"` (sacremoses).
"""

import json
import re
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sacremoses import MosesTokenizer
from tqdm import tqdm

from modeling_magnet.atomic import atomic_write

from .sources import Row, read_rows

UNKNOWN = "<unk>"
INSIDE_NUMBER = re.compile(r"(?<=\d)([.,])(?=\d)")
WORD = re.compile(r"[^\W\d_]{2,}")


def tokens_of(text: str, moses: MosesTokenizer) -> list[str]:
    """The tokens of a text, before rare ones are replaced.

    Example:
        >>> tokens_of("A well-known 1,000.5 m.", MosesTokenizer("en"))
        ['A', 'well', '@-@', 'known', '1', '@,@', '000', '@.@', '5', 'm', '.']
    """
    tokens = moses.tokenize(text, aggressive_dash_splits=True, escape=False, return_str=True)
    return INSIDE_NUMBER.sub(r" @\1@ ", tokens).split()


def convert(
    rows: list[Row], column: str = "text", rare: int = 3, progress: bool = True
) -> Iterator[Row]:
    """Rows with their text in WikiText-103's form.

    Args:
        rows: each with a text.
        column: of the text.
        rare: a word that occurs less often in all rows becomes `<unk>`.
        progress: show a bar.

    Yields:
        The rows, in order, with other columns unchanged.
    """
    moses = MosesTokenizer("en")
    tokenized = [
        tokens_of(row[column], moses)
        for row in tqdm(rows, desc="Tokenizing", unit="text", disable=not progress)
    ]
    counts = Counter(token for tokens in tokenized for token in tokens)
    for row, tokens in zip(rows, tokenized, strict=True):
        words = (
            UNKNOWN if counts[token] < rare and WORD.fullmatch(token) else token for token in tokens
        )
        yield {**row, column: " ".join(words)}


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help=".txt, .jsonl, .parquet")
    parser.add_argument("--column", default="text", help="column that holds the text")
    parser.add_argument("--keep", nargs="*", default=[], help="other columns to keep")
    parser.add_argument("--rare", type=int, default=3, help="a word occurring less often is <unk>")
    parser.add_argument("--limit", type=int, help="only the first rows")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl to write")
    options = parser.parse_args(command_line)
    columns, keys = (options.column,), tuple(options.keep)
    found = read_rows(options.input, columns, keys=keys, counts=Counter())
    rows = list(islice(found, options.limit))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in convert(rows, options.column, options.rare):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {len(rows):,} texts to {options.output}")


if __name__ == "__main__":
    main()
