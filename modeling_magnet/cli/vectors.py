"""`magnet encode`: texts of any number to vectors, in constant memory."""

import contextlib
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..locking import folder_lock
from .loading import fingerprint
from .options import OF_TEXTS, Encoding
from .reading import Row, batches, count_rows, identify, read_texts
from .writing import FORMATS, SKIPPED, RowsFile, ShardFolder, Skipped, whole_file

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
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* texts were cut")  # counted here
                vectors = self._encode(texts)
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

    def _encode(self, texts: list[str]) -> Any:
        how, model = self.encoding, self.model
        common = {
            "batch_size": how.batch_size, "num_layers": how.num_layers, "show_progress_bar": False,
        }  # fmt: skip
        if how.unit == OF_TEXTS:
            return model.encode(
                texts, prompt=self.prompt_text, normalize_embeddings=how.normalize,
                truncate_dim=how.truncate_dim, precision=how.precision, truncation=how.truncation,
                **common,
            )  # fmt: skip
        if how.unit == "words":
            arrays = model.encode_words(texts, **common)
            labels = [text.split() for text in texts]
        else:
            arrays = model.encode_tokens(texts, truncation=how.truncation, **common)
            labels = [
                model.tokenizer.convert_ids_to_tokens(ids[: len(array)])
                for ids, array in zip(model.text_tokenizer.ids(texts), arrays, strict=True)
            ]
        return [
            {how.unit: own, "vectors": array.tolist()}
            for own, array in zip(labels, arrays, strict=True)
        ]


def encode_to_file(
    encoder: Encoder, inputs: Sequence[str], path: Path | None, format: str
) -> tuple[int, Skipped]:
    """Encode all rows into one file, which takes its place when complete, or to standard output.

    Args:
        inputs: of `read_texts`.
        path: None is standard output, as JSONL.
        format: a key of `FORMATS`.

    Returns:
        How many rows were encoded, and what was skipped.

    Raises:
        ValueError: of `Encoder`, or because no row could be used.
    """
    keep_text, lists_skipped = encoder.encoding.keep_text, format == "npy"
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        skipped = Skipped(scratch / SKIPPED if lists_skipped else None)
        opened = sys.stdout.buffer if path is None else stack.enter_context(whole_file(path))
        file = FORMATS[format](opened, keep_text)
        rows = _progress(read_texts(inputs, encoder.encoding.column), inputs)
        _encode_rows(encoder, skipped.filter(rows), file)
        skipped.require_some(file.rows)
        if not file.rows:
            file.write([], encoder([]))
        file.close()
        if path is not None and lists_skipped:
            skipped.put(path.with_name(f"{path.name}.{SKIPPED}"))
    return file.rows, skipped


def encode_to_shards(
    encoder: Encoder, inputs: Sequence[str], path: Path, format: str, shard_size: int
) -> tuple[int, Skipped]:
    """Encode all rows into a folder of shards, after those that are finished.

    Args, returns: as in `encode_to_file`; `shard_size` is the rows in a shard.

    Raises:
        BlockingIOError: another process writes to the folder.
        ValueError: of `ShardFolder` and `Encoder`. What stays is then said on standard error, as at
            a full disk and at Ctrl-C.
    """
    path.mkdir(parents=True, exist_ok=True)
    with folder_lock(path):
        settings = {**encoder.identity(), "format": format, "shard_size": shard_size}
        folder = ShardFolder(path, settings, identify(inputs))
        try:
            if not folder.manifest["complete"]:
                _encode_shards(encoder, inputs, folder, shard_size)
        except BaseException:
            tqdm.write(folder.stands(), file=sys.stderr)
            raise
    return folder.manifest["rows"], folder.skipped


def _encode_shards(
    encoder: Encoder, inputs: Sequence[str], folder: ShardFolder, shard_size: int
) -> None:
    begin = folder.next_index
    rows = dropwhile(lambda row: row.index < begin, read_texts(inputs, encoder.encoding.column))
    good = folder.skipped.filter(_progress(rows, inputs, begin))
    while first := next(good, None):
        with folder.shard() as shard:
            _encode_rows(encoder, chain([first], islice(good, shard_size - 1)), shard)
    folder.skipped.require_some(folder.manifest["rows"])
    folder.finish()


def _encode_rows(encoder: Encoder, rows: Iterator[Row], file: RowsFile) -> None:
    for batch in batches(rows, encoder.encoding.batch_size * BATCHES_AT_ONCE):
        file.write(batch, encoder(batch))


def _progress(rows: Iterator[Row], inputs: Sequence[str], done: int = 0) -> Iterator[Row]:
    shown = sys.stderr.isatty()
    total = count_rows(inputs) if shown else None
    return iter(
        tqdm(rows, desc="Encoding", unit=" rows", total=total, initial=done, disable=not shown)
    )
