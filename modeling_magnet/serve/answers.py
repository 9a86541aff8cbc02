"""Formats answers as OpenAI and llama.cpp do, whole and streamed."""

import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from itertools import accumulate
from typing import Any

import numpy as np

from .jobs import Embedding, Writing
from .rows import Row

DONE = "data: [DONE]\n\n"


def embeddings(job: Embedding, model: str, encoding: str) -> dict[str, Any]:
    """OpenAI's answer. base64 encodes little-endian float32."""

    def encoded(vector: np.ndarray) -> Any:
        if encoding == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    data = [
        {"object": "embedding", "index": i, "embedding": encoded(vector)}
        for i, vector in enumerate(job.vectors)
    ]
    usage = {"prompt_tokens": job.tokens, "total_tokens": job.tokens}
    return {"object": "list", "model": model, "data": data, "usage": usage}


class Completion:
    """OpenAI's answer to a job, and the events of its stream."""

    def __init__(self, job: Writing, model: str, tokenizer: Any):
        self.job, self.tokenizer = job, tokenizer
        self.about = {
            "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
            "model": model,
        }  # fmt: skip

    @property
    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = [self._choice(i, row.text, row) for i, row in enumerate(self.job.rows)]
        return self.about | {"choices": choices, "usage": self._usage}

    async def events(
        self, pieces: AsyncIterator[tuple[int, str]], usage: bool
    ) -> AsyncIterator[str]:
        """Events of a stream. `usage` adds the numbers of tokens at the end."""
        async for index, text in pieces:
            yield data(self.about | {"choices": [self._choice(index, text)]})
        for i, row in enumerate(self.job.rows):
            yield data(self.about | {"choices": [self._choice(i, "", row)]})
        if usage:
            yield data(self.about | {"choices": [], "usage": self._usage})
        yield DONE

    def _choice(self, index: int, text: str, ended: Row | None = None) -> dict[str, Any]:
        choice = {"index": index, "text": text, "finish_reason": None, "logprobs": None}
        if ended is not None:
            choice |= {"finish_reason": ended.finish_reason, "logprobs": self._logprobs(ended)}
        return choice

    def _logprobs(self, row: Row) -> dict[str, Any] | None:
        if row.likeliest is None:
            return None
        decode = self.tokenizer.continued.decode
        texts = [decode([token]) for token in row.tokens]
        return {
            "tokens": texts,
            "token_logprobs": [score.logprob for score in row.scores],
            "top_logprobs": [
                {decode([token]): logprob for token, logprob in score.likeliest.items()}
                for score in row.scores
            ],
            "text_offset": [0, *accumulate(map(len, texts))][:-1],
        }

    @property
    def _usage(self) -> dict[str, int]:
        prompt, written = self.job.tokens, sum(len(row.tokens) for row in self.job.rows)
        total = prompt + written
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": total}


class Infilling:
    """llama.cpp's answer to a job of one row, and the events of its stream."""

    def __init__(self, job: Writing, model: str):
        self.job, self.model = job, model

    @property
    def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        return self._last(self.job.rows[0].text)

    async def events(self, pieces: AsyncIterator[tuple[int, str]]) -> AsyncIterator[str]:
        """Events of a stream."""
        async for _, text in pieces:
            yield data({"content": text, "stop": False})
        yield data(self._last(""))

    def _last(self, content: str) -> dict[str, Any]:
        row = self.job.rows[0]
        return {
            "content": content,
            "stop": True,
            "stop_type": "limit" if row.finish_reason == "length" else "eos",
            "model": self.model,
            "tokens_predicted": len(row.tokens),
            "tokens_evaluated": self.job.tokens,
        }


def data(content: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
