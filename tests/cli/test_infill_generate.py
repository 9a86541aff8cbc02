"""`magnet infill` and `magnet generate`: what the library writes, from every kind of input."""

import json
from pathlib import Path

import pytest
import torch
from test_model import add_lora
from tiny import SENTENCES, make_model, make_spaced_tokenizer
from transformers import LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.tokenizing import REPLACEMENT

PREFIX, SUFFIX = "The old harbour was", " before the boats came home."


def parsed(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_prefix_and_suffix(magnet, folder, model):
    options = ["--prefix", PREFIX, "--suffix", SUFFIX]
    middle = model.infill(PREFIX, SUFFIX, span_length=4)
    (row,) = parsed(magnet("infill", folder, *options, "--span-length", 4))
    assert row == {"index": 0, "middle": middle, "text": PREFIX + middle + SUFFIX}
    middle = model.infill(PREFIX, SUFFIX, max_new_tokens=6)
    (row,) = parsed(magnet("infill", folder, *options, "--max-new-tokens", 6))
    assert row["middle"] == middle
    options = ["--prefix", PREFIX, "--suffix", "", "--max-new-tokens", 4]
    (row,) = parsed(magnet("infill", folder, *options))
    assert row["middle"] == model.infill(PREFIX, "", max_new_tokens=4)


def test_marked_blanks(magnet, folder, model, tmp_path):
    parts = ["A cat", " on the", " near the door."]
    middles = model.infill_blanks(parts, span_length=2)
    whole = parts[0] + middles[0] + parts[1] + middles[1] + parts[2]
    for blank in ("___", "<gap>"):
        options = ["--text", blank.join(parts), "--blank", blank, "--span-length", 2]
        (row,) = parsed(magnet("infill", folder, *options))
        assert row == {"index": 0, "middles": middles, "text": whole}
    content = whole + "\n" + "___".join(parts) + "\n"
    (tmp_path / "blanks.txt").write_text(content, encoding="utf-8")
    source = ["--input", tmp_path / "blanks.txt", "--span-length", 2]
    result = magnet("infill", folder, *source)
    assert parsed(result) == [{"index": 1, "middles": middles, "text": whole}]
    assert "blanks.txt, line 1 is skipped: no ___ in the text" in result.stderr


def test_records_of_all_kinds_together_a_bad_one_is_reported(magnet, folder, model, tmp_path):
    records = [
        {"prefix": PREFIX, "suffix": SUFFIX, "span_length": 3},
        {"prefix": "A cat", "suffix": " near the door.", "span_length": 3},
        {"parts": ["She", " twelve", ", and then."], "span_length": [1, 2]},
        {"text": "She ___ twelve lanterns."},
        {"text": "no blank"},
        {"parts": "A cat"},
        {"prefix": 5, "suffix": "b"},
        {"prefix": "too long", "suffix": "for it", "span_length": 300},
        {"prefix": "A", "suffix": "b", "span_length": "x"},
        {"nothing": 1},
        {"prefix": "A", "span_length": 3},
        {"prefix": "Nobody in", "suffix": " remembered."},
    ]
    source, out = tmp_path / "gaps.jsonl", tmp_path / "filled.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records) + "broken\n")
    result = magnet("infill", folder, "--input", source, "-o", out, "--span-length", 4)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 11]
    first = model.infill([PREFIX, "A cat"], [SUFFIX, " near the door."], span_length=3)
    assert [row["middle"] for row in rows[:2]] == first
    blanks = model.infill_blanks(records[2]["parts"], span_length=[1, 2])
    assert rows[2]["middles"] == blanks
    assert rows[3]["middle"] == model.infill("She ", " twelve lanterns.", span_length=4)
    assert rows[3]["text"] == "She " + rows[3]["middle"] + " twelve lanterns."
    for line, reason in (
        (5, "no ___ in the text"),
        (6, "n blanks need n + 1 strings around them"),
        (7, "a part is int, not a string"),
        (8, "the text has 313 positions (300 in gaps), but the limit is 256"),
        (9, "span_length is 'x' (str): give a whole number from 1 on"),
        (10, "neither prefix and suffix, nor parts, nor text"),
        (11, "prefix is given without suffix"),
        (13, "not JSON"),
    ):
        assert any(
            f"gaps.jsonl, line {line} is skipped" in shown and reason in shown
            for shown in result.stderr.splitlines()
        ), result.stderr
    assert "rows skipped: 8" in result.stderr
    magnet("infill", folder, "--input", source, "--span-length", 4, "--strict", code=3)
    piped = magnet("infill", folder, "--input", "-", "--span-length", 4, stdin=source.read_bytes())
    assert parsed(piped) == rows


