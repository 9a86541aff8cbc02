"""Computes the metrics of an evaluation during training, from figures of each block and pair."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import EvalPrediction

from .collator import IGNORE

TEXT_FIGURES = (
    "mntp_correct", "mntp_count", "span", "span_count", "left_only", "causal", "causal_count",
)  # fmt: skip
"""The columns of a block's row: sums over its tokens, and their counts."""


def text_figures(model, inputs: dict[str, torch.Tensor], outputs) -> torch.Tensor:
    """Measure a batch of blocks with unmasked context, from both sides and from the left only.

    Args:
        model: of `modeling_magnet.training.objectives`, wrapped or not.
        inputs: of the collator, for held-out items.
        outputs: of the model on these inputs.

    Returns:
        (blocks, figures) in float32, columns as in `TEXT_FIGURES`.
    """
    mntp, msg = inputs["mntp_labels"], inputs["msg_labels"]
    tokens = torch.where(mntp == IGNORE, inputs["input_ids"], mntp)  # (blocks, length) unmasked
    predicted = tokens.clone()
    predicted[:, 0] = IGNORE
    documents = inputs.get("document_ids")
    if documents is not None:
        predicted[:, 1:][documents[:, 1:] != documents[:, :-1]] = IGNORE
    shared = {"input_ids": tokens, "document_ids": documents, "msg_labels": msg}
    both = model(span_ids=inputs["span_ids"], **shared)
    left = model(span_ids=torch.ones_like(tokens), ntp_labels=predicted, **shared)
    count = {
        "mntp_count": (mntp[:, 1:] != IGNORE).sum(1),
        "span_count": (msg[:, 1:] != IGNORE).sum(1),
        "causal_count": (predicted[:, 1:] != IGNORE).sum(1),
    }
    values = count | {
        "mntp_correct": outputs.mntp_correct,
        "span": both.msg,
        "left_only": left.msg,
        "causal": left.ntp,
    }
    return torch.stack([values[name].float() for name in TEXT_FIGURES], dim=1)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of a whole evaluation set.

    Args:
        prediction: its `predictions` hold `text`: (blocks, figures), and `vectors`: (items, pairs,
            2, hidden), or one of them.

    Returns:
        `mntp_accuracy`: share of masked tokens that get the highest score.
        `span_perplexity`: of missing spans, from both sides.
        `left_only_perplexity`: of the same tokens, from the left only, as a control.
        `causal_perplexity`: of all tokens.
        `pair_accuracy`: share of sentences whose paraphrase is the nearest of all.
        `pair_spearman`: with scores, instead of that, the rank correlation of the cosines with them.
        `teacher_spearman`: with a teacher's vectors, the rank correlation of all texts' cosines.
        `class_accuracy`: with classes, the share of texts whose nearest neighbour is of their class.
    """
    metrics: dict[str, float] = {}
    predictions: Any = prediction.predictions
    if "text" in predictions:
        sums = dict(
            zip(TEXT_FIGURES, predictions["text"].sum(axis=0, dtype=np.float64), strict=True)
        )
        metrics["mntp_accuracy"] = sums["mntp_correct"] / max(sums["mntp_count"], 1)
        for name, of in (("span", "span"), ("left_only", "span"), ("causal", "causal")):
            mean = sums[name] / max(sums[f"{of}_count"], 1)
            metrics[f"{name}_perplexity"] = float(np.exp(mean))
    if "vectors" in predictions:
        vectors = torch.from_numpy(np.asarray(predictions["vectors"])).flatten(0, 1)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)  # (pairs, views, hidden)
        if "teacher" in predictions:
            metrics["teacher_spearman"] = _agreement(vectors, predictions["teacher"])
        if "classes" in predictions:
            classes = torch.from_numpy(np.asarray(predictions["classes"])).flatten()
            cosines = (vectors[:, 0] @ vectors[:, 0].T).fill_diagonal_(-torch.inf)
            same = classes[cosines.argmax(dim=1)] == classes
            metrics["class_accuracy"] = float(same.float().mean())
        if vectors.shape[1] == 1:
            return metrics
        one, two = vectors.unbind(1)  # (pairs, hidden)
        if "scores" in predictions:
            scores = np.asarray(predictions["scores"]).ravel()
            return metrics | {"pair_spearman": spearman((one * two).sum(-1).numpy(), scores)}
        nearest = (one @ two.T).argmax(dim=1)
        metrics["pair_accuracy"] = float((nearest == torch.arange(len(one))).float().mean())
    return metrics


def _agreement(vectors: torch.Tensor, teacher: Any) -> float:
    """The rank correlation of all texts' cosines with the teacher's."""
    taught = torch.from_numpy(np.asarray(teacher)).flatten(0, 1)  # (pairs, views, size)
    cosines = []
    for texts in (vectors, torch.nn.functional.normalize(taught, dim=-1)):
        texts = texts.flatten(0, 1)  # (pairs x views, hidden)
        rows, columns = torch.triu_indices(len(texts), len(texts), offset=1)
        cosines.append((texts @ texts.T)[rows, columns].numpy())
    return spearman(*cosines)


def spearman(one: ArrayLike, two: ArrayLike) -> float:
    """Spearman's rank correlation. Equal numbers share their mean rank."""
    ranks = []
    for values in (one, two):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
