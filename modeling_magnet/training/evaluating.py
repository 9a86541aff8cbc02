"""Measures sentence vectors at each evaluation of a run, so that the best checkpoint can be kept."""

import contextlib
import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import TrainerCallback

from .metrics import spearman

COLUMNS = ("score", "sentence1", "sentence2")


class SentenceEvaluation(TrainerCallback):
    """Adds `eval_NAME` for each source to a run's evaluations, for `metric_for_best_model` to name.

    For any Trainer whose model is a MAGNET model, with an adapter or without: `MagnetTrainer`, or trl's.
    The figures are added to those of the evaluation after it was logged. `trainer.state.log_history` and
    `trainer_state.json` hold them in a separate line. Weights that are sharded over processes (FSDP,
    ZeRO-3) cannot encode.

    Args:
        sources: `.tsv` files with the columns sentence1, sentence2 and score, whose figure is the rank
            correlation of cosines with scores, named after the file; and tasks of mteb, as names or
            objects, whose figure is the task's main score.
        prompt_name: as in `encode`.
        batch_size: as in `encode`.

    Raises:
        ValueError: a file lacks a column or a sentence, its scores are not numbers or are all equal, or two
            files have the same name.

    Example:
        >>> trainer.add_callback(SentenceEvaluation("dev.tsv", "STS12"))
        >>> trainer.args.metric_for_best_model = "eval_dev"
    """

    def __init__(self, *sources: Any, prompt_name: str | None = None, batch_size: int = 32):
        self.arguments = {"prompt_name": prompt_name, "batch_size": batch_size}
        files = [Path(source) for source in sources if _is_file(source)]
        names = [path.stem for path in files]
        if len(set(names)) < len(names):
            raise ValueError(f"two files would both be called one of {names}: rename one")
        self.tables = {path.stem: read_pairs(path) for path in files}
        self.tasks = [source for source in sources if not _is_file(source)]

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        """Measure, and add the figures to `metrics`."""
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with randomness_kept():
            figures = {
                name: self._correlation(inner, *table) for name, table in self.tables.items()
            }
            figures |= (
                mteb_scores(_Encoder(inner, self.arguments), self.tasks) if self.tasks else {}
            )
        found = {f"eval_{name}": value for name, value in figures.items()}
        metrics.update(found)
        state.log_history.append({"epoch": state.epoch, "step": state.global_step, **found})

    def _correlation(self, model: Any, scores: np.ndarray, *sentences: Sequence[str]) -> float:
        one, two = (_encode(model, texts, self.arguments) for texts in sentences)
        return spearman((one * two).sum(axis=1), scores)


def read_pairs(path: Path) -> tuple[np.ndarray, list[str], list[str]]:
    """Scores and both columns of sentences of a `.tsv` file.

    Raises:
        ValueError: a column or a sentence is missing, or the scores are not numbers or are all equal.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ValueError(f"{path} has no rows with {', '.join(missing)}: give {', '.join(COLUMNS)}")
    try:
        scores = np.array([float(row["score"]) for row in rows])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has a score that is not a number: {error}") from error
    if not np.isfinite(scores).all():
        raise ValueError(f"{path} has a score that is NaN or infinity: leave such rows out")
    for number, row in enumerate(rows, 2):
        if not row["sentence1"] or not row["sentence2"]:
            raise ValueError(f"{path}, line {number}, lacks a sentence: leave such rows out")
    if len(set(scores)) < 2:
        raise ValueError(
            f"all scores of {path} are {scores[0]}: nothing correlates with equal scores"
        )
    return scores, [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]


def mteb_scores(encoder: Any, tasks: Sequence[Any]) -> dict[str, float]:
    """The main score of each task of mteb.

    Raises:
        ImportError: mteb is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise ImportError("tasks of mteb need it: pip install mteb") from error
    chosen = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
    found = mteb.evaluate(encoder, chosen, cache=None, show_progress_bar=False)
    return {result.task_name: result.get_score() for result in found.task_results}


@contextlib.contextmanager
def randomness_kept() -> Iterator[None]:
    """Restore a run's random generators afterwards, since mteb seeds them."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


class _Encoder:
    """A model in the form that mteb needs (`mteb.models.EncoderProtocol`)."""

    def __init__(self, model: Any, arguments: dict[str, Any]):
        from mteb.models import ModelMeta

        self.model, self.arguments = model, arguments
        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        return _encode(self.model, texts, self.arguments)

    def similarity(self, one: Any, two: Any) -> torch.Tensor:
        return torch.as_tensor(one) @ torch.as_tensor(two).T

    def similarity_pairwise(self, one: Any, two: Any) -> torch.Tensor:
        return (torch.as_tensor(one) * torch.as_tensor(two)).sum(dim=-1)


def _encode(model: Any, texts: Sequence[str], arguments: dict[str, Any]) -> np.ndarray:
    return model.encode(
        texts, normalize_embeddings=True, truncation=True, show_progress_bar=False, **arguments
    )


def _is_file(source: Any) -> bool:
    return isinstance(source, (str, Path)) and str(source).endswith(".tsv")
