"""Makes sentence pairs for SSCL from plain text, by paraphrasing or by translating there and back.

    python -m modeling_magnet.training.paraphrase --input text/*.parquet --group_column title --output pairs.jsonl
    python -m modeling_magnet.training.paraphrase --input text.txt --output pairs.jsonl \
        --round_trip Helsinki-NLP/opus-mt-en-fr Helsinki-NLP/opus-mt-fr-en

Run the command again after a kill: it resumes after the last finished shard, and writes the same file.
"""

import hashlib
import json
import re
import shutil
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from modeling_magnet.atomic import atomic_write
from modeling_magnet.locking import folder_lock

from .sources import read_rows

OPENING, END_MARKS, CLOSING = "\"'\u201c\u2018\u00ab([", ".!?\u2026", "\"'\u201d\u2019\u00bb)]"
ABBREVIATION = re.compile(
    "mrs?|ms|dr|prof|st|mt|ft|[js]r|rev|gen|col|capt|lt|sgt|sen|rep|gov|nos?|vol|pp|fig|eds?|ch|sec|"
    "approx|ca|cf|vs|etc|al|inc|ltd|co|corp|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|"
    r"[^\W\d]"  # an initial
)
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
MAX_TOKENS = 256  # of an input; a pair whose sentence has more counts as cut_off

# Whether a rule drops a pair. A dropped pair is counted under the first rule that drops it.
RULES = {
    "cut_off": lambda pair, _: pair.cut or is_closed(pair.sentence) > is_closed(pair.paraphrase),
    "length": lambda pair, _: not 0.5 <= len(pair.new) / max(1, len(pair.old)) <= 2,
    "wrong_language": lambda pair, _: pair.new_share < pair.old_share / 2,
    "nearly_identical": lambda pair, arguments: pair.distance < arguments.min_distance,
    "too_far": lambda pair, arguments: pair.distance > arguments.max_distance,
    "repetition": lambda pair, _: not repeats(pair.new) <= repeats(pair.old),
    "numbers_differ": lambda pair, _: numbers(pair.sentence) != numbers(pair.paraphrase),
}


def parse(command_line: list[str]) -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help=".txt, .jsonl, .parquet, or an id of `datasets`")
    add("--output", required=True, help=".jsonl of `sentence`, `paraphrase` and the group")
    add("--input_config", help="configuration of a `datasets` id")
    add("--input_split", default="train", help="split of a `datasets` id")
    add("--column", default="text", help="column that holds the text")
    add("--group_column", help="column to keep with each pair, such as `title`")
    add("--whole_lines", action="store_true", help="take a line as one sentence, not split")
    add("--min_words", type=int, default=20, help="sentences must have more words (paper: 20)")
    add("--max_words", type=int, default=60, help="the most words in a sentence")
    add("--max_sentences", type=int, help="stop after this many sentences, for a trial")
    add("--model", default="prithivida/parrot_paraphraser_on_T5", help="hub id or folder")
    add(
        "--round_trip",
        nargs=2,
        help="instead of --model: two models that translate, there and back",
    )
    add("--prefix", nargs="+", help="before a model's input; `paraphrase: ` unless --round_trip")
    add("--temperature", type=float, default=1.0, help="of the sampling; 0 is greedy")
    add("--top_k", type=int, default=20, help="tokens to sample from; 0 is all")
    add("--top_p", type=float, default=0.8, help="share of probability to sample from")
    add("--seed", type=int, default=42, help="of the sampling")
    add("--max_token_ratio", type=float, default=1.5, help="output length limit, in inputs")
    add("--batch_tokens", type=int, default=4096, help="input tokens of a batch, with padding")
    add("--shard_size", type=int, default=2048, help="sentences of a shard: what a kill can lose")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="of torch")
    add("--dtype", choices=("float32", "bfloat16"), help="float32 on the cpu, bfloat16 elsewhere")
    add("--rules", nargs="*", choices=RULES, default=list(RULES), help="drop pairs, in this order")
    add("--min_distance", type=float, default=0.15, help="a word edit distance: nearly_identical")
    add("--max_distance", type=float, default=0.85, help="a word edit distance: too_far")
    add("--show", type=int, default=5, help="pairs to print at the end")
    arguments = parser.parse_args(command_line)
    arguments.models = arguments.round_trip or [arguments.model]
    arguments.prefix = arguments.prefix or {1: ["paraphrase: "], 2: ["", ""]}[len(arguments.models)]
    arguments.dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16")
    if len(arguments.prefix) != len(arguments.models):
        parser.error(f"prefix is {arguments.prefix}: give one for each of {arguments.models}")
    if arguments.group_column in (arguments.column, "sentence", "paraphrase"):
        parser.error(f"group_column is {arguments.group_column}: that column has another use")
    if arguments.shard_size < 1 or arguments.max_words <= arguments.min_words:
        parser.error("shard_size must be 1 or more, max_words more than min_words")
    return arguments


