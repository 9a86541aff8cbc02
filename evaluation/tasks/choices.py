"""Multiple choice: MMLU (Table 6), ARC-easy and PIQA, with the tasks and the scorer of lm-eval.

A source is the name of a task of lm-eval, which is loaded from the Hugging Face Hub, or a JSON lines
file in the format of `evaluation.data`, which is made into a task as lm-eval makes ARC-easy and PIQA:
the model reads `Question: ...`, a new line, `Answer:`, a space and a choice.
A choice's score is its summed log-probability; the highest answers. Length-normalised, the score is
divided by the choice's characters first. The model reads as a plain causal one, and what begins a
sequence is lm-eval's rule: the tokenizer's BOS, where that adds one by itself.
"""

import copy
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.common.figures import Figure
from evaluation.data import CHOICES, check_unique, drawn, require

TITLES = {"mmlu": "MMLU", "arc_easy": "ARC-easy", "piqa": "PIQA"}
FOLDERS = ("arc", "mmlu/default", "piqa")  # lm-eval takes up to 20 s to index all of its tasks
METRICS = {"acc": "", "acc_norm": ", length-normalised"}
"""What lm-eval calls an accuracy, and what stands after the name of its figure."""


def measure_choices(
    model: Any,
    sources: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    shots: int = 0,
) -> dict[str, Figure]:
    """Accuracy of the choice that a language model finds most probable, in percent.

    Args:
        model: a causal language model with its tokenizer as `model.tokenizer`, such as a
            MAGNET model.
        sources: names of lm-eval's tasks of multiple choice in `FOLDERS`, such as those of
            `evaluation.data.CHOICES`, and `.jsonl` files.
        limit: questions of each source, drawn by the seed; None: all.
        shots: solved examples before each question; 5 in the MMLU numbers of Llama 2 (Table 6).

    Returns:
        For each source the accuracy, named as in `TITLES`, or like the task or the file; after it
        the length-normalised one, where lm-eval scores the task so. A group of tasks, such as MMLU,
        has a figure over all its questions, and one for each group in it.

    Raises:
        ValueError, ConnectionError: as in `check_choices`; or `limit` is below 1.

    Example:
        >>> figures = measure_choices(model, ["questions.jsonl"], limit=100)
        >>> figures["questions"].examples
        100
    """
    figures = {}
    for source in sources:
        loaded = _load(source)
        pool = [
            (name, i) for name, task in loaded.tasks.items() for i in range(len(task.eval_docs))
        ]
        chosen: dict[str, list[int]] = {}  # by task, in their order, which lm-eval needs
        for place in drawn(len(pool), limit, seed):
            name, i = pool[place]
            chosen.setdefault(name, []).append(i)
        samples = _samples(model, loaded.tasks, chosen, batch_size, shots)
        for name, members in loaded.groups.items():
            found = [sample for member in members for sample in samples.get(member, [])]
            for metric, suffix in METRICS.items():
                if found and metric in found[0]:
                    figure = Figure.of_ratio([sample[metric] for sample in found], seed=seed)
                    figures[name + suffix] = figure.scaled(100)
    return figures


def check_choices(sources: Sequence[str]) -> None:
    """Find what would stop `measure_choices`, before a model is loaded; downloads data of the Hub.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: a name is none of lm-eval's, or none of multiple choice; two sources have the same
            name; a file is missing or empty; or a line is no question with two choices or more, and
            an answer among them.
        ConnectionError: a task is not in the cache, and the Hub cannot be reached.
    """
    require("lm_eval")
    check_unique([_title(source) for source in sources])
    for source in sources:
        _load(source)


class Loaded(NamedTuple):
    """A source: tasks of lm-eval by name, and which of them a figure is over."""

    tasks: dict[str, Any]
    groups: dict[str, list[str]]


def _load(source: str) -> Loaded:
    if source.endswith(".jsonl"):
        name = _title(source)
        with _hushed():
            return Loaded({name: _file_task(name, _read_questions(source))}, {name: [name]})
    expected = f"give a .jsonl file or one such as {', '.join(CHOICES)}"
    try:
        with _hushed():
            found = _manager().load([source])
    except KeyError as error:
        got = f"{source!r} is no task that lm-eval has in {', '.join(FOLDERS)}"
        raise ValueError(f"{got}: {expected}") from error
    except OSError as error:
        got = f"{source} is not in the cache, and the Hugging Face Hub did not give it ({error})"
        raise ConnectionError(f"{got}: connect, or give a .jsonl file") from error
    for name, task in found["tasks"].items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise ValueError(f"{name!r} is a task of {task.OUTPUT_TYPE}: {expected}")

    def members(name: str) -> list[str]:
        if name in found["tasks"]:
            return [name]
        return [task for part in found["group_map"][name] for task in members(part)]

    groups = {_title(source): [*found["tasks"]]}
    return Loaded(
        found["tasks"], groups | {_title(name): members(name) for name in found["groups"]}
    )


