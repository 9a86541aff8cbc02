"""Sentences and documents to vectors: Magnet, sentence-transformers, llm2vec and a plain loop.

All ways compute the same vectors, prompt and end token included, which is checked in every round.
"""

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet

from .report import Row, draw_lines, timings_of
from .setup import Setup, Sizes, finished, load
from .texts import dealt
from .timing import Comparison, Timings, measure, median, same_vectors

BATCH = 32

SETS = ("mixed", "short", "long")

OTHERS = ("sentence-transformers", "llm2vec", "plain loop")

AIMS = {
    ("mixed", "sentence-transformers"): ">= 1.2",
    ("short", "sentence-transformers"): ">= 1.0",
} | {(name, "llm2vec"): ">= 1.5" for name in SETS}


def magnet(model: str, device: str, dtype: str, before: str, after: str):
    """`model.encode`."""
    loaded = load(model, device, dtype)
    return _timed(lambda texts, size: loaded.encode(texts, batch_size=size), device)


def sentence_transformers(model: str, device: str, dtype: str, before: str, after: str):
    """The same folder, in sentence-transformers."""
    from sentence_transformers import SentenceTransformer  # slow to import, and needed here alone

    loaded = SentenceTransformer(
        model,
        device=device,
        trust_remote_code=True,
        model_kwargs={"dtype": getattr(torch, dtype)},
    )
    return _timed(
        lambda texts, size: loaded.encode(texts, batch_size=size, show_progress_bar=False), device
    )


def plain(model: str, device: str, dtype: str, before: str, after: str):
    """What one writes in ten lines: batches in the order given, padded to their longest."""
    decoder = load(model, device, dtype, AutoModel.from_pretrained)  # the stock class
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right", trust_remote_code=False)

    @torch.no_grad()
    def encode(texts: list[str], size: int):
        vectors = []
        for first in range(0, len(texts), size):
            batch = [before + text + after for text in texts[first : first + size]]
            inputs = tokenizer(
                batch, padding=True, add_special_tokens=False, return_tensors="pt"
            ).to(device)
            mask = inputs["attention_mask"]
            both_sides = mask.bool()[:, None, None].expand(-1, 1, mask.shape[1], -1)
            hidden = decoder(
                input_ids=inputs["input_ids"], attention_mask=both_sides, use_cache=False
            ).last_hidden_state
            last = mask.sum(dim=1) - 1
            vectors.append(hidden[torch.arange(len(batch), device=device), last].float().cpu())
        return torch.cat(vectors).numpy()

    return _timed(encode, device)


def _timed(encode, device: str):
    def run(texts: list[str], batch_size: int = BATCH) -> dict[str, Any]:
        begin = time.perf_counter()
        vectors = encode(texts, batch_size)
        finished(device)
        return {"seconds": time.perf_counter() - begin, "vectors": vectors}

    return run


def to_shards(model: str, device: str, dtype: str):
    """`magnet encode` into a folder of shards."""
    from modeling_magnet.cli import app

    def run(lines: str, output: str) -> dict[str, Any]:
        begin = time.perf_counter()
        arguments = ["encode", model, lines, "-o", output, "--device", device]
        app(arguments, standalone_mode=False)
        return {"seconds": time.perf_counter() - begin}

    return run


