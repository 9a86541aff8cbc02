"""`magnet encode`: texts of any number to vectors, in constant memory."""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..locking import folder_lock
from .loading import fingerprint
from .options import OF_TEXTS, Encoding
from .reading import Row, batches, count_rows, identify, read_texts
from .writing import FORMATS, SKIPPED, JsonlFile, ShardFolder, Skipped, whole_file

BATCHES_AT_ONCE = 32
"""The number of batches whose texts are held in memory and sorted by length together."""


class Encoder:
    """Encodes lists of rows and counts the texts that were cut."""

    def __init__(self, model: Any, encoding: Encoding):
        self.model, self.encoding = model, encoding
        self.cut = 0
        settings = model.magnet_settings
        self.prompt_text = ""
        self.limit = settings.max_length - 1
        if encoding.unit == OF_TEXTS:
            self.prompt_text = settings.prompt_text(encoding.prompt_name, encoding.prompt)
            self.limit = settings.max_length - settings.special_tokens

    def __call__(self, rows: Sequence[Row]) -> Any:
        """An array (rows, dimensions), or for tokens and words one dict of fields per row.

        Raises:
            ValueError: a text is too long; the message says which line it is.
        """
        texts = [row.value for row in rows]
        encode: Callable = getattr(self, f"_{self.encoding.unit}")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* texts were cut")  # counted here
                vectors = encode(texts)
        except ValueError as error:
            for row, length in zip(rows, self._lengths(texts), strict=True):
                if length > self.limit:
                    hint = "" if self.encoding.unit == "words" else ", or cut all by --truncation"
                    raise ValueError(
                        f"{row.file}, line {row.line}: the text has {length} tokens with its prompt, "
                        f"the limit is {self.limit}: shorten it{hint}"
                    ) from error
            raise
        if self.encoding.truncation:
            self.cut += sum(length > self.limit for length in self._lengths(texts))
        return vectors

    def identity(self) -> dict[str, Any]:
        """What decides the vectors. `batch_size` changes their last digits only, and whether long
        texts are cut or refused changes no vector.
        """
        names = (
            "unit", "normalize", "truncate_dim", "num_layers", "precision", "column", "keep_text",
        )  # fmt: skip
        settings = {name: getattr(self.encoding, name) for name in names}
        return {"model": fingerprint(self.model), "prompt": self.prompt_text, **settings}

    def _lengths(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        whole = [self.prompt_text + text for text in texts]
        return [len(ids) for ids in self.model.text_tokenizer.ids(whole)]

    def _sentences(self, texts: list[str]) -> Any:
        encoding = self.encoding
        return self.model.encode(
            texts,
            prompt=self.prompt_text,
            batch_size=encoding.batch_size,
            show_progress_bar=False,
            normalize_embeddings=encoding.normalize,
            truncate_dim=encoding.truncate_dim,
            num_layers=encoding.num_layers,
            precision=encoding.precision,
            truncation=encoding.truncation,
        )

    def _tokens(self, texts: list[str]) -> list[dict[str, Any]]:
        arrays = self.model.encode_tokens(
            texts,
            batch_size=self.encoding.batch_size,
            show_progress_bar=False,
            truncation=self.encoding.truncation,
            num_layers=self.encoding.num_layers,
        )
        token_ids = self.model.text_tokenizer.ids(texts)
        tokens = [
            self.model.tokenizer.convert_ids_to_tokens(ids[: len(array)])
            for ids, array in zip(token_ids, arrays, strict=True)
        ]
        return _fields("tokens", tokens, arrays)

    def _words(self, texts: list[str]) -> list[dict[str, Any]]:
        arrays = self.model.encode_words(
            texts,
            batch_size=self.encoding.batch_size,
            show_progress_bar=False,
            num_layers=self.encoding.num_layers,
        )
        return _fields("words", [text.split() for text in texts], arrays)


def encode_to_file(
    encoder: Encoder, inputs: Sequence[str], path: Path | None, format: str
) -> tuple[int, Skipped]:
    """Encode all rows into one file, which takes its place when complete, or to standard output.

    Args:
        encoder: what encodes.
        inputs: of `read_texts`.
        path: None is standard output, as JSONL.
        format: a key of `FORMATS`.

    Returns:
        How many rows were encoded, and what was skipped.

    Raises:
        ValueError: of `Encoder`, or because no row could be used.
    """
    keep_text = encoder.encoding.keep_text
    if path is None:
        skipped = Skipped()
        lines = JsonlFile(sys.stdout.buffer, keep_text)
        return _encode_all(encoder, inputs, lines, skipped), skipped
    with tempfile.TemporaryDirectory() as scratch, whole_file(path) as file:
        skipped = Skipped(Path(scratch) / SKIPPED if format == "npy" else None)
        done = _encode_all(encoder, inputs, FORMATS[format](file, keep_text), skipped)
        if format == "npy":
            skipped.put(path.with_name(f"{path.name}.{SKIPPED}"))
    return done, skipped


def encode_to_shards(
    encoder: Encoder, inputs: Sequence[str], path: Path, format: str, shard_size: int
) -> ShardFolder:
    """Encode all rows into a folder of shards, after those that are finished.

    Args:
        encoder, inputs, format: as in `encode_to_file`.
        path: the folder.
        shard_size: rows in a shard.

    Raises:
        BlockingIOError: another process writes to the folder.
        ValueError: of `ShardFolder` and `Encoder`. What stays is then said on standard error, as at
            a full disk and at Ctrl-C.
    """
    path.mkdir(parents=True, exist_ok=True)
    with folder_lock(path):
        return _encode_to_shards(encoder, inputs, path, format, shard_size)


def _encode_to_shards(
    encoder: Encoder, inputs: Sequence[str], path: Path, format: str, shard_size: int
) -> ShardFolder:
    settings = {**encoder.identity(), "format": format, "shard_size": shard_size}
    keep_text = encoder.encoding.keep_text
    folder = ShardFolder(path, format, keep_text, settings, identify(inputs))
    if folder.complete:
        return folder
    begin = folder.next_index
    rows = dropwhile(lambda row: row.index < begin, read_texts(inputs, encoder.encoding.column))
    good = folder.skipped.filter(_progress(rows, inputs, begin))
    try:
        while first := next(good, None):
            with folder.shard() as shard:
                in_shard = chain([first], islice(good, shard_size - 1))
                for batch in batches(in_shard, encoder.encoding.batch_size * BATCHES_AT_ONCE):
                    shard.write(batch, encoder(batch))
        folder.skipped.require_some(folder.rows)
        folder.finish()
    except BaseException:
        tqdm.write(folder.stands(), file=sys.stderr)
        raise
    return folder


def _encode_all(encoder: Encoder, inputs: Sequence[str], file: Any, skipped: Skipped) -> int:
    done = 0
    rows = _progress(read_texts(inputs, encoder.encoding.column), inputs)
    for batch in batches(skipped.filter(rows), encoder.encoding.batch_size * BATCHES_AT_ONCE):
        file.write(batch, encoder(batch))
        done += len(batch)
    skipped.require_some(done)
    if not done:
        file.write([], encoder([]))
    file.close()
    return done


def _progress(rows: Iterator[Row], inputs: Sequence[str], done: int = 0) -> Iterator[Row]:
    shown = sys.stderr.isatty()
    total = count_rows(inputs) if shown else None
    return iter(
        tqdm(rows, desc="Encoding", unit=" rows", total=total, initial=done, disable=not shown)
    )


def _fields(name: str, labels: list[list[str]], arrays: list[Any]) -> list[dict[str, Any]]:
    return [
        {name: texts, "vectors": array.tolist()}
        for texts, array in zip(labels, arrays, strict=True)
    ]
