"""Chunking, entities and parts of speech by a linear classifier on frozen vectors (Table 1).

    python -m evaluation.tasks.words --model FOLDER --train eng.train --test eng.testa --output results.json

The protocol is that of MAGNET's section 4.1 and appendix A: the last layer, frozen; a word's vector is
the mean over its tokens, by default of two outputs each, with `--states paper` of the paper's one; 4000 steps of 8 sentences at a learning rate of 5e-4, dropout 0.1. Table 1's
numbers are token accuracies as in LLM2Vec's scripts, also its 98.31 for entities, to which each word
outside of entities adds: compare them with `accuracy`, not with the span F1 of CoNLL-2003 systems.
"""

import argparse
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from seqeval.metrics.sequence_labeling import get_entities
from torch.nn import functional as F
from tqdm.auto import tqdm

from evaluation.common.figures import Figure, table
from evaluation.common.texts import Sentence, read_conll
from evaluation.common.writing import output_file, write_json
from evaluation.models import load_model

TASKS = ("chunk", "ner", "pos")
ENCODE_AT_ONCE = 512


def probe(
    train_vectors: Sequence[np.ndarray],
    train_tags: Sequence[Sequence[str]],
    test_vectors: Sequence[np.ndarray],
    steps: int = 4000,
    batch_size: int = 8,
    learning_rate: float = 5e-4,
    dropout: float = 0.1,
    seed: int = 0,
) -> list[list[str]]:
    """Fit a linear classifier of words to frozen vectors with Adam, and apply it (appendix A).

    Args:
        train_vectors, test_vectors: (words, hidden) for each sentence, in any float type.
        train_tags: a tag a word for each training sentence.
        steps, batch_size, learning_rate: of training; batches of sentences, a constant rate.
        dropout: of the vectors in training.
        seed: of the weights, the order and the dropout; the caller's random state stays as it is.

    Returns:
        A tag a word for each test sentence: always one that is in `train_tags`.

    Raises:
        ValueError: a sentence has not one tag a word, or vectors are not finite.
    """
    if not train_vectors or [*map(len, train_vectors)] != [*map(len, train_tags)]:
        raise ValueError(
            f"got {sum(map(len, train_vectors))} vectors in {len(train_vectors)} training sentences, "
            f"{sum(map(len, train_tags))} tags in {len(train_tags)}: give one of each per word"
        )
    if not all(np.isfinite(rows).all() for rows in (*train_vectors, *test_vectors)):
        raise ValueError("the vectors hold NaN or infinity (float16: numbers above 65504)")
    names, count = sorted({tag for tags in train_tags for tag in tags}), len(train_vectors)
    labels = [np.array([names.index(tag) for tag in tags]) for tags in train_tags]

    def stack(sentences: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(sentences).astype(np.float32))  # (words, hidden)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = torch.nn.Linear(train_vectors[0].shape[1], len(names))
        optimizer = torch.optim.Adam(classifier.parameters(), lr=learning_rate)
        epochs = [torch.randperm(count) for _ in range(1 + steps * batch_size // count)]
        order = torch.cat(epochs)[: steps * batch_size].view(steps, batch_size)
        for batch in tqdm(order.tolist(), desc="Probe"):
            features = F.dropout(stack([train_vectors[i] for i in batch]), dropout)
            targets = torch.from_numpy(np.concatenate([labels[i] for i in batch]))  # (words,)
            optimizer.zero_grad()
            F.cross_entropy(classifier(features), targets).backward()
            optimizer.step()
    with torch.no_grad():
        best = [classifier(stack([rows])).argmax(dim=1).tolist() for rows in test_vectors]
    return [[names[i] for i in row] for row in best]


def score(
    predictions: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], kind: str, seed: int = 0
) -> dict[str, Figure]:
    """Token accuracy and, for chunks and entities, the span scores of seqeval's default mode.

    Returns:
        `accuracy`, and but for `pos` `precision`, `recall` and `f1`, from 0 to 1, over sentences, which
        the intervals resample.

    Raises:
        ValueError: predictions and gold differ in length or are empty, or `kind` is unknown.
    """
    if kind not in TASKS:
        raise ValueError(f"kind is {kind!r}: give one of {', '.join(TASKS)}")
    if not gold or [*map(len, predictions)] != [*map(len, gold)]:
        raise ValueError(
            f"got {sum(map(len, predictions))} predictions in {len(predictions)} sentences, "
            f"{sum(map(len, gold))} gold tags in {len(gold)}: give one of each per word"
        )
    pairs = [(list(p), list(g)) for p, g in zip(predictions, gold, strict=True)]
    words = np.array([len(g) for _, g in pairs])  # (sentences,), as all that follow
    ratios = {"accuracy": (np.array([sum(map(str.__eq__, p, g)) for p, g in pairs]), words)}
    if kind != "pos":
        spans = [(set(get_entities(p)), set(get_entities(g))) for p, g in pairs]
        found, predicted, true = np.array([[len(p & g), len(p), len(g)] for p, g in spans]).T
        ratios |= {"precision": (found, predicted), "recall": (found, true)}
        ratios["f1"] = (2 * found, predicted + true)
    return {
        name: Figure.of_ratio(top, bottom, seed)
        if bottom.any()
        else Figure(0.0, 0.0, 0.0, len(gold))
        for name, (top, bottom) in ratios.items()
    }


def measure_words(
    encode_words: Callable[[list[list[str]]], Sequence[np.ndarray]],
    train_path: str | Path,
    test_path: str | Path,
    tasks: Sequence[str] = TASKS,
    steps: int = 4000,
    limit: tuple[int | None, int | None] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Figure]]:
    """Fit and score a classifier for each task on the word vectors of an encoder (Table 1).

    Args:
        encode_words: returns (words, width) for each sentence of some in words, such as
            `encode_words` of a MAGNET model. It encodes each sentence once, for all tasks.
        train_path, test_path: files of CoNLL-2003, see `read_conll`.
        tasks, steps: what to measure, and the steps of training a classifier.
        limit: how many of the first training and of the first test sentences to use; None: all.

    Returns:
        For each task what `score` returns. Words whose tag no training word has count as wrong, with
        a warning.

    Raises:
        FileNotFoundError, ValueError: as in `read_conll` and `probe`; or a task is unknown.
    """
    if not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks are {', '.join(tasks) or 'none'}: give some of {', '.join(TASKS)}")
    paths, limits = (train_path, test_path), limit or (None, None)
    train, test = (read_conll(path)[:most] for path, most in zip(paths, limits, strict=True))
    vectors = [_encode(encode_words, part) for part in (train, test)]
    results = {}
    for task in tasks:
        known, gold = ([sentence.tags[task] for sentence in part] for part in (train, test))
        predictions = probe(vectors[0], known, vectors[1], steps, seed=seed)
        seen = {tag for tags in known for tag in tags}
        unseen = dict(Counter(tag for tags in gold for tag in tags if tag not in seen))
        if unseen:
            warnings.warn(f"{task}: training lacks tags of test words: {unseen}", stacklevel=2)
        results[task] = score(predictions, gold, task, seed)
    return results


