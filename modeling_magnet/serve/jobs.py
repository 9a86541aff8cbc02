"""Turns requests into jobs, which are checked on arrival and run in batches with others of their kind."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from prometheus_client import Counter

from ..cli.texts import continuations, decoder_after
from ..decoding import Blank, Span
from ..infilling import DEFAULT_MAX_NEW_TOKENS
from .requests import CompletionRequest, EmbeddingRequest
from .rows import Row, Rows

TOKENS = Counter("magnet_tokens", "Tokens", ["kind"])

COLDEST = 1e-3
"""A lower temperature is greedy: its logits would overflow."""


class Job(ABC):
    """The work that one request asks of the model.

    Args:
        texts: the texts to read.
        size: the number of rows that it needs in a batch.

    Attributes:
        key: jobs with equal keys may share a batch.
        tokens: the number of tokens in the texts.
        events: what the request receives: pieces `(index, text)` as they are written, then None or an
            exception.
        cancelled: whether the client has disconnected.
    """

    key: tuple[Hashable, ...]
    tokens: int

    def __init__(self, texts: list[str], size: int):
        self.texts, self.size = texts, size
        self.events: asyncio.Queue = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        self.cancelled = self.ended = False

    @abstractmethod
    def prepare(self, model: Any) -> None:
        """Tokenize, in any thread.

        Raises:
            ValueError: the model would refuse the request.
        """

    def tell(self, event: Any) -> None:
        """Send the request an event, from any thread. Events after the last one are dropped."""
        if not self.ended:
            self.ended = not isinstance(event, tuple)
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    def cancel(self) -> None:
        """Skip the work that is not done yet."""
        self.cancelled = True


class Embedding(Job):
    """Encode texts: `run` sets `vectors`, (texts, dimensions), scaled to length 1."""

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
        """Raise where `encode` would."""
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
    """Write texts: `n` rows per input text, in order. `rows` holds each row's text and end."""

    rows: list[Row]
    usual: int  # tokens to write if the request does not say

    def __init__(self, request: CompletionRequest):
        texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if not texts:
            raise ValueError("prompt is an empty list: give a text")
        super().__init__(texts, len(texts) * request.n)
        self.request = request
        lengths = [n for n in (request.max_tokens, request.span_length) if n is not None]
        self.most = min(lengths, default=self.usual)
        self.sampling = _sampling(request)
        own_batch = None if request.seed is None else id(self)  # a seed is for one job
        self.key = (type(self).__name__, own_batch, *self.sampling.items())

    def cancel(self) -> None:
        """End all rows now."""
        super().cancel()
        for row in self.rows:
            row.finish_reason = row.finish_reason or "cancelled"

    def end_if_written(self) -> None:
        """Tell the request that it is done, unless a row is still being written."""
        if all(row.finish_reason is not None and not row.is_guess for row in self.rows):
            self.tell(None)

    @staticmethod
    def run(model: Any, jobs: Sequence["Writing"]) -> None:
        """Write the texts of jobs with equal keys. A short job is done before the longest ends."""
        seed = jobs[0].request.seed
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            jobs[0].write(model, jobs)
        for job in jobs:
            TOKENS.labels("written").inc(sum(len(row.tokens) for row in job.rows))
            job.tell(None)

    @staticmethod
    @abstractmethod
    def write(model: Any, jobs: Sequence[Any]) -> None:
        """Fill the rows of jobs of one class."""

    def _row(self, model: Any, index: int, decode: Any, limit: int, is_guess: bool = False) -> Row:
        stop, stream = self.request.stop or [], self.request.stream
        return Row(
            decode,
            limit,
            ends=model._end_tokens({}),
            stop=[stop] if isinstance(stop, str) else stop,
            likeliest=self.request.logprobs,
            emit=(lambda text: self.tell((index, text))) if stream else None,
            is_guess=is_guess,
        )


