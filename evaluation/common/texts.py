"""Files that are read, one function a format, and where a sentence of a text ends."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STORY_COLUMNS = [f"sentence{i}" for i in range(1, 6)]
SENTENCE_END = re.compile(
    r"(?<!\b[A-Z]\.)(?<!\b(?:Mr|Ms|Dr|St)\.)(?<!\bMrs\.)"  # an initial or a title goes on
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”\u2019)\]]))\s+"  # \u2019: a closing single quote
    r"|\s*\n\s*"
)


def read_columns(path: str | Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a TSV by name, unquoted, none of their fields empty.

    Raises:
        ValueError: it is no file, has no lines but its header or lacks a column; or a line has another
            number of fields or an empty one.
    """
    if not Path(path).is_file():
        raise ValueError(
            f"{path} is not a file: give a .tsv file with the columns {', '.join(names)}"
        )
    with Path(path).open(encoding="utf-8", newline="") as file:
        header, *rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)) or [[]]
    if missing := [name for name in names if name not in header]:
        raise ValueError(f"{path} has the columns {header}, it lacks {missing}")
    if not rows:
        raise ValueError(f"{path} has only a header: give lines of text after it")
    places = [header.index(name) for name in names]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            got = f"{path}, line {number}: got {len(row)} fields"
            raise ValueError(f"{got}, expected {len(header)}")
        if empty := [header[place] for place in places if not row[place].strip()]:
            raise ValueError(f"{path}, line {number}: {empty[0]} is empty, expected text")
    return {header[place]: [row[place].strip() for row in rows] for place in places}


def read_stories(path: str | Path) -> list[list[str]]:
    """The stories of a TSV with the columns `sentence1` to `sentence5`.

    Raises:
        ValueError: as in `read_columns`.
    """
    return [list(story) for story in zip(*read_columns(path, STORY_COLUMNS).values(), strict=True)]


def read_paragraphs(path: str | Path) -> list[str]:
    """The paragraphs of a text file, one a line, without headings (` = Title = `) and empty lines.

    WikiText's tokenised spelling (`@-@`, `<unk>`) is left as it is.

    Raises:
        ValueError: there is none.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    lines = [line.strip() for line in lines if not re.fullmatch(r"\s*(= .* =)?\s*", line)]
    if not lines:
        raise ValueError(f"{path} has no paragraphs, only headings or empty lines")
    return lines


@dataclass(frozen=True)
class Sentence:
    """Words and, for each of `pos`, `chunk` and `ner`, a tag a word."""

    words: list[str]
    tags: dict[str, list[str]]


def read_conll(path: str | Path) -> list[Sentence]:
    """Read a file of CoNLL-2003, which is research data that may not be passed on.

    Args:
        path: of a UTF-8 file. A line is a word, its part of speech, its chunk tag and its entity tag
            (IOB1 as in the original, or IOB2); sentences end at an empty or a `-DOCSTART-` line.

    Returns:
        Its sentences; chunk and entity tags in IOB2.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no sentence, or a line has not four columns, the last two IOB tags.
    """
    sentences: list[Sentence] = []
    rows: list[list[str]] = []
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate([*lines, ""], start=1):
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            iob = all(tag == "O" or tag.startswith(("B-", "I-")) for tag in columns[2:])
            if len(columns) != 4 or not iob:
                raise ValueError(
                    f"{path}, line {number}: got {len(columns)} columns {columns}, expected 4: word, "
                    "part of speech, chunk and entity tag (O, B-... or I-...)"
                )
            rows.append(columns)
        elif rows:
            words, pos, chunk, ner = (list(column) for column in zip(*rows, strict=True))
            tagged = {"pos": pos, "chunk": to_iob2(chunk), "ner": to_iob2(ner)}
            sentences.append(Sentence(words, tagged))
            rows = []
    if not sentences:
        raise ValueError(f"{path} has no sentence: give a file of CoNLL-2003, such as eng.train")
    return sentences


def to_iob2(tags: list[str]) -> list[str]:
    """The tags of a sentence with `B-` at the start of every span; IOB2 stays as it is.

    IOB1 writes `B-` only where a span touches another of its type. seqeval's default mode reads the
    same spans from both (an `I-` that continues none starts one), its strict IOB2 mode does not. But
    Table 1's accuracies are of IOB2, and so rare a `B-` is hardly learnt: touching spans get joined.
    """
    return [
        "B-" + tag[2:] if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in zip(["O", *tags], tags, strict=False)
    ]


def sentences(text: str) -> list[str]:
    """The sentences of a text, with single spaces between words.

    A sentence ends at `.`, `!` or `?`, with closing quotes and brackets, before white space, and at a
    line break. A stop after a single capital letter or a title (`J.`, `Mr.`) ends none. What stands
    after the last end is a sentence too.

    Example:
        >>> sentences("Dr. J. Roe left. “Why?” Nobody\\nknew")
        ['Dr. J. Roe left.', '“Why?”', 'Nobody', 'knew']
    """
    pieces = (" ".join(piece.split()) for piece in SENTENCE_END.split(text))
    return [piece for piece in pieces if piece]
