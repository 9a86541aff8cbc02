"""What a request asks of the model: checked when it comes, run in a batch with others of its kind."""

import asyncio
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from prometheus_client import Counter

from ..cli.texts import continuations, decoder_after
from ..decoding import Blank, Span
from ..infilling import LONGEST
from .requests import CompletionRequest, EmbeddingRequest
from .rows import Row, Rows

TOKENS = Counter("magnet_tokens", "Tokens", ["kind"])

COMPLETION = 16
"""Tokens of a completion that names no `max_tokens`, as with OpenAI."""

COLDEST = 1e-3
"""A lower temperature is greedy: its logits would overflow."""


class Job:
    """Work for the model by one request.

    Args:
        texts: that are read.
        size: how many rows of a batch it takes.

    Attributes:
        key: jobs with equal keys may share a batch.
        tokens: of the texts.
        events: what the request is told: pieces `(index, text)` as they are written, at the end None
            or an exception.
        cancelled: the client has left.
    """

    key: Hashable
    tokens: int

    def __init__(self, texts: list[str], size: int):
        self.texts, self.size = texts, size
        self.events: asyncio.Queue = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.cancelled = self.ended = False

    def tell(self, event: Any) -> None:
        """Hand the request an event, from any thread. After the last one nothing is told."""
        if not self.ended:
            self.ended = not isinstance(event, tuple)
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """Leave out what is not done yet."""
        self.cancelled = True


class Embedding(Job):
    """Vectors of texts, which `run` puts into `vectors`: (texts, dimensions), of length 1."""

    vectors: np.ndarray

    def __init__(self, request: EmbeddingRequest):
        given = [request.input] if isinstance(request.input, str) else request.input
        texts = [text for text in given if isinstance(text, str)]
        if not texts or len(texts) < len(given):
            raise ValueError(
                "input holds no text: give a string or a list of strings. Token ids are of another "
                "model's tokenizer; in LangChain set check_embedding_ctx_length=False"
            )
        super().__init__(texts, len(texts))
        self.prompt = request.prompt_name, request.prompt
        self.dimensions = request.dimensions
        self.key = (*self.prompt, self.dimensions)

    def prepare(self, model: Any) -> None:
        """Raise ValueError where `encode` would."""
        hidden, settings = model.config.hidden_size, model.magnet_settings
        if self.dimensions is not None and self.dimensions > hidden:
            raise ValueError(f"dimensions is {self.dimensions}: give 1 to {hidden}")
        prompt, special = settings.prompt_text(*self.prompt), settings.special_tokens
        texts = [prompt + text for text in self.texts]
        token_ids = model._tokenize(texts, truncation=False, extra_tokens=special)
        self.tokens = sum(len(ids) + special for ids in token_ids)

    @staticmethod
    def run(model: Any, jobs: Sequence["Embedding"]) -> None:
        """Encode the texts of jobs with equal keys."""
        texts = [text for job in jobs for text in job.texts]
        vectors = model.encode(
            texts, *jobs[0].prompt, truncate_dim=jobs[0].dimensions, normalize_embeddings=True,
            show_progress_bar=False,
        )  # fmt: skip
        ends = np.cumsum([job.size for job in jobs])[:-1]
        for job, own in zip(jobs, np.split(vectors, ends), strict=True):
            job.vectors = own
            job.tell(None)


