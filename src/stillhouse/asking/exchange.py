"""One request to a server and what came of it: an answer, a reason to try again, or an error that no retry mends."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Self

import httpx2

from stillhouse.asking.pace import retry_after
from stillhouse.asking.protocol import (
    MalformedError,
    MissingLogprobsError,
    Reply,
    Request,
    complaint,
    parse,
)
from stillhouse.errors import NeedsError, StillhouseError, TeacherError, did_you_mean

LONGEST_PAUSE = 600.0
"""Seconds; a server that asks for more is not waited for."""

_CONNECT = 10.0  # seconds
_AGAIN = frozenset({408, 409, 425, 429})
_NEVER = frozenset({501, 505})
_TOO_LONG = re.compile(
    r"context[ _]length|context window|maximum context|max_model_len|maximum model length|too many tokens"
    r"|prompt is too long",
    re.I,
)


class UnreachableError(TeacherError):
    """Nobody answers at the url."""


class RefusedError(TeacherError):
    """The server refuses one request for what it asks; others may be answered."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Who is asked.

    Attributes:
        url: of the API, such as http://127.0.0.1:8000/v1.
        model: its name there.
        key_env: the environment variable that holds the key, for messages.
        key: never shown.
    """

    url: str
    model: str
    key_env: str
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, url: str, model: str, key_env: str) -> Self:
        """With the key out of the environment; a local server needs none.

        Raises:
            TeacherError: what the variable holds cannot be sent as a key.
        """
        key = os.environ.get(key_env, "").strip()
        if not key.isascii() or any(c.isspace() for c in key):
            raise TeacherError(f"What the environment variable {key_env} holds is no key: it has spaces, or other than "
                               "plain letters. Set it again.")  # fmt: skip
        return cls(url=url.rstrip("/"), model=model, key_env=key_env, key=key)

    @cached_property
    def name(self) -> str:
        """For messages."""
        return f"{self.model!r} at {self.url}"

    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    def scrub(self, text: str) -> str:
        """Server's words without the key, which some servers repeat."""
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        reply: the answer.
        reason: why there is none.
        billed: it may have been worked on, so that it counts in the budget.
        overload: the server says by it that it is asked too much.
        limited: it says so of the rate (status 429).
        pause: seconds that it asks everybody to wait.
        error: no retry mends it.
    """

    reply: Reply | None = None
    reason: str = ""
    billed: bool = False
    overload: bool = False
    limited: bool = False
    pause: float | None = None
    error: StillhouseError | None = None


class Exchange:
    """Sends requests over one pool of connections; use it as `async with`.

    Args:
        server: who is asked.
        connections: at most so many, kept alive.
        timeout: seconds for an answer, from the sending of the request to its last byte.
    """

    def __init__(self, server: Server, connections: int, timeout: float) -> None:
        self.server, self.timeout = server, timeout
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=60)
        patience = httpx2.Timeout(timeout, connect=min(timeout, _CONNECT), pool=None)
        self._http = httpx2.AsyncClient(
            headers=server.headers(), limits=limits, timeout=patience, verify=_certificates()
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._http.__aexit__(*error)

    async def send(self, request: Request) -> Outcome:
        """Ask once."""
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._http.post(f"{self.server.url}/{request.path}", json=dict(request.body))
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:  # nothing was sent
            return Outcome(reason=f"no connection ({_words(error)})")
        except (httpx2.TimeoutException, TimeoutError):
            return Outcome(reason=f"no answer within {self.timeout:g} s", billed=True, overload=True)
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            return Outcome(reason=f"connection lost ({_words(error)})", billed=True)
        if response.status_code == 200:
            return self._accept(request, response.content)
        return await self._refused(request, response)

    def _accept(self, request: Request, content: bytes) -> Outcome:
        try:
            return Outcome(reply=parse(request, content), billed=True)
        except MissingLogprobsError as error:
            return Outcome(billed=True, error=NeedsError(f"{self.server.name} answered with {error}."))
        except MalformedError as error:
            return Outcome(reason=f"a reply out of form: {self.server.scrub(str(error))}", billed=True)

    async def _refused(self, request: Request, response: httpx2.Response) -> Outcome:
        status, (words, code) = response.status_code, complaint(response.content)
        words = self.server.scrub(words)
        reason = f"HTTP {status}" + (f" ({words})" if words else "")
        final = status in _NEVER or (status < 500 and status not in _AGAIN) or code == "insufficient_quota"
        if final:
            return Outcome(error=await self._explain(request, status, words, code))
        pause = retry_after(response.headers)
        if pause is not None and pause > LONGEST_PAUSE:
            error = f"{self.server.name} asks to wait {pause / 60:,.0f} minutes: {reason}. Come back then."
            return Outcome(error=TeacherError(error))
        return Outcome(reason=reason, overload=status in (429, 503), limited=status == 429, pause=pause)

    async def _explain(self, request: Request, status: int, words: str, code: str) -> TeacherError:
        """What a refusal means and what to do about it."""
        who, said = self.server.name, f"(HTTP {status}: {words or 'without a word'})"
        if status in (401, 403):
            state = "is set, and not accepted" if self.server.key else "is not set"
            return TeacherError(
                f"{who} refuses the key {said}. The environment variable {self.server.key_env} {state}. Set it to a "
                "key for this server and model, or name another variable as key_env."
            )
        if status == 404:
            return TeacherError(f"{who} is not found {said}. {await self._hint()}")
        if code == "context_length_exceeded" or _TOO_LONG.search(words):
            return RefusedError(
                f"Example {request.id!r} is too long for {who}: at most {request.reads:,} tokens to read and "
                f"{request.writes:,} to write {said}. Shorten it, or lower max_new_tokens."
            )
        if code == "insufficient_quota" or status == 402:
            return TeacherError(f"{who} says that its account is empty {said}. Fill it; no retry mends that.")
        return RefusedError(f"{who} refuses example {request.id!r} {said}. No retry mends that; change what is asked.")

    async def _hint(self) -> str:
        """What to do where there is no such model, or no such address."""
        try:
            known = await self.models()
        except TeacherError as error:
            return str(error)
        if known is None:
            return "It lists no models either. Does the url end as the server's does, in /v1?"
        if self.server.model in known:
            return "The model is there, so the address is not: try the other api (chat or completions)."
        return did_you_mean(self.server.model, known)

    async def models(self) -> list[str] | None:
        """Names of the models that the server lists, None where it has no list; asking costs nothing.

        Raises:
            UnreachableError: nobody answers.
            TeacherError: the key is refused.
        """
        place = f"{self.server.url}/models"
        try:
            async with asyncio.timeout(self.timeout):
                response = await self._http.get(place)
        except (httpx2.TransportError, httpx2.DecodingError, TimeoutError) as error:
            raise UnreachableError(f"{place} does not answer: {_words(error)}. Is the server up?") from error
        if response.status_code in (401, 403):
            nothing = Request("", "completions", {}, 0)
            words = self.server.scrub(complaint(response.content)[0])
            raise await self._explain(nothing, response.status_code, words, "")
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return None


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust; read once, because that takes longer than a short answer."""
    return httpx2.create_ssl_context()


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
