"""Text and sentence pairs from files, as one dataset whose items are what a step needs."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from datasets import Dataset as Table
from datasets import load_dataset
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass
class Item:
    """What goes into a step together: a block and its sentence pairs.

    Attributes:
        index: the item's number in the run, which seeds its spans and masks.
        block: (block_length,) token ids.
        pairs: texts and their paraphrases.
    """

    index: int
    block: np.ndarray
    pairs: list[tuple[str, str]]


def read_columns(path: str | Path, columns: tuple[str, ...]) -> Table:
    """Read columns of strings from a .txt, .jsonl or .parquet file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, a missing column, no rows, or an entry that is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a .txt, .jsonl or .parquet file")
    if path.suffix not in READERS:
        raise ValueError(f"{path} ends in {path.suffix!r}: give one of {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    table = load_dataset(READERS[path.suffix], data_files=str(path), split="train")
    missing = set(columns) - set(table.column_names)
    if missing:
        raise ValueError(f"{path} has the columns {table.column_names}, needed are {list(columns)}")
    table = table.select_columns(list(columns))
    for i, row in enumerate(table):
        if not all(isinstance(row[column], str) for column in columns):
            raise ValueError(f"{path}, row {i + 1}: {row} has an entry that is no text")
    if len(table) == 0:
        raise ValueError(f"{path} has no rows")
    return table


def make_blocks(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    start_token_id: int | None,
    block_length: int,
) -> np.ndarray:
    r"""Tokenize texts, join them by a line break, and cut the whole into blocks.

    Every block begins with the start token, as every sequence does that the model is used on. What
    is left at the end, shorter than a block, is dropped.

    Returns:
        (blocks, block_length) int32.

    Raises:
        ValueError: the texts do not fill one block.
    """
    token_ids: list[int] = []
    for ids in tokenizer([text + "\n" for text in texts], add_special_tokens=False, verbose=False)[
        "input_ids"
    ]:
        token_ids += ids
    start = [] if start_token_id is None else [start_token_id]
    step = block_length - len(start)
    count = len(token_ids) // step
    if count == 0:
        raise ValueError(
            f"the texts have {len(token_ids)} tokens, a block has {block_length}: give more text or "
            "a smaller block_length"
        )
    blocks = np.array(token_ids[: count * step], dtype=np.int32).reshape(count, step)
    starts = np.full((count, len(start)), start_token_id or 0, dtype=np.int32)
    return np.concatenate([starts, blocks], axis=1)


class MagnetDataset(Dataset):
    """The whole run as a list of items, in an order that depends on the seed alone.

    Blocks and pairs are each reshuffled whenever they are used up. Item i is the same whatever the
    number of workers and processes, and after a resume, because it is computed from i.
    """

    def __init__(
        self,
        blocks: np.ndarray,
        pairs: list[tuple[str, str]],
        length: int,
        pairs_per_block: int,
        seed: int,
    ):
        if pairs_per_block and not pairs:
            raise ValueError(f"pairs_per_block is {pairs_per_block}, but there are no pairs")
        self.blocks = blocks
        self.pairs = pairs
        self.length = length
        self.pairs_per_block = pairs_per_block
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(index)
        first = index * self.pairs_per_block
        return Item(
            index=index,
            block=self.blocks[self._shuffled(0, index, len(self.blocks))],
            pairs=[
                self.pairs[self._shuffled(1, first + i, len(self.pairs))]
                for i in range(self.pairs_per_block)
            ],
        )

    def _shuffled(self, stream: int, index: int, count: int) -> int:
        epoch, position = divmod(index, count)
        return int(_permutation(self.seed, stream, epoch, count)[position])


@lru_cache(maxsize=4)
def _permutation(seed: int, stream: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(count)
