"""The page in a real browser: drawn whole, silent on the console, asking the network for nothing, fitting a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from report_run import lost, write_run

from stillhouse.report.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser found; looked for {', '.join(BROWSERS)}")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

# A test-only page around the report: opens every fold, measures, and writes what it found as JSON.
WRAPPER = """<!doctype html><title>wrapper</title>
<iframe src="report.html" style="width:380px;height:900px;border:0"></iframe>
<iframe src="report.html" style="width:1200px;height:900px;border:0"></iframe>
<pre id="found"></pre>
<script>
function measure(frame) {
  const page = frame.contentDocument;
  page.querySelectorAll("details").forEach(fold => fold.open = true);
  const figures = [...page.querySelectorAll("svg[role=img]")], clipped = [], overlapping = [];
  for (const figure of figures) {
    const frame = figure.getBoundingClientRect();
    const texts = [...figure.querySelectorAll("text")].map(node => [node.textContent, node.getBoundingClientRect()]);
    for (const [text, box] of texts)
      if (box.left < frame.left - 12 || box.right > frame.right + 12) clipped.push(text);
      else if (box.top < frame.top - 2 || box.bottom > frame.bottom + 2) clipped.push(text);
    for (let i = 0; i < texts.length; i++)
      for (let j = i + 1; j < texts.length; j++) {
        const [a, b] = [texts[i][1], texts[j][1]];
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && tall > 4) overlapping.push([texts[i][0], texts[j][0]]);
      }
  }
  return {
    wide: page.documentElement.scrollWidth, room: page.documentElement.clientWidth, clipped, overlapping,
    figures: figures.map(figure => [figure.getBoundingClientRect().width, figure.getBoundingClientRect().height]),
    loaded: frame.contentWindow.performance.getEntriesByType("resource").map(entry => entry.name),
    scripts: page.scripts.length,
    headline: page.querySelector("h1").innerText,
  };
}
addEventListener("load", () => {
  document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measure));
});
</script>
"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str]

    def __init__(self, *args: Any, asked: list[str], **named: Any) -> None:
        self.asked = asked
        super().__init__(*args, **named)

    def log_message(self, format: str, *args: object) -> None:
        self.asked.append(self.path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run")
    write_report(run)
    return run


@pytest.fixture
def server(run: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(run), asked=asked)) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", asked
        serving.shutdown()
        thread.join()


def visit(address: str, folder: Path) -> tuple[str, list[str]]:
    """Open an address; answers the final document and what the console said."""
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r"CONSOLE.*", done.stderr)


def test_the_page_is_whole_and_silent(run: Path, tmp_path: Path) -> None:
    document, console = visit((run / "report.html").as_uri(), tmp_path)
    assert console == []
    assert document.count('role="img"') == 12


def test_the_console_would_tell(run: Path, tmp_path: Path) -> None:
    bad = (run / "report.html").read_text().replace("</body>", '<img src="https://example.invalid/x.png"></body>')
    (run / "bad.html").write_text(bad)
    assert "Content Security Policy" in " ".join(visit((run / "bad.html").as_uri(), tmp_path)[1])


@pytest.mark.parametrize("gone_wrong", [False, True])
def test_it_fits_a_phone_and_asks_for_nothing(
    run: Path, server: tuple[str, list[str]], tmp_path: Path, gone_wrong: bool
) -> None:
    if gone_wrong:
        (run / "evaluation.json").write_text(json.dumps(lost()))
        write_report(run)
        assert "Failure signature" in (run / "report.html").read_text(encoding="utf-8")
    (run / "wrapper.html").write_text(WRAPPER)
    address, asked = server
    document, console = visit(f"{address}/wrapper.html", tmp_path)
    found = re.search(r'<pre id="found">(.*?)</pre>', document, re.DOTALL)
    assert found
    for measured in json.loads(unescape(found[1])):
        assert measured["wide"] <= measured["room"]
        assert len(measured["figures"]) == 12
        assert all(width > 200 and height > 50 for width, height in measured["figures"])
        assert measured["clipped"] == []
        assert measured["overlapping"] == []
        assert measured["scripts"] == 0
        assert measured["loaded"] == []
        assert measured["headline"].startswith("The student keeps 84")
    assert console == []
    assert set(asked) <= {"/wrapper.html", "/report.html", "/favicon.ico"}
