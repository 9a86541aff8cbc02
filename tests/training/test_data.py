"""Sources, blocks, pairs, their cache, and an order that depends on the seed alone."""

import gzip
import json
import multiprocessing
import os
import pickle
import resource
import signal
from collections import Counter

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SENTENCES, make_spaced_tokenizer, make_tokenizer
from torch.utils.data import DataLoader

from modeling_magnet.tokenizing import TextTokenizer
from modeling_magnet.training import sources, tables
from modeling_magnet.training.arguments import DataArguments
from modeling_magnet.training.data import (
    MagnetDataset,
    counts_table,
    first_texts,
    make_blocks,
    read_pairs,
    read_rows,
)

TOKENIZER = make_tokenizer()
START = 0


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def write(path, rows):
    """A file of the kind that its name says."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def texts(*texts):
    return [{"text": text} for text in texts]


def arguments(folder, rows=(), **changes):
    """Arguments of a run on these rows, its cache in the folder too."""
    if rows:
        changes["text"] = [write(folder / "text.jsonl", rows)]
    return DataArguments(**{"token_cache": str(folder / "cache"), "block_length": 16} | changes)


def read(source, columns=("text",), **kwargs):
    counts = Counter()
    source = [source] if isinstance(source, str) else source
    return [row[columns[0]] for row in read_rows(source, columns, counts=counts, **kwargs)], counts


def tokens(rows):
    return [i for row in rows for i in TOKENIZER(row + "\n", add_special_tokens=False).input_ids]


# Sources


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_reading_files(tmp_path, name):
    path = write(tmp_path / name, texts("one", "Größe", "three"))
    assert read(path) == (["one", "Größe", "three"], {"rows read": 3})


def test_reading_a_json_list_lists_of_files_and_patterns(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(texts("zero")))
    for i in (2, 1):
        write(tmp_path / f"part-{i}.jsonl", texts(f"part {i}"))
    files = [str(tmp_path / "list.json"), str(tmp_path / "part-*.jsonl")]
    assert read(files)[0] == ["zero", "part 1", "part 2"]


def test_a_folder_has_splits(tmp_path):
    write(tmp_path / "corpus" / "train-0.parquet", texts("one"))
    write(tmp_path / "corpus" / "train-1.parquet", texts("two"))
    write(tmp_path / "corpus" / "validation.parquet", texts("three"))
    folder = str(tmp_path / "corpus")
    assert read(folder)[0] == ["one", "two"]
    assert read(folder, split="validation")[0] == ["three"]
    with pytest.raises(ValueError, match=r"\['train', 'validation'\], but not 'test'"):
        read(folder, split="test")


@pytest.mark.parametrize("streaming", [True, False])
def test_an_id_of_datasets(tmp_path, monkeypatch, streaming):
    rows = [{"text": text, "n": 1} for text in ("one", None, "two")]
    write(tmp_path / "corpus" / "train.jsonl", rows)

    def load(name, config, **kwargs):
        assert (name, config, kwargs["streaming"]) == ("owner/corpus", "en", streaming)
        return datasets.load_dataset(str(tmp_path / "corpus"), **kwargs)

    monkeypatch.setattr(sources, "load_dataset", load)
    counts = {"rows read": 3, "dropped: text missing": 1}
    assert read("owner/corpus", config="en", streaming=streaming) == (["one", "two"], counts)
    with pytest.raises(ValueError, match=r"owner/corpus.*columns are \['text', 'n'\].*'title'"):
        read("owner/corpus", ("text", "title"), config="en", streaming=streaming)
    with pytest.raises(ValueError, match="owner/corpus.*validation"):
        read("owner/corpus", config="en", streaming=streaming, split="validation")


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.txt", None, FileNotFoundError, "none.txt does not exist: give files"),
        ("none*.txt", None, FileNotFoundError, "does not exist"),
        ("a.csv", b"x", ValueError, r"a.csv cannot be read: give"),
        ("a.txt", b"", ValueError, "has no rows"),
        ("a.jsonl", b"\n\n", ValueError, "has no rows"),
        ("a.jsonl", b'{"title": "x"}\n', ValueError, r"columns are \['title'\].*\['text'\]"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "y\n', ValueError, "a.jsonl, row 2: Invalid control"),
        ("a.jsonl", b'{"text": "x"}\n3\n', ValueError, "row 2: 3 is not an object"),
        ("a.txt", b"ok\n\xff\n", ValueError, "a.txt, row .*utf-8"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-12],
            ValueError,
            "gz, row .* end",
        ),
        ("a.jsonl.gz", b'{"text": "x"}\n', ValueError, "a.jsonl.gz, row 1: .*gzip"),
        ("a.parquet", b"PAR1", ValueError, "a.parquet, row 1"),
    ],
)
def test_a_bad_file_is_an_error_that_names_it(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read(str(tmp_path / name))


def test_an_id_that_is_none(monkeypatch):
    def load(name, config, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist")

    monkeypatch.setattr(sources, "load_dataset", load)
    monkeypatch.setattr(sources, "load_dataset_builder", load)
    with pytest.raises(FileNotFoundError, match="owner/name is not a file or folder.*exist"):
        read("owner/name")
    with pytest.raises(FileNotFoundError, match="owner/name is not a file or folder.*exist"):
        make_blocks(DataArguments(text=["owner/name"]), TOKENIZER, START)


def test_a_source_is_files_or_one_folder_or_one_id(tmp_path):
    write(tmp_path / "corpus" / "train.jsonl", texts("one"))
    with pytest.raises(ValueError, match="the source is empty"):
        read([])
    with pytest.raises(FileNotFoundError, match="owner/a does not exist"):
        read(["owner/a", "owner/b"])
    with pytest.raises(FileNotFoundError, match=r"data/a\.jsonl does not exist"):
        read("data/a.jsonl")
    with pytest.raises(ValueError, match="corpus cannot be read: give"):
        read([str(tmp_path / "corpus"), str(tmp_path / "corpus" / "train.jsonl")])
    write(tmp_path / "a.parquet", [{"title": "x"}])
    with pytest.raises(ValueError, match=r"columns are \['title'\].*\['text'\]"):
        read(str(tmp_path / "a.parquet"))


def test_bad_rows_are_left_out_counted_and_logged_once_a_reason(tmp_path, caplog):
    bad = [None, 3, "  ", "", ["x"], "two", None, "half \ud83d"]
    path = write(tmp_path / "a.jsonl", [*texts("one", *bad), {"other": "x"}])
    rows, counts = read(path)
    assert rows == ["one", "two"]
    assert counts == {
        "rows read": 10,
        "dropped: text missing": 3,
        "dropped: text not a string": 2,
        "dropped: text blank": 2,
        "dropped: text not Unicode": 1,
    }
    assert [record.args[0] for record in caplog.records] == [
        f"{path}, row {i}" for i in (2, 3, 4, 9)
    ]


def test_empty_files_are_counted(tmp_path, caplog):
    (tmp_path / "a.parquet").touch()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array([], "string")}), tmp_path / "b.parquet"
    )
    write(tmp_path / "c.parquet", texts("one"))
    assert read(str(tmp_path / "*.parquet")) == (["one"], {"rows read": 1, "empty files": 2})
    assert "a.parquet is empty" in caplog.text and "b.parquet is empty" in caplog.text


# Blocks


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.sampled_from([*SENTENCES, "a", "\U0001f6a2"]), min_size=1, max_size=12),
    block_length=st.integers(2, 20),
    start=st.sampled_from([None, START]),
    separate=st.booleans(),
)
def test_blocks_lose_no_token_but_the_rest(
    tmp_path_factory, documents, block_length, start, separate
):
    data = arguments(
        tmp_path_factory.mktemp("blocks"),
        texts(*documents),
        block_length=block_length,
        separate_documents=separate,
    )
    starts = [] if start is None else [start]
    stream, owners = [], []
    for number, document in enumerate(documents):
        ids = (starts if separate else []) + tokens([document])
        stream += ids
        owners += [number] * len(ids)
    if len(stream) + (0 if separate else len(starts)) < block_length:
        with pytest.raises(ValueError, match="give more text"):
            make_blocks(data, TOKENIZER, start)
        return
    blocks = make_blocks(data, TOKENIZER, start)
    position = 0
    for i in range(len(blocks)):
        ids, document_ids = blocks[i]
        assert ids.dtype == np.int32 and len(ids) == block_length
        begins = separate and (position == 0 or owners[position] != owners[position - 1])
        own = 0 if begins else len(starts)
        assert ids[:own].tolist() == starts[:own]
        end = position + block_length - own
        assert ids[own:].tolist() == stream[position:end]
        if separate:
            assert document_ids.dtype == np.int32
            expected = np.array(owners[position:end]) - owners[position]
            assert document_ids.tolist() == [0] * own + expected.tolist()
        else:
            assert document_ids is None
        position = end
    left = len(stream) - position
    assert left < block_length
    assert blocks.counts == {
        "rows read": len(documents),
        "documents": len(documents),
        "tokens": len(stream),
        "tokens left over": left,
        "blocks": len(blocks),
    }


def test_rows_of_a_document_follow_each_other(tmp_path):
    rows = [
        {"text": sentence, "title": title}
        for sentence, title in zip(SENTENCES * 2, [1, 1, 2, 2, 2, 1, 1, None, None, 3])
    ]
    data = arguments(
        tmp_path, rows, document_column="title", separate_documents=True, block_length=15
    )
    blocks = make_blocks(data, TOKENIZER, START)
    assert blocks.counts["documents"] == 5
    block, document_ids = blocks[0]
    assert block[0] == START and not document_ids.any() and START not in block[1:]
    starts = sum((blocks[i][0][1:] == START).sum() for i in range(len(blocks)))
    changes = sum((np.diff(blocks[i][1]) > 0).sum() for i in range(len(blocks)))
    assert starts == changes == 4


def test_rows_that_continue_a_document_get_no_space_of_their_own(tmp_path):
    rows = [{"text": text, "title": n // 3} for n, text in enumerate(SENTENCES)]
    options = {"document_column": "title", "separate_documents": True, "block_length": 12}
    tokenizer = make_spaced_tokenizer()
    blocks = make_blocks(arguments(tmp_path, rows, **options), tokenizer, tokenizer.bos_token_id)
    stream = np.concatenate([blocks[i][0] for i in range(len(blocks))]).tolist()
    whole = ["".join(text + "\n" for text in part) for part in (SENTENCES[:3], SENTENCES[3:])]
    text = "".join(TextTokenizer(tokenizer).continued.decode(stream))
    assert "".join(f" {document}" for document in whole).startswith(text)


def test_a_control_token_in_the_text_is_text(tmp_path):
    end, rows = TOKENIZER.eos_token_id, texts(*["a</s>b"] * 9)
    for split in (True, False):
        data = arguments(tmp_path, rows, block_length=8)
        blocks = make_blocks(data, TOKENIZER, START, split_special_tokens=split)
        assert any(end in blocks[i][0] for i in range(len(blocks))) is not split


def test_text_is_tokenized_in_batches_that_do_not_show(tmp_path, monkeypatch):
    rows = texts(*SENTENCES * 4)
    whole = make_blocks(arguments(tmp_path, rows), TOKENIZER, START)
    monkeypatch.setattr(tables, "BATCH_CHARACTERS", 100)
    parts = make_blocks(
        arguments(tmp_path, rows, token_cache=str(tmp_path / "other")), TOKENIZER, START
    )
    assert parts.counts == whole.counts
    assert all((parts[i][0] == whole[i][0]).all() for i in range(len(whole)))


def test_streaming_reads_what_the_run_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_CHARACTERS", 100)
    rows = texts(*SENTENCES * 40)
    everything = make_blocks(arguments(tmp_path, rows), TOKENIZER, START, most=5)
    assert everything.counts["rows read"] == 200
    for data, validation in (
        (arguments(tmp_path, rows, streaming=True), False),
        (arguments(tmp_path, rows, validation_blocks=5), True),
    ):
        data.validation_text, data.validation_split = data.text, "train"
        blocks = make_blocks(data, TOKENIZER, START, validation=validation, most=5)
        assert len(blocks) == 5 and blocks.counts["rows read"] < 10
        assert (blocks[4][0] == everything[4][0]).all()
        with pytest.raises(IndexError):
            blocks[5]


def test_a_block_has_more_than_its_start_token(tmp_path):
    with pytest.raises(ValueError, match="block_length is 1"):
        make_blocks(arguments(tmp_path, texts("one"), block_length=1), TOKENIZER, START)


def test_first_texts(tmp_path):
    data = arguments(tmp_path, texts("one", None, "two", "three"))
    assert first_texts(data, 2) == ["one", "two"]
    assert first_texts(data, 9) == ["one", "two", "three"]


# The cache


def test_a_text_is_tokenized_once(tmp_path, monkeypatch):
    rows = texts(*SENTENCES, None)
    first = make_blocks(arguments(tmp_path, rows), TOKENIZER, START)
    made = []
    original = tables._tokenize
    monkeypatch.setattr(tables, "_tokenize", lambda *args: made.append(1) or original(*args))

    data = arguments(tmp_path, text=[str(tmp_path / "*.jsonl")])
    TOKENIZER("long " * 9, truncation=True, max_length=3)  # leaves its setting in the tokenizer
    again = make_blocks(data, make_tokenizer(), START)
    again = make_blocks(data, TOKENIZER, START)
    assert not made
    assert again.counts == first.counts
    assert again.counts["dropped: text missing"] == 1
    assert all((again[i][0] == first[i][0]).all() for i in range(len(first)))

    make_blocks(data, TOKENIZER, None)
    make_blocks(arguments(tmp_path, text=data.text, block_length=8), TOKENIZER, START)
    make_blocks(arguments(tmp_path, text=data.text, separate_documents=True), TOKENIZER, START)
    make_blocks(arguments(tmp_path, rows + rows), TOKENIZER, START)  # the file is another
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["harbour"])
    make_blocks(data, tokenizer, START)
    assert len(made) == 5


def in_process(function):
    """Run it in a process of its own; returns that, ended."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join()
    return process


