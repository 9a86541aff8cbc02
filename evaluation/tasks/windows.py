"""How much text around a span a model reads from both sides, and how steady a vector is in it.

    python -m evaluation.tasks.windows --model FOLDER --text wiki.valid.tokens --limit 24 --output windows.json

Of each article one span of 16 tokens in the middle is missing, and the window around it grows: 64 tokens,
the start token among them, 128, and so on up to 2,048. The span stays where it is, so all windows score the same
tokens. Left only should fall with every window, as a language model's perplexity does; both sides should
stay below it. A model trained in blocks of 128 does neither.

A paragraph's vector alone is compared with its vector among others: the tokens of the first window as a
text of their own, and the same tokens read in each other window. A vector is the mean over the token
vectors of `encode_tokens`. It should be nearest to that of its own paragraph, not of another article's.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.common.figures import Figure, table
from evaluation.common.views import Row, token_losses
from evaluation.common.writing import output_file, write_json
from evaluation.models import command_parser, load_language_model
from modeling_magnet.training.sources import read_rows

WINDOWS = (64, 128, 256, 512, 1024, 2048)
"""Tokens that are read, the start token among them; even numbers, so that all have one middle."""

SPAN = 16
"""Tokens of the missing span."""

VIEWS = ("both sides", "left only")


def read_articles(path: str | Path) -> list[str]:
    """The articles of a file, without their headings, each a text with a paragraph a line.

    In WikiText-103 (`.tokens`) a line ` = Title = ` begins an article. In a `.jsonl` or `.parquet` with `text` and
    `title`, rows of one title that follow each other are one.

    Raises:
        ValueError: there is none, or as in `read_rows`.
    """
    if Path(path).suffix in (".jsonl", ".parquet"):
        rows = read_rows([str(path)], ("text",), keys=("title",), counts=Counter())
        groups = itertools.groupby(rows, key=lambda row: row.get("title"))
        found = [[row["text"] for row in group] for _, group in groups]
    else:
        found = [[]]
        for line in Path(path).read_text(encoding="utf-8").split("\n"):
            if re.fullmatch(r"\s*= [^=].* =\s*", line):
                found.append([])
            elif not re.fullmatch(r"\s*(= .* =)?\s*", line):
                found[-1].append(line.strip())
    texts = ["\n".join(lines) for lines in found if lines]
    if not texts:
        raise ValueError(f"{path} has no article, only headings or empty lines")
    return texts


def middles(
    texts: Sequence[str], model, seed: int = 0, limit: int | None = None, length: int = WINDOWS[-1]
) -> list[list[int]]:
    """The `length` token ids in the middle of articles that have as many, drawn by the seed.

    Raises:
        ValueError: none is long enough.
    """
    found: list[list[int]] = []
    for i in np.random.default_rng(seed).permutation(len(texts)):
        (ids,) = model.text_tokenizer.ids([texts[i]])
        if len(ids) >= length and (limit is None or len(found) < limit):
            found.append(_middle(ids, length))
    if not found:
        raise ValueError(f"no article has {length} tokens: give longer texts")
    return found


def measure_windows(
    model,
    articles: Sequence[list[int]],
    windows: Sequence[int] = WINDOWS,
    seed: int = 0,
) -> dict[str, Figure]:
    """Perplexity of a missing span against the window around it, and a paragraph's vector in each.

    The model needs a start token. The shortest window comes first; the articles are as long as the longest.

    Returns:
        For each window `both sides` and `left only`, and their ratio, with an interval of its own; for
        each but the first the cosine x 100 of the paragraph's vector with the one alone, and its mean
        cosine with those of the other articles.
    """
    figures: dict[str, Figure] = {}
    counts = [SPAN] * len(articles)

    def percent(values: np.ndarray) -> Figure:
        return Figure.of_ratio(values, seed=seed).scaled(100)

    for window in windows:
        losses = {view: _span_losses(model, articles, window, view) for view in VIEWS}
        for view, values in losses.items():
            figures[f"{window}, {view}"] = Figure.of_ratio(values, counts, seed).mapped(math.exp)
        difference = losses["both sides"] - losses["left only"]
        ratio = Figure.of_ratio(difference, counts, seed).mapped(math.exp)
        figures[f"{window}, both sides / left only"] = ratio
    alone = _paragraph_vectors(model, articles, windows[0], windows[0])  # (articles, hidden)
    for window in windows[1:]:
        cosines = _paragraph_vectors(model, articles, window, windows[0]) @ alone.T
        own = np.diagonal(cosines)  # (articles,)
        others = (cosines.sum(axis=1) - own) / max(1, len(own) - 1)
        figures[f"{window}, vector, cosine with it alone"] = percent(own)
        figures[f"{window}, vector, with others alone"] = percent(others)
    return figures


def _span_losses(model, articles, window: int, view: str) -> np.ndarray:
    """(articles,) the summed losses of each article's span."""
    start = model.magnet_settings.start_token_id
    first = 1 + (window - 1 - SPAN) // 2  # the start token stands before all
    span_ids = [int(first <= i < first + SPAN) for i in range(window)]
    scored = list(range(first, first + SPAN))
    rows = []
    for article in articles:
        ids = [start, *_middle(article, window - 1)]
        if view == "both sides":
            rows.append(Row(ids, span_ids, scored))
        else:  # what follows the span is not seen, so it is not read
            rows.append(Row(ids[: first + SPAN], None, scored))
    losses = token_losses(model, rows, max(1, WINDOWS[-1] // window), f"{window}, {view}")
    return np.array([part.sum() for part in losses])


@torch.no_grad()
def _paragraph_vectors(model, articles, window: int, paragraph: int) -> np.ndarray:
    """(articles, hidden) of length 1: of the tokens of the window `paragraph`, read in a larger one."""
    first, size = (window - paragraph) // 2, paragraph - 1
    vectors = []
    for article in articles:
        ids = _middle(article, window - 1)
        (rows,) = model._token_vectors([ids], 1, False, None)  # (window - 1, hidden)
        vectors.append(rows[first : first + size].mean(dim=0).numpy())
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def _middle(ids: list[int], length: int) -> list[int]:
    first = (len(ids) - length) // 2
    return ids[first : first + length]


def main(command_line: list[str] | None = None) -> None:
    """Print the table of a model, and store it."""
    parser = command_parser()
    add = parser.add_argument
    add("--text", required=True, help="articles, see read_articles")
    add("--limit", type=int, default=24, help="articles")
    add("--windows", type=int, nargs="+", default=WINDOWS, help="tokens around the span")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the weights")
    add("--output", type=output_file, help="JSON file to write")
    options = parser.parse_args(command_line)
    dtype = getattr(torch, options.dtype)
    model = load_language_model(options.model, options.start_token, dtype)
    texts = read_articles(options.text)
    articles = middles(texts, model, options.seed, options.limit, max(options.windows))
    figures = measure_windows(model, articles, sorted(options.windows), options.seed)
    print(table({options.model: figures}))
    if options.output:
        write_json(options.output, {name: figure._asdict() for name, figure in figures.items()})


if __name__ == "__main__":
    main()
