"""Makes the tables of a run, blocks of tokens and sentence pairs, once, and memory-maps them."""

import errno
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import compress, islice
from operator import not_
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, NamedSplit, Value
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerFast

from modeling_magnet.tokenizing import TextTokenizer

from .arguments import DataArguments, ExampleArguments
from .sources import Row, identify, read_rows

logger = logging.getLogger(__name__)

CACHE_VERSION = 2
"""Part of the key of a cached table. Raise it when this module makes tables differently."""

BATCH_CHARACTERS = 1 << 20
"""How much text is tokenized at a time, so that long documents need no more memory than short ones."""

PAIR = ("sentence", "positive", "negative", *(f"negative_{i}" for i in range(2, 100)))
"""The columns of a table of pairs."""

VECTORS = tuple(f"{name}_vector" for name in PAIR)
"""The columns of a teacher's vectors in it."""


def make_blocks(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerFast,
    start_token_id: int | None,
    *,
    validation: bool = False,
    most: int | None = None,
    split_special_tokens: bool = True,
) -> "Blocks":
    r"""Tokenize the text and cut it into blocks, or find them in the cache.

    Each row's text gets a line break at its end, and rows are joined. Every block begins with the start
    token, like every sequence that the model is used on. With `separate_documents`, so does every
    document. The rest at the end, shorter than a block, is dropped.

        text       a a a b b c c c c c           blocks of 6, start token S
        together   S a a a b b   S c c c c c
        separate   S a a a S b   S b S c c c     documents 0 0 0 0 1 1   0 0 1 1 1 1

    The first process that needs the table writes it. From then on it is memory-mapped. It is made again
    when the text, the tokenizer or an argument that it depends on changes.

    Args:
        arguments: of the run: where the text is, and how blocks are cut.
        tokenizer: a fast tokenizer.
        start_token_id: None: no start token.
        validation: whether to take the first `validation_blocks` of the validation text.
        most: how many blocks the run needs. With `streaming`, no more text is read than that.
        split_special_tokens: as in `MagnetSettings`.

    Returns:
        The blocks, and counts of what was read and dropped.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source cannot be read (see `read_rows`), or has less text than a block.
        OSError: the cache's disk is full.
    """
    source, config, split = arguments.text, arguments.text_config, arguments.text_split
    limit = most if arguments.streaming else None
    if validation:
        source, split = arguments.validation_text, arguments.validation_split
        limit = arguments.validation_blocks

    def read(counts: Counter) -> Iterator[Row]:
        column = arguments.document_column
        return read_rows(
            source,
            (arguments.text_column,),
            config,
            split,
            keys=() if column is None else (column,),
            streaming=arguments.streaming,
            counts=counts,
        )

    identity = identify(source, config, split)
    return cut_into_blocks(
        read, identity, arguments, tokenizer, start_token_id, split_special_tokens,
        column=arguments.text_column, document_column=arguments.document_column,
        limit=limit, folder=arguments.token_cache,
    )  # fmt: skip


def cut_into_blocks(
    read: Callable[[Counter], Iterator[Row]],
    identity: Any,
    arguments: ExampleArguments,
    tokenizer: PreTrainedTokenizerFast,
    start_token_id: int | None,
    split_special_tokens: bool,
    *,
    column: str = "text",
    document_column: str | None = None,
    limit: int | None = None,
    folder: str | None = None,
) -> "Blocks":
    """`make_blocks`, for rows from anywhere.

    Args:
        read: yields the rows, and fills their counts.
        identity: the rows' key in the cache.
        arguments: how blocks are cut.
        tokenizer, start_token_id, split_special_tokens: as in `make_blocks`.
        column, document_column: of the rows.
        limit: the most blocks.
        folder: of the cache.

    Raises:
        ValueError, OSError: as in `make_blocks`.
    """
    start = [] if start_token_id is None else [start_token_id]
    if arguments.block_length <= len(start):
        raise ValueError("block_length is 1, which is only the start token: give 2 or more")
    document_start = start if arguments.separate_documents else []
    names = ("ids", "document_ids") if arguments.separate_documents else ("ids",)

    def make(counts: Counter) -> Iterator[Row]:
        logger.info("tokenizing %s", identity)
        reader = TextTokenizer(tokenizer, split_special_tokens)
        stream = _tokenize(read(counts), reader, column, document_column, document_start, counts)
        for block in islice(_cut(stream, start, arguments, counts), limit):
            yield {name: block[name].tobytes() for name in names}
        if not counts["blocks"]:
            raise ValueError(
                f"the text has {counts['tokens']} tokens ({dict(counts)}), but a block has "
                f"{arguments.block_length}: give more text or a smaller block_length"
            )

    key = [
        "blocks",
        identity,
        column,
        document_column,
        _identify_tokenizer(tokenizer),
        split_special_tokens,
        start,
        arguments.block_length,
        arguments.separate_documents,
        limit,
    ]
    features = {name: Value("binary") for name in names}
    return Blocks(*_cached(key, make, features, folder))


