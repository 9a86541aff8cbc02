"""Sentences of plain text, as many of each document."""

import json

import pytest

from modeling_magnet.training import sentences
from modeling_magnet.training.sentences import draw_sentences

TEXT = "A cat sleeps here. It rains. The old dog runs after a red ball. Boats came home at dusk."
ROWS = [
    {"text": TEXT, "title": "one"},
    {"text": "Bread rises in the oven.", "title": "two"},
    {"text": "Yeast gives off gas.", "title": "one"},
]


def test_each_document_gives_as_many_of_the_right_length():
    found = draw_sentences(ROWS, "text", "title", words=(4, 6), count=3)
    assert {row["sentence"] for row in found} == {
        "A cat sleeps here.", "Boats came home at dusk.", "Yeast gives off gas."
    }  # fmt: skip
    assert all(row["title"] == "one" for row in found)  # the other document has one sentence
    assert found == draw_sentences(ROWS, "text", "title", words=(4, 6), count=3)


def test_the_command(tmp_path, capsys):
    path, output = tmp_path / "text.jsonl", tmp_path / "out" / "sentences.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    common = ["--input", str(path), "--group_column", "title", "--output", str(output)]
    sentences.main([*common, "--min_words", "3", "--count", "1", "--limit", "1"])
    assert [set(json.loads(line)) for line in output.read_text().splitlines()] == [
        {"sentence", "title"}
    ]
    assert "wrote 1 sentences" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no document has 8 sentences of 5 to 30 words"):
        sentences.main(common)
    with pytest.raises(SystemExit):
        sentences.main([*common, "--min_words", "9", "--max_words", "3"])
    assert "--min_words 9 --max_words 3" in capsys.readouterr().err
