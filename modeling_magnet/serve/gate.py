"""Checks the size, the pace and the key of a request before it is read."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from prometheus_client import Counter
from starlette.responses import JSONResponse

REQUESTS = Counter("magnet_requests", "Requests", ["path", "status"])

KEPT_OPEN = ("/health", "/metrics")
"""Paths that need no key."""

SECONDS = 30
"""The time in which a request's body must arrive."""


def error(status: int, message: str, code: str | None = None, **headers: str) -> JSONResponse:
    """An error in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return JSONResponse(content, status, {name.replace("_", "-"): v for name, v in headers.items()})


class Gate:
    """Middleware: refuses a wrong key and a body that is too large or too slow, and counts answers.

    Args:
        app: the next application.
        max_body: the most bytes in a request.
        keys: accepted keys. If empty, every request is accepted.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], max_body: int, keys: Sequence[str] = ()
    ):
        self.app, self.max_body = app, max_body
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse the request, or read its body and pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                REQUESTS.labels(path, message["status"]).inc()
            await send(message)

        body = b""
        refusal = self._without_key(scope)
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._body(receive), SECONDS)
            except TimeoutError:
                refusal = error(408, f"the body did not arrive within {SECONDS} s",
                                connection="close")  # fmt: skip
            except ValueError as fault:
                refusal = error(413, str(fault), connection="close")
        if refusal is not None:
            await refusal(scope, receive, counted)
            return
        unread = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return unread.pop() if unread else await receive()

        await self.app(scope, replay, counted)

    async def _body(self, receive: Any) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body:
                raise ValueError(f"the body is larger than the limit of {self.max_body} bytes")
            if not message.get("more_body", False):
                return b"".join(parts)

    def _without_key(self, scope: dict[str, Any]) -> JSONResponse | None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        right = [hmac.compare_digest(key.strip(), each) for each in self.keys]  # all of them
        if (
            scope["path"] in KEPT_OPEN
            or not self.keys
            or (scheme.lower() == b"bearer" and any(right))
        ):
            return None
        message = "the API key is missing or wrong: send Authorization: Bearer KEY"
        return error(401, message, "invalid_api_key", WWW_Authenticate="Bearer")