class Blocks:
    """Blocks of tokens in a memory-mapped table, in the order of the text.

    Attributes:
        counts: `rows read`, `dropped: ` with each reason, `empty files`, `documents`, `tokens` (including
            start tokens of documents, but not those of blocks), `tokens left over`, `blocks`.
    """

    def __init__(self, table: Dataset, counts: dict[str, int]):
        self.counts = counts
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Token ids, (block_length,) int32, and their documents, (block_length,) int32 or None."""
        row = {k: np.frombuffer(v, np.int32).copy() for k, v in self._table[index].items()}
        return row["ids"], row.get("document_ids")


def read_pairs(arguments: DataArguments, *, validation: bool = False) -> "Pairs":
    """Read the sentence pairs into the cache, or find them there.

    Args:
        arguments: of the run: where the pairs are, their columns and their groups.
        validation: whether to take the first `validation_pair_count` of the validation pairs.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the source cannot be read (see `read_rows`), or has no pair.
        OSError: the cache's disk is full.
    """
    source, split, limit = arguments.pairs, arguments.pairs_split, None
    if validation:
        source, split = arguments.validation_pairs, arguments.validation_split
        limit = arguments.validation_pair_count
    config, columns = arguments.pairs_config, tuple(arguments.pair_columns)
    group_column, score_column = arguments.group_column, arguments.score_column
    label_column = arguments.label_column
    keys = tuple(c for c in (group_column, score_column, label_column) if c is not None)
    keys += (vector_columns := tuple(arguments.vector_columns))

    def make(counts: Counter) -> Iterator[Row]:
        groups: dict[Any, int] = {}  # or classes
        size = None
        rows = read_rows(
            source,
            columns,
            config,
            split,
            keys=keys,
            distinct=score_column is None,
            streaming=arguments.streaming,
            counts=counts,
        )
        for row in islice(rows, limit):
            counts["pairs"] += 1
            pair = {name: row[column] for name, column in zip(PAIR, columns, strict=False)}
            if group_column is not None:
                pair["group"] = groups.setdefault(row.get(group_column), len(groups))
                counts["groups"] = len(groups)
            if score_column is not None:
                check_score(row.get(score_column), f"row {counts['rows read']} of {source}")
                pair["score"] = row[score_column]
            if label_column is not None:
                if row.get(label_column) is None:
                    raise ValueError(f"row {counts['rows read']} of {source} has no {label_column}")
                if isinstance(row[label_column], (list, dict)):
                    raise ValueError(
                        f"the {label_column} of row {counts['rows read']} of {source} is "
                        f"{row[label_column]!r:.60}: give one class, a text or a number"
                    )
                pair["class"] = groups.setdefault(row[label_column], len(groups))
                counts["classes"] = len(groups)
            if vector_columns:
                where = f"row {counts['rows read']} of {source}"
                vectors, size = check_vectors([row.get(c) for c in vector_columns], size, where)
                pair |= dict(zip(VECTORS, vectors, strict=False))
            yield pair
        if not counts["pairs"]:
            raise ValueError(f"{source} has no pair with texts that differ: {dict(counts)}")

    key: list = ["pairs", identify(source, config, split), columns, group_column, limit]
    key += [] if score_column is None else [score_column]
    key += [] if label_column is None else [["class", label_column]]
    key += [vector_columns] if vector_columns else []
    features: dict[str, Any] = {name: Value("string") for name in PAIR[: len(columns)]}
    features |= {name: List(Value("float32")) for name in VECTORS[: len(vector_columns)]}
    if group_column is not None:
        features["group"] = Value("int64")
    if score_column is not None:
        features["score"] = Value("float64")
    if label_column is not None:
        features["class"] = Value("int64")
    return Pairs(*_cached(key, make, features, arguments.token_cache))


def check_score(score: Any, where: str) -> None:
    """Raise unless a score is a number from 0 to 1."""
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise ValueError(
            f"the score in {where} is {score!r}: give numbers from 0 to 1, such as a scale to 5 divided "
            "by 5"
        )


def check_vectors(vectors: Sequence[Any], size: int | None, where: str) -> tuple[np.ndarray, int]:
    """Check a teacher's vectors of a row's texts: returns them, (texts, size) in float32, and their size.

    Args:
        vectors: as read from the row.
        size: of the vectors of earlier rows; None for the first row.
        where: for messages.

    Raises:
        ValueError: one is missing, is all zeros, holds something other than finite numbers, or has another size.
    """
    for vector in vectors:
        try:
            array = np.asarray(vector, dtype=np.float32)
        except (TypeError, ValueError):
            array = np.empty(0, dtype=np.float32)
        if array.ndim != 1 or not len(array):
            raise ValueError(f"a vector in {where} is {vector!r:.60}: give a list of numbers")
        size = size or len(array)
        if len(array) != size:
            raise ValueError(
                f"a vector in {where} has {len(array)} numbers, but earlier ones have {size}: give vectors "
                "of one teacher"
            )
        if not np.isfinite(array).all() or not array.any():
            kind = "holds NaN or infinity" if array.any() else "is all zeros"
            raise ValueError(
                f"a vector in {where} {kind}: leave such rows out, or encode them again"
            )
    return np.asarray(vectors, dtype=np.float32), int(size or 0)


class Pairs:
    """Sentence pairs in a memory-mapped table, in the order of their files.

    Attributes:
        counts: `rows read`, `dropped: ` with each reason, `empty files`, `pairs`, `groups`.
        groups: (pairs,) the group of each, numbered in order of appearance; None without a group column.
        scores: (pairs,) how similar the two texts of each are, from 0 to 1; None without such a column.
        classes: (texts,) the class of each, numbered; None without such a column.
        has_vectors: whether there is a teacher's vector of each text.
    """

    def __init__(self, table: Dataset, counts: dict[str, int]):
        self.counts = counts
        self.groups: np.ndarray | None = None
        if "group" in table.column_names:
            self.groups = table.with_format("numpy")["group"][:]
        self.scores: np.ndarray | None = None
        if "score" in table.column_names:
            self.scores = np.asarray(table["score"][:], dtype=np.float32)
        self.classes: np.ndarray | None = None
        if "class" in table.column_names:
            self.classes = np.asarray(table["class"][:], dtype=np.int64)
        vectors = [name for name in VECTORS if name in table.column_names]
        self.has_vectors = bool(vectors)
        self._vectors = table.select_columns(vectors).with_format("numpy")
        self._table = table.select_columns([name for name in PAIR if name in table.column_names])

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        return tuple(self._table[index].values())

    def vectors(self, index: int) -> np.ndarray:
        """A teacher's vectors of the texts of a pair, (texts, size)."""
        return np.stack(list(self._vectors[index].values()))


