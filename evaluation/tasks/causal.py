"""Perplexity of running text under plain causal attention: how much of the language model is kept (Appendix E).

"Fine-tuning LLaMA-2-7B with Magnet increases the test set perplexity (PPL) on Wikitext-103 from 6.4 to
7.6." The paper does not say how it cut the text. Here it is joined by line breaks, without headings, and
cut into blocks that do not overlap, each after the start token; all tokens but the start token are
scored, none twice. The figure is per token, so it compares models of one tokenizer only.
"""

from pathlib import Path

import numpy as np

from evaluation.common.figures import Figure
from evaluation.common.texts import read_paragraphs
from evaluation.common.views import Row, perplexity, start_of, token_losses


def blocks_of(
    path: str | Path, model, length: int = 512, limit: int | None = None, seed: int = 0
) -> list[list[int]]:
    """Token ids of blocks of a text, each after the model's start token.

    Args:
        length: tokens in a block, start token included; what is left at the end is dropped.

    Raises:
        ValueError: as in `read_paragraphs`, or the text has not a block.
    """
    first = start_of(model)
    size = length - len(first)
    (token_ids,) = model.text_tokenizer.ids(["\n".join(read_paragraphs(path))])
    count = len(token_ids) // size
    if not count:
        raise ValueError(f"{path} has {len(token_ids)} tokens, a block {size}: give a longer text")
    chosen = sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())
    return [first + token_ids[i * size : (i + 1) * size] for i in chosen]


def measure_causal(model, blocks: list[list[int]], batch_size: int = 8, seed: int = 0) -> Figure:
    """Perplexity of all tokens of the blocks but each first, with its interval over blocks.

    Args:
        blocks: token ids, such as those of `blocks_of`; each two or more.

    Example:
        >>> measure_causal(model, [[0, 504, 260, 504]]).examples
        1
    """
    rows = [Row(block, None, list(range(1, len(block)))) for block in blocks]
    return perplexity(token_losses(model, rows, batch_size, "causal"), seed)
