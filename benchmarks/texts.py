"""What is encoded, infilled and trained on: sentences and documents of files."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from evaluation.common.texts import sentences
from modeling_magnet.training.sources import read_rows

from .timing import ROOT

SAMPLE = [str(ROOT / f"examples/data/wiki-{name}.jsonl") for name in ("train", "validation")]

PAIRS = str(ROOT / "examples/data/pairs-train.jsonl")

MIXED, SHORT = (3, 60), (3, 10)
"""Words of a sentence: fewest and most."""

DOCUMENT = (230, 540)
"""Words of a document: 300 to 700 tokens of English."""


@dataclass
class Texts:
    """Texts in an order drawn by a seed."""

    mixed: list[str]  # sentences of 3 to 60 words
    short: list[str]  # sentences of 3 to 10 words
    documents: list[str]  # consecutive paragraphs of a title, 230 to 540 words

    def some(self, kind: str, count: int) -> list[str]:
        """The first of a kind.

        Raises:
            ValueError: there are not as many.
        """
        found = getattr(self, kind)
        if len(found) < count:
            raise ValueError(
                f"the text has {len(found)} texts of the kind {kind!r}, asked for are {count}: give "
                "more by --text, or lower --sentences or --documents"
            )
        return found[:count]


def read_texts(sources: list[str], seed: int = 0) -> Texts:
    """Read `text` (and `title`, where there is one) of .txt, .jsonl or .parquet files.

    Raises:
        FileNotFoundError, ValueError: as `modeling_magnet.training.sources.read_rows`.
    """
    rows = list(read_rows(sources or SAMPLE, ("text",), keys=("title",), counts=Counter()))
    paragraphs = [row["text"] for row in rows]
    found = [sentence for text in paragraphs for sentence in sentences(text)]
    generator = np.random.default_rng(seed)

    def drawn(texts: list[str]) -> list[str]:
        return [texts[i] for i in generator.permutation(len(texts))]

    def of_length(limits: tuple[int, int]) -> list[str]:
        return [text for text in found if limits[0] <= len(text.split()) <= limits[1]]

    documents = _documents(paragraphs, [row.get("title") for row in rows], generator)
    return Texts(drawn(of_length(MIXED)), drawn(of_length(SHORT)), drawn(documents))


def _documents(paragraphs, titles, generator) -> list[str]:
    """Paragraphs joined until a length drawn evenly from `DOCUMENT`, cut there at a word."""
    documents: list[str] = []
    words: list[str] = []
    wanted, title = int(generator.integers(*DOCUMENT)), None
    for text, of in zip(paragraphs, titles, strict=True):
        if of != title:
            words, title = [], of
        words = words + text.split()
        if len(words) >= wanted:
            documents.append(" ".join(words[:wanted]))
            words, wanted = [], int(generator.integers(*DOCUMENT))
    return documents


def read_pairs(count: int) -> list[tuple[str, str]]:
    """Sentences and their paraphrases, of the sample in `examples/data`."""
    rows = read_rows([PAIRS], ("sentence", "paraphrase"), counts=Counter())
    return [
        (row["sentence"], row["paraphrase"]) for _, row in zip(range(count), rows, strict=False)
    ]


def dealt(texts: list[str], parts: int) -> list[list[str]]:
    """Cut into parts of the same mix of lengths, each in the order that the texts were in."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [[texts[i] for i in sorted(order[part::parts])] for part in range(parts)]
