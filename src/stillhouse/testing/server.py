"""A small HTTP server that speaks OpenAI's protocol over a real model, and misbehaves where it is told to.

For tests of whatever asks a server: greedy text is what the same model writes in this process, log-probabilities are
the model's own, in vLLM's schema, and every fault that servers were seen to have can be drawn from a seed.

    with serve("path/to/model", faults=Faults(error=0.2)) as server:
        httpx.post(f"{server.url}/chat/completions", json={"model": "teacher", "messages": [...]})

    python -m stillhouse.testing.server MODEL --port 8000 --error-rate 0.2

Endpoints: GET /v1/models, POST /v1/chat/completions, POST /v1/completions with vLLM's extensions. No streaming, one
choice a request. It listens on the loopback alone. One model answers one request at a time and draws from torch's
global state: in a process that draws random numbers meanwhile, start the server as a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stillhouse.models import CausalLM
from stillhouse.records import fingerprint
from stillhouse.registry import explain
from stillhouse.testing._backends import Answering, Asked, Backend, ModelBackend, Order
from stillhouse.testing._faults import RATES, Faults, RateLimit
from stillhouse.testing._http import HANG_UP, Http, Reply
from stillhouse.testing._protocol import RefusedError, error_body, models_body, read_request

__all__ = ["Faults", "Seen", "Server", "answering", "serve"]

Body = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """A request for text that reached the server with the right key.

    Attributes:
        path: of the endpoint.
        raw: the body.
        attempt: how often the very same was asked before.
        fault: what was done instead of answering, one of `Faults`' rates or limits; None where it was answered.
    """

    path: str
    raw: bytes
    attempt: int
    fault: str | None

    @property
    def body(self) -> Body:
        """What the body says."""
        return json.loads(self.raw)


def answering(function: Callable[[Asked], str]) -> Backend[str]:
    """A back end without a model, for `serve`: answers come from a function, as fast as it is.

    Args:
        function: takes a completion's prompt, or the messages of a conversation, and returns text; called by many
            threads at once.
    """
    return Answering(function)


@contextmanager
def serve(
    model: str | CausalLM | Backend[Any],
    *,
    name: str = "teacher",
    faults: Faults = Faults(),  # noqa: B008 -- a value
    key: str | None = None,
    port: int = 0,
    max_logprobs: int = 20,
) -> Generator[Server, None, None]:
    """A server that listens for the time of the block.

    Args:
        model: a folder or name to load, a loaded model, or what `answering` returns.
        name: by which requests call the model.
        faults: how it misbehaves.
        key: that requests must bear; a wrong one is told back in full, as some servers do.
        port: on the loopback; 0 for any that is free.
        max_logprobs: entries that may be asked for at a position, -1 for the whole vocabulary; as vLLM's flag.

    Raises:
        ModelError: the model cannot be loaded.
        OSError: the port is taken.
    """
    loaded = CausalLM.load(model) if isinstance(model, str) else model
    backend = ModelBackend(loaded, max_logprobs) if isinstance(loaded, CausalLM) else loaded
    server = Server(backend, name, faults, key, port)
    try:
        yield server
    finally:
        server.close()


class Server:
    """A server that listens; `serve` makes one.

    Attributes:
        port: on the loopback.
        url: what clients call the base URL.
    """

    def __init__(self, backend: Backend[Any], name: str, faults: Faults, key: str | None, port: int) -> None:
        self._backend, self._name, self._faults, self._key = backend, name, faults, key
        self._limit = RateLimit(faults.per_second)
        self._lock, self._closing = Lock(), Lock()
        self._seen: list[Seen] = []
        self._attempts: Counter[str] = Counter()
        self._answers = self._sent = 0
        self._stopping, self._stopped = Event(), Event()
        self._http = Http(self, port)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name=self.url)
        self._thread.start()

    @property
    def seen(self) -> list[Seen]:
        """What was asked so far, in the order it came."""
        with self._lock:
            return list(self._seen)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has stopped of itself, by `Faults.die_after`; whether it has."""
        return self._stopped.wait(timeout)

    def close(self) -> None:
        """Stop listening, cut what is open, and wait for those who were answering; again, it does nothing."""
        with self._closing:
            if self._stopped.is_set():
                return
            self._stopping.set()
            self._http.shutdown()
            self._thread.join()
            self._http.cut()
            self._http.server_close()
            self._stopped.set()

    def look(self, path: str, key: str) -> Reply:
        """Answer GET /v1/models."""
        if refused := self._unauthorized(key):
            return refused
        if path != "/v1/models":
            return Reply.of(404, RefusedError("Not Found", status=404).body())
        return Reply.of(200, models_body(self._name, self._backend.context))

    def reply(self, path: str, raw: bytes, key: str) -> Reply | None:
        """Answer a request for text, or do what is done instead; None never to answer."""
        if refused := self._unauthorized(key):
            return refused
        asked = _hash(path, raw)
        wait = self._limit.wait(self._faults.retry_after)
        with self._lock:
            attempt = self._attempts[asked]
            self._attempts[asked] += 1
            fault = "per_second" if wait is not None else self._faults.instead(asked, attempt)
            self._seen.append(Seen(path, raw, attempt, fault))
        if self._stopping.wait(self._faults.delay(asked, attempt)):
            return HANG_UP
        if fault in (None, "truncate"):
            reply = self._answer(path, raw, asked, attempt)
            return dataclasses.replace(reply, sent=0.5) if fault else self._counted(reply)
        return self._instead(fault, self._faults.retry_after if wait is None else wait)

    def _unauthorized(self, key: str) -> Reply | None:
        if self._key is None or key == f"Bearer {self._key}":
            return None
        message = f"Incorrect API key provided: {key.removeprefix('Bearer ')}."
        return Reply.of(401, error_body(message, "invalid_request_error", "invalid_api_key"))

    def _answer(self, path: str, raw: bytes, asked: str, attempt: int) -> Reply:
        try:
            request = read_request(path, raw)
            if request.model not in (None, self._name):
                raise RefusedError(f"The model `{request.model}` does not exist.", "model", status=404)
            if self._faults.text_keys:
                request = request.model_copy(update={"return_tokens_as_token_ids": False, "return_token_ids": False})
            written = []
            for job in request.jobs():
                with self._backend.turn():
                    if self._stopping.is_set():
                        return HANG_UP
                    written.append(self._backend.write(Order(job, self._faults, asked, attempt)))
        except RefusedError as error:
            return Reply.of(error.status, error.body())
        return Reply.of(200, request.body(self._name, written))

    def _counted(self, reply: Reply) -> Reply:
        if self._faults.die_after is None or reply.status != 200:
            return reply
        with self._lock:
            self._answers += 1
            return dataclasses.replace(reply, counts=True) if self._answers <= self._faults.die_after else HANG_UP

    def answered(self) -> None:
        """An answer has left; the last one ends the server."""
        with self._lock:
            self._sent += 1
            last = self._sent == self._faults.die_after
        if last:
            Thread(target=self.close).start()  # which waits for the thread that says this

    def _instead(self, fault: str, wait: float) -> Reply | None:
        if fault == "error":
            return Reply.of(500, error_body("Internal server error", "InternalServerError", 500))
        if fault == "unavailable":
            return Reply.of(
                503, error_body("The engine is overloaded, try again later", "ServiceUnavailableError", 503)
            )
        if fault in ("limited", "per_second"):
            body = error_body("Rate limit reached for requests", "requests", "rate_limit_exceeded")
            return Reply.of(429, body, **{"Retry-After": self._faults.retry(wait)})
        if fault == "garbage":
            return Reply(200, b"<html><body><h1>It works!</h1></body></html>", {"Content-Type": "text/html"})
        if fault == "choiceless":
            return Reply.of(200, {"object": "chat.completion", "model": self._name, "status": "ok"})
        return None if fault == "stall" else HANG_UP


