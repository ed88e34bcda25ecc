"""HTTP/1.1 by the standard library: a thread for each connection, all of which end promptly when the server does."""

from __future__ import annotations

import json
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


@dataclass(frozen=True)
class Reply:
    """What is sent; with status 0 nothing, and the connection ends.

    Attributes:
        sent: how much of the body is; the connection ends after less than all.
        counts: towards the answers that a server gives before it dies.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    sent: float = 1.0
    counts: bool = False

    @classmethod
    def of(cls, status: int, body: dict[str, Any], **headers: str) -> Reply:
        """Of JSON."""
        return cls(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


HANG_UP = Reply(0, b"", sent=0.0)


class Owner(Protocol):
    """Who knows what to reply."""

    def look(self, path: str, key: str) -> Reply:
        """To a GET."""
        ...

    def reply(self, path: str, raw: bytes, key: str) -> Reply | None:
        """To a POST; None never."""
        ...

    def answered(self) -> None:
        """A reply that counts has left."""
        ...


class Http(ThreadingHTTPServer):
    """Connections and their threads, all of which end when it does."""

    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 256

    def __init__(self, owner: Owner, port: int) -> None:
        self.owner = owner
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and know of it."""
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that ended."""
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        """End every connection, so that whoever reads from one reads its end."""
        for connection in tuple(self._open):
            with suppress(OSError):  # its thread was faster
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong here."""
        if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up is none of our errors
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, the second of which would wait for a receipt

    def do_GET(self) -> None:
        self._send(self._owner().look(self._path(), self._key()))

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = self._owner().reply(self._path(), raw, self._key())
        if reply is None:
            self.connection.recv(1)  # comes back when the client gives up or the server ends
            reply = HANG_UP
        self._send(reply)
        if reply.counts:
            self._owner().answered()

    def _owner(self) -> Owner:
        assert isinstance(self.server, Http)
        return self.server.owner

    def _path(self) -> str:
        return self.path.partition("?")[0].rstrip("/")

    def _key(self) -> str:
        return self.headers.get("Authorization", "")

    def _send(self, reply: Reply) -> None:
        self.close_connection = self.close_connection or reply.sent < 1
        if not reply.status:
            return
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: int(reply.sent * len(reply.body))])

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing; `Server.seen` knows."""
