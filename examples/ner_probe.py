"""How much of named entities stands in word vectors: a linear probe on frozen ones.

    pip install -e ".[examples]"
    python -m examples.ner_probe
    python -m examples.ner_probe --train eng.train --test eng.testa --limit 1000

A file has a word and, last on the line, its tag (IOB1 or IOB2); sentences are apart by empty lines.
Without `--test` each sentence is tagged by a probe that was fitted on others, in five folds. Beside the
model's vectors stand those of its input embeddings, the words alone without their sentence, and both.
"""

import argparse
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from seqeval.metrics import classification_report, f1_score
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation.common.texts import to_iob2
from modeling_magnet import load_magnet

SAMPLE = Path(__file__).parent / "data" / "entities.conll"
FOLDS = 5


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="checkpoints/magnet-smollm2-135m", help="folder or Hub id"
    )
    parser.add_argument("--train", type=Path, default=SAMPLE, help="CoNLL file to fit on")
    parser.add_argument("--test", type=Path, help="CoNLL file to score on")
    parser.add_argument("--limit", type=int, help="use so many sentences of each file")
    options = parser.parse_args(command_line)
    sentences = read(options.train)[: options.limit]
    count = len(sentences)
    if options.test:
        sentences += read(options.test)[: options.limit]
        parts = [(np.arange(count), np.arange(count, len(sentences)))]
    elif count < FOLDS:
        raise SystemExit(f"{options.train} has {count} sentences: give {FOLDS} or more, or --test")
    else:
        parts = list(KFold(FOLDS, shuffle=True, random_state=0).split(sentences))

    model = load_magnet(options.model).eval()
    words = [[word for word, _ in sentence] for sentence in sentences]
    tags = [to_iob2([tag for _, tag in sentence]) for sentence in sentences]
    gold = [tags[i] for _, test in parts for i in test]
    alone, in_context = embeddings(model, words), model.encode_words(words)
    both = [np.concatenate(pair, axis=1) for pair in zip(alone, in_context, strict=True)]
    scores = {}
    for name, vectors in (
        ("words alone", alone),
        ("words in context", in_context),
        ("both", both),
    ):
        predicted = [row for train, test in parts for row in probe(vectors, tags, train, test)]
        scores[name] = f1_score(gold, predicted)
    print(classification_report(gold, predicted, digits=3, zero_division=0))
    for name, score in scores.items():
        print(f"span F1, {name:18}{100 * score:6.1f}")


def read(path: Path) -> list[list[tuple[str, str]]]:
    """Sentences of (word, tag): the first and the last column."""
    sentences = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        rows = [line.split() for line in block.splitlines() if line.strip()]
        rows = [row for row in rows if row[0] != "-DOCSTART-"]
        for row in rows:
            if len(row) < 2:
                raise SystemExit(f"{path} has the line {row}: give a word and a tag")
        if rows:
            sentences.append([(row[0], row[-1]) for row in rows])
    return sentences


def embeddings(model, sentences: list[list[str]]) -> list[np.ndarray]:
    """The mean input embedding of each word's tokens: (words, hidden) for each sentence."""
    table = model.get_input_embeddings().weight.detach().cpu()
    vectors = {}
    for word in set(chain(*sentences)):
        (token_ids,) = model.text_tokenizer.continued.ids([" " + word])
        vectors[word] = table[torch.tensor(token_ids)].mean(dim=0).numpy()
    return [np.stack([vectors[word] for word in words]) for words in sentences]


def probe(vectors, tags, train, test) -> list[list[str]]:
    """Fit a linear classifier on some sentences' words, and tag those of others."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(np.concatenate([vectors[i] for i in train]), [*chain(*(tags[i] for i in train))])
    return [classifier.predict(vectors[i]).tolist() for i in test]


if __name__ == "__main__":
    main()