def test_a_killed_process_leaves_nothing_that_is_taken_for_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BATCH_CHARACTERS", 100)
    data = arguments(tmp_path, texts(*SENTENCES * 200))
    original = tables._tokenize

    def killed(*args):
        for i, batch in enumerate(original(*args)):
            if i == 300:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    def make():
        tables._tokenize = killed
        datasets.config.DEFAULT_MAX_BATCH_SIZE = 10  # written often
        make_blocks(data, TOKENIZER, START)

    assert in_process(make).exitcode == -signal.SIGKILL
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.arrow")) > 1000  # it had begun
    blocks = make_blocks(data, TOKENIZER, START)
    assert blocks.counts["rows read"] == 1000 and blocks.counts["blocks"] == len(blocks)
    stream = [i for k in range(len(blocks)) for i in blocks[k][0][1:].tolist()]
    assert stream == tokens(SENTENCES * 200)[: len(stream)]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, capfd):
    data = arguments(tmp_path, texts(*SENTENCES * 100))

    def make():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(OSError, match="make room for the token cache.*cache"):
            make_blocks(data, TOKENIZER, START)

    assert in_process(make).exitcode == 0, capfd.readouterr().err
    assert not list(tmp_path.rglob("*.arrow"))
    assert make_blocks(data, TOKENIZER, START).counts["rows read"] == 500


