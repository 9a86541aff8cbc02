"""Where the data of a task are: files of one folder, or the Hub.

A folder that `--data` names holds some of `FILES`, UTF-8 with line breaks of `\\n`; evaluation/README.md has
their formats.

Without a folder mteb and lm-eval load their sets from the Hub, and WikiText-103 and CoNLL-2003 are
written from there into such a folder once. ROC Stories are given out on request only, so are never on
the Hub.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np

from evaluation.common.writing import write_text

STS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STSBenchmark", "SICK-R")
CLUSTERING = (
    "BiorxivClusteringP2P", "BiorxivClusteringS2S", "MedrxivClusteringP2P", "MedrxivClusteringS2S",
    "TwentyNewsgroupsClustering",
)  # fmt: skip
CHOICES = ("mmlu", "arc_easy", "piqa")

FILES = {
    "sts": ("sts/*.tsv",),
    "clustering": ("clustering/*.tsv",),
    "words": ("conll2003/eng.train", "conll2003/eng.testb|conll2003/eng.testa"),
    "stories": ("rocstories/test.tsv|rocstories/dev.tsv",),
    "text": ("wikitext-103/wiki.test.tokens|wikitext-103/wiki.valid.tokens",),
    "choices": ("lm/*.jsonl",),
}
"""What each kind of data is: patterns in the folder, all of them needed; `|` stands before a second choice."""


class Data:
    """The data of the tasks, by kind: files of a folder, or what stands for them on the Hub.

    Args:
        folder: the user's; None: the Hub.
        cache: where sets from the Hub are written that no other library loads.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, folder: str | Path | None, cache: str | Path):
        self.folder = None if folder is None else Path(folder)
        self.cache = Path(cache)
        if self.folder is not None and not self.folder.is_dir():
            raise FileNotFoundError(f"--data is {folder}, which is not a folder")

    def sources(self, kind: str) -> list[str]:
        """The files of a kind, or its names on the Hub.

        Raises:
            FileNotFoundError: the folder lacks them, or the Hub has none.
        """
        if self.folder is not None:
            return [str(path) for pattern in FILES[kind] for path in self._found(pattern)]
        if kind == "stories":
            raise FileNotFoundError(
                "ROC Stories are not on the Hub: ask their authors for them, and give --data a "
                "folder with rocstories/test.tsv, or leave out infilling, prompting and repetition"
            )
        on_hub = HUB[kind]
        return [str(path) for path in on_hub(self.cache)] if callable(on_hub) else list(on_hub)

    def _found(self, pattern: str) -> list[Path]:
        assert self.folder is not None
        for choice in pattern.split("|"):
            if found := sorted(self.folder.glob(choice)):
                return found
        raise FileNotFoundError(
            f"{self.folder} has no {pattern.replace('|', ' or ')}: add it, or choose other --tasks"
        )


def require(module: str) -> None:
    """Raise an ImportError where a module of the extra `eval` is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(f'{module} is not installed: pip install -e ".[eval]"')


def check_unique(names: Sequence[str]) -> None:
    """Raise a ValueError where two sources have the same name."""
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two sources have the name {min(twice)!r}: give each another")


def drawn(count: int, limit: int | None, seed: int, least: int = 1) -> list[int]:
    """Up to `limit` of the numbers below `count`, in their order."""
    if limit is not None and limit < least:
        raise ValueError(f"limit is {limit}: give {least} or more")
    return sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())


def fingerprint(sources: Sequence[str]) -> str:
    """A digest of the files' contents, or of the names."""
    digest = hashlib.sha256()
    for source in sources:
        path = Path(source)
        digest.update(path.read_bytes() if path.is_file() else source.encode())
    return digest.hexdigest()[:16]


def fetch_text(folder: Path) -> list[Path]:
    """Write the test part of WikiText-103 from the Hub, if it is not there, and return its path."""
    path = folder / "wikitext-103" / "wiki.test.tokens"
    if not path.exists():
        rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-103-v1", split="test")
        write_text(path, "".join(row["text"] or " \n" for row in rows))
    return [path]


def fetch_words(folder: Path) -> list[Path]:
    """Write CoNLL-2003 from the Hub, if it is not there, and return the training and test paths."""
    paths = [folder / "conll2003" / name for name in ("eng.train", "eng.testb")]
    for path, split in zip(paths, ("train", "test"), strict=True):
        if not path.exists():
            found = datasets.load_dataset(
                "eriktks/conll2003", revision="refs/convert/parquet", split=split
            )
            write_text(path, conll_text(found))
    return paths


def conll_text(rows: datasets.Dataset) -> str:
    """The lines of CoNLL-2003 of a set with `tokens`, `pos_tags`, `chunk_tags` and `ner_tags`."""
    names = [rows.features[f"{kind}_tags"].feature.names for kind in ("pos", "chunk", "ner")]
    sentences = []
    for row in rows:
        columns = [row[f"{kind}_tags"] for kind in ("pos", "chunk", "ner")]
        tags = [
            [known[tag] for tag in column] for known, column in zip(names, columns, strict=True)
        ]
        lines = map(" ".join, zip(row["tokens"], *tags, strict=True))
        sentences.append("\n".join(lines) + "\n")
    return "\n".join(sentences)


HUB: dict[str, Sequence[str] | Callable[[Path], list[Path]]] = {
    "sts": STS, "clustering": CLUSTERING, "words": fetch_words, "text": fetch_text,
    "choices": CHOICES,
}  # fmt: skip
"""Names that mteb and lm-eval know, or what writes the files."""
