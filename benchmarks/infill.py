"""Infilling against plain `generate`, against reading all again for every token, and against itself."""

import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from modeling_magnet.tokenizing import TextTokenizer

from .report import Row, timings_of
from .setup import Setup, Sizes, finished, load
from .timing import Answer, Comparison, DifferentResultsError, measure

BLANKS = 4

SAMPLES = 4


class Clock(BaseStreamer):
    """Notes when each token was there."""

    def __init__(self, device: str):
        self.device = device
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """Of the prompt, then of each token."""
        finished(self.device)
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


class Jobs:
    """Ways on one model, a method each; the job names one.

    `before` and `behind` are token ids of as many texts as are infilled together.
    """

    def __init__(self, model: str, device: str, dtype: str):
        self.model, self.device = load(model, device, dtype), device
        settings = self.model.magnet_settings
        self.start = [] if settings.start_token_id is None else [settings.start_token_id]
        self.greedy = {"do_sample": False, "suppress_tokens": [settings.end_token_id]}

    def __call__(self, way: str, **job) -> Answer:
        """Run a job by the way's method."""
        return getattr(self, way)(**job)

    def infill(self, before, behind, length: int) -> Answer:
        """`model.infill` into a gap of known length."""
        clock = Clock(self.device)
        texts = [self._texts(before), self._texts(behind, continued=True)]
        begin = time.perf_counter()
        output = self.model.infill(
            *texts, span_length=length, streamer=clock, return_dict_in_generate=True, **self.greedy
        )
        return self._timed(begin, clock.times[1:], output.sequences)

    def generate(self, before, behind, length: int) -> Answer:
        """`model.generate` after a prompt of as many tokens."""
        clock = Clock(self.device)
        ids = [self.start + b + s for b, s in zip(before, behind, strict=True)]
        prompt = torch.tensor(ids, device=self.device)
        begin = time.perf_counter()
        output = self.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=length,
            streamer=clock, **self.greedy,
        )  # fmt: skip
        return self._timed(begin, clock.times[1:], output[:, prompt.shape[1] :])

    def uncached(self, before, behind, length: int, gap: int) -> Answer:
        """The same span in place, everything read again for each token."""
        return self._token_by_token(before, behind, length, gap, masked=False)

    def masked(self, before, behind, length: int, gap: int) -> Answer:
        """The gap full of mask tokens, all read with both sides, the first one filled each time.

        As a model goes about it that only knows masked tokens (LLM2Vec's MNTP).
        """
        return self._token_by_token(before, behind, length, gap, masked=True)

    @torch.no_grad()
    def _token_by_token(self, before, behind, length, gap, masked: bool) -> Answer:
        before = torch.tensor([self.start + ids for ids in before], device=self.device)
        behind = torch.tensor(behind, device=self.device)  # (texts, tokens)
        mask_token = self.model.tokenizer.convert_tokens_to_ids("_")
        written = before.new_empty(len(before), 0)
        times, begin = [], time.perf_counter()
        for n in range(length):
            empty = before.new_full((len(before), gap - n if masked else 0), mask_token)
            ids = torch.cat([before, written, empty, behind], dim=1)
            span_ids = torch.zeros_like(ids)
            first = before.shape[1]
            positions = torch.arange(ids.shape[1], device=self.device)
            if not masked:
                span_ids[:, first : first + n] = 1
                positions[first + n :] += gap - n
            logits = self.model(
                input_ids=ids, span_ids=span_ids, position_ids=positions[None],
                logits_to_keep=torch.tensor([first + n - 1], device=self.device), use_cache=False,
            ).logits[:, 0]  # fmt: skip
            logits[:, self.greedy["suppress_tokens"]] = -torch.inf
            written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
            finished(self.device)
            times.append(time.perf_counter())
        return self._timed(begin, times, written)

    def blanks(self, parts, length: int) -> Answer:
        """`model.infill_blanks` of one text."""
        texts = self._texts(parts[:1]) + self._texts(parts[1:], continued=True)
        return self._whole(
            lambda: self.model.infill_blanks(texts, span_length=length, **self.greedy)
        )

    def samples(self, before, behind, length: int, count: int) -> Answer:
        """Spans drawn for one text."""
        torch.manual_seed(0)
        texts = [*self._texts(before), *self._texts(behind, continued=True)]
        arguments = self.greedy | {"do_sample": True, "num_return_sequences": count}
        return self._whole(lambda: self.model.infill(*texts, span_length=length, **arguments))

    def unknown_length(self, before, behind, length: int) -> Answer:
        """No length given, at most `length` tokens."""
        texts = [*self._texts(before), *self._texts(behind, continued=True)]
        return self._whole(lambda: self.model.infill(*texts, max_new_tokens=length, **self.greedy))

    def _whole(self, call) -> Answer:
        begin = time.perf_counter()
        call()
        finished(self.device)
        return {"seconds": time.perf_counter() - begin}

    def _timed(self, begin: float, times: list[float], tokens: torch.Tensor) -> Answer:
        if len(times) != tokens.shape[1]:
            raise RuntimeError(f"{tokens.shape[1]} tokens were written and {len(times)} timed")
        first, later = times[0] - begin, len(times) - 1
        return {
            "seconds": times[-1] - begin,
            "first": first,
            # a way that reads all again needs as long for the first token as for another
            "per_token": (times[-1] - times[0]) / later if later else first,
            "tokens": tokens.tolist(),
        }

    def _texts(self, rows: Sequence[list[int]], continued: bool = False) -> list[str]:
        tokenizer = self.model.text_tokenizer
        return [(tokenizer.continued if continued else tokenizer).decode(ids) for ids in rows]


