"""From items to a step's tensors: missing spans, masked tokens, prompts (MAGNET, section 3.2)."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from modeling_magnet import MagnetSettings

from .arguments import DataArguments
from .data import Item

IGNORE = -100
"""The label of a token that is not predicted."""

MASKED, RANDOM = 0.8, 0.1
"""Shares of the selected tokens that become the mask token and a random one; the rest stay."""


@dataclass
class MagnetCollator:
    """Marks spans, masks context tokens and adds prompts; all drawn from the seed and item numbers.

    Attributes:
        tokenizer: of the base model.
        settings: the checkpoint's, for its prompts.
        mask_token_id: what a masked token becomes.
        vocab_size: random tokens are drawn below it.
        arguments: span lengths, shares and limits.
        seed: of all that is drawn.
        items_a_step: items in an optimizer step, over all processes and accumulated batches.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: MagnetSettings
    mask_token_id: int
    vocab_size: int
    arguments: DataArguments
    seed: int
    items_a_step: int

    def __call__(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """Collate.

        Returns:
            `input_ids`, `span_ids`, `mntp_labels`, `msg_labels`: (blocks, block_length), a label
            standing at the token that it names; and, where items have pairs, `pair_input_ids` and
            `pair_attention_mask`: (2 x pairs, length), the sentences first, then their paraphrases
            in the same order, without start and end token.
        """
        rows = [self._mark_and_mask(item) for item in items]
        batch = {
            name: torch.from_numpy(np.stack(columns))
            for name, columns in zip(
                ("input_ids", "span_ids", "mntp_labels", "msg_labels"),
                zip(*rows, strict=True),
                strict=True,
            )
        }
        if items[0].pairs:
            batch |= self._tokenize_pairs(items)
        return batch

    def _mark_and_mask(self, item: Item) -> tuple[np.ndarray, ...]:
        generator = np.random.default_rng((self.seed, 2, item.index))
        tokens = item.block.astype(np.int64)
        span_ids = self._draw_spans(len(tokens), generator)
        msg_labels = np.where(span_ids > 0, tokens, IGNORE)

        # The output before a token predicts it. Token 0 has none before it, and the one before a
        # token right behind a span is the span's, which sees the token itself.
        eligible = span_ids == 0
        eligible[1:] &= span_ids[:-1] == 0
        eligible[0] = False
        positions = np.flatnonzero(eligible)
        count = round(self.arguments.mask_fraction * len(positions))
        selected = generator.choice(positions, size=count, replace=False)
        mntp_labels = np.full_like(tokens, IGNORE)
        mntp_labels[selected] = tokens[selected]
        draw = generator.random(count)
        tokens[selected[draw < MASKED]] = self.mask_token_id
        randomized = selected[(draw >= MASKED) & (draw < MASKED + RANDOM)]
        tokens[randomized] = generator.integers(self.vocab_size, size=len(randomized))
        return tokens, span_ids, mntp_labels, msg_labels

    def _draw_spans(self, length: int, generator: np.random.Generator) -> np.ndarray:
        """(length,) a span map: 1 to `max_spans` spans apart, or all one span.

        Token 0 and the token before each span stay context: the output there predicts the span's
        first token.
        """
        arguments = self.arguments
        span_ids = np.zeros(length, dtype=np.int64)
        if generator.random() < arguments.all_span_fraction:
            span_ids[1:] = 1
            return span_ids
        count = int(generator.integers(1, arguments.max_spans + 1))
        lengths = generator.integers(
            arguments.min_span_length, arguments.max_span_length + 1, size=count
        )
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
        prompt = self._draw_prompt(items[0].index // self.items_a_step)
        texts = [prompt + pair[view] for view in (0, 1) for item in items for pair in item.pairs]
        token_ids = self.tokenizer(
            texts,
            add_special_tokens=False,
            truncation=True,
            max_length=self.arguments.pair_length - self.settings.special_tokens,
        )["input_ids"]
        longest = max(map(len, token_ids))
        padded = torch.zeros(len(token_ids), longest, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        return {"pair_input_ids": padded, "pair_attention_mask": mask}

    def _draw_prompt(self, step: int) -> str:
        """The default prompt or, in a share of steps, none or another one (as often as each other).

        All sentences of a step have the same: prompts that differ would tell sentences apart.
        """
        default = self.settings.prompt_text(None, None)
        generator = np.random.default_rng((self.seed, 3, step))
        if generator.random() >= self.arguments.other_prompt_fraction:
            return default
        others = [text for text in self.settings.prompts.values() if text != default]
        if not others or generator.random() < 0.5:
            return ""
        return others[generator.integers(len(others))]