def _encode(encode_words, sentences: list[Sentence]) -> list[np.ndarray]:
    """Vectors in 16 bits: half the memory, and rounded by far less than dropout disturbs them."""
    vectors: list[np.ndarray] = []
    for first in tqdm(range(0, len(sentences), ENCODE_AT_ONCE), "Encode"):
        words = [sentence.words for sentence in sentences[first : first + ENCODE_AT_ONCE]]
        vectors += [rows.astype(np.float16) for rows in encode_words(words)]
    return vectors


def named(results: dict[str, dict[str, Figure]]) -> dict[str, Figure]:
    """The figures of Table 1 and the span F1 after them, in percent, by task and measure."""
    return {
        f"{task}, {label}": figures[name].scaled(100)
        for name, label in (("accuracy", "token accuracy"), ("f1", "span F1"))
        for task, figures in results.items()
        if name in figures
    }


def main(command_line: list[str] | None = None) -> None:
    """Measure a Magnet folder, print a table and write the results, whole or not at all."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="what to measure, as for evaluation.run")
    add("--states", choices=["both", "paper"], default="both", help="outputs to read")
    add("--num-layers", type=int, help="stop after so many layers of a decoder (default: all)")
    add("--train", required=True, help="CoNLL-2003 file to train on")
    add("--test", required=True, help="CoNLL-2003 file to score on")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="what to measure")
    add("--limit-train", type=int, help="use so many training sentences")
    add("--limit-test", type=int, help="use so many test sentences")
    add("--steps", type=int, default=4000, help="of training a classifier")
    add("--seed", type=int, default=0, help="of classifiers and intervals")
    add("--output", type=output_file, help="JSON file to write")
    options = parser.parse_args(command_line)
    began, paths = time.perf_counter(), (options.train, options.test)
    for name in ("limit_train", "limit_test", "steps", "num_layers"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is {value}: give 1 or more")
    for path in paths:
        read_conll(path)  # a bad file is said before the model loads
    encode_words = partial(
        load_model(options.model).encode_words,
        states=options.states,
        num_layers=options.num_layers,
    )
    limits = options.limit_train, options.limit_test
    results = measure_words(
        encode_words, *paths, options.tasks, options.steps, limits, options.seed
    )
    seconds = round(time.perf_counter() - began, 3)
    print(table({options.model: named(results)}))
    print(f"\nn: test sentences; {options.steps} steps, seed {options.seed}, {seconds} s")
    if output := options.output:
        content = vars(options) | {"output": str(output), "seconds": seconds, "results": results}
        write_json(output, content)


if __name__ == "__main__":
    main()