def first_texts(arguments: DataArguments, count: int) -> list[str]:
    """The first `count` texts of the run, or all if there are fewer."""
    rows = read_rows(
        arguments.text,
        (arguments.text_column,),
        arguments.text_config,
        arguments.text_split,
        streaming=arguments.streaming,
        counts=Counter(),
    )
    return [row[arguments.text_column] for row in islice(rows, count)]


def counts_table(title: str, counts: dict[str, int]) -> str:
    """Counts as lines of a log, under a title."""
    width = max(map(len, counts), default=0)
    return "\n".join([title, *(f"  {name:<{width}} {n:>14,}" for name, n in counts.items())])


def _tokenize(
    rows: Iterator[Row],
    tokenizer: TextTokenizer,
    column: str,
    document_column: str | None,
    document_start: list[int],
    counts: Counter,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield token ids, (tokens,), and the number of each token's document, (tokens,)."""
    before = None
    for batch in _batches(rows, column):
        begins = []  # whether a row begins a document
        for row in batch:
            document = (row.get(document_column),) if document_column else None
            begins.append(document is None or document != before)
            before = document
        texts = [row[column] + "\n" for row in batch]
        firsts = iter(tokenizer.ids([*compress(texts, begins)]))
        others = iter(tokenizer.continued.ids([*compress(texts, map(not_, begins))]))
        pieces, numbers = [], []
        for begin in begins:
            ids = [*document_start, *next(firsts)] if begin else next(others)
            counts["documents"] += begin
            pieces.append(np.array(ids, dtype=np.int32))
            numbers.append(counts["documents"])
        counts["tokens"] += sum(map(len, pieces))
        yield (
            np.concatenate(pieces),
            np.repeat(np.array(numbers, dtype=np.int32), [len(piece) for piece in pieces]),
        )


def _batches(rows: Iterator[Row], column: str) -> Iterator[list[Row]]:
    batch, characters = [], 0
    for row in rows:
        batch.append(row)
        characters += len(row[column])
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cut(
    stream: Iterator[tuple[np.ndarray, np.ndarray]],
    start: list[int],
    arguments: ExampleArguments,
    counts: Counter,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield blocks: `ids` and `document_ids`, each (block_length,)."""
    rest = np.empty((2, 0), dtype=np.int32)
    before = 0  # the document that the last block ends in; the first is 1
    own = np.array(start, dtype=np.int32)
    for batch in stream:
        counts["tokens left over"] += len(batch[0])
        rest = np.concatenate([rest, batch], axis=1)  # (2, tokens): ids, documents
        first = 0
        while first < rest.shape[1]:
            # A document that begins where the block does already has its start token.
            begins = arguments.separate_documents and rest[1, first] != before
            last = first + arguments.block_length - (0 if begins else len(own))
            if last > rest.shape[1]:
                break
            ids, documents = rest[:, first:last]
            if not begins:
                ids = np.concatenate([own, ids])
                documents = np.concatenate([np.repeat(documents[:1], len(own)), documents])
            counts["tokens left over"] -= last - first
            counts["blocks"] += 1
            first, before = last, documents[-1]
            changes = documents[1:] != documents[:-1]
            yield {"ids": ids, "document_ids": np.append(0, np.cumsum(changes)).astype(np.int32)}
        rest = rest[:, first:]


def _cached(
    key: list,
    make: Callable[[Counter], Iterator[Row]],
    features: dict[str, Any],
    folder: str | None,
) -> tuple[Dataset, dict[str, int]]:
    """The table of the rows that `make` yields, and the counts that it fills.

    The counts are stored in the table's last row, so they exist whenever the table does. `datasets` makes
    it under a lock, in a folder that gets its name at the end, so a killed process leaves no part that
    could be taken for the whole.
    """
    fingerprint = hashlib.sha256(json.dumps([CACHE_VERSION, *key]).encode()).hexdigest()
    folder = folder or str(datasets.config.HF_DATASETS_CACHE)

    def generate() -> Iterator[Row]:
        counts: Counter = Counter()
        rows = make(counts)
        row = next(rows)
        for following in rows:
            yield row | {"counts": None}
            row = following
        yield row | {"counts": json.dumps(counts)}

    try:
        table = Dataset.from_generator(
            generate,
            features=Features(features | {"counts": Value("string")}),
            cache_dir=folder,
            split=NamedSplit(key[0]),
            fingerprint=fingerprint,
        )
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                cause.errno,
                f"{cause.strerror}: make room for the token cache, or name another",
                folder,
            ) from error
        raise cause from cause.__cause__
    return table.remove_columns("counts"), json.loads(table[-1]["counts"])


def _identify_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # of the last call, not of the tokenizer
        state.pop(setting)
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