def test_gaps_of_a_table_and_a_run_that_fails(magnet, folder, model, tmp_path):
    """What stood in the output stays until all is written."""
    (tmp_path / "gaps.csv").write_text(
        f"prefix,suffix,span_length\n{PREFIX},{SUFFIX},3\nA cat,.,\n"
    )
    out = tmp_path / "filled.jsonl"
    out.write_text("before")
    source = ["--input", tmp_path / "gaps.csv", "--span-length", 2]
    whole, calls = type(model).infill_blanks, []

    def failing(self, *args, **kwargs):
        assert out.read_text() == "before"
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError("no more")
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(model), "infill_blanks", failing)
        assert "no more" in magnet("infill", folder, *source, "-o", out, code=2).stderr
    assert out.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    magnet("infill", folder, *source, "-o", out)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["middle"] == model.infill(PREFIX, SUFFIX, span_length=3)
    assert rows[1]["middle"] == model.infill("A cat", ".", span_length=2)
    out.write_text("before")
    (tmp_path / "none.jsonl").write_text('{"text": "no blank"}\n')
    result = magnet("infill", folder, "--input", tmp_path / "none.jsonl", "-o", out, code=2)
    assert "none of the 1 rows could be used" in result.stderr and out.read_text() == "before"
    (tmp_path / "empty.txt").write_text("\n")
    magnet("generate", folder, "--input", tmp_path / "empty.txt", "-o", out, code=2)
    assert out.read_text() == "before"
    magnet("generate", folder, "a", "--max-new-tokens", 1, "-o", "/dev/null")
    assert not Path("/dev/null").is_file()


def test_samples_are_those_of_the_seed(magnet, folder, model):
    options = ["--samples", 3, "--temperature", 1.5, "--top-k", 20, "--top-p", 0.9, "--seed", 7]
    gap = ["--prefix", PREFIX, "--suffix", SUFFIX, "--span-length", 5]
    rows = parsed(magnet("infill", folder, *gap, *options))
    torch.manual_seed(7)
    sampling = {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.9}
    expected = model.infill(PREFIX, SUFFIX, span_length=5, num_return_sequences=3, **sampling)
    assert [row["middle"] for row in rows] == expected and len(set(expected)) == 3
    assert [row["sample"] for row in rows] == [0, 1, 2]
    options = ["--samples", 2, "--seed", 3, "--max-new-tokens", 5]
    rows = parsed(magnet("generate", folder, PREFIX, *options))
    assert rows == parsed(magnet("generate", folder, PREFIX, *options))
    assert [row["sample"] for row in rows] == [0, 1]
    assert rows[0]["text"] != rows[1]["text"]
    text = parsed(magnet("infill", folder, "--text", "A ___ on ___.", "--samples", 2))
    assert len(text) == 2 and len(text[0]["middles"]) == 2


@pytest.mark.parametrize("prefix", [PREFIX, PREFIX + " "])
def test_streams_what_it_would_write(magnet, folder, prefix):
    options = ["--prefix", prefix, "--suffix", SUFFIX, "--span-length", 12]
    (row,) = parsed(magnet("infill", folder, *options))
    assert magnet("infill", folder, *options, "--stream").stdout == row["text"] + "\n"
    options = [prefix, "--max-new-tokens", 12]
    (row,) = parsed(magnet("generate", folder, *options))
    assert magnet("generate", folder, *options, "--stream").stdout == row["text"] + "\n"


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """A model whose tokenizer, as Llama 2's, puts a space before each text and takes it again."""
    model = make_model(vocab_size=400)
    model.tokenizer = make_spaced_tokenizer()
    model.save_pretrained(tmp_path_factory.mktemp("spaced") / "model")
    return tmp_path_factory.getbasetemp() / "spaced0" / "model"


