"""A W&B server small enough to read: it keeps the history and summary that the real client sends, and answers what a
client that resumes a run asks."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any


class WandBServer(ThreadingHTTPServer):
    """On a free port of the loopback; `runs` holds history by line number and the latest summary, by the run's id."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def points(self, run_folder: Path) -> Iterator[tuple[str, int | None, float]]:
        """What the pages of the folder's run show."""
        identifier = json.loads((run_folder / "wandb" / "stillhouse.json").read_text())["id"]
        run = self.runs[identifier]
        for line in run["history"].values():
            row = json.loads(line)
            model = next(key for key in row if not key.startswith("_")).partition("/")[0]
            clock = next(key for key in (f"{model}/evaluation/step", f"{model}/step") if key in row)
            shown = {k: v for k, v in row.items() if not k.startswith("_") and not k.endswith("/step")}
            yield from ((name, row[clock], value) for name, value in shown.items())
        yield from ((name, None, value) for name, value in run["summary"].items() if name.startswith("evaluation/"))

    def query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertBucket(" in query:
            run = self.runs.setdefault(variables["name"], {"history": {}, "summary": {}})
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
            bucket = {"id": "r", "name": variables["name"], "displayName": "run", "description": None, "config": "{}"}
            bucket |= {"sweepName": None, "historyLineCount": len(run["history"]), "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": not run["history"]}}
        if "RunResumeStatus" in query:
            return {"model": self._resumed(variables["name"])}
        if "createRunFiles(" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            viewer = {"id": "v", "entity": "team", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": viewer}
        return {}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        lines = list(run["history"].values())
        bucket = {"id": "r", "name": name, "displayName": "run", "config": "{}", "tags": [], "notes": None}
        bucket |= {"summaryMetrics": json.dumps(run["summary"]), "wandbConfig": '{"t": 1}'}
        bucket |= {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        bucket |= {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]"}
        return {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}, "bucket": bucket}

    def stream(self, name: str, files: dict[str, Any]) -> None:
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], history["offset"]):
            self.runs[name]["history"][number] = line
        for text in files.get("wandb-summary.json", {"content": []})["content"]:
            self.runs[name]["summary"] = json.loads(text)


class _Handler(BaseHTTPRequestHandler):
    server: WandBServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer = {"data": self.server.query(asked["query"], asked.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def serving() -> Iterator[WandBServer]:
    server = WandBServer()
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
