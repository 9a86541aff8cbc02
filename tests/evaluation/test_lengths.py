"""Ways to find a length that nobody gives: what each asks of `infill`, and how it is judged."""

import json
import math

import pytest
import torch
from tiny import SENTENCES, make_model, make_spaced_tokenizer

from evaluation.common.texts import STORY_COLUMNS
from evaluation.studies import lengths
from evaluation.studies.lengths import METHODS, MISSING, RUNS, compare, draw, passages, write

STORIES = [SENTENCES, [*SENTENCES[1:], "She bought paper."]]
GAPS = [2, 4]
PAIRS = list(zip(STORIES, GAPS))


@pytest.fixture
def model():
    return make_model(max_position_embeddings=2048)


def test_what_each_method_asks_for(model, monkeypatch):
    asked = {}
    infill = model.infill

    def spy(prefixes, suffixes, span_length=None, **arguments):
        asked[method] = (span_length, "suppress_tokens" in arguments)
        return infill(prefixes, suffixes, span_length=span_length, **arguments)

    monkeypatch.setattr(model, "infill", spy)
    written = {}
    for method in METHODS:
        written[method] = write(model, PAIRS, method)
        assert [len(texts) for texts in written.values()] == [2] * len(written)
    missing = [story[gap - 1] for story, gap in PAIRS]
    sizes = [len(model.tokenizer(f" {text}")["input_ids"]) for text in missing]
    assert sorted(asked["known"][0]) == sorted(sizes) and asked["known"][1]
    assert asked["ends"] == (64, False)
    assert asked["guessed"] == (None, False)
    alone = [write(model, [pair], "ends")[0] for pair in PAIRS]
    assert written["ends"] == alone  # in a batch as one at a time


def test_length_error_and_seam_by_hand(model):
    figures, written = compare(model, STORIES, GAPS, ["known"])
    assert set(figures) == {"known", "reference"}
    sizes = [
        (len(model.tokenizer(text)["input_ids"]), len(model.tokenizer(story[gap - 1])["input_ids"]))
        for text, (story, gap) in zip(written["known"], PAIRS)
    ]
    errors = [abs(a - b) for a, b in sizes]
    assert figures["known"]["length error"].value == pytest.approx(sum(errors) / 2)
    assert figures["reference"]["length error"].value == 0
    assert figures["reference"]["tokens"].value == 100
    wrote, lacked = (sum(column) for column in zip(*sizes))
    assert figures["known"]["tokens"].value == pytest.approx(100 * wrote / lacked)
    assert figures["known"]["seconds"].value > 0 and "seconds" not in figures["reference"]
    losses = []
    for story, gap in PAIRS:
        before = model.tokenizer(" ".join(story[:gap]))["input_ids"]
        behind = model.tokenizer(" " + " ".join(story[gap:]))["input_ids"][:16]
        ids = torch.tensor([[0, *before, *behind]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0].log_softmax(-1)
        first = ids.shape[1] - len(behind)
        losses += [-scores[t - 1, ids[0, t]].item() for t in range(first, ids.shape[1])]
    expected = math.exp(sum(losses) / len(losses))
    assert figures["reference"]["seam perplexity"].value == pytest.approx(expected, rel=1e-4)


def test_the_seam_is_read_as_it_stands_in_the_text():
    """Whatever the tokenizer: the suffix has its tokens of the whole text."""
    spaced = make_model(vocab_size=400)
    spaced.tokenizer = make_spaced_tokenizer()
    figures, _ = compare(spaced, STORIES, GAPS, ["known"])
    losses = []
    for story, gap in PAIRS:
        ids = [1, *spaced.text_tokenizer.ids([" ".join(story)])[0]]
        first = 1 + len(spaced.text_tokenizer.ids([" ".join(story[:gap])])[0])
        with torch.no_grad():
            scores = spaced(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-scores[t - 1, ids[t]].item() for t in range(first, min(len(ids), first + 16))]
    expected = math.exp(sum(losses) / len(losses))
    assert figures["reference"]["seam perplexity"].value == pytest.approx(expected, rel=1e-4)


def test_a_missing_run_of_words_is_about_as_long_as_was_drawn(model):
    texts = [SENTENCES * 3, SENTENCES, ["One.", "Two.", "Three."]]
    pairs = draw(texts * 40, "words", 30, model.text_tokenizer)
    assert len(pairs) == 30
    for pieces, gap in pairs:
        assert gap == 3 and len(pieces) == 5 and all(pieces)
        assert " ".join(pieces) in {" ".join(text) for text in texts[:2]}
    sizes = [
        [len(model.tokenizer(f" {word}")["input_ids"]) for word in pieces[2].split()]
        for pieces, _ in pairs
    ]
    assert all(any(sum(each) >= run > sum(each[:-1]) for run in RUNS) for each in sizes)
    assert draw(texts * 40, "words", 30, model.text_tokenizer) == pairs
    sentences = draw(STORIES, "sentence", 1, model.text_tokenizer)
    assert len(sentences) == 1 and sentences[0][0] in STORIES


def test_passages_are_five_sentences():
    assert passages(["One. Two. Three. Four.", " ".join(SENTENCES * 2)]) == [SENTENCES]


def test_command(tmp_path, capsys):
    make_model(max_position_embeddings=2048).save_pretrained(tmp_path / "model")
    roc, text = tmp_path / "dev.tsv", tmp_path / "text.jsonl"
    roc.write_text("\n".join("\t".join(row) for row in [STORY_COLUMNS, *STORIES]) + "\n")
    text.write_text("".join(json.dumps({"text": " ".join(story)}) + "\n" for story in STORIES))
    output = tmp_path / "lengths.json"
    lengths.main(
        ["--model", str(tmp_path / "model"), "--roc", str(roc), "--text", str(text), "--limit", "1",
         "--methods", "known", "ends", "--output", str(output)]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "ROC Stories" in printed and "| length error |" in printed
    found = json.loads(output.read_text())
    bodies = ["ROC Stories", "text"]
    assert list(found) == [f"{name}, missing: {kind}" for name in bodies for kind in MISSING]
    found = {name.partition(",")[0]: body for name, body in found.items() if "sentence" in name}
    (text_found,) = found["text"]["texts"]
    assert set(text_found["infillings"]) == {"known", "ends"}
    assert found["text"]["figures"]["reference"]["length error"]["value"] == 0
