"""Reading, blocks, and an order that depends on the seed alone."""

import json

import numpy as np
import pytest
from tiny import SENTENCES, make_tokenizer
from torch.utils.data import DataLoader

from training.data import MagnetDataset, make_blocks, read_columns

BLOCKS = np.arange(50, dtype=np.int32).reshape(10, 5)
PAIRS = [(f"a{i}", f"b{i}") for i in range(7)]


def test_reading_text_jsonl_and_parquet(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n')
    tables = [read_columns(tmp_path / name, ("text",)) for name in ("a.txt", "a.jsonl")]
    tables[1].to_parquet(tmp_path / "a.parquet")
    tables.append(read_columns(tmp_path / "a.parquet", ("text",)))
    for table in tables:
        assert table["text"][:] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.txt", None, FileNotFoundError, "is not there"),
        ("a.csv", "x", ValueError, "'.csv'"),
        ("a.txt", "", ValueError, "is empty"),
        ("a.jsonl", json.dumps({"title": "x"}) + "\n", ValueError, "'title'"),
        ("a.jsonl", json.dumps({"text": 3}) + "\n", ValueError, "row 1"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', ValueError, "row 2"),
    ],
)
def test_bad_files(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        read_columns(tmp_path / name, ("text",))


def test_blocks_begin_with_the_start_token_and_lose_nothing_but_the_rest():
    tokenizer = make_tokenizer()
    blocks = make_blocks(SENTENCES, tokenizer, 0, 16)
    stream = [i for s in SENTENCES for i in tokenizer(s + "\n", add_special_tokens=False).input_ids]
    assert (blocks[:, 0] == 0).all()
    assert blocks[:, 1:].ravel().tolist() == stream[: blocks[:, 1:].size]
    assert len(stream) - blocks[:, 1:].size < 15
    assert (
        make_blocks(SENTENCES, tokenizer, None, 16).ravel().tolist()
        == stream[: len(stream) // 16 * 16]
    )
    with pytest.raises(ValueError, match="give more text"):
        make_blocks(["short"], tokenizer, 0, 512)


def items(dataset, **loader):
    return [
        (item.index, item.block.tolist(), item.pairs)
        for batch in DataLoader(dataset, batch_size=4, collate_fn=list, **loader)
        for item in batch
    ]


def test_the_order_is_the_seed_s_whatever_the_number_of_workers():
    dataset = MagnetDataset(BLOCKS, PAIRS, 24, 2, seed=3)
    assert items(dataset) == items(dataset, num_workers=2)
    assert items(dataset) == items(MagnetDataset(BLOCKS, PAIRS, 24, 2, seed=3))
    assert items(dataset) != items(MagnetDataset(BLOCKS, PAIRS, 24, 2, seed=4))


def test_every_block_and_pair_comes_once_an_epoch_in_a_new_order():
    dataset = MagnetDataset(BLOCKS, PAIRS, 20, 2, seed=0)
    first, second = ([dataset[e * 10 + i].block[0] for i in range(10)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(0, 50, 5))
    assert first != second
    pairs = [pair for i in range(20) for pair in dataset[i].pairs]
    assert sorted(pairs[:7]) == sorted(pairs[7:14]) == PAIRS
    with pytest.raises(IndexError):
        dataset[20]


def test_pairs_are_needed_where_they_are_asked_for():
    with pytest.raises(ValueError, match="no pairs"):
        MagnetDataset(BLOCKS, [], 20, 2, seed=0)
