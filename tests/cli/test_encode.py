"""`magnet encode`: the library's vectors, from any input to any output, and what bad input does."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import SENTENCES

from modeling_magnet.cli import reading, vectors


def read_jsonl(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_format_holds_what_encode_returns(magnet, folder, model, texts, tmp_path):
    expected = model.encode(SENTENCES)
    for name in ("v.npy", "v.parquet", "v.jsonl"):
        result = magnet("encode", folder, texts, "-o", tmp_path / name)
        assert "rows encoded: 5" in result.stderr and result.stdout == ""
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["index", "vector"]
    assert pa.types.is_fixed_size_list(table.schema.field("vector").type)
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), expected)
    rows = read_jsonl(tmp_path / "v.jsonl")
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.float32([row["vector"] for row in rows]), expected)


def test_jsonl_and_parquet_come_in_by_column(magnet, folder, model, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"body": text, "n": 1} for text in SENTENCES])
    pq.write_table(pa.table({"body": SENTENCES, "n": range(5)}), tmp_path / "b.parquet")
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    arguments = ["--column", "body", "--keep-text", "-o", tmp_path / "v.parquet"]
    magnet("encode", folder, *inputs, *arguments)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == SENTENCES * 2
    assert table["index"].to_pylist() == list(range(10))
    found = np.stack(table["vector"].to_numpy())
    np.testing.assert_array_equal(found, model.encode(SENTENCES * 2))


def test_standard_input_to_standard_output(magnet, folder, model):
    lines = "\n".join(SENTENCES)
    for stdin, options in (
        (lines, []),
        ("\n".join(json.dumps({"t": text}) for text in SENTENCES), ["--column", "t"]),
    ):
        result = magnet("encode", folder, "-", "--keep-text", *options, stdin=stdin)
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert [row["text"] for row in rows] == SENTENCES
        found = np.float32([row["vector"] for row in rows])
        np.testing.assert_array_equal(found, model.encode(SENTENCES))


def test_options_are_those_of_the_library(magnet, folder, model, texts, tmp_path):
    out = tmp_path / "v.npy"

    def encoded(*options):
        magnet("encode", folder, texts, "-o", out, *options)
        return np.load(out)

    for options, expected in (
        (["--prompt-name", "STS"], model.encode(SENTENCES, prompt_name="STS")),
        (["--prompt", ""], model.encode(SENTENCES, prompt="")),
        (
            ["--normalize", "--truncate-dim", 16],
            model.encode(SENTENCES, normalize_embeddings=True, truncate_dim=16),
        ),
        (["--num-layers", 1], model.encode(SENTENCES, num_layers=1)),
        (["--precision", "ubinary"], model.encode(SENTENCES, precision="ubinary")),
        (["--batch-size", 2], model.encode(SENTENCES, batch_size=2)),
    ):
        found = encoded(*options)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    half = encoded("--dtype", "bfloat16")
    assert half.dtype == np.float32 and not np.array_equal(half, model.encode(SENTENCES))


def test_tokens_and_words(magnet, folder, model, texts, tmp_path):
    magnet("encode", folder, texts, "--tokens", "-o", tmp_path / "t.jsonl")
    magnet("encode", folder, texts, "--words", "--num-layers", 1, "-o", tmp_path / "w.jsonl")
    tokens, words = read_jsonl(tmp_path / "t.jsonl"), read_jsonl(tmp_path / "w.jsonl")
    for i, text in enumerate(SENTENCES):
        found = np.float32(tokens[i]["vectors"])
        np.testing.assert_array_equal(found, model.encode_tokens(SENTENCES)[i])
        assert tokens[i]["tokens"] == model.tokenizer.tokenize(text)
        assert words[i]["words"] == text.split()
        np.testing.assert_array_equal(
            np.float32(words[i]["vectors"]), model.encode_words(SENTENCES, num_layers=1)[i]
        )


def test_a_control_token_in_a_text_is_text(magnet, folder, model, tmp_path):
    (tmp_path / "a.txt").write_text("A cat</s>\n")
    magnet("encode", folder, tmp_path / "a.txt", "-o", tmp_path / "a.jsonl")
    (row,) = read_jsonl(tmp_path / "a.jsonl")
    np.testing.assert_allclose(row["vector"], model.encode("A cat</s>"), atol=1e-6)
    magnet("encode", folder, tmp_path / "a.txt", "-o", tmp_path / "t.jsonl", "--tokens")
    (row,) = read_jsonl(tmp_path / "t.jsonl")
    assert row["tokens"][-4:] == ["<", "/", "s", ">"] and len(row["vectors"]) == len(row["tokens"])


def test_a_corrupt_line_is_reported_by_its_number_and_the_rest_is_done(
    magnet, folder, model, tmp_path
):
    bad = [
        b"{broken",
        b'["a list"]',
        b'{"other": 1}',
        b'{"text": 7}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
    ]
    good = [json.dumps({"text": text}).encode() for text in SENTENCES]
    source = tmp_path / "rows.jsonl"
    content = [good[0], b"", *bad, *good[1:]]  # a blank line of JSONL is no row
    source.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(content))
    result = magnet("encode", folder, source, "--keep-text", "-o", tmp_path / "v.jsonl")
    for line, reason in enumerate(
        ["not JSON", "not an object", "missing", "is int", "not UTF-8", "surrogate"], start=3
    ):
        assert any(
            f"rows.jsonl, line {line} is skipped: " in shown and reason in shown
            for shown in result.stderr.splitlines()
        )
    assert "rows skipped: 6" in result.stderr
    rows = read_jsonl(tmp_path / "v.jsonl")
    assert [row["index"] for row in rows] == [0, 7, 8, 9, 10]
    assert [row["text"] for row in rows] == SENTENCES
    magnet("encode", folder, source, "-o", tmp_path / "v.npy", "--strict", code=3)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), model.encode(SENTENCES))
    skipped = read_jsonl(tmp_path / "v.npy.skipped.jsonl")
    assert [row["index"] for row in skipped] == [1, 2, 3, 4, 5, 6]
    assert [row["line"] for row in skipped] == [3, 4, 5, 6, 7, 8]
    source.write_bytes(b"\n".join(good))
    magnet("encode", folder, source, "-o", tmp_path / "v.npy", "--strict")
    assert not (tmp_path / "v.npy.skipped.jsonl").exists()


def test_a_thousand_corrupt_lines_do_not_flood_the_terminal(magnet, folder, tmp_path):
    (tmp_path / "a.jsonl").write_text("no\n" * 1000 + '{"text": "a"}\n')
    result = magnet("encode", folder, tmp_path / "a.jsonl", "-o", tmp_path / "v.npy")
    assert len(result.stderr.splitlines()) < 110 and "rows skipped: 1000" in result.stderr
    assert len(read_jsonl(tmp_path / "v.npy.skipped.jsonl")) == 1000


def test_empty_lines_and_empty_files(magnet, folder, model, tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    magnet("encode", folder, tmp_path / "a.txt", "-o", tmp_path / "v.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), model.encode(["One.", "", "Two."]))
    (tmp_path / "a.txt").write_text("")
    for name in ("v.npy", "v.parquet", "v.jsonl"):
        magnet("encode", folder, tmp_path / "a.txt", "-o", tmp_path / name)
    assert np.load(tmp_path / "v.npy").shape == (0, 48)
    assert pq.read_table(tmp_path / "v.parquet").num_rows == 0
    assert (tmp_path / "v.jsonl").read_text() == ""


def test_a_text_that_is_too_long(magnet, folder, model, tmp_path):
    source, out = tmp_path / "a.txt", tmp_path / "v.npy"
    source.write_text("Short.\n" * 40 + "long " * 300 + "\n")
    result = magnet("encode", folder, source, "-o", out, "--batch-size", 2, code=2)
    assert "a.txt, line 41: the text has" in result.stderr
    assert "the limit is 254: shorten it, or cut all by --truncation" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not out.exists()
    result = magnet("encode", folder, source, "-o", out, "--truncation")
    assert "texts cut to 254 tokens: 1" in result.stderr
    with pytest.warns(UserWarning):
        expected = model.encode("long " * 300, truncation=True)
    np.testing.assert_allclose(np.load(out)[40], expected, atol=1e-6)


def test_a_file_as_long_as_you_like_is_held_by_a_few_batches(
    magnet, folder, texts, tmp_path, monkeypatch
):
    """Rows are read when they are needed, and written before others are read."""
    read, held = [0], []

    def endless(inputs, column):
        for i in range(100):
            read[0] += 1
            yield reading.Row(i, "many", i + 1, f"Text {i}.")

    whole = vectors.Encoder.__call__

    def counting(self, rows):
        held.append(read[0])
        read[0] = 0
        return whole(self, rows)

    monkeypatch.setattr(vectors, "read_texts", endless)
    monkeypatch.setattr(vectors.Encoder, "__call__", counting)
    for out in ("v.npy", "v.parquet", "shards"):
        options = ["--shard-size", 40] if out == "shards" else []
        magnet("encode", folder, texts, "-o", tmp_path / out, "--batch-size", 2, *options)
        assert max(held) <= 2 * vectors.BATCHES_AT_ONCE + 1 and sum(held) >= 100 - 16
        held.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda:99"], "--device is 'cuda:99', which is not usable here"),
        (["--prompt-name", "nonsense"], "no prompt is named 'nonsense': give one of ["),
        (["--truncate-dim", "49"], "truncate_dim is 49: give a whole number from 1 to 48"),
        (["--num-layers", "3"], "num_layers is 3: the model has 2 layers"),
    ],
)
def test_options_that_do_not_fit_the_model_or_the_machine(
    magnet, folder, texts, tmp_path, options, message
):
    result = magnet("encode", folder, texts, "-o", tmp_path / "v.npy", *options, code=2)
    assert result.stderr.startswith(f"magnet: {message}")
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "v.npy").exists()


def test_tables_come_in_as_they_are(magnet, folder, model, tmp_path):
    """Quoted fields with line breaks, texts that look like numbers, short and garbled rows."""
    rows = [
        ["1", "7"],
        ["2", 'She said "no",\nand left.'],
        ["3", "Größe"],
        ["4", ""],
        ["5", "x" * 200_000],
    ]
    for name, delimiter in (("a.csv", ","), ("a.TSV", "\t")):
        path = tmp_path / name
        with open(path, "w", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerows([["id", "body"], *rows[:3], ["short"], *rows[3:]])
            file.write(f"6{delimiter}\udcff\n")
        output = ["--keep-text", "-o", tmp_path / "v.jsonl", "--truncation"]
        result = magnet("encode", folder, path, "--column", "body", *output)
        found = read_jsonl(tmp_path / "v.jsonl")
        assert [row["text"] for row in found] == [text for _, text in rows]
        assert [row["index"] for row in found] == [0, 1, 2, 4, 5]
        first = np.float32([row["vector"] for row in found[:4]])
        np.testing.assert_allclose(first, model.encode([text for _, text in rows[:4]]), atol=1e-5)
        assert f"{name}, line 6 is skipped: 1 columns, the header has 2" in result.stderr
        assert f"{name}, line 9 is skipped: not UTF-8" in result.stderr
    (tmp_path / "open.csv").write_text('text\nfine\n"not closed\nand so on\n')
    result = magnet("encode", folder, tmp_path / "open.csv", "-o", tmp_path / "v.npy", code=2)
    assert "open.csv, line 3: unexpected end of data" in result.stderr


def test_a_column_that_is_missing_is_said_once(magnet, folder, tmp_path):
    """Also of standard input; a single row without it is a row like any other."""
    rows = "".join(json.dumps({"title": i, "body": "a"}) + "\n" for i in range(500))
    result = magnet("encode", folder, "-", "--column", "text", stdin="no JSON\n" + rows, code=2)
    assert result.stderr == (
        "magnet: standard input has no column text; it has title, body: name one with --column\n"
    )
    few = '{"body": "a"}\nno JSON\n{"text": "b"}\n{"body": "c"}\n'
    result = magnet("encode", folder, "-", "--column", "text", "--keep-text", stdin=few)
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == ["b"]
    assert "line 1 is skipped: text is missing" in result.stderr
    assert "line 4 is skipped: text is missing" in result.stderr


def test_a_run_of_faulty_rows_alone_is_no_result(magnet, folder, texts, tmp_path):
    (tmp_path / "bad.jsonl").write_text("no\n" * 3)
    for name in ("v.npy", "v.parquet", "v.jsonl"):
        magnet("encode", folder, texts, "-o", tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("v.*")}
    for name in (*before, "new.npy"):
        result = magnet("encode", folder, tmp_path / "bad.jsonl", "-o", tmp_path / name, code=2)
        assert "magnet: none of the 3 rows could be used" in result.stderr
    assert before == {
        path.name: path.read_bytes()
        for path in tmp_path.glob("v.???*")
        if "skipped" not in path.name
    }
    assert not (tmp_path / "new.npy").exists()
    magnet("encode", folder, tmp_path / "bad.jsonl", "-o", tmp_path / "shards", code=2)
    assert not json.loads((tmp_path / "shards" / "manifest.json").read_text())["complete"]


def test_a_terminal_gets_a_progress_bar_with_the_number_of_rows(
    texts, tmp_path, capsys, monkeypatch
):
    pq.write_table(pa.table({"text": SENTENCES}), tmp_path / "a.parquet")
    assert reading.count_rows([str(texts), str(tmp_path / "a.parquet")]) == 10
    assert reading.count_rows([str(texts), "-"]) is None
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    rows = reading.read_texts([str(texts)], None)
    assert len(list(vectors._progress(rows, [str(texts)]))) == 5
    assert "Encoding" in (shown := capsys.readouterr().err) and "5/5" in shown