def make_pairs(arguments: Namespace) -> tuple[list[dict[str, Any]], Counter]:
    """Write the file of pairs, resuming where an earlier run was stopped.

    The sentences are cut into shards. Each is seeded by its number and written whole, in a folder next to
    the output. So neither a kill nor a resume changes the final file.

    Returns:
        The pairs, and the counts of the table.

    Raises:
        FileExistsError: the output exists.
        ValueError: no sentence is long enough, no pair was kept, or the shards were made with other options.
        BlockingIOError: another process writes to this output.
        OSError: a file could not be written.
    """
    options = {k: v for k, v in vars(arguments).items() if k not in ("input", "output", "show")}
    output = Path(arguments.output)
    folder = output.with_name(output.name + ".shards")
    if output.exists() and not folder.exists():
        raise FileExistsError(f"{output} already exists: delete it or name another output")
    counts: Counter[str] = Counter()
    sentences = list(islice(read_sentences(arguments, counts), arguments.max_sentences))
    if not sentences:
        length = f"more than {arguments.min_words} and at most {arguments.max_words} words"
        raise ValueError(f"{arguments.input} has no sentence of {length}: {dict(counts)}")
    counts["sentences"] = len(sentences)
    size = arguments.shard_size
    shards = [sentences[i : i + size] for i in range(0, len(sentences), size)]
    paths = [folder / f"{number:06d}.json" for number in range(len(shards))]
    done = sum(len(shard) for shard, path in zip(shards, paths, strict=True) if path.exists())
    words = Counter(word for sentence, _ in shards[0] for word in WORD.findall(sentence.lower()))
    common = {
        word for word, _ in words.most_common(100)
    }  # function words, which reveal the language
    models: list[Seq2Seq] = []
    pairs = []
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder), tqdm(total=len(sentences), initial=done, unit="sentence") as bar:
        for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
            digest = hashlib.sha256(json.dumps(shard, default=str).encode()).hexdigest()
            made_of = options | {"sentences": digest}
            if not path.exists():
                names = zip(arguments.models, arguments.prefix, strict=True)
                models = models or [Seq2Seq(*name, arguments) for name in names]
                torch.manual_seed(arguments.seed * 1_000_003 + number)
                record = make_shard(shard, models, arguments, common, bar)
                write(path, json.dumps(record | {"made_of": made_of}, default=str))
            record = json.loads(path.read_text(encoding="utf-8"))
            if changed := [k for k, v in made_of.items() if record["made_of"].get(k) != v]:
                was = ", ".join(f"{name} {record['made_of'].get(name)}" for name in changed)
                raise ValueError(
                    f"{path} was made with {was}: give the same options, or delete {folder}"
                )
            pairs += record["pairs"]
            counts.update(record["counts"])
    if not pairs:
        raise ValueError(f"no pair was kept: {dict(counts)}")
    counts["kept"] = len(pairs)
    write(output, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs))
    shutil.rmtree(folder)
    return pairs, counts