def test_processes_at_once_share_what_the_first_makes(tmp_path):
    data = arguments(tmp_path, texts(*SENTENCES * 40))
    made = multiprocessing.get_context("fork").Value("i", 0)
    original = tables._tokenize

    def counted(*args):
        with made.get_lock():
            made.value += 1
        return original(*args)

    def make():
        tables._tokenize = counted
        assert make_blocks(data, TOKENIZER, START).counts["rows read"] == 200

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=make) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0] and made.value == 1


# Pairs


def pair_arguments(folder, rows, columns=("a", "b"), **changes):
    return arguments(
        folder,
        pairs=[write(folder / "pairs.jsonl", rows)],
        pair_columns=list(columns),
        **changes,
    )


ROWS = [
    {"a": "one", "b": "uno", "c": "due", "title": "x"},
    {"a": "one", "b": "ein", "c": "zwei", "title": "y"},
    {"a": " same", "b": "same ", "c": "other", "title": "y"},
    {"a": "two", "b": " ", "c": "three", "title": "z"},
    {"a": "two", "b": "deux", "c": "two"},
    {"a": "six", "b": "seis", "c": 7, "title": "x"},
]


def test_pairs_of_one_two_and_three_columns(tmp_path, caplog):
    pairs = read_pairs(pair_arguments(tmp_path, ROWS))
    assert [*pairs] == [("one", "uno"), ("one", "ein"), ("two", "deux"), ("six", "seis")]
    assert pairs.groups is None
    assert pairs.counts == {
        "rows read": 6,
        "pairs": 4,
        "dropped: texts identical": 1,
        "dropped: b blank": 1,
    }
    assert "row 3 is left out: texts identical" in caplog.text
    triples = read_pairs(pair_arguments(tmp_path, ROWS, ["a", "b", "c"]))
    assert [*triples] == [("one", "uno", "due"), ("one", "ein", "zwei")]
    assert triples.counts["dropped: texts identical"] == 2
    sentences = read_pairs(pair_arguments(tmp_path, ROWS, ["a"]))
    assert [*sentences][:3] == [("one",), ("one",), (" same",)] and len(sentences) == 6