class Writing(Job):
    """Texts that continue a prompt, or that fill the gap before a suffix: `n` rows per prompt, in order."""

    def __init__(self, request: CompletionRequest):
        texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if not texts:
            raise ValueError("prompt is an empty list: give a text")
        if request.suffix is None and request.span_length is not None:
            raise ValueError("span_length is the length of a gap: give a suffix")
        super().__init__(texts, len(texts) * request.n)
        self.request, self.suffix = request, request.suffix
        usual = COMPLETION if self.suffix is None else LONGEST
        lengths = [n for n in (request.max_tokens, request.span_length) if n is not None]
        self.most = min(lengths, default=usual)
        self.sampling = _sampling(request)
        alone = None if request.seed is None else id(self)  # a seed is for one job
        longest = None if self.suffix is None else self.most
        self.key = (alone, longest, request.span_length, *self.sampling.items())

    def prepare(self, model: Any) -> None:
        """Tokenize; raise ValueError where `generate` or `infill` would."""
        request, n = self.request, self.request.n
        self.prompts: list[list[int]] = []  # of completions
        self.blanks: list[Blank] = []  # of infilling
        for number, text in enumerate(self.texts):
            if self.suffix is None:
                self.prompts += [_prompt_ids(model, number, text, self.most)] * n
            else:
                copies, lengths = [[text, self.suffix]] * n, [[request.span_length]] * n
                self.blanks += model._blanks(copies, lengths, self.most)
        counts = [*map(len, self.prompts), *(blank.layout.context for blank in self.blanks)]
        self.tokens = sum(counts[::n])
        if self.suffix is None:
            decoders = [decoder_after(model, text).decode for text in self.texts for _ in range(n)]
            self.rows = [self._row(model, *row) for row in enumerate(decoders)]
        else:
            self.rows = [
                self._row(model, i, partial(_infilled, model, blank), blank.gap, blank.is_guess)
                for i, blank in enumerate(self.blanks)
            ]

    def _row(self, model: Any, index: int, decode: Any, gap: int = 1 << 30, is_guess: bool = False):
        asked = self.request
        return Row(
            decode,
            min(self.most, gap),
            model._end_tokens({}),
            [asked.stop] if isinstance(asked.stop, str) else asked.stop or [],
            asked.logprobs,
            partial(self._piece, index) if asked.stream else None,
            is_guess,
        )

    def _piece(self, index: int, text: str) -> None:
        self.tell((index, text))

    def cancel(self) -> None:
        """End the rows where they are."""
        super().cancel()
        for row in self.rows:
            row.finish_reason = row.finish_reason or "cancelled"

    def end_if_written(self) -> None:
        """Tell the request, unless something is still to come."""
        if all(row.finish_reason is not None and not row.is_guess for row in self.rows):
            self.tell(None)

    @staticmethod
    def run(model: Any, jobs: Sequence["Writing"]) -> None:
        """Write the texts of jobs with equal keys; a short one is told before the longest ends."""
        seed = jobs[0].request.seed
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if jobs[0].suffix is None:
                _complete(model, jobs)
            else:
                _infill(model, jobs)
        for job in jobs:
            TOKENS.labels("written").inc(sum(len(row.tokens) for row in job.rows))
            job.tell(None)


def _complete(model: Any, jobs: Sequence[Writing]) -> None:
    rows = _watched(jobs, [row for job in jobs for row in job.rows])
    prompts = [prompt for job in jobs for prompt in job.prompts]
    most = max(job.most for job in jobs)
    continuations(model, prompts, {"max_new_tokens": most, **jobs[0].sampling, **rows.arguments})


def _infill(model: Any, jobs: Sequence[Writing]) -> None:
    first = jobs[0]
    entries = {
        id(blank): (row, job.texts[index // job.request.n], job.suffix)
        for job in jobs
        for index, (blank, row) in enumerate(zip(job.blanks, job.rows, strict=True))
    }
    blanks = [blank for job in jobs for blank in job.blanks]
    for group in model._groups(blanks, first.sampling):  # each is one call of `generate`
        rows, prefixes, suffixes = zip(*(entries[id(blank)] for blank in group), strict=True)
        texts = model.infill(
            prefixes, suffixes, first.request.span_length, max_new_tokens=first.most,
            **first.sampling, **_watched(jobs, rows).arguments,
        )  # fmt: skip
        for row, text in zip(rows, texts, strict=True):
            row.end(text)


def _watched(jobs: Sequence[Writing], rows: Sequence[Row]) -> Rows:
    def after_step() -> None:
        for job in jobs:
            job.end_if_written()

    return Rows(rows, after_step)


def _sampling(request: CompletionRequest) -> dict[str, Any]:
    """Arguments of `generate`. Greedy decoding has no other ones, so that it shares batches."""
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < COLDEST:
        return {"num_beams": 1, "do_sample": False}
    return {
        "num_beams": 1, "do_sample": True, "temperature": temperature,
        "top_p": request.top_p or 1.0, "top_k": request.top_k or 0,
    }  # fmt: skip


def _prompt_ids(model: Any, number: int, prompt: str, most: int) -> list[int]:
    (token_ids,) = model.text_tokenizer.ids([prompt], add_special_tokens=True)
    if not token_ids:
        raise ValueError("prompt is empty, and the tokenizer adds no token to begin with")
    limit = model.magnet_settings.max_length
    if len(token_ids) + most > limit:
        raise ValueError(
            f"prompt {number} has {len(token_ids)} tokens and up to {most} are to be written, the limit "
            f"is {limit}: shorten the prompt, or give a smaller max_tokens"
        )
    return token_ids


def _infilled(model: Any, blank: Blank, token_ids: list[int]) -> str:
    return model._span_text(blank, Span(token_ids, ended=""))
