"""Answers to requests whose bodies nobody will read."""

import asyncio
from contextlib import suppress
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

_AT_ONCE: Final = 2
_SECONDS: Final = 0.1


class Discarding:
    """Answers at once, and throws requests' bodies away a few at a time.

    Most clients send all of a body before they read an answer, so it can't be left where it is.
    What comes after an answer's end uvicorn reads as it comes, of each connection as much as there
    is: at hundreds of megabytes a second a turn of its loop takes tenths of seconds, for which
    probes wait. So an answer isn't ended before its request's body is gone, or has had its time:
    whoever sends slowly does no harm.
    """

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of ``response``, which states its length, before the body is read."""

        async def send_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "more_body": True}
            await send(message)

        await response(scope, receive, send_open)
        async with self._places:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    while (await receive()).get("more_body"):
                        pass
        await send({"type": "http.response.body", "body": b""})