def test_groups_are_numbered_by_first_appearance(tmp_path):
    pairs = read_pairs(pair_arguments(tmp_path, ROWS, group_column="title"))
    assert pairs.groups.tolist() == [0, 1, 2, 0] and pairs.counts["groups"] == 3
    assert pairs[3] == ("six", "seis")
    sentences = read_pairs(pair_arguments(tmp_path, ROWS, ["a"], group_column="a"))
    assert sentences.groups.tolist() == [0, 0, 1, 2, 2, 3]
    with pytest.raises(ValueError, match=r"\['a', 'b', 'article'\] are needed"):
        read_pairs(pair_arguments(tmp_path, ROWS, group_column="article"))


def test_pairs_to_evaluate_on_are_the_first(tmp_path):
    data = pair_arguments(tmp_path, ROWS, validation_pair_count=2, validation_split="train")
    data.validation_pairs, data.pairs = data.pairs, []
    assert [*read_pairs(data, validation=True)] == [("one", "uno"), ("one", "ein")]
    with pytest.raises(ValueError, match="source is empty"):
        read_pairs(data)


def test_no_pair_is_left(tmp_path):
    with pytest.raises(ValueError, match="no pair.*'dropped: texts identical': 1"):
        read_pairs(pair_arguments(tmp_path, [ROWS[2]]))


