"""Hard negatives by sentence-transformers' miner on a Magnet model's vectors, in shards that a kill leaves whole."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from killing import kill_when
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.util import mine_hard_negatives
from tiny import SENTENCES, make_model
from transformers import BertConfig, BertForSequenceClassification, set_seed

from modeling_magnet import load_magnet
from modeling_magnet.training import MagnetConfig, MagnetTrainer, teacher_vectors
from modeling_magnet.training.mine_negatives import main, mine, parse

pytest.importorskip("faiss", reason='pip install -e ".[mine]"')


@pytest.fixture
def asked(tmp_path):
    """Twelve pairs, of which two have the same query; a tiny model; and a command that reads them."""
    make_model().save_pretrained(tmp_path / "tiny")
    words = " ".join(SENTENCES).split()
    rows = [
        {"question": f"{words[i % 11]} {words[i % 11 + 1]}", "answer": " ".join(words[i : i + 4])}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(name, *more):
        return [
            "--model", str(tmp_path / "tiny"), "--input", str(tmp_path / "pairs.jsonl"),
            "--columns", "question", "answer", "--num_negatives", "2", "--shard_size", "4",
            "--output", str(tmp_path / name), *more,
        ]  # fmt: skip

    return command


def read(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [{}, {"range_min": 1, "range_max": 7}, {"absolute_margin": 0.01}, {"relative_margin": 0.02}],
    ids=str,
)
def test_negatives_are_those_of_sentence_transformers(options, asked, tmp_path, capsys):
    """In shards, and from the Magnet model's own vectors, as on its folder and all at once."""
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    main(asked("mined.jsonl", *flags))
    found = read(tmp_path / "mined.jsonl")
    assert "of 12 pairs have their negatives" in capsys.readouterr().out
    model = SentenceTransformer(str(tmp_path / "tiny"), trust_remote_code=True, device="cpu")
    prompt = load_magnet(tmp_path / "tiny").magnet_settings.prompt_text(None, None)
    pairs = Dataset.from_list(read(tmp_path / "pairs.jsonl"))
    expected = mine_hard_negatives(
        pairs, model, num_negatives=2, output_format="n-tuple", verbose=False, query_prompt=prompt,
        corpus_prompt=prompt, **options,
    )  # fmt: skip
    assert found and [tuple(row.values()) for row in found] == [
        tuple(row.values()) for row in expected if row["question"] not in list(row.values())[2:]
    ]
    assert not (tmp_path / "mined.jsonl.shards").exists()


def test_a_cross_encoder_decides_within_the_margin(asked, tmp_path):
    place = str(tmp_path / "judge")
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=1, initializer_range=1.0,
    )  # fmt: skip
    set_seed(0)
    BertForSequenceClassification(config).save_pretrained(place)
    make_model().tokenizer.save_pretrained(place)
    margin = ["--absolute_margin", "0.001", "--range_max", "9"]
    mine(parse(asked("by-cosine.jsonl", *margin)))
    mine(parse(asked("judged.jsonl", *margin, "--cross_encoder", place)))
    judge, judged = CrossEncoder(place, device="cpu"), read(tmp_path / "judged.jsonl")
    assert judged and judged != read(tmp_path / "by-cosine.jsonl")
    for row in judged:
        anchor, *texts = row.values()
        positive, *negatives = judge.predict([(anchor, text) for text in texts])
        assert max(negatives) + 0.001 <= positive + 1e-4


def test_what_is_mined_trains(asked, tmp_path):
    main(asked("mined.parquet", "--sampling", "random"))
    table = load_dataset(
        "parquet", data_files=str(tmp_path / "mined.parquet"), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert table.column_names == ["anchor", "positive", "negative_1", "negative_2"]
    args = MagnetConfig(
        output_dir=str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=4,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = MagnetTrainer(str(tmp_path / "tiny"), args, train_dataset=table)
    assert trainer.train().training_loss > 0


def test_a_killed_miner_resumes_to_the_same_file(asked, tmp_path):
    mine(parse(asked("whole.jsonl", "--sampling", "random")))
    again = asked("killed.jsonl", "--sampling", "random")
    slow = (
        "import sys, time, modeling_magnet.training.mine_negatives as miner\n"
        "shard = miner._mine_shard\n"
        "miner._mine_shard = lambda *given: (time.sleep(1), shard(*given))[1]\n"
        "miner.main(sys.argv[1:])"
    )
    first = tmp_path / "killed.jsonl.shards" / "00000.parquet"
    kill_when(first, "-c", slow, *again)
    assert not (tmp_path / "killed.jsonl").exists()
    was = first.stat().st_mtime_ns
    with pytest.raises(
        ValueError, match=r"started with other settings \(num_negatives was 2, is 1\)"
    ):
        mine(parse([*again, "--num_negatives", "1"]))
    assert first.stat().st_mtime_ns == was
    mine(parse(again))
    assert read(tmp_path / "killed.jsonl") == read(tmp_path / "whole.jsonl")
    with pytest.raises(FileExistsError, match="delete it, or give another output"):
        mine(parse(again))


def test_what_cannot_be_mined(asked, tmp_path, capsys, monkeypatch):
    with pytest.raises(
        ValueError, match="not one of 12 pairs has 2 negatives: lower num_negatives"
    ):
        mine(parse(asked("none.jsonl", "--absolute_margin", "3")))
    encodings = []
    monkeypatch.setattr(teacher_vectors, "load_encoder", lambda *given: encodings.append(given))
    mine(parse(asked("none.jsonl", "--absolute_margin", "0.001")))  # without encoding again
    assert not encodings and read(tmp_path / "none.jsonl")
    for more, message in (
        (["--output", "x.csv"], "ends in .jsonl or .parquet"),
        (["--num_negatives", "0"], "must be 1 or more"),
        (["--limit", "-1"], "must be 1 or more"),
        (["--range_max", "1"], "give a range from 0 on that holds num_negatives (2)"),
        (["--range_min", "-1"], "give a range from 0 on"),
        (["--columns", "answer", "answer"], "give two different columns"),
        (["--cross_encoder", "x"], "needs a threshold: give one of max_score"),
    ):
        with pytest.raises(SystemExit):
            parse(asked("x.jsonl", *more))
        assert message in capsys.readouterr().err
