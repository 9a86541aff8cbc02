"""Joins text and sentence pairs into one dataset, each item of which has what a step needs."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from .sources import read_rows
from .tables import Blocks, Pairs, counts_table, first_texts, make_blocks, read_pairs

__all__ = [
    "Blocks", "Item", "MagnetDataset", "Pairs",
    "counts_table", "first_texts", "make_blocks", "read_pairs", "read_rows",
]  # fmt: skip


@dataclass
class Item:
    """A block and its sentence pairs, which go into a step together.

    Attributes:
        index: the item's number in the run, which seeds its spans and masks.
        block: (block_length,) token ids; None where the run has no text.
        document_ids: (block_length,) each token's document, counted from 0 in the block; None if
            documents are not kept apart.
        pairs: texts of the pair columns: (sentence,), or (sentence, positive) and any hard negatives.
        scores: how similar the two texts of each pair are, from 0 to 1; None if pairs have no score.
        classes: the class of each text; None if texts have none.
        vectors: (texts, size) for each pair, a teacher's vectors of its texts; None if there are none.
        held_out: whether it is for evaluation.
    """

    index: int
    block: np.ndarray | None
    document_ids: np.ndarray | None
    pairs: list[tuple[str, ...]]
    scores: list[float] | None = None
    classes: list[int] | None = None
    vectors: list[np.ndarray] | None = None
    held_out: bool = False


class MagnetDataset(Dataset):
    """The whole run as a list of items, in an order that depends only on the seed.

    Blocks and pairs are each reshuffled whenever they are used up. Item i is computed from i, so it is
    the same for any number of workers and processes, and after a resume.

    Pairs of a group come in runs of `group_size`, so that a step's sentences cannot be told apart merely
    by their topic. To make runs, groups are shuffled, and the pairs within each; the sequence is cut into
    runs, which are shuffled too. The last pairs of a group share a run with the first of the next.
    Texts with a class come in twos of the same class. If a class has an odd number of texts, one of them
    waits for the next epoch.

    Args:
        blocks: any sequence of (token ids, document ids or None).
        pairs: None for a run with only text.
        length: items of the run.
        pairs_per_block: pairs in an item.
        seed: of the order.
        group_size: how many pairs of a group come together, if `pairs` has groups.
        held_out: whether to keep the order of the files, and mark the items as held out.

    Raises:
        ValueError: there is neither text nor a pair, or `pairs_per_block` is set without pairs.
    """

    def __init__(
        self,
        blocks: Blocks | None,
        pairs: Pairs | None,
        length: int,
        pairs_per_block: int,
        seed: int,
        group_size: int = 1,
        held_out: bool = False,
    ):
        if pairs_per_block and not pairs:
            raise ValueError(f"pairs_per_block is {pairs_per_block}, but there are no pairs")
        if blocks is None and not pairs_per_block:
            raise ValueError("there is no text, and pairs_per_block is 0: nothing to train on")
        self.blocks = blocks
        self.pairs = pairs
        self.length = length
        self.pairs_per_block = pairs_per_block
        self.held_out = held_out
        shuffled = None if held_out else seed
        self._block_order = _Order(len(blocks), shuffled, 0) if blocks is not None else None
        self._pair_order: _Order | None = None
        if pairs and pairs.classes is not None:
            self._pair_order = _ClassOrder(pairs.classes, shuffled, 1)
        elif pairs:
            self._pair_order = _Order(len(pairs), shuffled, 1, pairs.groups, group_size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(index)
        block = document_ids = None
        if self.blocks is not None and self._block_order is not None:
            block, document_ids = self.blocks[self._block_order[index]]
        pairs: list[tuple[str, ...]] = []
        scores = classes = vectors = None
        if self.pairs and self._pair_order is not None:
            first = index * self.pairs_per_block
            order = self._pair_order
            numbers = [order[number] for number in range(first, first + self.pairs_per_block)]
            pairs = [self.pairs[number] for number in numbers]
            if self.pairs.scores is not None:
                scores = [float(self.pairs.scores[number]) for number in numbers]
            if self.pairs.classes is not None:
                classes = [int(self.pairs.classes[number]) for number in numbers]
            if self.pairs.has_vectors:
                vectors = [self.pairs.vectors(number) for number in numbers]
        return Item(index, block, document_ids, pairs, scores, classes, vectors, self.held_out)


class _Order:
    """The numbers below `count`, reshuffled each epoch. Without a seed: always 0, 1, 2, ..."""

    def __init__(
        self,
        count: int,
        seed: int | None,
        stream: int,
        groups: np.ndarray | None = None,
        group_size: int = 1,
    ):
        self.count, self.seed, self.stream = count, seed, stream
        self.groups, self.group_size = groups, group_size
        self._epoch, self._numbers = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, index: int) -> int:
        epoch, position = divmod(index, self.count)
        if self.seed is None:
            return position
        if epoch != self._epoch:  # items are read in order: one epoch at a time is enough
            self._numbers = self._shuffle(np.random.default_rng((self.seed, self.stream, epoch)))
            self._epoch = epoch
        return int(self._numbers[position])

    def _shuffle(self, generator: np.random.Generator) -> np.ndarray:
        numbers = generator.permutation(self.count)
        if self.groups is None:
            return numbers
        ranks = generator.permutation(int(self.groups.max()) + 1)
        numbers = numbers[np.argsort(ranks[self.groups[numbers]], kind="stable")]
        whole = self.count // self.group_size * self.group_size
        runs = numbers[:whole].reshape(-1, self.group_size)  # (runs, group_size)
        return np.concatenate([generator.permutation(runs).ravel(), numbers[whole:]])


class _ClassOrder(_Order):
    """Numbers of texts, in twos of the same class, reshuffled each epoch. Without a seed: 0, 1, 2, ..."""

    def __init__(self, classes: np.ndarray, seed: int | None, stream: int):
        sizes = np.bincount(classes)
        count = len(classes) if seed is None else int((sizes // 2 * 2).sum())
        if not count:
            raise ValueError(
                f"no two of {len(classes)} texts have the same class, but texts of a class are each other's "
                "positives: give several texts per class"
            )
        super().__init__(count, seed, stream)
        self.classes, self.sizes = classes, sizes

    def _shuffle(self, generator: np.random.Generator) -> np.ndarray:
        numbers = generator.permutation(len(self.classes))
        numbers = numbers[np.argsort(self.classes[numbers], kind="stable")]
        firsts = np.repeat(np.cumsum(self.sizes) - self.sizes, self.sizes)  # where its class begins
        rank = np.arange(len(numbers)) - firsts
        even = rank < np.repeat(self.sizes // 2 * 2, self.sizes)
        return generator.permutation(numbers[even].reshape(-1, 2)).ravel()
