"""Perplexity of running text under plain causal attention: how much of the language model is kept (Appendix E).

"Fine-tuning LLaMA-2-7B with Magnet increases the test set perplexity (PPL) on Wikitext-103 from 6.4 to
7.6." The paper does not say how it cut the text. Here it is joined by line breaks, without headings, and
cut into blocks that do not overlap, each after the start token; all tokens but the start token are
scored, none twice. The figure is per token, so it compares models of one tokenizer only.
"""

from pathlib import Path

from evaluation.common.figures import Figure
from evaluation.common.texts import read_paragraphs
from evaluation.common.views import Row, perplexity, start_of, token_losses
from evaluation.data import drawn


def blocks_of(
    path: str | Path, model, length: int = 512, limit: int | None = None, seed: int = 0
) -> list[list[int]]:
    """Token ids of blocks of a text, of `length` tokens with the model's start token; the rest is dropped.

    Raises:
        ValueError: as in `read_paragraphs`, or the text has not a block.
    """
    first = start_of(model)
    size = length - len(first)
    (token_ids,) = model.text_tokenizer.ids(["\n".join(read_paragraphs(path))])
    count = len(token_ids) // size
    if not count:
        raise ValueError(f"{path} has {len(token_ids)} tokens, a block {size}: give a longer text")
    chosen = drawn(count, limit, seed)
    return [first + token_ids[i * size : (i + 1) * size] for i in chosen]


def measure_causal(model, blocks: list[list[int]], batch_size: int = 8, seed: int = 0) -> Figure:
    """Perplexity of all tokens of the blocks but each first, with its interval over blocks.

    Example:
        >>> measure_causal(model, [[0, 504, 260, 504]]).examples
        1
    """
    rows = [Row(block, None, list(range(1, len(block)))) for block in blocks]
    return perplexity(token_losses(model, rows, batch_size, "causal"), seed)
