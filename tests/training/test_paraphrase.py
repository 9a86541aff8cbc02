"""Sentences, rules, and a file of pairs that neither a kill nor the batches change."""

import json
import random
import re
import resource
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from killing import kill_when
from tiny import SENTENCES
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from modeling_magnet.training import paraphrase
from modeling_magnet.training.paraphrase import RULES, Pair, make_pairs, parse, report, split

WORDS = ["<pad>", "</s>", "<unk>", *sorted(set(" ".join(SENTENCES).split()))]
SMALL = {"d_model": 32, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}
SMALL |= {"decoder_start_token_id": 0, "num_layers": 1}
GOOD = (
    "In 1850 the old harbour, which had been quiet for a long time, was opened again for the boats.",
    "The old harbour had been quiet for years before it was opened for boats again in 1850.",
)


def make_tokenizer():
    """A word is a token, so that whatever a random model says is text."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two random models, a T5 and a Marian, each with a tokenizer, in folders."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    t5 = T5Config(**SMALL, d_kv=8, d_ff=64, num_heads=4, initializer_factor=5.0)
    marian = MarianConfig(
        **SMALL, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, init_std=0.5, forced_eos_token_id=1,
    )  # fmt: skip
    made = (T5ForConditionalGeneration(t5), MarianMTModel(marian))
    for name, model in zip(("t5", "marian"), made):
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def run(tmp_path, models):
    """Make the pairs of a text with the tiny T5; arguments go on top of the least."""
    rows = [{"text": f"{a} {b}", "title": f"article {i // 3}"} for i in range(8)
            for a in SENTENCES for b in (f"Part {i} of the story ends here.",)]  # fmt: skip
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def arguments(*changes, output="pairs.jsonl"):
        least = ["--input", tmp_path / "text.jsonl", "--output", tmp_path / output]
        least += ["--model", models / "t5", "--min_words", 5, "--max_token_ratio", 0, "--rules"]
        return [str(word) for word in [*least, *changes]]

    return arguments


def made(arguments):
    pairs, counts = make_pairs(parse(arguments))
    written = Path(arguments[3]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == pairs
    return pairs, counts


def test_splitting_follows_its_rule():
    text = (
        'Dr. J. Smith saw it, e.g. in the U.S. Army. "Was it so?" he asked. It was! (See vol. 3.) '
        "Then they left at 5 p.m. on foot…  And 12 came back. 3 did not"
    )
    assert split(text) == [
        "Dr. J. Smith saw it, e.g. in the U.S. Army.",
        '"Was it so?" he asked.',
        "It was!",
        "(See vol. 3.)",
        "Then they left at 5 p.m. on foot…",
        "And 12 came back.",
        "3 did not",
    ]
    assert split("  ") == [""]


@pytest.mark.parametrize(
    ("rule", "paraphrase", "cut"),
    [
        (None, GOOD[1], False),
        ("cut_off", GOOD[1], True),
        ("cut_off", GOOD[1].rstrip("."), False),
        ("cut_off", "", False),
        ("length", "The harbour was opened in 1850.", False),
        ("length", GOOD[1] + " That is what they say" * 8 + ".", False),
        ("wrong_language", "Le vieux port fut rouvert aux bateaux en 1850 après tant d'années.", False),
        ("nearly_identical", GOOD[0], False),
        ("nearly_identical", GOOD[0].upper().replace(",", ""), False),
        ("nearly_identical", GOOD[0].replace("boats", "ships"), False),
        ("too_far", "It was then, in 1850, that a dog of the Dutch lord swam over for us, in the fog.", False),
        ("repetition", GOOD[1].replace("quiet", "quiet quiet"), False),
        ("repetition", GOOD[1].replace(" in 1850", ", for boats again, in 1850"), False),
        ("numbers_differ", GOOD[1].replace("1850", "1851"), False),
        ("numbers_differ", GOOD[1].replace("in 1850", "then"), False),
    ],
)  # fmt: skip
def test_each_rule_drops_its_example_and_keeps_a_good_pair(rule, paraphrase, cut):
    common = {"in", "the", "which", "had", "been", "for", "a", "was", "again", "of", "it", "but"}
    pair = Pair(GOOD[0], paraphrase, cut, common)
    arguments = parse(["--input", "x", "--output", "y"])
    assert next((name for name in RULES if RULES[name](pair, arguments)), None) == rule


def test_what_the_sentence_itself_has_is_no_fault():
    old = "He said that he would, that he would come on time with 1,200 of the others"
    new = "Together with 1200 others he would arrive, he said: that he would, that he would"
    arguments = parse(["--input", "x", "--output", "y"])
    for rule in ("cut_off", "repetition", "numbers_differ"):
        assert not RULES[rule](Pair(old, new, False, set()), arguments)


def test_batches_do_not_change_which_sentence_a_paraphrase_belongs_to(run, tmp_path):
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS[3:], k=draw.randint(6, 30))) for _ in range(100)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    arguments = ["--input", tmp_path / "text.txt", "--whole_lines", "--temperature", 0]
    alone, _ = made(run(*arguments, "--batch_tokens", 1, output="alone.jsonl"))
    together, _ = made(run(*arguments, "--batch_tokens", 600))
    assert alone == together
    assert [pair["sentence"] for pair in together] == lines
    assert len({pair["paraphrase"] for pair in alone}) > 50


def test_a_round_trip_goes_through_both_models(run, models):
    there, _ = made(run("--temperature", 0, "--prefix", "", output="there.jsonl"))
    both = ["--temperature", 0, "--round_trip", models / "t5", models / "marian"]
    back, _ = made(run(*both, output="back.jsonl"))
    (there_file := Path(run(output="there.txt")[3])).write_text(
        "".join(pair["paraphrase"] + "\n" for pair in there)
    )
    second = ["--model", models / "marian", "--prefix", "", "--whole_lines", "--min_words", -1]
    alone, _ = made(run(*second, "--temperature", 0, "--input", there_file, output="second.jsonl"))
    ended = [two for one, two in zip(there, back) if one["paraphrase"]]  # blank rows are left out
    assert [pair["paraphrase"] for pair in alone] == [pair["paraphrase"] for pair in ended]
    assert len(ended) > 40
    assert [pair["sentence"] for pair in there] == [pair["sentence"] for pair in back]


def test_the_group_is_kept_in_the_order_of_the_input(run, tmp_path):
    pairs, _ = made(run("--group_column", "title"))
    groups = [pair["title"] for pair in pairs]
    assert groups == sorted(groups) and set(groups) == {"article 0", "article 1", "article 2"}
    table = pa.table({"body": [SENTENCES[0]] * 2, "n": [7, 8]})
    pq.write_table(table, tmp_path / "text.parquet")
    changes = ["--input", tmp_path / "text.parquet", "--column", "body", "--group_column", "n"]
    pairs, _ = made(run(*changes, output="numbers.jsonl"))
    assert [(pair["sentence"], pair["n"]) for pair in pairs] == [
        (SENTENCES[0], 7),
        (SENTENCES[0], 8),
    ]


def test_a_killed_run_goes_on_to_the_same_file(run, tmp_path):
    made(run("--shard_size", 3, output="whole.jsonl"))
    killed = run("--shard_size", 3, output="killed.jsonl")
    shards = tmp_path / "killed.jsonl.shards"
    kill_when(shards / "000004.json", "-m", "modeling_magnet.training.paraphrase", *killed)
    kept = list(shards.glob("*.json"))
    assert 5 <= len(kept) < 27 and not Path(killed[3]).exists()

    with pytest.raises(
        ValueError, match="was made with top_k 20, seed 42: give the same options, or delete"
    ):
        make_pairs(parse([*killed, "--top_k", "5", "--seed", "1"]))
    with pytest.raises(ValueError, match="was made with sentences [0-9a-f]+: give the same"):
        (tmp_path / "other.txt").write_text(SENTENCES[0])
        make_pairs(parse([*killed, "--input", str(tmp_path / "other.txt")]))

    with pytest.MonkeyPatch.context() as patch:
        remade = Counter()
        make_shard = paraphrase.make_shard
        patch.setattr(
            paraphrase, "make_shard", lambda *a: remade.update(shards=1) or make_shard(*a)
        )
        made(killed)
    assert remade["shards"] == 27 - len(kept)
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not shards.exists()
    with pytest.raises(FileExistsError, match=r"killed.jsonl already exists: delete it"):
        make_pairs(parse(killed))


def test_a_full_disk_loses_no_finished_shard(run, tmp_path):
    made(run("--shard_size", 20, output="whole.jsonl"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = run("--shard_size", 20)
    biggest = (
        tmp_path / "whole.jsonl"
    ).stat().st_size - 1  # room for the shards, not for the whole
    resource.setrlimit(resource.RLIMIT_FSIZE, (biggest, hard))
    try:
        with pytest.raises(OSError, match=r"pairs.jsonl \(finished shards are kept, so make room"):
            make_pairs(parse(full))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(list(tmp_path.glob("pairs.jsonl*"))) == 1  # the shards; no half file
    made([*full, "--show", "1"])
    assert (tmp_path / "pairs.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_bad_rows_are_skipped_and_counted(run, tmp_path):
    good = json.dumps({"text": f"{SENTENCES[0]} No. {'word ' * 70}"})
    bad = ['{"text": null}', '{"text": 3}', '{"text": "\\ud83d"}', '{"text": " "}']
    (tmp_path / "text.jsonl").write_text("\n".join([good, *bad]))
    pairs, counts = made(run())
    assert [pair["sentence"] for pair in pairs] == [SENTENCES[0]]
    assert (counts["rows read"], counts["too_long"]) == (5, 1)
    assert sum(n for name, n in counts.items() if name.startswith("dropped: ")) == 4


@pytest.mark.parametrize(
    ("name", "content", "changes", "error", "message"),
    [
        ("none.txt", None, [], FileNotFoundError, "none.txt"),
        ("none.parquet", None, [], FileNotFoundError, "none.parquet"),
        ("a.csv", "x", [], ValueError, r"give files \(.txt, .jsonl"),
        ("a.txt", "", [], ValueError, "has no rows"),
        ("a.txt", "Too short.\n", [], ValueError, "no sentence of more than 5 and at most 60 words"),
        ("a.txt", "Too short.\n", [], ValueError, r"\{'rows read': 1, 'too_short': 1\}"),
        ("a.txt", SENTENCES[0], ["--column", "body"], ValueError, r"\['body'\] are needed"),
        ("a.jsonl", '{"t": "x"}\n', [], ValueError, r"columns are \['t'\], but \['text'\] are needed"),
        ("a.jsonl", "{\n", [], ValueError, "a.jsonl, row 1"),
        ("a.txt", SENTENCES[0], ["--rules", "cut_off"], ValueError, "no pair was kept: .*'cut_off': 1"),
    ],
)  # fmt: skip
def test_bad_inputs_say_what_is_wrong(run, tmp_path, name, content, changes, error, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        make_pairs(parse(run("--input", tmp_path / name, *changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--rules", "none"], "invalid choice: 'none'"),
        (["--prefix", "a", "b"], "give one for each"),
        (["--group_column", "text"], "that column has another use"),
        (["--max_words", "5"], "max_words more than min_words"),
    ],
)
def test_bad_options_say_what_is_wrong(run, capsys, changes, message):
    with pytest.raises(SystemExit):
        parse(run(*changes))
    assert message in capsys.readouterr().err


def test_the_table_adds_up(run):
    pairs, counts = made(run("--show", 2))
    table = report(pairs, counts, 2)
    for line in (
        "rows +40, of them skipped 0",
        "sentences +80",
        "cut_off +0 +0.0%",
        "kept +80 +100.0%",
    ):
        assert re.search(line, table)
    assert table.count("\n-> ") == 2
    dropped = Counter(sentences=9, cut_off=4, too_far=2, kept=3, seconds=3)
    assert re.search("cut_off +4 +44.4%", report(pairs[:3], dropped, 0))


def test_a_tokenizer_that_cannot_be_read_says_what_to_install(run, monkeypatch):
    """transformers asks for tiktoken where sentencepiece and protobuf are missing."""

    def fails(name, **kwargs):
        raise ValueError("`tiktoken` is required")

    monkeypatch.setattr(paraphrase.AutoTokenizer, "from_pretrained", fails)
    with pytest.raises(
        ValueError, match="t5 could not be loaded; .* pip install sentencepiece protobuf"
    ):
        make_pairs(parse(run()))
