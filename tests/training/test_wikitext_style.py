"""Clean text in the typography of WikiText-103."""

import json

from hypothesis import given
from hypothesis import strategies as st
from sacremoses import MosesTokenizer

from modeling_magnet.training import wikitext_style
from modeling_magnet.training.wikitext_style import convert, tokens_of

MOSES = MosesTokenizer("en")


def test_it_looks_like_wikitext():
    text = 'In 1998, the well-known "Blue Danube" (his 2nd) earned $1,250.75 million.'
    assert " ".join(tokens_of(text, MOSES)) == (
        'In 1998 , the well @-@ known " Blue Danube " ( his 2nd ) earned $ 1 @,@ 250 @.@ 75 million .'
    )


def test_words_that_are_rare_in_the_whole_input_are_unknown():
    rows = [
        {"text": "The okapi sleeps.", "title": "Okapi"},
        {"text": "The cat sleeps.", "title": "C"},
    ]
    assert list(convert(rows, rare=2, progress=False)) == [
        {"text": "The <unk> sleeps .", "title": "Okapi"},
        {"text": "The <unk> sleeps .", "title": "C"},
    ]
    assert rows[0]["text"] == "The okapi sleeps."


@given(st.text(alphabet="ab ,.-'1(", min_size=1))
def test_nothing_but_spaces_and_marks_is_added(text):
    tokens = " ".join(tokens_of(text, MOSES))
    for mark in "-,.":
        tokens = tokens.replace(f"@{mark}@", mark)
    assert tokens.replace(" ", "") == text.replace(" ", "")


def test_the_command_writes_a_file_that_training_reads(tmp_path, capsys):
    source, output = tmp_path / "text.jsonl", tmp_path / "new" / "styled.jsonl"
    rows = [{"text": f"A cat, {i}.", "title": "Cat"} for i in range(5)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--input", str(source), "--keep", "title", "--limit", "3", "--output", str(output)]
    wikitext_style.main(command)
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert written == [{"text": f"A cat , {i} .", "title": "Cat"} for i in range(3)]
    assert "wrote 3 texts" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["styled.jsonl"]
