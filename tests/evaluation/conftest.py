"""A folder of local data for every task, invented, and a tiny MAGNET folder to measure on it."""

import json

import pytest
from tiny import SENTENCES, make_model

STORY = [
    "Ida wanted a kite.",
    "She bought paper.",
    "The wind tore it.",
    "She mended it!",
    "It flew.",
]
CONLL = "The DT B-NP O\nharbour NN I-NP B-LOC\nslept VBD B-VP O\n. . O O\n\nIda NNP B-NP B-PER\nleft VBD B-VP O\n"


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Files as `evaluation.data` describes them."""
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, text: str) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    pairs = [(one, two) for one in SENTENCES for two in SENTENCES]
    lines = [f"{5 * (a == b) + n % 4 * 0.3:.1f}\t{a}\t{b}" for n, (a, b) in enumerate(pairs)]
    lines = [
        line.replace("5.3", "4.9").replace("5.6", "4.8").replace("5.9", "4.7") for line in lines
    ]
    write("sts/invented.tsv", "\n".join(["score\tsentence1\tsentence2", *lines]) + "\n")
    titles = [f"{n % 2}\t{'boats' if n % 2 else 'lanterns'} number {n}" for n in range(40)]
    write("clustering/invented.tsv", "\n".join(["label\ttitle", *titles]) + "\n")
    write("conll2003/eng.train", CONLL * 4)
    write("conll2003/eng.testa", CONLL)
    header = "\t".join(f"sentence{i}" for i in range(1, 6))
    stories = ["\t".join([sentence, *STORY[1:]]) for sentence in SENTENCES * 3]
    write("rocstories/dev.tsv", "\n".join([header, *stories]) + "\n")
    paragraphs = [" ".join(SENTENCES * n) for n in (1, 2, 3, 2, 3, 2)]
    text = [" ", " = Harbour = ", *paragraphs, " = Weather = ", *SENTENCES * 40]  # one is long
    write("wikitext-103/wiki.valid.tokens", "\n".join(text) + "\n")
    questions = [
        {"question": f"What sleeps, {n}?", "choices": ["A cat.", "A bridge."], "answer": n % 2}
        for n in range(6)
    ]
    write("lm/invented.jsonl", "".join(json.dumps(question) + "\n" for question in questions))
    return folder


@pytest.fixture(scope="session")
def magnet(tmp_path_factory):
    """A tiny MAGNET folder with a window for every task."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_model(max_position_embeddings=2048).save_pretrained(folder)
    return folder