def measure_part(setup: Setup) -> dict[str, Any]:
    """All of encoding.

    Returns:
        `timings` and `corpus` as `timing.measure` gives them; `work`, how many texts and tokens each
        round of a comparison has; `left out`, ways and why.
    """
    places = {
        "Magnet": "benchmarks.encode:magnet",
        "sentence-transformers": "benchmarks.encode:sentence_transformers",
        "plain loop": "benchmarks.encode:plain",
    }
    if setup.llm2vec is not None:
        places["llm2vec"] = "benchmarks.llm2vec_ways:encode"
    sizes, texts = setup.sizes, setup.texts
    sets = [
        texts.some("mixed", sizes.sentences),
        texts.some("short", sizes.sentences),
        texts.some("documents", sizes.documents),
    ]
    plan = [
        (name, dealt(chosen, sizes.rounds), BATCH, tuple(places))
        for name, chosen in zip(SETS, sets, strict=True)
    ]
    two = ("Magnet", "sentence-transformers")
    for words in sizes.lengths:
        cut = _cut(texts.documents, words, max(1, sizes.curve_words // words))
        plan.append((f"{words} words", [cut] * sizes.rounds, BATCH, two))
    curve = texts.some("mixed", sizes.curve_texts)
    plan += [(f"batch {size}", [curve] * sizes.rounds, size, two) for size in sizes.batches]
    frame = setup.before_and_after()

    def tokens(texts: Sequence[str]) -> int:
        whole = [frame["before"] + text + frame["after"] for text in texts]
        return sum(map(len, setup.tokenizer(whole, add_special_tokens=False)["input_ids"]))

    work = {
        name: {"texts": [len(part) for part in parts], "tokens": [tokens(part) for part in parts]}
        for name, parts, _, _ in plan
    }
    with setup.ways(places, **frame) as ways:
        comparisons = [
            _comparison(setup, name, {way: ways[way] for way in chosen}, parts, size)
            for name, parts, size, chosen in plan
        ]
        timings = measure(comparisons, setup.bar)
    left_out = {} if setup.llm2vec else {"llm2vec": setup.why_no_llm2vec}
    return {"timings": timings, "work": work, "corpus": _corpus(setup), "left out": left_out}


def _comparison(setup: Setup, name: str, ways, parts: Sequence[list[str]], size: int) -> Comparison:
    return Comparison(
        name,
        {
            way: [partial(run, vectors=True, texts=part, batch_size=size) for part in parts]
            for way, run in ways.items()
        },
        check=same_vectors(setup.tolerance),
        warm=[partial(run, texts=parts[0][:2]) for run in ways.values()],
    )


def _cut(documents: Sequence[str], words: int, count: int) -> list[str]:
    """Documents cut to a number of words."""
    longest = [split for split in map(str.split, documents) if len(split) >= words]
    if not longest:
        raise ValueError(f"no document of the text has {words} words: give more by --text")
    return [" ".join(longest[i % len(longest)][:words]) for i in range(count)]


def _corpus(setup: Setup) -> Timings:
    """Files of short lines through a small random model: what grows with their number?"""
    own = load_magnet(setup.model)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=own.config.vocab_size, hidden_size=64, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512,
    )  # fmt: skip
    small = MagnetLlamaForCausalLM(config)
    small.config.magnet = own.magnet_settings.to_dict() | {"max_length": 512}
    small.tokenizer = own.tokenizer
    short = [" ".join(text.split()) for text in setup.texts.short[:1000]]
    found: Timings = {}
    with tempfile.TemporaryDirectory(dir=setup.output) as name:
        folder = Path(name)
        small.save_pretrained(folder / "small")
        del own, small
        for count in setup.sizes.corpus:
            lines = folder / f"{count}.txt"
            with open(lines, "w", encoding="utf-8") as file:
                file.writelines(f"{short[i % len(short)]} {i}\n" for i in range(count))
            job = {"lines": str(lines), "output": str(folder / f"shards-{count}")}
            places = {"magnet encode": "benchmarks.encode:to_shards"}
            with setup.ways(places, model=str(folder / "small")) as ways:
                runs = {way: [partial(run, **job)] for way, run in ways.items()}
                found |= measure([Comparison(str(count), runs)], setup.bar)
    return found


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows of encoding."""
    timings, made = timings_of(found), []
    for name in SETS:
        for other in OTHERS:
            aim, ways = AIMS.get((name, other)), ("Magnet", other)
            label = f"encode, {name}: sentences/s (tokens/s); {other}"
            if other not in timings[name]:
                made.append(Row.missing(label, aim))
                continue
            work = found["work"][name]
            seconds = [[given["seconds"] for given in timings[name][way]] for way in ways]
            ours, others = (np.divide(work["texts"], way).tolist() for way in seconds)
            per_second = [f"({sum(work['tokens']) / sum(way):.0f})" for way in seconds]
            made.append(Row.of_rounds(label, ours, others, aim, per_second))
    together = {
        way: [given for name in SETS for given in timings[name][way]] for way in timings["mixed"]
    }
    for other in OTHERS:
        label = f"encode, all three: peak memory, MiB; {other}"
        made.append(Row.of_memory(label, together, ("Magnet", other)))
    corpus = found.get("corpus") or {"fewest": {}, "most": {}}
    fewest, *_, most = corpus
    label = f"encode to disk: peak memory, MiB; {most} lines against {fewest}"
    answers = {count: given for count in corpus for given in corpus[count].values()}
    made.append(Row.of_memory(label, answers, (most, fewest), "<= 1.05"))
    return made


def plots(found: dict[str, Any], folder: Path) -> None:
    """Cost against length, batch and corpus size."""
    by_length: dict[str, list[tuple[float, float]]] = {}
    by_batch: dict[str, list[tuple[float, float]]] = {}
    for name, ways in found["timings"].items():
        texts, tokens = (found["work"][name][unit][0] for unit in ("texts", "tokens"))
        for way, answers in ways.items():
            if name.endswith("words"):
                point = tokens / texts, 1e3 * median(answers) / tokens
                by_length.setdefault(way, []).append(point)
            elif name.startswith("batch"):
                point = int(name.split()[1]), 1e3 * median(answers) / tokens
                by_batch.setdefault(way, []).append(point)
    draw_lines(folder / "encode-length.png", by_length, "tokens in a text", "ms per token")
    draw_lines(folder / "encode-batch.png", by_batch, "texts in a forward pass", "ms per token")
    corpus = [
        (float(n), given["peak_mib"])
        for n, ways in found["corpus"].items()
        for given in ways["magnet encode"]
        if "peak_mib" in given
    ]
    if corpus:
        curve = {"magnet encode": corpus}
        draw_lines(folder / "encode-corpus.png", curve, "lines", "peak memory, MiB")