# The order


class Pairs(list):
    """Stands in for the table."""

    groups: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: np.ndarray | None = None
    has_vectors = False


BLOCKS = [(ids, None) for ids in np.arange(50, dtype=np.int32).reshape(10, 5)]
PAIRS = Pairs((f"a{i}", f"b{i}") for i in range(7))


def items(dataset, **loader):
    return [
        (item.index, None if item.block is None else item.block.tolist(), item.pairs, item.held_out)
        for batch in DataLoader(dataset, batch_size=4, collate_fn=list, **loader)
        for item in batch
    ]


def test_the_order_is_the_seed_s_whatever_the_number_of_workers(tmp_path):
    pairs = read_pairs(pair_arguments(tmp_path, ROWS, group_column="title"))
    blocks = make_blocks(arguments(tmp_path, texts(*SENTENCES)), TOKENIZER, START)

    def dataset(seed):
        return MagnetDataset(blocks, pairs, 24, 2, seed, group_size=2)

    expected = items(dataset(3))
    assert items(dataset(3), num_workers=2) == expected
    assert items(pickle.loads(pickle.dumps(dataset(3)))) == expected  # as a spawned worker gets it
    resumed = dataset(3)
    assert [resumed[i].pairs for i in range(13, 24)] == [pairs for _, _, pairs, _ in expected][13:]
    assert items(dataset(4)) != expected


