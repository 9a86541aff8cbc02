"""Word-level probes: the reader, the classifier and the scores, on invented sentences."""

import json

import numpy as np
import pytest
import torch
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from tiny import make_model
from transformers import AutoModel

from evaluation.common.figures import RESAMPLES
from evaluation.common.texts import read_conll, to_iob2
from evaluation.tasks.words import main, measure_words, named, probe, score

TEXT = """-DOCSTART- -X- O O

Mara NNP I-NP I-PER
Quill NNP I-NP I-PER
left VBD I-VP O
Oldport NNP I-NP I-LOC
Northmere NNP B-NP B-LOC

-DOCSTART- -X- O O
Boats NNS I-NP O
sank VBD I-VP O
. . O O

Oldport NNP I-NP I-ORG
sleeps VBZ I-VP O
. . O O
"""


@pytest.fixture
def conll(tmp_path):
    def write(text: str, name: str = "words.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_reader(conll):
    first, second, third = read_conll(conll(TEXT))
    assert first.words == ["Mara", "Quill", "left", "Oldport", "Northmere"]
    assert first.tags == {
        "pos": ["NNP", "NNP", "VBD", "NNP", "NNP"],
        "chunk": ["B-NP", "I-NP", "B-VP", "B-NP", "B-NP"],
        "ner": ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"],
    }
    assert second.words == ["Boats", "sank", "."] and third.words == ["Oldport", "sleeps", "."]
    assert read_conll(conll(TEXT.rstrip("\n"))) == [first, second, third]
    assert read_conll(conll(TEXT.replace("\n", "\r\n"))) == [first, second, third]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "words.txt has no sentence: give a file of CoNLL-2003"),
        ("-DOCSTART- -X- O O\n\n\n", "words.txt has no sentence"),
        (TEXT + "lost NN I-NP\n", r"words.txt, line 17: got 3 columns \['lost', 'NN', 'I-NP'\]"),
        ("a DT I-NP O extra\n", "line 1: got 5 columns"),
        ("a DT NP O\n", "line 1: got 4 columns .* chunk and entity tag"),
    ],
)
def test_reader_says_what_is_wrong(conll, text, message):
    with pytest.raises(ValueError, match=message):
        read_conll(conll(text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        read_conll(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("iob1", "iob2"),
    [
        ("O I-A I-A O", "O B-A I-A O"),
        ("I-A B-A I-A", "B-A B-A I-A"),
        ("I-A I-B B-B I-A", "B-A B-B B-B B-A"),
        ("I-A O I-A", "B-A O B-A"),
        ("B-A I-A O B-A", "B-A I-A O B-A"),
        ("O", "O"),
    ],
)
def test_iob1_becomes_iob2(iob1, iob2):
    converted = to_iob2(iob1.split())
    assert converted == iob2.split()
    assert to_iob2(converted) == converted


def test_f1_of_converted_tags_is_that_of_the_entities():
    """Strict seqeval, which reads `B-` to the letter, agrees on IOB2 and not on IOB1."""
    gold = [["I-A", "B-A", "I-A", "O", "I-B"], ["I-A", "I-B", "I-B", "O"]]
    found = [["I-A", "I-A", "I-A", "O", "I-B"], ["O", "I-B", "I-B", "I-A"]]
    gold_spans = {(0, "A", 0, 1), (0, "A", 1, 3), (0, "B", 4, 5), (1, "A", 0, 1), (1, "B", 1, 3)}
    found_spans = {(0, "A", 0, 3), (0, "B", 4, 5), (1, "B", 1, 3), (1, "A", 3, 4)}
    true_f1 = 2 * len(gold_spans & found_spans) / (len(gold_spans) + len(found_spans))
    assert true_f1 == pytest.approx(4 / 9)
    converted = [[to_iob2(tags) for tags in side] for side in (gold, found)]
    assert f1_score(*converted) == pytest.approx(true_f1)
    assert f1_score(*converted, mode="strict", scheme=IOB2) == pytest.approx(true_f1)
    assert f1_score(gold, found) == pytest.approx(true_f1)
    assert f1_score(gold, found, mode="strict", scheme=IOB2, zero_division=0) != true_f1
    assert score(converted[1], converted[0], "ner")["f1"].value == pytest.approx(true_f1)


def toy(seed: int, count: int):
    """Sentences of vectors whose largest dimension is the tag."""
    generator = np.random.default_rng(seed)
    vectors = [generator.normal(size=(n, 12)) for n in generator.integers(1, 9, size=count)]
    return vectors, [["xyz"[k] for k in rows[:, :3].argmax(axis=1)] for rows in vectors]


def test_the_probe_learns_and_is_reproducible():
    (train, tags), (test, gold) = toy(0, 200), toy(1, 60)
    arguments = {"steps": 600, "learning_rate": 5e-3}
    state = torch.get_rng_state()
    predictions = probe(train, tags, test, **arguments)
    assert score(predictions, gold, "pos")["accuracy"].value > 0.95
    torch.manual_seed(7)
    assert probe(train, tags, test, **arguments) == predictions
    short = {"steps": 3}
    assert probe(train, tags, test, **short) != probe(train, tags, test, seed=1, **short)
    torch.set_rng_state(state)
    probe(train, tags, test, **short)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_probe_says_what_is_wrong():
    vectors, tags = toy(0, 3)
    with pytest.raises(ValueError, match=r"vectors in 3 training sentences, .* tags in 2"):
        probe(vectors, tags[:2], vectors)
    with pytest.raises(ValueError, match="give one of each per word"):
        probe(vectors, [tags[0] + ["x"], *tags[1:]], vectors)
    with pytest.raises(ValueError, match="give one of each per word"):
        probe([], [], vectors)
    with pytest.raises(ValueError, match="NaN or infinity"):
        probe(vectors, tags, [vectors[0] * np.inf])


def random_tags(seed: int, count: int, kinds=("O", "B-A", "I-A", "B-B", "I-B")):
    generator = np.random.default_rng(seed)
    return [generator.choice(kinds, size=n).tolist() for n in np.resize([3, 9, 1, 6], count)]


def test_scores_equal_seqeval():
    gold = random_tags(0, 80)
    predictions = [
        [new if k % 3 == 0 else tag for k, (tag, new) in enumerate(zip(*rows))]
        for rows in zip(gold, random_tags(1, 80))
    ]
    result = score(predictions, gold, "chunk")
    for name, reference in {
        "accuracy": accuracy_score,
        "precision": precision_score,
        "recall": recall_score,
        "f1": f1_score,
    }.items():
        assert result[name].value == pytest.approx(reference(gold, predictions))
        assert result[name].low < result[name].value < result[name].high
        assert result[name].examples == 80
    assert score(predictions, gold, "chunk") == result
    assert score(predictions, gold, "chunk", seed=1)["f1"].low != result["f1"].low


def test_scores_by_hand():
    gold = [["B-A", "I-A", "O"], ["B-B", "O"], ["O"]]
    found = [["B-A", "I-A", "O"], ["B-A", "O"], ["B-B"]]
    result = score(found, gold, "ner")
    assert result["accuracy"].value == pytest.approx(4 / 6)
    assert result["precision"].value == pytest.approx(1 / 3)
    assert result["recall"].value == pytest.approx(1 / 2)
    assert result["f1"].value == pytest.approx(2 / 5)
    assert "f1" not in score([["NN", "VB"]], [["NN", "NN"]], "pos")
    assert score([["O"]], [["O"]], "ner")["f1"].value == 0  # no span anywhere, as in seqeval


def test_intervals_are_those_of_resampled_seqeval():
    """Counting spans once and resampling the counts gives what seqeval gives on the resample."""
    gold, predictions = random_tags(0, 40), random_tags(2, 40)
    draws = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, size=RESAMPLES)[:100]
    figures = []
    for draw in draws:
        rows = np.repeat(np.arange(40), draw)
        figures.append(f1_score([gold[i] for i in rows], [predictions[i] for i in rows]))
    _, low, high, _ = score(predictions, gold, "ner")["f1"]
    assert np.mean([low <= figure <= high for figure in figures]) == pytest.approx(0.95, abs=0.05)


def test_scores_say_what_is_wrong():
    with pytest.raises(ValueError, match="got 1 predictions in 1 sentences, 2 gold tags in 1"):
        score([["O"]], [["O", "O"]], "ner")
    with pytest.raises(ValueError, match="give one of each per word"):
        score([], [], "ner")
    with pytest.raises(ValueError, match="kind is 'names': give one of chunk, ner, pos"):
        score([["O"]], [["O"]], "names")


def test_any_encoder_each_sentence_once_and_unseen_tags(conll):
    train = conll("".join(f"{w} NN I-NP O\nso RB O O\n\n" for w in "abcdefgh"), "train.txt")
    test = conll("a NN I-NP O\nnow UH O I-LOC\n\n" * 3, "test.txt")
    encoded = []

    def encode_words(sentences):
        encoded.extend(sentences)
        return [np.eye(2)[: len(words)] for words in sentences]

    with pytest.warns(UserWarning, match="training lacks tags of test words") as warned:
        results = measure_words(encode_words, train, test, steps=1500, limit=(4, 2))
    assert encoded == [["a", "so"], ["b", "so"], ["c", "so"], ["d", "so"], *[["a", "now"]] * 2]
    assert list(results) == ["chunk", "ner", "pos"]
    assert [results[task]["accuracy"].value for task in results] == [1, 0.5, 0.5]
    assert results["chunk"]["f1"].value == 1
    unseen = [str(warning.message).partition("words: ")[2] for warning in warned]
    assert unseen == ["{'B-LOC': 2}", "{'UH': 2}"]
    assert results["ner"]["f1"].value == 0 and results["ner"]["recall"].value == 0
    assert results["pos"]["accuracy"].examples == 2
    assert "pos, span F1" not in named(results)
    assert named(results)["ner, token accuracy"].value == 50
    with pytest.raises(ValueError, match="tasks are ner, verbs: give some of chunk, ner, pos"):
        measure_words(encode_words, train, test, tasks=["ner", "verbs"])


def test_vectors_of_a_model(conll, tiny):
    """A random Llama's vectors tell its few training words apart."""
    path = conll(TEXT)
    results = measure_words(tiny.encode_words, path, path, ("pos",), steps=1500)
    assert results["pos"]["accuracy"].value > 0.9


def test_command(conll, tmp_path, capsys):
    folder, path, output = tmp_path / "model", conll(TEXT), tmp_path / "results.json"
    make_model().save_pretrained(folder)
    command = ["--model", folder, "--train", path, "--test", path, "--steps", 20, "--seed", 3]
    main([str(part) for part in [*command, "--limit-test", 2, "--output", output]])
    printed = capsys.readouterr().out
    assert "n: test sentences; 20 steps, seed 3" in printed
    written = json.loads(output.read_text())
    assert written["train"] == str(path) and written["seed"] == 3 and written["seconds"] > 0
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    same = measure_words(loaded.encode_words, path, path, steps=20, limit=(None, 2), seed=3)
    assert written["results"] == json.loads(json.dumps(same))
    value, low, high, _ = same["pos"]["accuracy"].scaled(100)
    assert f"| pos, token accuracy | {value:.2f} ({low:.2f} to {high:.2f}) | 2 |" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "results.json", "words.txt"]


def test_command_fails_before_the_model_loads(conll, tmp_path, capsys):
    good, empty = conll(TEXT), conll("", "empty.txt")

    def run(test, *more):
        main([str(p) for p in ["--model", "no-such", "--train", good, "--test", test, *more]])

    with pytest.raises(ValueError, match="empty.txt has no sentence"):
        run(empty)
    for more, message in (
        (("--limit-train", 0), "--limit-train is 0: give 1 or more"),
        (("--output", tmp_path), "give a file in a folder that exists"),
        (("--output", tmp_path / "none" / "a.json"), "give a file in a folder that exists"),
    ):
        with pytest.raises(SystemExit):
            run(good, *more)
        assert message in capsys.readouterr().err
