"""Serves the routes over HTTP, and formats errors as OpenAI does."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from . import answers
from .gate import Gate, error
from .jobs import TOKENS, Continuation, Embedding, Infill, Job, Writing
from .queue import Busy, Queue
from .requests import CompletionRequest, EmbeddingRequest, InfillRequest

AnyJob = TypeVar("AnyJob", bound=Job)


class Refused(Exception):
    """A request that cannot be served, and the answer to it."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        self.answer = error(status, message, code, **headers)


class Server:
    """A model, its two queues, and the steps of a request.

    Vectors are made in one thread and texts written in another, so that a short request of one kind
    does not wait for a long one of the other.

    Args:
        model: a MAGNET model.
        name: the name that clients use.
        max_batch: the most rows in a batch.
        max_waiting: the most rows that may wait in each queue.
        max_texts: the most texts in a request, counting those to write.
    """

    def __init__(
        self,
        model: Any,
        name: str,
        max_batch: int = 16,
        max_waiting: int = 256,
        max_texts: int = 128,
    ):
        self.model, self.name, self.max_texts = model, name, max_texts
        self.vectors = Queue("embedding", partial(Embedding.run, model), max_batch, max_waiting)
        self.texts = Queue("writing", partial(Writing.run, model), max_batch, max_waiting)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Work on the queues; uvicorn ends it after the last answer."""
        work = asyncio.gather(self.vectors.work(), self.texts.work())
        yield
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work

    @property
    def rows_waiting(self) -> int:
        """Rows that wait in both queues."""
        return self.vectors.rows_waiting + self.texts.rows_waiting

    def check_model(self, name: str | None) -> None:
        """Refuse another model's name."""
        if name not in (None, self.name):
            raise Refused(404, f"the model {name!r} is not served here, only {self.name!r}",
                          "model_not_found")  # fmt: skip

    async def submit(self, kind: Callable[[Any], AnyJob], request: Any) -> AnyJob:
        """Check a request and put its job into a queue."""
        try:
            job = kind(request)
            if job.size > self.max_texts:
                raise ValueError(
                    f"the request has {job.size} texts, but the limit is {self.max_texts}"
                )
            await run_in_threadpool(job.prepare, self.model)
            (self.vectors if isinstance(job, Embedding) else self.texts).put(job)
        except ValueError as fault:
            raise Refused(400, str(fault)) from fault
        except Busy as busy:
            raise Refused(429, str(busy), "queue_full", Retry_After=str(busy.retry_after)) from busy
        TOKENS.labels("read").inc(job.tokens)
        return job

    async def finish(self, job: Job, request: Request) -> None:
        """Wait for a job that does not stream, and cancel it if the client disconnects."""
        told = asyncio.ensure_future(job.events.get())
        try:
            while not (await asyncio.wait({told}, timeout=0.1))[0]:
                if await request.is_disconnected():
                    raise Refused(499, "the client has disconnected")
            _raise(told.result())
        finally:
            told.cancel()
            job.cancel()

    async def pieces(self, job: Job) -> AsyncIterator[tuple[int, str]]:
        """Yield pieces of text as they are written, and cancel the job if the client disconnects."""
        try:
            while (event := await job.events.get()) is not None:
                _raise(event)
                yield event
        finally:
            job.cancel()


def create_app(server: Server, keys: Sequence[str] = (), max_body: int = 4 << 20) -> FastAPI:
    """The application.

    Args:
        server: the model and its queues.
        keys: accepted API keys. If empty, the server needs no key.
        max_body: the most bytes in a request.

    Example:
        >>> uvicorn.run(create_app(Server(load_magnet("my-magnet"), "my-magnet")))
    """
    app = FastAPI(title="Magnet", lifespan=server.lifespan)
    app.add_middleware(Gate, max_body=max_body, keys=keys)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> JSONResponse:
        server.check_model(body.model)
        job = await server.submit(Embedding, body)
        await server.finish(job, request)
        return JSONResponse(answers.embeddings(job, server.name, body.encoding_format))

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        server.check_model(body.model)
        if body.best_of not in (None, body.n):
            raise Refused(400, f"best_of is {body.best_of}, which is not supported: leave it out")
        if body.logprobs is not None and body.stream:
            raise Refused(400, "logprobs cannot be streamed: leave out stream or logprobs")
        kind: type[Writing] = Infill if body.suffix else Continuation
        job = await server.submit(kind, body)
        completion = answers.Completion(job, server.name, server.model.text_tokenizer)
        if body.stream:
            usage = bool((body.stream_options or {}).get("include_usage"))
            return _stream(completion.events(server.pieces(job), usage))
        await server.finish(job, request)
        return JSONResponse(completion.whole)

    @app.post("/infill")
    async def infill(body: InfillRequest, request: Request) -> Response:
        if body.n_predict == 0:  # editors warm llama.cpp's cache so
            return JSONResponse({"content": "", "stop": True, "model": server.name})
        job = await server.submit(Infill, body.completion)
        infilling = answers.Infilling(job, server.name)
        if body.stream:
            return _stream(infilling.events(server.pieces(job)))
        await server.finish(job, request)
        return JSONResponse(infilling.whole)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": server.name, "object": "model", "created": 0, "owned_by": "magnet"}
        return {"object": "list", "data": [entry]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "rows_waiting": server.rows_waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


async def _refused(_: Request, fault: Any) -> Response:
    return fault.answer


async def _invalid(_: Request, fault: Any) -> Response:
    found = fault.errors()[0]
    where = ".".join(str(part) for part in found["loc"][1:])
    return error(400, f"{where}: {found['msg']}" if where else str(found["msg"]))


async def _http(_: Request, fault: Any) -> Response:
    return error(fault.status_code, str(fault.detail))


def _raise(event: Any) -> None:
    if isinstance(event, Exception):
        raise Refused(500, f"{type(event).__name__}: {event}") from event


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    async def guarded() -> AsyncIterator[str]:
        try:
            async for event in events:
                yield event
        except Refused as fault:  # the answer has begun, so its status cannot tell
            yield answers.data(json.loads(bytes(fault.answer.body)))

    return StreamingResponse(guarded(), media_type="text/event-stream")