def same_tokens(answers: dict[str, Answer]) -> None:
    """Raise unless reading all again writes what the cache writes."""
    again = answers["uncached"]["tokens"]
    cached = [row[: len(again[0])] for row in answers["infill"]["tokens"]]
    if cached != again:
        raise DifferentResultsError(f"the cached span is {cached}, in place it is {again}")


def measure_part(setup: Setup) -> dict[str, Any]:
    """All of infilling: `timings` as `timing.measure` gives them."""
    sizes = setup.sizes
    half = sizes.context // 2
    most = max(sizes.infill_batches)
    whole = contexts(setup, most, [half, half])
    (parts,) = contexts(setup, 1, [sizes.context // (BLANKS + 1)] * (BLANKS + 1))
    length = sizes.new_tokens
    with setup.ways({"infill": "benchmarks.infill:Jobs"}) as started:
        run = started["infill"]

        def calls(way: str, **job):
            return [partial(run, way=way, **job)] * sizes.rounds

        comparisons = []
        for batch, slow in zip(sizes.infill_batches, sizes.slow_tokens, strict=True):
            before, behind = (list(ids) for ids in zip(*whole[:batch], strict=True))
            job = {"before": before, "behind": behind, "length": length}
            again = job | {"length": slow, "gap": length}
            runs = {way: calls(way, **job) for way in ("infill", "generate")}
            runs |= {way: calls(way, **again) for way in ("uncached", "masked")}
            check = same_tokens if setup.dtype == "float32" else None  # bf16 has ties
            warm = [partial(run, way="infill", **(job | {"length": 2}))]
            comparisons.append(Comparison(f"batch {batch}", runs, check, warm))
        before, behind = ([ids] for ids in whole[0])
        job = {"before": before, "behind": behind, "length": length}
        two_sides = [[*parts[0], *parts[1]], [i for part in parts[2:] for i in part]]
        alone = {
            "blanks": {
                "many": calls("blanks", parts=parts, length=length),
                "one": calls("blanks", parts=two_sides, length=length),
            },
            "samples": {
                "many": calls("samples", count=SAMPLES, **job),
                "one": calls("samples", count=1, **job),
            },
            "length": {"unknown": calls("unknown_length", **job), "known": calls("infill", **job)},
        }
        comparisons += [Comparison(name, runs) for name, runs in alone.items()]
        timings = measure(comparisons, setup.bar)
    return {"timings": timings}


def contexts(setup: Setup, count: int, pieces: list[int]) -> list[list[list[int]]]:
    """Documents cut into pieces of so many tokens, which as texts have these tokens again."""
    tokenizer, found = TextTokenizer(setup.tokenizer), []
    later = tokenizer.continued
    for text in setup.texts.documents:
        (ids,) = tokenizer.ids([text])
        cuts = [sum(pieces[:n]) for n in range(len(pieces) + 1)]
        if len(ids) < cuts[-1]:
            continue
        parts = [ids[a:b] for a, b in pairwise(cuts)]
        first = tokenizer.decode(parts[0]).rstrip(" ")
        rest = [later.decode(part).rstrip(" ") for part in parts[1:]]
        if tokenizer.ids([first]) + later.ids(rest) == parts:
            found.append(parts)
        if len(found) == count:
            return found
    raise ValueError(
        f"the text has {len(found)} documents of {sum(pieces)} tokens, needed are {count}: give more "
        "by --text"
    )


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows of infilling."""
    timings, made = timings_of(found), []
    for batch in sizes.infill_batches:
        for what, figure, other, against, aim in (
            ("ms to the first token", "first", "generate", "`generate`", None),
            ("ms per token", "per_token", "generate", "`generate`", "<= 1.05"),
            ("ms per token", "per_token", "uncached", "no cache", None),
            ("ms per token", "per_token", "masked", "masked tokens filled", None),
        ):
            count = f"{batch} texts together" if batch > 1 else "one text"
            label, ways = f"infill, {count}: {what}; {against}", ("infill", other)
            made.append(Row.compared(label, timings[f"batch {batch}"], ways, figure, 1e3, aim))
    blanks = f"infill, {BLANKS} blanks of a text: seconds; one blank"
    samples = f"infill, {SAMPLES} samples: seconds; one sample"
    length = "infill, length not given: seconds; given"
    return [
        *made,
        Row.compared(blanks, timings["blanks"], ("many", "one"), aim="<= 1.3"),
        Row.compared(samples, timings["samples"], ("many", "one")),
        Row.compared(length, timings["length"], ("unknown", "known")),
    ]