def make_shard(
    shard: list, models: list["Seq2Seq"], arguments: Namespace, common: set[str], bar: tqdm
) -> dict[str, Any]:
    """Paraphrase and filter the sentences of a shard, in batches of similar length."""
    start = time.perf_counter()
    made: dict[int, Pair] = {}
    lengths = models[0].tokenize([text for text, _ in shard])["attention_mask"].sum(dim=1).tolist()
    for batch in batches_by_length(lengths, arguments.batch_tokens):
        texts, cut = [shard[i][0] for i in batch], [False] * len(batch)
        for model in models:
            texts, now_cut = model(texts)
            cut = [a or b for a, b in zip(cut, now_cut, strict=True)]
        for i, text, was_cut in zip(batch, texts, cut, strict=True):
            made[i] = Pair(shard[i][0], text, was_cut, common)
        bar.update(len(batch))
    counts: Counter[str] = Counter()
    kept: list[dict[str, Any]] = []
    for i, (_, group) in enumerate(shard):
        if rule := next((r for r in arguments.rules if RULES[r](made[i], arguments)), None):
            counts[rule] += 1
            continue
        pair = {"sentence": made[i].sentence, "paraphrase": made[i].paraphrase}
        kept.append(pair | ({arguments.group_column: group} if arguments.group_column else {}))
    return {"pairs": kept, "counts": {**counts, "seconds": time.perf_counter() - start}}


class Seq2Seq:
    """A model with its tokenizer: texts in, texts out in the same order."""

    def __init__(self, name: str, prefix: str, arguments: Namespace):
        self.prefix, self.max_token_ratio = prefix, arguments.max_token_ratio
        try:  # without these two packages, transformers asks for others
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (ImportError, ValueError) as error:
            needed = "most such models need: pip install sentencepiece protobuf"
            raise ValueError(f"the tokenizer of {name} could not be loaded; {needed}") from error
        model = AutoModelForSeq2SeqLM.from_pretrained(
            name, dtype=getattr(torch, arguments.dtype), trust_remote_code=False
        )
        self.model = model.to(arguments.device).eval()
        # Of the model's own settings only the tokens: not its beams, minimum length or penalties.
        own, tokens = model.generation_config, ("decoder_start", "bos", "eos", "pad", "forced_bos")
        settings = {f"{t}_token_id": getattr(own, f"{t}_token_id") for t in tokens}
        settings["bad_words_ids"] = own.bad_words_ids
        if arguments.temperature > 0:
            settings |= {"do_sample": True, "temperature": arguments.temperature}
            settings |= {"top_k": arguments.top_k, "top_p": arguments.top_p}
        model.generation_config = GenerationConfig(**settings)

    def tokenize(self, texts: list[str]) -> Any:
        """Token ids of the texts after the prefix, cut at `MAX_TOKENS`."""
        options = {"truncation": True, "max_length": MAX_TOKENS, "padding": True}
        return self.tokenizer([self.prefix + t for t in texts], return_tensors="pt", **options)

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> tuple[list[str], list[bool]]:
        """The paraphrased texts, and whether each one, or its input, was cut at the length limit."""
        inputs = self.tokenize(texts).to(self.model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]  # (texts, length)
        limit = int(self.max_token_ratio * ids.shape[1]) + 8
        output = self.model.generate(ids, attention_mask=mask, max_new_tokens=limit)
        end = torch.tensor(self.model.generation_config.eos_token_id, device=ids.device)
        cut = ~torch.isin(output[:, 1:], end).any(dim=1) | (mask.sum(dim=1) >= MAX_TOKENS)
        decoded = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [" ".join(text.split()) for text in decoded], cut.tolist()