def _hash(path: str, raw: bytes) -> str:
    """Of what is asked, however its JSON is written."""
    try:
        return fingerprint([path, json.loads(raw)])
    except ValueError:
        return fingerprint([path, repr(raw)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stillhouse.testing.server", description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="a model's folder or name; left out, every answer is --answer's")
    parser.add_argument("--answer", default="{asked}", metavar="TEXT", help="of every answer, where there is no model")
    parser.add_argument("--port", type=int, default=8000, help="on the loopback; 0 for any that is free")
    parser.add_argument("--name", default="teacher", help="by which requests call the model")
    parser.add_argument("--key-env", metavar="NAME", help="environment variable with the key that requests must bear")
    parser.add_argument("--max-logprobs", type=int, default=20, help="entries at a position; -1 for the vocabulary")
    group = parser.add_argument_group("faults", "as the attributes of Faults")
    for setting in dataclasses.fields(Faults):
        flag = f"--{setting.name.replace('_', '-')}{'-rate' * (setting.name in RATES)}"
        group.add_argument(flag, dest=setting.name, metavar="VALUE", default=argparse.SUPPRESS)
    return parser


def main(given: list[str] | None = None) -> None:
    """Serve until interrupted, or until the server dies as it was told to."""
    parser = _parser()
    told = vars(parser.parse_args(given))
    try:
        settings = {f.name: told[f.name] for f in dataclasses.fields(Faults) if f.name in told}
        faults = TypeAdapter(Faults).validate_python(settings)
    except ValidationError as error:
        parser.error(explain(error))
    if (variable := told["key_env"]) and variable not in os.environ:
        parser.error(f"--key-env names {variable}, which the environment does not have")
    model = told["model"] or answering(lambda asked: told["answer"].replace("{asked}", _last(asked)))
    how: dict[str, Any] = {name: told[name] for name in ("name", "port", "max_logprobs")}
    key = os.environ[variable] if variable else None
    with serve(model, faults=faults, key=key, **how) as server, suppress(KeyboardInterrupt):
        print(f"{told['name']} is served at {server.url}", flush=True)
        server.wait()


def _last(asked: Asked) -> str:
    return asked if isinstance(asked, str) else asked[-1]["content"]


if __name__ == "__main__":
    main()
