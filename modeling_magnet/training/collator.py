"""Collates items to tensors: draws missing spans, masked tokens and prompts (MAGNET, section 3.2)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from modeling_magnet import MagnetSettings
from modeling_magnet.tokenizing import TextTokenizer

from .arguments import ExampleArguments
from .data import Item

logger = logging.getLogger(__name__)

IGNORE = -100
"""The label of a token that is not predicted."""

MASKED, RANDOM = 0.8, 0.1
"""Shares of the selected tokens that become the mask token or a random one. The others stay."""


@dataclass
class MagnetCollator:
    """Marks spans, masks context tokens and adds prompts, all drawn from the seed and the item's number.

    Attributes:
        tokenizer: of the base model.
        settings: the checkpoint's, for its prompts.
        mask_token_id: what a masked token becomes.
        vocab_size: random tokens are drawn below it.
        arguments: span lengths, shares and limits.
        seed: of all draws.
        items_per_step: items in an optimizer step, over all processes and accumulated batches.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: MagnetSettings
    mask_token_id: int
    vocab_size: int
    arguments: ExampleArguments
    seed: int
    items_per_step: int

    def __call__(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """Collate.

        Args:
            items: of a `MagnetDataset`.

        Returns:
            If items have blocks, tensors of shape (blocks, length): `input_ids`, `span_ids`,
            `mntp_labels`, `msg_labels` (for blocks with spans) and `ntp_labels` (for blocks that are one
            span). A label is at the token that it names. `document_ids` is added if documents are kept
            apart, and `position_ids` if spans are in longer gaps. In steps that cut blocks
            (`cut_blocks`), a block here is a part of an item's block.

            If items have pairs, `pair_input_ids` and `pair_attention_mask`, (views, pairs, length): the
            sentences, their positives and any hard negatives, without start and end token. Scores add
            `pair_scores`, (1, pairs), classes `classes`, (1, texts), and a teacher's vectors
            `teacher_vectors`, (views, pairs, size).
        """
        batch: dict[str, torch.Tensor] = {}
        if items[0].block is not None:
            parts = self._parts_of_a_block(items[0])
            rows = [row for item in items for row in self._mark_and_mask(item, parts)]
            batch |= {
                name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]
            }
        if items[0].pairs:
            batch |= self._tokenize_pairs(items)
        if items[0].scores is not None:
            batch["pair_scores"] = torch.tensor([[s for item in items for s in item.scores or ()]])
        if items[0].classes is not None:
            batch["classes"] = torch.tensor([[c for item in items for c in item.classes or ()]])
        if items[0].vectors is not None:
            vectors = np.stack([one for item in items for one in item.vectors or ()], axis=1)
            batch["teacher_vectors"] = torch.from_numpy(vectors)
        return batch

    @property
    def _text_tokenizer(self) -> TextTokenizer:
        return TextTokenizer(self.tokenizer, self.settings.split_special_tokens)

    def warn_of_cut_pairs(self, pairs: list[tuple[str, ...]]) -> None:
        """Log how many of the first pairs are longer than `pair_length` with the default prompt."""
        limit = self.arguments.pair_length - self.settings.special_tokens
        prompt = self._draw_prompt(None)
        texts = [prompt + max(pair, key=len) for pair in pairs]
        token_ids = self._text_tokenizer.ids(texts)
        cut = sum(len(ids) > limit for ids in token_ids)
        if cut:
            logger.warning(
                "%d of the first %d pairs hold a sentence that is cut to %d tokens, prompt included",
                cut,
                len(pairs),
                self.arguments.pair_length,
            )

    def _parts_of_a_block(self, first: Item) -> int:
        """Into how many parts the blocks of a step are cut. Held-out blocks stay whole."""
        if first.held_out:
            return 1
        step = first.index // self.items_per_step
        generator = np.random.default_rng((self.seed, 6, step))
        return int(generator.choice(self.arguments.cut_blocks))

    def _mark_and_mask(self, item: Item, parts: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield the rows of an item, each seeded by its number among rows of this length."""
        assert item.block is not None
        if parts == 1:
            blocks = [(item.block, item.document_ids)]
        else:
            has_start = self.settings.start_token_id is not None
            blocks = cut_block(item.block, item.document_ids, parts, has_start)
        for n, (tokens, documents) in enumerate(blocks):
            number = item.index * parts + n
            yield self._mark_and_mask_row(tokens, documents, number, parts, item.held_out)

    def _mark_and_mask_row(
        self,
        block: np.ndarray,
        documents: np.ndarray | None,
        number: int,
        parts: int,
        held_out: bool,
    ) -> dict[str, np.ndarray]:
        generator = np.random.default_rng((self.seed, 2, number))
        tokens = np.asarray(block, dtype=np.int64)
        # Spread evenly: with a fraction of 1/4, every fourth block is one span.
        fraction = 0.0 if held_out else self.arguments.all_span_fraction
        all_span = int((number + 1) * fraction) > int(number * fraction)
        if all_span:
            span_ids = self._one_span(len(tokens))
        else:
            span_ids = self._draw_spans(len(tokens), parts, generator)
        position_ids = np.arange(len(tokens))
        if not all_span and not held_out and self._ends_spans(number):
            tokens, span_ids, documents, position_ids = self._end_spans(
                tokens, span_ids, documents, number, parts
            )
        predictable = np.ones(len(tokens), dtype=bool)
        predictable[0] = False
        if documents is not None:  # a document's first token has nothing before it
            predictable[1:] = documents[1:] == documents[:-1]
        span_labels = np.where((span_ids > 0) & predictable, tokens, IGNORE)
        nothing = np.full_like(tokens, IGNORE)

        # The output before a token predicts it. Token 0 has no output before it. Before the token right
        # after a span is an output of the span, which sees that token itself.
        eligible = predictable & (span_ids == 0)
        eligible[1:] &= span_ids[:-1] == 0
        positions = np.flatnonzero(eligible)
        count = round(self.arguments.mask_fraction * len(positions))
        selected = generator.choice(positions, size=count, replace=False)
        mntp_labels = nothing.copy()
        mntp_labels[selected] = tokens[selected]
        draw = generator.random(count)
        tokens[selected[draw < MASKED]] = self.mask_token_id
        randomized = selected[(draw >= MASKED) & (draw < MASKED + RANDOM)]
        tokens[randomized] = generator.integers(self.vocab_size, size=len(randomized))
        row = {
            "input_ids": tokens,
            "span_ids": span_ids,
            "mntp_labels": mntp_labels,
            "msg_labels": nothing if all_span else span_labels,
            "ntp_labels": span_labels if all_span else nothing,
        }
        if documents is not None:
            row["document_ids"] = documents.astype(np.int64)
        if self.arguments.end_of_span_fraction:
            row["position_ids"] = position_ids
        return row

    def _ends_spans(self, number: int) -> bool:
        generator = np.random.default_rng((self.seed, 4, number))
        return generator.random() < self.arguments.end_of_span_fraction

    def _end_spans(self, tokens, span_ids, documents, number, parts):
        """Put the end token after each span, and the spans into gaps that are longer than they are.

        So a model learns where a span ends even if the gap does not tell. Tokens pushed beyond the end of
        the block are dropped.

        Returns:
            Tokens, span map, documents (or None) and position ids, (length,) each.
        """
        generator = np.random.default_rng((self.seed, 5, number))
        length, lasts = len(tokens), np.flatnonzero(np.diff(span_ids, append=0) < 0)
        end_places = lasts + 1  # where the end tokens go
        span_ids_of_ends = span_ids[lasts]
        sizes = np.array([(span_ids == k).sum() + 1 for k in span_ids_of_ends], dtype=np.int64)
        longest = self.arguments.max_gap_length // parts
        gaps = generator.integers(sizes, np.maximum(sizes, longest) + 1)
        position_ids = np.arange(length + len(lasts))
        for n, (place, slack) in enumerate(zip(end_places, gaps - sizes, strict=True), start=1):
            position_ids[place + n :] += slack
        tokens = np.insert(tokens, end_places, self.settings.end_token_id)[:length]
        span_ids = np.insert(span_ids, end_places, span_ids_of_ends)[:length]
        if documents is not None:
            documents = np.insert(documents, end_places, documents[lasts])[:length]
        return tokens, span_ids, documents, position_ids[:length]

    @staticmethod
    def _one_span(length: int) -> np.ndarray:
        """The map (length,) of plain next-token prediction. Token 0 is the context to begin from."""
        span_ids = np.ones(length, dtype=np.int64)
        span_ids[0] = 0
        return span_ids

    def _draw_spans(self, length: int, parts: int, generator: np.random.Generator) -> np.ndarray:
        """Draw a span map (length,) with 1 to `max_spans` separate spans.

        Token 0 and the token before each span stay context: the output there predicts the span's
        first token.
        """
        arguments = self.arguments
        span_ids = np.zeros(length, dtype=np.int64)
        count = int(generator.integers(1, arguments.max_spans + 1))
        longest = max(arguments.min_span_length, arguments.max_span_length // parts)
        lengths = generator.integers(arguments.min_span_length, longest + 1, size=count)
        while lengths.sum() + count >= length:  # a block too short for what was drawn
            lengths = np.maximum(lengths // 2, 1)
        free = length - int(lengths.sum()) - count  # context beyond the one token before each span
        if free < 0:
            raise ValueError(f"a block of {length} tokens has no room for {count} spans")
        cuts = np.sort(generator.integers(0, free + 1, size=count))
        start = 0
        for k, (span_length, cut, previous) in enumerate(
            zip(lengths, cuts, [0, *cuts[:-1]], strict=True), 1
        ):
            start += int(cut - previous) + 1
            span_ids[start : start + span_length] = k
            start += int(span_length)
        return span_ids

    def _tokenize_pairs(self, items: list[Item]) -> dict[str, torch.Tensor]:
        first = items[0]
        prompt = self._draw_prompt(None if first.held_out else first.index // self.items_per_step)
        views = list(range(len(first.pairs[0])))
        if views == [0] and first.vectors is None and first.classes is None:
            views = [0, 0]  # only dropout makes the positive
        texts = [prompt + pair[view] for view in views for item in items for pair in item.pairs]
        limit = self.arguments.pair_length - self.settings.special_tokens
        rows = [torch.tensor(ids[:limit]) for ids in self._text_tokenizer.ids(texts)]
        padded = pad_sequence(rows, batch_first=True).unflatten(0, (len(views), -1))
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"pair_input_ids": padded, "pair_attention_mask": mask.view_as(padded)}

    def _draw_prompt(self, step: int | None) -> str:
        """The default prompt or, in a share of steps, none or another one (equally often).

        Without a step, for evaluation, it is the default. All sentences of a step have the same prompt,
        since sentences could be told apart by different ones.
        """
        default = self.settings.prompt_text(None, None)
        if step is None:
            return default
        generator = np.random.default_rng((self.seed, 3, step))
        if generator.random() >= self.arguments.other_prompt_fraction:
            return default
        others = [text for text in self.settings.prompts.values() if text != default]
        if not others or generator.random() < 0.5:
            return ""
        return others[generator.integers(len(others))]


def cut_block(
    tokens: np.ndarray, document_ids: np.ndarray | None, parts: int, has_start: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Cut a block into shorter ones of equal length, each with a start token. The rest is dropped.

        S a a a b b b b b c c   in 2   S a a a b   S b b b b
        documents kept apart           0 0 0 0 1   0 0 0 0 0

    If documents are kept apart, a document that begins with a part already has its start token.

    Args:
        tokens: (length,) from a `Blocks` table.
        document_ids: (length,) or None.
        parts: 2 or more.
        has_start: whether the block begins with a start token.

    Returns:
        For each part its tokens, (length // parts,), and their documents, (length // parts,) or None.
    """
    own = int(has_start)
    size = len(tokens) // parts - own
    cut = []
    for first in range(own, own + parts * size, size):
        begins = document_ids is not None and document_ids[first] != document_ids[first - 1]
        before = np.full(own, first)  # where a start token goes, in that token's document
        if has_start and first > own and begins:
            chosen = np.arange(first, first + size + own)
            part = tokens[chosen]
        else:
            chosen = np.concatenate([before, np.arange(first, first + size)])
            part = np.concatenate([tokens[:own], tokens[first : first + size]])
        documents = None if document_ids is None else document_ids[chosen] - document_ids[first]
        cut.append((part, documents))
    return cut