def batches_by_length(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices, longest first, in batches of at most `batch_tokens` tokens, including padding."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    yield batch


def read_sentences(arguments: Namespace, counts: Counter) -> Iterator[tuple[str, Any]]:
    """The sentences of the right length with their groups, in the order of the input."""
    group = arguments.group_column
    rows = read_rows(
        arguments.input,
        (arguments.column,),
        arguments.input_config,
        arguments.input_split,
        keys=(group,) if group else (),
        counts=counts,
    )
    for row in rows:
        lines = [" ".join(line.split()) for line in row[arguments.column].splitlines()]
        for sentence in lines if arguments.whole_lines else chain(*map(split, lines)):
            words = sentence.count(" ") + 1
            if arguments.min_words < words <= arguments.max_words:
                yield sentence, row[group] if group else None
            else:
                counts["too_long" if words > arguments.max_words else "too_short"] += 1


def split(text: str) -> list[str]:
    """Split a line into sentences. An end mark ends one if white space and no small letter follow.

    It does not after an initial, an abbreviation or a word with a full stop inside (`e.g.`). In doubt,
    sentences stay together, since one that is too long costs less than two halves.
    """
    words, sentences, start = text.split(), [], 0
    for i, (word, following) in enumerate(pairwise(words), 1):
        word = word.rstrip(CLOSING)
        if not is_closed(word) or following.lstrip(OPENING)[:1].islower():
            continue
        stem = word[:-1].lstrip(OPENING).lower()
        if word[-1] == "." and ("." in stem or ABBREVIATION.fullmatch(stem)):
            continue
        sentences.append(" ".join(words[start:i]))
        start = i
    return [*sentences, " ".join(words[start:])]


class Pair:
    """A sentence and its paraphrase, with what the rules need: words, and shares of common words."""

    def __init__(self, sentence: str, paraphrase: str, cut: bool, common: set[str]):
        self.sentence, self.paraphrase, self.cut = sentence, paraphrase, cut
        self.old, self.new = (WORD.findall(text.lower()) for text in (sentence, paraphrase))
        self.distance = edit_distance(self.old, self.new)
        self.old_share, self.new_share = (
            sum(word in common for word in words) / max(1, len(words))
            for words in (self.old, self.new)
        )


def edit_distance(one: list[str], two: list[str]) -> float:
    """Words to change, insert or delete, as a share of the longer text. 0: the texts are equal."""
    row = list(range(len(two) + 1))
    for i, word in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(two, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1] / max(1, len(one), len(two))


def repeats(words: list[str]) -> set[tuple[str, ...]]:
    """Words that are doubled, and runs of three words that occur more than once."""
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    return {(a,) for a, b in pairwise(words) if a == b} | {run for run, n in runs.items() if n > 1}


def numbers(text: str) -> Counter[str]:
    """The numbers written in digits, without thousands separators."""
    return Counter(number.replace(",", "") for number in NUMBER.findall(text))


def is_closed(text: str) -> bool:
    """Whether a text ends with an end mark, ignoring quotes and brackets."""
    return text.rstrip(CLOSING).endswith(tuple(END_MARKS))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        advice = "finished shards are kept, so make room and run the same command again"
        raise OSError(error.errno, f"{error.strerror}: {path} ({advice})") from error


def report(pairs: list[dict[str, Any]], counts: Counter, show: int) -> str:
    """A table of what was made, and some of the pairs."""
    dropped = sum(number for name, number in counts.items() if name.startswith("dropped: "))
    lines = [f"{'rows':18}{counts['rows read']:9,}, of them skipped {dropped:,}"]
    lines += [f"{name:18}{counts[name]:9,}" for name in ("too_short", "too_long", "sentences")]
    for name in [*RULES, "kept"]:
        lines.append(f"  {name:16}{counts[name]:9,}{counts[name] / counts['sentences']:8.1%}")
    lines.append(f"{'sentences/s':18}{counts['sentences'] / counts['seconds']:9,.1f}")
    for pair in pairs[:: max(1, len(pairs) // max(1, show))][:show]:
        lines += ["", pair["sentence"], "-> " + pair["paraphrase"]]
    return "\n".join(lines)


if __name__ == "__main__":
    asked = parse(sys.argv[1:])
    print(report(*make_pairs(asked), asked.show))
    print(f"\nwrote {asked.output}")
