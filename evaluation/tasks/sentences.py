"""Sentence similarity and clustering (Tables 2 and 3), with mteb's tasks and mteb's scorers.

A source is the name of a task of mteb, which is loaded from the Hugging Face Hub, or a `.tsv` file in
a format of `evaluation.data`, which is made into such a task, so that one scorer serves both.

mteb takes seconds to import, so the functions that need it do. It seeds Python's, NumPy's and
PyTorch's own generators wherever it makes a task: draw from generators of your own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from evaluation.common.figures import Figure
from evaluation.common.texts import read_columns
from evaluation.data import CLUSTERING, STS, check_unique, drawn, require
from evaluation.models import Model

HIGHEST_SCORE = 5  # of similarity, as in all of `STS`


def measure_sts(
    model: Model,
    sources: Sequence[str],
    prompt: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """Spearman correlation of cosine similarity with human scores, in percent (Table 2).

    The value is mteb's `cosine_spearman` over all pairs of a source, its interval that of
    `Figure.of_correlation`.

    Args:
        sources: names of mteb's tasks, such as those of `evaluation.data.STS`, and `.tsv` files.
        prompt: the text to put before each sentence. None: `prompt_of(model, "STS")`.
        limit: pairs of each source, drawn by the seed, since files are ordered by origin; None: all.

    Returns:
        A figure a source, by the task's name or the file's without its ending.

    Raises:
        ValueError, ConnectionError: as in `check_sts`; or `limit` is below 2, or draws one score alone.

    Example:
        >>> measure_sts(load_model("magnet:outputs/magnet"), ["STS12"])["STS12"].examples
        3108
    """
    prompt = prompt_of(model, "STS") if prompt is None else prompt
    figures = {}
    for source, name in tqdm(_named(sources), desc="Similarity"):
        task = _sts_task(source, limit, seed)
        split, (subset,) = task.metadata.eval_splits[0], task.hf_subsets
        with TemporaryDirectory() as folder:
            scores = task.evaluate(
                _Encoder(model, prompt), split, encode_kwargs={}, prediction_folder=Path(folder)
            )
            pairs = json.loads((Path(folder) / task.prediction_file_name).read_text("utf-8"))
        similarities, truth = pairs[subset][split]["cosine_scores"], task.dataset[split]["score"]
        value = float(scores[subset]["cosine_spearman"])
        figure = Figure.of_correlation(similarities, truth, seed)._replace(value=value)
        figures[name] = figure.scaled(100)
    return figures


def measure_clustering(
    model: Model,
    sources: Sequence[str],
    prompt: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Figure]:
    """V-measure of k-means clusters against given labels, in percent (Table 3).

    The value is mteb's `v_measure`, a mean over sets of texts. There are two protocols:

    - The paper's tasks come as sets, each clustered once. The interval is the bootstrap over sets.
    - Of a file, as in mteb's newer tasks, ten sets are drawn with replacement, each of as many texts
      as are used; each has k-means of its own. So they are bootstrap draws, and the interval lies
      between the 2.5 and 97.5 percentiles of their scores.

    Few texts to a label score higher than many: compare numbers of one `limit` alone.

    Args:
        model, sources: as in `measure_sts`; of mteb, the likes of `CLUSTERING`.
        prompt: the text to put before each text. None: `prompt_of` the source.
        limit: texts of each set of a source, drawn by the seed; a file is one. None: all.
        seed: of the draws, and of k-means for a file; mteb's own for its tasks.

    Returns:
        A figure a source, as in `measure_sts`; its examples are the texts.

    Raises:
        ValueError, ConnectionError: as in `check_clustering`; or the limit as in `measure_sts`.

    Example:
        >>> measure_clustering(model, ["topics.tsv"], limit=1000)["topics"].examples
        1000
    """
    figures = {}
    for source, name in tqdm(_named(sources), desc="Clustering"):
        task = _clustering_task(source, limit, seed)
        encoder = _Encoder(model, prompt_of(model, name) if prompt is None else prompt)
        split, (subset,) = task.metadata.eval_splits[0], task.hf_subsets
        found = task.evaluate(encoder, split, encode_kwargs={})[subset]
        sets = found["v_measures"]  # (sets,)
        if source.endswith(".tsv"):  # whose labels have one level
            low, high = np.quantile(sets["Level 0"], [0.025, 0.975]).tolist()
        else:
            _, low, high, _ = Figure.of_ratio(sets, seed=seed)
        figures[name] = Figure(float(found["v_measure"]), low, high, encoder.count).scaled(100)
    return figures


def prompt_of(model: Model, task: str) -> str | None:
    """The text that stands before each sentence of a task: `STS`, or the name of one of clustering.

    For a language model it is the checkpoint's prompt of that name, by default the instruction of Table 8,
    or None, the model's own default, where there is none. For an encoder it is `""`.
    """
    return model.language_model.magnet_settings.prompts.get(task) if model.language_model else ""


def check_sts(sources: Sequence[str]) -> None:
    """Find what would stop `measure_sts`, before a model is loaded; downloads data of the Hub.

    Raises:
        ImportError: mteb is not installed.
        ValueError: a name is none of mteb's, or not of similarity in one language; two sources have
            the same name; a file is missing or empty, lacks a column, has a line with another number
            of fields or an empty sentence, a score that is no number from 0 to 5, or one score alone.
        ConnectionError: a task is not in the cache, and the Hub cannot be reached.
    """
    require("mteb")
    for source, _ in _named(sources):
        _sts_task(source)


def check_clustering(sources: Sequence[str]) -> None:
    """Find what would stop `measure_clustering`, before a model is loaded, as `check_sts` does.

    Raises:
        ImportError, ValueError, ConnectionError: as in `check_sts`; or a set has one label alone.
    """
    require("mteb")
    for source, _ in _named(sources):
        _clustering_task(source)


class _Encoder:
    """A model as an encoder of mteb (`mteb.models.EncoderProtocol`), with a prompt of our choice."""

    def __init__(self, model: Model, prompt: str | None):
        from mteb.models import ModelMeta

        self.model, self.prompt = model, prompt
        self.count = 0  # texts encoded
        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        texts = [text for batch in inputs for text in batch["text"]]
        self.count += len(texts)
        return self.model.encode(texts, self.prompt)

    def similarity(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        one, two = (F.normalize(torch.tensor(rows)) for rows in (embeddings1, embeddings2))
        return one @ two.T

    def similarity_pairwise(self, embeddings1: np.ndarray, embeddings2: np.ndarray) -> torch.Tensor:
        return F.cosine_similarity(torch.tensor(embeddings1), torch.tensor(embeddings2))


def _sts_task(source: str, limit: int | None = None, seed: int = 0) -> Any:
    from mteb.abstasks import AbsTaskSTS

    if source.endswith(".tsv"):
        task = _file_task(AbsTaskSTS, source, "STS", "cosine_spearman", _read_pairs(source), seed)
    else:
        task = _hub_task(source, AbsTaskSTS, STS)
    split = task.metadata.eval_splits[0]
    pairs = task.dataset[split].select(drawn(len(task.dataset[split]), limit, seed, least=2))
    _check_varied(pairs["score"], "score", f"{source}, {len(pairs)} pairs")
    task.dataset = {split: pairs}
    return task


def _clustering_task(source: str, limit: int | None = None, seed: int = 0) -> Any:
    from datasets import Dataset
    from mteb.abstasks import AbsTaskClustering, AbsTaskClusteringLegacy

    file = source.endswith(".tsv")
    if file:
        read = read_columns(source, ("title", "label"))
        sets = [{"sentences": read["title"], "labels": read["label"]}]
    else:
        task = _hub_task(source, AbsTaskClusteringLegacy, CLUSTERING)
        split = task.metadata.eval_splits[0]
        sets = [
            {name: row[name] for name in ("sentences", "labels")} for row in task.dataset[split]
        ]
    for columns in sets:
        chosen = drawn(len(columns["labels"]), limit, seed, least=2)
        columns |= {name: [values[i] for i in chosen] for name, values in columns.items()}
        _check_varied(columns["labels"], "label", f"{source}, {len(chosen)} texts")
    if file:
        task = _file_task(AbsTaskClustering, source, "Clustering", "v_measure", sets[0], seed)
        task.max_fraction_of_documents_to_embed = None  # all that were drawn
        task.max_documents_per_cluster = len(sets[0]["labels"])  # size of a set
    else:
        task.dataset = {split: Dataset.from_list(sets)}
    return task


def _file_task(kind: Any, source: str, type_: Any, score: str, columns: dict, seed: int) -> Any:
    """A task of mteb on columns that were read from a file."""
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata

    class FileTask(kind):
        metadata = TaskMetadata(
            name=Path(source).stem, description=f"Read from {source}.", type=type_,
            main_score=score, eval_langs=["eng-Latn"], eval_splits=["test"],
            dataset={"path": "a/file", "revision": "none"},
        )  # fmt: skip

        def load_data(self, **_: Any) -> None:
            self.dataset, self.data_loaded = {"test": Dataset.from_dict(columns)}, True

    task = FileTask(seed=seed)
    task.load_data()
    return task


def _hub_task(name: str, kind: Any, known: Sequence[str]) -> Any:
    """A task of mteb with its data, from the Hub or the cache of `datasets`."""
    import mteb

    expected = f"give a .tsv file or one such as {', '.join(known)}"
    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise ValueError(f"{name!r} is no task of mteb: {expected}") from error
    if not isinstance(task, kind) or len(task.hf_subsets) > 1:
        got = f"{task.metadata.type} ({type(task).__mro__[1].__name__}, {len(task.hf_subsets)} subsets)"
        raise ValueError(f"{name!r} is a task of {got}: {expected}")
    try:
        task.load_data()
    except OSError as error:
        got = f"{name} is not in the cache, and the Hugging Face Hub did not give it ({error})"
        raise ConnectionError(f"{got}: connect, or give a .tsv file") from error
    return task


def _read_pairs(path: str) -> dict[str, list]:
    columns: dict[str, list] = read_columns(path, ("sentence1", "sentence2", "score"))
    for i, text in enumerate(columns["score"]):
        try:
            columns["score"][i] = score = float(text)
        except ValueError:
            score = np.nan
        if not 0 <= score <= HIGHEST_SCORE:
            got = f"{path}, line {i + 2}: the score is {text!r}"
            raise ValueError(f"{got}, expected a number from 0 to {HIGHEST_SCORE}")
    return columns


def _named(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Each source and its name, which no other may have."""
    names = [Path(source).stem if source.endswith(".tsv") else source for source in sources]
    check_unique(names)
    return list(zip(sources, names, strict=True))


def _check_varied(values: Sequence[Any], what: str, where: str) -> None:
    if len(set(values)) < 2:
        raise ValueError(f"{where}: every {what} is {values[0]!r}, expected two or more")
