"""The short examples, as a user runs them, on the real small model; less of everything."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from documents import printed_table
from tiny import make_model

from examples import adapt, distil, fine_tune, measuring, ner_probe, story
from modeling_magnet import load_magnet


@pytest.fixture(scope="module")
def folder(base_model, tmp_path_factory):
    """The real base model in a folder, as the quickstart writes it."""
    path = tmp_path_factory.mktemp("base") / "model"
    base_model.save_pretrained(path)
    return str(path)


def test_search(folder, tmp_path, capsys):
    pytest.importorskip("faiss", reason='pip install -e ".[examples]"')
    from examples import search

    passages = [
        "The ferry to the island leaves at seven.",
        "Bake the bread until its crust is brown.",
        "The court fined the company for its late report.",
        "A lynx crossed the snow behind the hut.",
    ]
    text = tmp_path / "passages.txt"
    text.write_text("\n".join(passages) + "\n", encoding="utf-8")
    arguments = ["--model", folder, "--text", str(text), "--index", str(tmp_path / "index")]
    search.main([*arguments, "--top", "4", passages[2], "When is the next boat?"])
    first = capsys.readouterr().out
    assert first.startswith("4 passages encoded in ")
    assert f"{passages[2]}\n  1.000  {passages[2]}\n" in first  # a passage is nearest to itself
    scores = [float(score) for score in re.findall(r"^  (\S+)  ", first, re.MULTILINE)]
    assert len(scores) == 8 and scores[:4] == sorted(scores[:4], reverse=True)

    text.write_text("Something else.\n", encoding="utf-8")  # the index is what counts now
    search.main([*arguments, "--top", "1", passages[3]])
    second = capsys.readouterr().out
    assert (
        second
        == f"4 passages read from {tmp_path / 'index'}\n\n{passages[3]}\n  1.000  {passages[3]}\n"
    )
    kept = json.loads((tmp_path / "index" / "passages.json").read_text(encoding="utf-8"))
    assert kept == {"model": folder, "passages": passages}
    with pytest.raises(SystemExit, match=r"holds vectors of .*, --model is other: give another"):
        search.read_index(tmp_path / "index", "other")


def test_entities(folder, capsys):
    ner_probe.main(["--model", folder, "--limit", "30"])
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^span F1, (.*?) +(\S+)$", printed, re.MULTILINE))
    assert list(rows) == ["words alone", "words in context", "both"]
    assert float(rows["both"]) > 30  # chance is near 0
    people = sum(tag == "B-PER" for row in ner_probe.read(ner_probe.SAMPLE)[:30] for _, tag in row)
    assert re.search(rf"^ +PER +\S+ +\S+ +\S+ +{people}$", printed, re.MULTILINE)


def test_entities_of_files(folder, tmp_path, capsys):
    """Columns between word and tag, and tags in IOB1, as CoNLL-2003 has them."""
    rows = "-DOCSTART- -X- O O\n\nMara NNP I-NP I-PER\nleft VBD I-VP O\nOldport NNP I-NP I-LOC\n"
    path = tmp_path / "words"
    path.write_text(rows + "\n" + rows.split("\n\n")[1], encoding="utf-8")
    words = [[("Mara", "I-PER"), ("left", "O"), ("Oldport", "I-LOC")]] * 2
    assert ner_probe.read(path) == words
    ner_probe.main(["--model", folder, "--train", str(path), "--test", str(path)])
    assert re.search(r"^span F1, words in context +100.0$", capsys.readouterr().out, re.MULTILINE)
    path.write_text("Mara\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"has the line \['Mara'\]: give a word and a tag"):
        ner_probe.read(path)
    with pytest.raises(SystemExit, match="has 4 sentences: give 5 or more, or --test"):
        ner_probe.main(["--model", folder, "--limit", "4"])


def test_the_shipped_tags_are_whole():
    sentences = ner_probe.read(ner_probe.SAMPLE)
    tags = [[tag for _, tag in sentence] for sentence in sentences]
    assert len(sentences) == 64 and sum(map(len, tags)) == 633
    assert tags == [ner_probe.to_iob2(row) for row in tags]
    assert {tag for row in tags for tag in row} <= {
        "O",
        *(f"{b}-{t}" for b in "BI" for t in ("PER", "LOC", "ORG")),
    }


def test_story(folder, capsys):
    text = "The lamp went out. ___ Nobody moved. ___ Then the door opened."
    arguments = [text, "--model", folder, "--samples", "2", "--length", "8"]
    story.main(arguments)
    first = capsys.readouterr().out
    story.main(arguments)
    assert capsys.readouterr().out == first  # the seed decides
    samples = re.findall(
        r"^\d\. The lamp went out. \[(.+?)\] Nobody moved. \[(.+?)\] Then the door opened.$",
        first, re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    assert len(samples) == 2 and samples[0] != samples[1]
    assert story.whole_sentences(" He ran. She said “no!” and th") == " He ran. She said “no!"
    assert story.whole_sentences(" and no end") == " and no end"
    with pytest.raises(SystemExit):
        story.main(["No blank."])
    assert "the story has no blank" in capsys.readouterr().err


def test_distil(tmp_path, capsys):
    make_model(max_position_embeddings=2048).save_pretrained(tmp_path / "tiny")
    tiny, output = str(tmp_path / "tiny"), tmp_path / "out"
    distil.main(
        [
            *("--model", tiny, "--teacher", tiny, "--count", "2", "--steps", "1"),
            *("--batch-size", "1", "--output", str(output)),
        ]
    )
    printed = capsys.readouterr().out
    assert "sentence similarity, Spearman x 100" in printed
    assert load_magnet(output / "model").encode("A cat.").ndim == 1


def test_fine_tune(tmp_path, capsys):
    make_model(max_position_embeddings=2048).save_pretrained(tmp_path / "tiny")
    triplets = tmp_path / "triplets.jsonl"
    rows = [{name: f"{name} {i}" for name in ("anchor", "positive", "negative")} for i in range(4)]
    triplets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = [
        "--model",
        str(tmp_path / "tiny"),
        "--count",
        "2",
        "--steps",
        "1",
        "--batch-size",
        "1",
    ]
    output = tmp_path / "out"
    fine_tune.main([*common, "--bf16", "--triplets", str(triplets), "--output", str(output)])
    printed = capsys.readouterr().out
    figures = printed_table(printed)
    assert "sentence similarity, Spearman x 100" in figures and len(figures) == 5
    assert "Paragraphs found: " in printed
    before, after, _ = figures["infilling perplexity, both sides seen"]
    assert before != after  # it was trained
    assert (output / "model" / "config.json").exists()


def test_the_sentences_to_find_paragraphs_by_are_not_in_them():
    rows = measuring.read(measuring.DATA / "wiki-train.jsonl")
    made = measuring.sentences_of_paragraphs(rows, per_paragraph=2)
    paragraphs = [row["text"] for row in rows]
    titles = {row["text"]: row["title"] for row in rows}
    assert len(made) > 1500 and made == measuring.sentences_of_paragraphs(rows, per_paragraph=2)
    for row in made[:50]:
        (whole,) = (
            text
            for text in paragraphs
            if row["anchor"] in text
            and sorted(text.replace(row["anchor"], "").split()) == sorted(row["positive"].split())
        )
        assert titles[row["negative"]] == titles[whole] and row["negative"] != whole


def test_adapt(folder, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["--model", folder, "--steps", "2", "--count", "3", "--output", str(output)]
    adapt.main(arguments)
    printed = capsys.readouterr().out
    table = {
        label: [float(cell.split()[0]) for cell in cells[:2]]
        for label, cells in printed_table(printed).items()
    }
    before, after = table["infilling perplexity, both sides seen"]
    assert 1 < after < before  # two steps are enough to read the right side better
    assert np.isfinite(table["infilling perplexity, left side only"]).all()
    lines = Path("examples/data/wiki-train.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [json.loads(line)["text"] for line in lines[::10]]
    seen = (output / "train.txt").read_text(encoding="utf-8").splitlines()
    assert len(seen) > 1000 and not {" ".join(text.split()) for text in held_out} & set(seen)
    assert (output / "model" / "config.json").exists() and (output / "adapter").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "x.jsonl cannot be read: .*No such file"),
        ("", "x.jsonl has no rows"),
        ("{broken", "x.jsonl cannot be read"),
        ('{"anchor": "a", "positive": "b"}', "x.jsonl, line 1, has no text in negative"),
        ('{"anchor": "a", "positive": " ", "negative": "c"}', "line 1, has no text in positive"),
        ("[1]", "line 1, has no text in anchor"),
    ],
)
def test_a_file_that_cannot_be_trained_on_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=message):
        measuring.read(tmp_path / "x.jsonl", ("anchor", "positive", "negative"))