@pytest.mark.parametrize("prefix", [PREFIX, PREFIX + " ", "Nobody 😀"])
def test_spaces_are_right_whatever_the_tokenizer(magnet, spaced, prefix):
    """Bytes that are no character are left out: such a decoder takes back what it has shown of them."""
    model = load_magnet(spaced)
    view = model.text_tokenizer
    infilled = ((n, model.infill(prefix, SUFFIX, span_length=n)) for n in range(12, 0, -1))
    length, middle = next((n, text) for n, text in infilled if REPLACEMENT not in text)
    options = ["--prefix", prefix, "--suffix", SUFFIX, "--span-length", length]
    (row,) = parsed(magnet("infill", spaced, *options))
    assert row["text"] == prefix + middle + SUFFIX
    assert magnet("infill", spaced, *options, "--stream").stdout == row["text"] + "\n"
    ids = view.ids([prefix])
    written = model.generate(torch.tensor(ids), max_new_tokens=12)[0, len(ids[0]) :].tolist()
    generated = ((n, view.continued.decode(written[:n])) for n in range(12, 0, -1))
    alone = 1, view.continued.decode(written[:1])  # of a single token nothing is taken back
    count, text = next(((n, text) for n, text in generated if REPLACEMENT not in text), alone)
    options = [prefix, "--max-new-tokens", count]
    (row,) = parsed(magnet("generate", spaced, *options))
    assert row["text"] == prefix + text
    assert magnet("generate", spaced, *options, "--stream").stdout == row["text"] + "\n"


def test_a_control_token_in_a_prompt_is_text(magnet, folder, model):
    text = "A cat</s> sleeps"
    (row,) = parsed(magnet("generate", folder, text, "--max-new-tokens", 4))
    ids = model.text_tokenizer.ids([text])
    written = model.generate(torch.tensor(ids), max_new_tokens=4)[0, len(ids[0]) :]
    assert row["continuation"] == model.text_tokenizer.continued.decode(written.tolist())
    assert model.tokenizer.eos_token_id not in ids[0]


def test_generates_what_the_stock_llama_does(magnet, folder, model, texts):
    stock = LlamaForCausalLM.from_pretrained(folder)
    rows = parsed(magnet("generate", folder, "--input", texts, "--max-new-tokens", 6))
    assert [row["prompt"] for row in rows] == SENTENCES
    for row in rows:
        inputs = model.tokenizer(row["prompt"], return_tensors="pt")
        ids = stock.generate(**inputs, max_new_tokens=6, pad_token_id=2)[0]
        assert row["text"] == model.tokenizer.decode(ids, skip_special_tokens=True)
        assert row["text"] == row["prompt"] + row["continuation"]
    piped = magnet(
        "generate", folder, "--input", "-", "--max-new-tokens", 6, stdin=texts.read_text("utf-8")
    )
    assert parsed(piped) == rows


def test_a_prompt_that_is_empty_is_a_row_that_is_skipped(magnet, folder, tmp_path):
    (tmp_path / "a.txt").write_text("A cat\n\nShe counted\n")
    result = magnet("generate", folder, "--input", tmp_path / "a.txt", "--max-new-tokens", 2)
    assert [row["index"] for row in parsed(result)] == [0, 2]
    assert "a.txt, line 2 is skipped: the prompt is empty" in result.stderr
    for options in ([], ["--stream"]):
        result = magnet("generate", folder, "", *options, code=2)
        assert "the prompt is empty" in result.stderr


@pytest.fixture
def adapter(folder, tmp_path):
    add_lora(MagnetLlamaForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_without_adapter_it_is_the_base(magnet, folder, adapter):
    options = [PREFIX, "--max-new-tokens", 12]
    base = magnet("generate", folder, *options).stdout
    assert magnet("generate", adapter, *options).stdout != base
    assert magnet("generate", adapter, *options, "--without-adapter").stdout == base
    result = magnet("generate", folder, *options, "--without-adapter", code=2)
    assert "has no adapter to switch off" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infill", "--text", "a ______ b"], "the text has no text between"),
        (["infill", "--text", "\ud800 ___"], "text is not Unicode: it holds half"),
        (["infill", "--text", "a ___ b", "--span-length", "300"], "the limit is 256"),
        (
            ["generate", "a", "--max-new-tokens", "1", "--without-adapter"],
            "has no adapter to switch off",
        ),
    ],
)
def test_bad_input(magnet, folder, words, message):
    result = magnet(words[0], folder, *words[1:], code=2)
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["encode", "infill", "generate", "serve"])
def test_a_model_without_a_tokenizer_is_no_fault_of_a_text(magnet, command, tmp_path, monkeypatch):
    monkeypatch.setattr("uvicorn.run", lambda *_, **options: pytest.fail("the server starts"))
    LlamaForCausalLM(make_model().config).save_pretrained(tmp_path / "plain")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "A ___ cat."}\n' * 2)
    source = {"encode": [rows], "serve": []}.get(command, ["--input", rows])
    found = magnet(command, tmp_path / "plain", *source, code=None)
    assert found.exit_code and "no tokenizer in" in repr(found.exception) + found.output
    assert "skipped" not in found.output