class Continuation(Writing):
    """Continue texts."""

    usual = 16  # OpenAI's default

    def prepare(self, model: Any) -> None:
        """Raise if a prompt has no tokens, or if there is no room for the continuation."""
        if self.request.span_length is not None:
            raise ValueError("span_length is the length of a gap, and there is no suffix: give one")
        prompts = model.text_tokenizer.ids(self.texts, add_special_tokens=True)
        limit = model.magnet_settings.max_length
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(
                    "prompt is empty, and the tokenizer adds no token to begin with: give a text"
                )
            if len(prompt) + self.most > limit:
                raise ValueError(
                    f"prompt {i} has {len(prompt)} tokens and max_tokens asks for {self.most} more, but "
                    f"the limit is {limit}: shorten the prompt, or give a smaller max_tokens"
                )
        self.tokens = sum(map(len, prompts))
        self.prompts = [prompt for prompt in prompts for _ in range(self.request.n)]
        texts = [text for text in self.texts for _ in range(self.request.n)]
        self.rows = [
            self._row(model, i, decoder_after(model, text).decode, self.most)
            for i, text in enumerate(texts)
        ]

    @staticmethod
    def write(model: Any, jobs: Sequence["Continuation"]) -> None:
        """Write with `generate`."""
        prompts = [prompt for job in jobs for prompt in job.prompts]
        rows = _watched(jobs, [row for job in jobs for row in job.rows])
        most = max(job.most for job in jobs)
        continuations(model, prompts, rows.arguments | jobs[0].sampling | {"max_new_tokens": most})


class Infill(Writing):
    """Fill the gap between texts and a suffix."""

    usual = DEFAULT_MAX_NEW_TOKENS

    def __init__(self, request: CompletionRequest):
        super().__init__(request)
        self.key = (*self.key, self.most, request.span_length)  # `infill` has one of each

    def prepare(self, model: Any) -> None:
        """Raise where `infill` would."""
        n, length = self.request.n, self.request.span_length
        self.pairs = [[text, self.request.suffix] for text in self.texts for _ in range(n)]
        self.blanks = model._blanks(self.pairs, [[length]] * self.size, self.most)
        self.tokens = sum(blank.layout.context_length for blank in self.blanks[::n])
        self.rows = [
            self._row(model, i, _decoder(model, blank), min(self.most, blank.gap), blank.is_guess)
            for i, blank in enumerate(self.blanks)
        ]

    @staticmethod
    def write(model: Any, jobs: Sequence["Infill"]) -> None:
        """As `infill` does."""
        first = jobs[0]
        entries = {
            id(blank): (row, *pair)
            for job in jobs
            for blank, row, pair in zip(job.blanks, job.rows, job.pairs, strict=True)
        }
        blanks = [blank for job in jobs for blank in job.blanks]
        for group in model._groups(blanks, first.sampling):  # each is one call of `generate`
            rows, prefixes, suffixes = zip(*(entries[id(blank)] for blank in group), strict=True)
            texts = model.infill(
                prefixes,
                suffixes,
                first.request.span_length,
                max_new_tokens=first.most,
                **_watched(jobs, rows).arguments,
                **first.sampling,
            )
            for row, text in zip(rows, texts, strict=True):
                row.end(text)


def _watched(jobs: Sequence[Writing], rows: Sequence[Row]) -> Rows:
    def after_step() -> None:
        for job in jobs:
            job.end_if_written()

    return Rows(rows, after_step)


def _decoder(model: Any, blank: Blank) -> Callable[[list[int]], str]:
    return lambda token_ids: model._span_text(blank, Span(token_ids, ended=""))


def _sampling(request: CompletionRequest) -> dict[str, Any]:
    """Arguments of `generate`. Greedy decoding has no others, so that its requests share batches."""
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < COLDEST:
        return {"num_beams": 1, "do_sample": False}
    return {
        "num_beams": 1,
        "do_sample": True,
        "temperature": temperature,
        "top_p": request.top_p or 1.0,
        "top_k": request.top_k or 0,
    }
