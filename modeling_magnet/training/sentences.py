"""Draws sentences from plain text, equally many from each document, for a teacher to encode.

python -m modeling_magnet.training.sentences --input wiki/*.parquet --group_column title --output sentences.jsonl
"""

import json
import random
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from modeling_magnet.atomic import atomic_write

from .paraphrase import split
from .sources import Row, read_rows


def draw_sentences(
    rows: Iterable[Row], column: str, group: str, words: tuple[int, int], count: int, seed: int = 0
) -> list[Row]:
    """Draw `count` sentences from each document that has so many, in the order of the documents.

    Args:
        rows: with a text each.
        column: which column that is.
        group: the column of a document's name. Its rows need not be consecutive.
        words: the fewest and the most words of a sentence.
        count: sentences of each document.
        seed: of the draws.

    Example:
        >>> rows = [{"text": "A cat sleeps. A dog runs. It rains.", "title": "Pets"}]
        >>> draw_sentences(rows, "text", "title", words=(2, 9), count=2)
        [{'sentence': 'A dog runs.', 'title': 'Pets'}, {'sentence': 'It rains.', 'title': 'Pets'}]
    """
    documents: dict[str, list[str]] = {}
    for row in rows:
        found = [s for s in split(row[column]) if words[0] <= s.count(" ") + 1 <= words[1]]
        documents.setdefault(row[group], []).extend(found)
    generator = random.Random(seed)
    return [
        {"sentence": sentence, group: name}
        for name, sentences in documents.items()
        if len(sentences) >= count
        for sentence in generator.sample(sentences, count)
    ]


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, help=".jsonl, .parquet")
    parser.add_argument("--column", default="text", help="column that holds the text")
    parser.add_argument("--group_column", required=True, help="column that names the document")
    parser.add_argument("--min_words", type=int, default=5, help="fewest words in a sentence")
    parser.add_argument("--max_words", type=int, default=30, help="most words in a sentence")
    parser.add_argument("--count", type=int, default=8, help="sentences of each document")
    parser.add_argument("--limit", type=int, help="keep only the first LIMIT sentences")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl to write")
    options = parser.parse_args(command_line)
    if not 1 <= options.min_words <= options.max_words or options.count < 1:
        parser.error(
            f"--min_words {options.min_words} --max_words {options.max_words} --count {options.count}: "
            "give 1 or more, and no larger minimum than maximum"
        )
    columns, words = (options.column, options.group_column), (options.min_words, options.max_words)
    rows = read_rows(options.input, columns, counts=Counter())
    found = draw_sentences(rows, *columns, words, options.count, options.seed)[: options.limit]
    if not found:
        raise SystemExit(
            f"no document has {options.count} sentences of {words[0]} to {words[1]} words"
        )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.output) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in found:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"wrote {len(found):,} sentences to {options.output}")


if __name__ == "__main__":
    main()
