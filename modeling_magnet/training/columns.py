"""Recognizes what a `datasets.Dataset` is for by its columns, as sentence-transformers does, and checks its rows."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import datasets

from .sources import Row, text_fault, usable_rows
from .tables import PAIR, VECTORS, Pairs, check_score, check_vectors

LABELS = ("label", "labels", "score", "scores")
"""Columns that sentence-transformers takes for labels."""

EXPECTED_COLUMNS = (
    "give one of these. `text` (for MNTP, MSG and NTP). Only texts: a query, its positive and any hard "
    "negatives, such as anchor, positive, negative_1 (contrastive). Two texts and a score from 0 to 1, such as "
    "sentence1, sentence2, score (CoSENT). A text and its class, a whole number or a string, such as text, "
    "label (supervised contrastive). Texts and as many lists of numbers, a teacher's vectors, such as text, "
    "vector (distillation). To change columns, use rename_columns, select_columns and remove_columns"
)


INTEGERS = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
"""Types of numbers that may be classes."""

OBJECTIVES_OF_KIND = {
    "text": ("mntp", "msg", "ntp", "divergence"),
    "pairs": ("sscl",),
    "scored": ("cosent",),
    "classes": ("supcon",),
    "taught": ("distil",),
}
"""The objectives that each kind of dataset can train."""


class DatasetUse(NamedTuple):
    """A dataset, and what it is used for.

    Attributes:
        kind: `text`, `pairs`, `scored` pairs, texts with `classes`, or `taught` texts, which have a
            teacher's vectors.
        dataset: the dataset itself.
        texts: columns of text.
        label: column of scores or classes.
        vectors: columns of vectors, one for each of `texts`, or empty. Pairs may have them too.
    """

    kind: str
    dataset: datasets.Dataset
    texts: tuple[str, ...]
    label: str | None = None
    vectors: tuple[str, ...] = ()

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives that it can train."""
        return OBJECTIVES_OF_KIND[self.kind] + (
            ("distil",) if self.vectors and self.kind != "taught" else ()
        )


def recognize(given: Any, name: str) -> dict[str, DatasetUse]:
    """Recognize what each dataset is for.

    Args:
        given: a `Dataset`, or a dict of them with any keys.
        name: of the argument, for messages.

    Returns:
        The uses, by `text`, `pairs` or both.

    Raises:
        TypeError: something is not a `Dataset`.
        ValueError: columns fit no objective, or two datasets are for the same one.
    """
    uses: dict[str, DatasetUse] = {}
    many = isinstance(given, Mapping)
    for key, dataset in given.items() if many else [(None, given)]:
        where = f"{name}[{key!r}]" if many else name
        use = _use_of(dataset, where)
        role = "text" if use.kind == "text" else "pairs"
        if role in uses:
            raise ValueError(f"{name} has two datasets of {role}: join them, or train twice")
        uses[role] = use
    if not uses:
        raise ValueError(f"{name} holds no dataset: {EXPECTED_COLUMNS}")
    return uses


def _use_of(dataset: Any, where: str) -> DatasetUse:
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(f"{where} is {type(dataset).__name__}: give a datasets.Dataset")
    columns = dataset.column_names
    kinds = {name: _kind(feature) for name, feature in dataset.features.items()}
    strings = ("string", "large_string")
    texts = tuple(name for name in columns if kinds[name] in strings and name not in LABELS)
    vectors = tuple(name for name in columns if _is_vector(name, kinds[name]))
    labels = tuple(name for name in columns if name in LABELS and name not in vectors)
    if "text" in texts and not labels and not vectors:
        return DatasetUse("text", dataset, ("text",))
    nothing_else = len(texts) + len(vectors) == len(columns) and not any(map(_is_id, texts))
    if not labels and {"anchor", "positive"} <= set(texts):  # by name, with any other columns
        nothing_else = True
        negatives = tuple(name for name in texts if name.startswith("negative"))
        texts = ("anchor", "positive", *negatives)
    named = tuple(f"{name}_vector" for name in texts)
    if set(named) == set(vectors):  # in any order
        vectors = named
    if len(vectors) in (0, len(texts)):
        if len(labels) == 1 and len(texts) == 2 and re.match("float|u?int", kinds[labels[0]]):
            return DatasetUse("scored", dataset, texts, labels[0], vectors)
        if len(labels) == len(texts) == 1 and kinds[labels[0]] in (
            *strings,
            "ClassLabel",
            *INTEGERS,
        ):
            return DatasetUse("classes", dataset, texts, labels[0], vectors)
        if not labels and len(texts) >= 2 and nothing_else:
            return DatasetUse("pairs", dataset, texts, None, vectors)
        if not labels and len(texts) == 1 and vectors:
            return DatasetUse("taught", dataset, texts, None, vectors)
    shown = ", ".join(f"{name} ({kinds[name]})" for name in columns) or "none"
    raise ValueError(f"{where} has the columns {shown}, which fit no objective: {EXPECTED_COLUMNS}")


def _kind(feature: Any) -> str:
    if isinstance(feature, datasets.Value):
        return feature.dtype
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return f"list of {_kind(feature.feature)}"
    return type(feature).__name__


def _is_vector(column: str, kind: str) -> bool:
    return kind.startswith("list of float") or (
        kind.startswith("list of ") and column.endswith("vector")
    )


def _is_id(column: str) -> bool:
    return column == "id" or column.endswith(("_id", "_ids", "_idx"))


def text_rows(use: DatasetUse, counts: Counter) -> Iterator[Row]:
    """The rows of a dataset of text. Rows without text are left out and counted."""
    rows = enumerate(use.dataset.with_format(None).select_columns(["text"]))
    return usable_rows(((f"row {i}", row) for i, row in rows), ("text",), False, counts)


def pairs_of(use: DatasetUse, name: str) -> Pairs:
    """The pairs of a dataset, each row checked.

    Raises:
        ValueError: a text is missing or blank, a negative equals its positive or its query, a score is
            not from 0 to 1, or a class or a vector cannot be used.
    """
    texts = use.texts
    labels = () if use.label is None else (use.label,)
    size = None
    classes: dict[Any, int] = {}
    table = use.dataset.with_format(None).select_columns([*texts, *labels, *use.vectors])
    for i, row in enumerate(table):
        where = f"row {i} of {name}"
        fault = text_fault(row, texts)
        if fault is not None:
            raise ValueError(f"{where}: {fault}: leave such rows out (dataset.filter)")
        for negative in texts[2:]:
            for other in texts[:2]:
                if row[negative] == row[other]:
                    raise ValueError(
                        f"{where}: {negative} is the same as {other} ({row[other]!r:.80}): leave such "
                        "rows out (dataset.filter), or give another negative"
                    )
        if use.kind == "scored":
            check_score(row[use.label], where)
        if use.kind == "classes":
            if row[use.label] is None:
                raise ValueError(
                    f"{where} has no {use.label}: leave such rows out (dataset.filter)"
                )
            classes.setdefault(row[use.label], len(classes))
        if use.vectors:
            _, size = check_vectors([row[name] for name in use.vectors], size, where)
    given = (*texts, *use.vectors)
    names = dict(zip(given, (*PAIR[: len(texts)], *VECTORS[: len(use.vectors)]), strict=True))
    if use.kind == "classes":
        numbers = [classes[value] for value in table[use.label]]
        table = table.remove_columns(use.label).add_column("class", numbers)
    elif use.label is not None:
        names[use.label] = "score"
    return Pairs(table.rename_columns(names), Counter())