def test_every_block_and_pair_comes_once_an_epoch_in_a_new_order():
    dataset = MagnetDataset(BLOCKS, PAIRS, 20, 2, seed=0)
    first, second = ([dataset[e * 10 + i].block[0] for i in range(10)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(0, 50, 5))
    assert first != second
    pairs = [pair for i in range(20) for pair in dataset[i].pairs]
    assert sorted(pairs[:7]) == sorted(pairs[7:14]) == PAIRS
    assert pairs[:7] != pairs[7:14]
    with pytest.raises(IndexError):
        dataset[20]


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    group_size=st.integers(1, 5),
    pairs_per_block=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_every_pair_comes_once_an_epoch_in_runs_of_its_group(
    sizes, group_size, pairs_per_block, seed
):
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    pairs = Pairs((str(i),) for i in range(len(groups)))
    pairs.groups = groups
    count = len(pairs)
    length = -(-2 * count // pairs_per_block)
    dataset = MagnetDataset(None, pairs, length, pairs_per_block, seed, group_size)
    drawn = [
        int(text) for item in map(dataset.__getitem__, range(length)) for (text,) in item.pairs
    ]
    for epoch in (drawn[:count], drawn[count : 2 * count]):
        assert sorted(epoch) == list(range(count))
        runs = [groups[epoch[i : i + group_size]] for i in range(0, count, group_size)]
        # Each group is in as few runs as its size allows, but for the one it may begin in.
        for group, size in enumerate(sizes):
            assert sum(group in run for run in runs) <= (size - 1) // group_size + 2


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=9), seed=st.integers(0, 99))
def test_texts_with_a_class_come_in_twos_of_it(sizes, seed):
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    texts = Pairs((str(i),) for i in range(len(classes)))
    texts.classes = classes
    if max(sizes) == 1:
        with pytest.raises(ValueError, match="have the same class"):
            MagnetDataset(None, texts, 1, 2, seed)
        return
    count = sum(size // 2 * 2 for size in sizes)
    dataset = MagnetDataset(None, texts, count, 2, seed)  # two epochs
    drawn = [[int(text) for (text,) in dataset[i].pairs] for i in range(count)]
    assert all(classes[a] == classes[b] == dataset[i].classes[0] for i, (a, b) in enumerate(drawn))
    for epoch in (drawn[: count // 2], drawn[count // 2 :]):
        numbers = [number for two in epoch for number in two]
        assert len({*numbers}) == count  # none twice, and of an odd number one is left


def test_held_out_items_are_in_the_order_of_the_files():
    dataset = MagnetDataset(BLOCKS, PAIRS, 12, 2, seed=0, held_out=True)
    assert items(dataset) == [
        (i, BLOCKS[i % 10][0].tolist(), [PAIRS[2 * i % 7], PAIRS[(2 * i + 1) % 7]], True)
        for i in range(12)
    ]


def test_a_run_has_text_or_pairs_or_both():
    item = MagnetDataset(None, PAIRS, 20, 2, seed=0)[3]
    assert item.block is None and item.document_ids is None and len(item.pairs) == 2
    assert MagnetDataset(BLOCKS, None, 20, 0, seed=0)[3].pairs == []
    for pairs in (None, Pairs()):
        with pytest.raises(ValueError, match="no pairs"):
            MagnetDataset(BLOCKS, pairs, 20, 2, seed=0)
    with pytest.raises(ValueError, match="nothing to train on"):
        MagnetDataset(None, PAIRS, 20, 0, seed=0)


def test_counts_as_a_table():
    assert counts_table("text", {"rows read": 1200, "blocks": 3}) == (
        "text\n  rows read          1,200\n  blocks                 3"
    )


def test_a_class_that_is_a_list_is_refused(tmp_path):
    rows = [{"a": "x", "label": ["u"]}, {"a": "y", "label": ["u"]}]
    with pytest.raises(ValueError, match=r"the label of row 1 of .* is \['u'\]: give one class"):
        read_pairs(pair_arguments(tmp_path, rows, ["a"], label_column="label"))
