"""A server of the OpenAI protocol in few lines, which answers as a test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answering = Callable[[str, dict[str, Any]], tuple[int, dict[str, str], Any]]
"""From a path and a body to a status, headers and a body; None as the body closes the connection unanswered."""


def chat_reply(
    text: str | None, *, ended: str = "stop", read: int = 7, written: int = 3, **more: Any
) -> dict[str, Any]:
    """The body of an answer to `chat/completions`."""
    choice = {"index": 0, "finish_reason": ended, "message": {"role": "assistant", "content": text, **more}}
    return {"choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": written}}


def echo_last(path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
    """Answers what was asked, once more."""
    assert path == "/v1/chat/completions", path
    return 200, {}, chat_reply("You said " + body["messages"][-1]["content"])


class SmallServer:
    """Attributes:
    url: of the API.
    seen: every body that came, with its path and headers.
    most: requests under way at once, at most.
    """

    def __init__(self, answering: Answering) -> None:
        self.answering = answering
        self.seen: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.models: list[str] | None = ["small"]
        self.most = self._now = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:
                return

            def do_GET(self) -> None:
                if server.models is None:
                    self._send(500, {}, {"error": "offline"})
                else:
                    self._send(200, {}, {"data": [{"id": name} for name in server.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with server.lock:
                    server.seen.append((self.path, body, dict(self.headers)))
                    server._now += 1
                    server.most = max(server.most, server._now)
                try:
                    status, headers, answer = server.answering(self.path, body)
                finally:
                    with server.lock:
                        server._now -= 1
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                else:
                    self._send(status, headers, answer)

            def _send(self, status: int, headers: dict[str, str], answer: Any) -> None:
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(content)
                except (BrokenPipeError, ConnectionResetError):  # the client has gone
                    self.close_connection = True

            def finish(self) -> None:
                try:
                    super().finish()
                except (OSError, ValueError):
                    return

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request: Any, client_address: Any) -> None:
                return  # connections that a test cut

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@contextmanager
def small_server(answering: Answering = echo_last) -> Generator[SmallServer, None, None]:
    """Serve while the block lasts."""
    server = SmallServer(answering)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