@cache
def _manager() -> Any:
    from lm_eval import tasks

    folders = [Path(tasks.__file__).parent / folder for folder in FOLDERS]
    return tasks.TaskManager(include_defaults=False, include_path=folders)


def _file_task(name: str, questions: list[dict[str, Any]]) -> Any:
    """A task as lm-eval's `arc_easy.yaml` and `piqa.yaml` define theirs."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    metrics = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in METRICS
    ]
    config = {
        "task": name,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(questions)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
    }
    return ConfigurableTask(config=config)


def _samples(
    model: Any,
    tasks: dict[str, Any],
    chosen: dict[str, list[int]],
    batch_size: int,
    shots: int,
) -> dict[str, list[dict[str, Any]]]:
    """What lm-eval found of each question drawn, by task."""
    from lm_eval import evaluate  # `simple_evaluate` without its survey of the machine
    from lm_eval.models.huggingface import HFLM

    class Reader(HFLM):
        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list:
            with redirect_stderr(stderr):  # for the one bar that is of use
                return super().loglikelihood(requests)

    for name in chosen:
        tasks[name].set_config("num_fewshot", shots)
        tasks[name].set_fewshot_seed(seed=1234)  # lm-eval's own
    stderr = sys.stderr
    with _hushed() as cuts, open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        # lm-eval may give a tokenizer a padding token: it gets one of its own.
        tokenizer = copy.deepcopy(model.tokenizer)
        reader = Reader(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
        asked = {"tasks": {name: tasks[name] for name in chosen}, "groups": {}}
        found = evaluate(lm=reader, task_dict=asked, samples=chosen, bootstrap_iters=0)
    if cuts.count:
        got = f"{cuts.count} choices were cut from the left to {reader.max_length} tokens"
        warnings.warn(got, stacklevel=3)
    return found["samples"]


def _read_questions(path: str) -> list[dict[str, Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file: give a .jsonl file of questions")
    text = Path(path).read_text(encoding="utf-8").rstrip("\n")
    if not text:
        raise ValueError(f"{path} is empty: give one question per line")
    lines = enumerate(text.split("\n"), start=1)
    return [_as_question(line, f"{path}, line {number}") for number, line in lines]


def _as_question(line: str, where: str) -> dict[str, Any]:
    """The fields of a line that are read."""
    try:
        found = json.loads(line)
        question, choices, answer = (found[name] for name in ("question", "choices", "answer"))
    except (ValueError, KeyError, TypeError) as error:
        got = f"{where}: got {line[:60]!r}"
        raise ValueError(f"{got}, expected JSON with question, choices and answer") from error
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: the question is {question!r}, expected text")
    texts = isinstance(choices, list) and all(isinstance(c, str) and c.strip() for c in choices)
    if not texts or len(choices) < 2:
        raise ValueError(f"{where}: the choices are {choices!r}, expected two texts or more")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(
            f"{where}: the answer is {answer!r}, expected an index from 0 to {len(choices) - 1}"
        )
    return {"question": question, "choices": choices, "answer": answer}


def _title(source: str) -> str:
    name = Path(source).stem if source.endswith(".jsonl") else source
    return TITLES.get(name, name)


class _Cuts(logging.Filter):
    """Counts choices that were cut, of which lm-eval logs each; drops what is no error."""

    count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        self.count += "Truncating" in record.getMessage()
        return record.levelno >= logging.ERROR


@contextmanager
def _hushed() -> Iterator[_Cuts]:
    """Keep lm-eval from logging anything but errors."""
    cuts, parent = _Cuts(), logging.getLogger("lm_eval")
    reader, level = logging.getLogger("lm_eval.models.huggingface"), parent.level
    parent.setLevel(logging.ERROR)
    reader.setLevel(logging.WARNING)
    reader.addFilter(cuts)
    try:
        yield cuts
    finally:
        reader.removeFilter(cuts)
        reader.setLevel(logging.NOTSET)
        parent.setLevel(level)
