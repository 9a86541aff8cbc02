"""Perplexity of infilling and of plain text, and sentence similarity against human scores."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

SPANS_OF_A_TEXT = 3
SPAN_LENGTHS = (8, 32)


def tokenize_rows(
    texts: list[str], model, shortest: int = 48, longest: int = 192, count: int = 64
) -> list[list[int]]:
    """The first `count` texts of a fitting length, as token ids behind the model's start token.

    Args:
        texts: paragraphs.
        model: a MAGNET model with its tokenizer.
        shortest, longest: tokens that a text must have; none is cut.
        count: texts to take.

    Raises:
        ValueError: no text fits.
    """
    start = model.magnet_settings.start_token_id
    first = [] if start is None else [start]
    rows = [first + ids for ids in model.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    rows = [row for row in rows if shortest <= len(row) <= longest][:count]
    if not rows:
        raise ValueError(f"no text has {shortest} to {longest} tokens")
    return rows


def draw_spans(lengths: list[int], seed: int) -> list[list[int]]:
    """Draw the spans to infill: up to 3 a text, of 8 to 32 tokens (section 4.3).

    Args:
        lengths: of the texts in tokens.
        seed: of the draw.

    Returns:
        A span map for each text, with context before, between and behind the spans. A text has as
        many spans as leave each at least as much context as it may take.
    """
    generator = np.random.default_rng(seed)
    maps = []
    for length in lengths:
        most = max(1, min(SPANS_OF_A_TEXT, length // (2 * SPAN_LENGTHS[1])))
        count = int(generator.integers(1, most + 1))
        share = length // count  # each span keeps to its own share of the text
        row = np.zeros(length, dtype=np.int64)
        for k in range(count):
            span_length = int(generator.integers(SPAN_LENGTHS[0], SPAN_LENGTHS[1] + 1))
            span_length = min(span_length, share - 2)
            start = int(generator.integers(k * share + 1, (k + 1) * share - span_length))
            row[start : start + span_length] = k + 1
        maps.append(row.tolist())
    return maps


@torch.no_grad()
def perplexities(
    model,
    rows: list[list[int]],
    span_maps: list[list[int]],
    batch_size: int = 8,
    progress: bool = True,
) -> dict[str, float]:
    """Perplexity of span tokens from both sides and from the left alone, and of all tokens.

    Args:
        model: with a span map.
        rows: token ids of the texts.
        span_maps: a span map for each.
        batch_size: texts in a forward pass; those of a batch are of similar length.
        progress: show a bar.

    Returns:
        `both_sides`: of the original span tokens under the hybrid mask (Table 4); `left_only`: of
        the same tokens under plain causal attention; `causal`: of all tokens but each first under
        plain causal attention (Appendix E).
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    sums = {"both_sides": 0.0, "left_only": 0.0, "causal": 0.0}
    counts = dict.fromkeys(sums, 0)
    for first in tqdm(range(0, len(rows), batch_size), desc="Perplexity", disable=not progress):
        batch = order[first : first + batch_size]
        ids, spans = (
            pad_sequence([torch.tensor(values[i]) for i in batch], batch_first=True).to(
                model.device
            )
            for values in (rows, span_maps)
        )  # (batch, length)
        real = torch.arange(ids.shape[1]) < torch.tensor([[len(rows[i])] for i in batch])
        real = real.to(model.device)
        predicted = {"both_sides": spans > 0, "left_only": spans > 0, "causal": real}
        for name, arguments in (("both_sides", {"span_ids": spans}), ("causal", {})):
            logits = model(input_ids=ids, attention_mask=real.long(), **arguments).logits
            picked = predicted[name][:, 1:]  # (batch, length - 1)
            losses = torch.zeros(picked.shape, device=ids.device)
            losses[picked] = F.cross_entropy(
                logits[:, :-1][picked].float(), ids[:, 1:][picked], reduction="none"
            )
            for part in ("both_sides",) if name == "both_sides" else ("left_only", "causal"):
                sums[part] += losses[predicted[part][:, 1:]].sum().item()
                counts[part] += int(predicted[part][:, 1:].sum())
    return {name: math.exp(sums[name] / counts[name]) for name in sums}


def sts_spearman(
    model, path: str | Path, count: int | None = None, **encode_arguments: Any
) -> float:
    """Spearman correlation of cosine similarity with human scores.

    Args:
        model: with `encode`.
        path: a TSV with the columns `score`, `sentence1` and `sentence2`, unquoted.
        count: the first rows to use; None: all.
        encode_arguments: of `encode`.

    Returns:
        -1 to 1.

    Raises:
        ValueError: a column is missing.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
    if not rows or not {"score", "sentence1", "sentence2"} <= set(rows[0]):
        raise ValueError(f"{path} needs the columns score, sentence1, sentence2 and rows")
    one, two = (
        model.encode([row[name] for row in rows], normalize_embeddings=True, **encode_arguments)
        for name in ("sentence1", "sentence2")
    )
    scores = [float(row["score"]) for row in rows]
    return float(spearmanr((one * two).sum(axis=1), scores).statistic)
