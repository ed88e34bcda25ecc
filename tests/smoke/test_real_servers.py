"""The teacher behind an API against servers that others wrote, with the teacher of the package behind them.

A server is tested where an environment variable names its command, each installed into an environment of its own; see
"Servers that were tried" in docs/servers.md:

    STILLHOUSE_TRANSFORMERS_SERVE=/path/to/bin/transformers STILLHOUSE_VLLM=/path/to/bin/vllm \
        python -m pytest tests/smoke/test_real_servers.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx2
import pytest
import torch

from stillhouse.asking.store import RequestStore
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import NeedsError, TeacherError
from stillhouse.locating import EMBEDDED
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.shortcuts import problems
from stillhouse.signals.kinds import Dense, TopK
from stillhouse.teachers.base import Answer
from stillhouse.teachers.hf import HFTeacher
from stillhouse.teachers.server import ServerTeacher
from stillhouse.testing import _check_causal, _check_signal

pytestmark = pytest.mark.slow

FOLDER = str(EMBEDDED["stillhouse:arithmetic"])
ASKED = [dataclasses.replace(problem, completion=None) for problem in problems(16, seed=11)]
GREEDY = Sampling(max_new_tokens=160)
PATIENCE = 240.0
"""Seconds for a server to come up; vLLM takes half a minute on two quiet cores."""


class Kind(NamedTuple):
    """How a server is started: its command's variable, what it calls the model, arguments and environment."""

    variable: str
    model: str
    arguments: tuple[str, ...]
    environment: dict[str, str]


TRANSFORMERS = Kind(
    "STILLHOUSE_TRANSFORMERS_SERVE", FOLDER, ("serve", FOLDER, "--device", "cpu", "--dtype", "float32"), {}
)
VLLM = Kind(
    "STILLHOUSE_VLLM",
    "teacher",
    ("serve", FOLDER, "--served-model-name", "teacher", "--dtype", "float32", "--enforce-eager",
     "--max-logprobs", "64"),
    {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"},
)  # fmt: skip


class Program:
    """A server as a process of its own, which can be killed and started again at the same address.

    Attributes:
        model: its name there.
        home: its folder of the Hugging Face cache, empty at first.
    """

    def __init__(self, kind: Kind, home: Path) -> None:
        command = os.environ.get(kind.variable)
        if not command:
            pytest.skip(
                f"{kind.variable} does not name this server's command; docs/servers.md says how it is installed"
            )
        self.kind, self.model, self.home = kind, kind.model, home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.command = [command, *kind.arguments, "--host", "127.0.0.1", "--port", str(self.port)]
        self.log = home / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it answers."""
        environment = {**os.environ, **self.kind.environment, "HF_HOME": str(self.home)}
        environment["PATH"] = f"{Path(self.command[0]).parent}{os.pathsep}{environment['PATH']}"  # its own tools first
        environment.pop("PYTHONPATH", None)  # it must see nothing of ours
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + PATIENCE
        while not self._healthy():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                pytest.fail(f"{' '.join(self.command)} does not come up: {self.log.read_text()[-3000:]}")
            time.sleep(0.2)

    def _healthy(self) -> bool:
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/health", timeout=5.0).status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """It and its children, at once."""
        assert self.process is not None
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


def run(kind: Kind, home: Path) -> Iterator[Program]:
    program = Program(kind, home)
    program.start()
    yield program
    if program.process is not None:
        program.kill()


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    yield from run(TRANSFORMERS, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    yield from run(VLLM, tmp_path_factory.mktemp("vllm"))


@pytest.fixture(params=["transformers_serve", "vllm"])
def program(request: pytest.FixtureRequest) -> Program:
    return request.getfixturevalue(request.param)


Make = Callable[..., ServerTeacher]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(program: Program, **settings: Any) -> ServerTeacher:
        given = {"store": str(tmp_path / "r.sqlite"), "timeout": 120.0, "retries": 2, "concurrency": 4, **settings}
        return ServerTeacher(program.url, program.model, **given)

    return build


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM.load(FOLDER, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def wanted() -> list[Answer]:
    """What the same model writes in this process."""
    with HFTeacher("stillhouse:arithmetic").open() as session:
        return session.answer(ASKED, GREEDY)


def said(answers: list[Answer]) -> list[tuple[str, bool]]:
    return [(answer.text, answer.finished) for answer in answers]


# Both.


def test_greedy_conversations_are_answered_as_in_this_process(
    program: Program, make: Make, wanted: list[Answer]
) -> None:
    with make(program).open() as session:
        answers = session.answer(ASKED, GREEDY)
    assert said(answers) == said(wanted)
    assert [a.tokens for a in answers] == [a.tokens + 1 for a in wanted]  # both servers count the end token


def test_greedy_completions_of_text_are_answered_as_in_this_process(
    program: Program, make: Make, lm: CausalLM, wanted: list[Answer]
) -> None:
    renderer = Renderer(lm.tokenizer, lm.context)
    texts = [str(lm.tokenizer.decode(renderer.prompt_ids(example))) for example in ASKED]
    assert texts[0].startswith("<bos><user>")
    asked = [Example(id=example.id, prompt=text) for example, text in zip(ASKED, texts, strict=True)]
    with make(program, api="completions").open() as session:
        assert said(session.answer(asked, GREEDY)) == said(wanted)


def test_an_answer_that_is_cut_off_says_so(program: Program, make: Make, wanted: list[Answer]) -> None:
    with make(program).open() as session:
        (answer,) = session.answer(ASKED[:1], Sampling(max_new_tokens=5))
    assert not answer.finished
    assert answer.tokens == 5
    assert wanted[0].text.startswith(answer.text)


def test_a_server_that_is_killed_and_started_again(program: Program, make: Make, wanted: list[Answer]) -> None:
    teacher = make(program, retries=1, concurrency=2)
    assert program.process is not None

    def kill_after(count: int) -> None:
        with RequestStore(teacher.store) as store:
            while store.counts().answers < count:
                time.sleep(0.01)
        program.kill()

    try:
        with teacher.open() as session:
            killing = Thread(target=kill_after, args=(4,))
            killing.start()
            with pytest.raises(TeacherError, match=r"did not answer example .*answers are kept in .*goes on") as caught:
                session.answer(ASKED, GREEDY)
            killing.join()
        assert "no connection" in str(caught.value)
        with teacher.open() as session:
            assert session.found["model"].startswith("not reached, what is stored is read")
            keys = [session._request(example, GREEDY).key(session.client.teacher) for example in ASKED]
            found = session.client.store.get_many(keys)
            kept = [example for example, key in zip(ASKED, keys, strict=True) if key in found]
            assert 4 <= len(kept) < len(ASKED)
            assert [a.text for a in session.answer(kept, GREEDY)] == [
                a.text for e, a in zip(ASKED, wanted, strict=True) if e in kept
            ]
    finally:
        if program.process is None:
            program.start()
    with teacher.open() as session:
        assert said(session.answer(ASKED, GREEDY)) == said(wanted)
        assert session.client.tally.stored == len(kept)
        assert session.client.tally.paid.calls == len(ASKED) - len(kept)


# transformers serve.


def test_transformers_serve_refuses_log_probabilities_and_is_refused(transformers_serve: Program, make: Make) -> None:
    seen = r"promises the 5 likeliest.*HTTP 422: Unexpected fields in the request: \{'return_tokens_as_token_ids'\}"
    with pytest.raises(NeedsError, match=seen):
        make(transformers_serve, tokenizer=FOLDER, logprobs=5).open()


def test_transformers_serve_says_which_field_it_does_not_know(transformers_serve: Program, make: Make) -> None:
    with (
        make(transformers_serve, extra={"top_k": 5}).open() as session,
        pytest.raises(TeacherError, match=rf"refuses example '{ASKED[0].id}' \(HTTP 422: Unexpected fields.*'top_k'"),
    ):
        session.answer(ASKED[:1], GREEDY)


def test_transformers_serve_takes_no_token_ids(transformers_serve: Program, make: Make) -> None:
    with (
        make(transformers_serve, api="completions", tokenizer=FOLDER).open() as session,
        pytest.raises(TeacherError, match=r"HTTP 400: prompt must be a string"),
    ):
        session.answer(ASKED[:1], GREEDY)


def test_transformers_serve_lists_its_cache_and_not_what_it_serves(transformers_serve: Program, make: Make) -> None:
    hub = transformers_serve.home / "hub"
    with make(transformers_serve).open() as session:
        assert session.found["model"] == "the server lists no models; the first request will tell"  # there is no cache
    revision = hub / "models--someone--else" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    revision.mkdir(parents=True)
    (revision / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    (hub / "models--someone--else" / "refs").mkdir()
    (hub / "models--someone--else" / "refs" / "main").write_text(revision.name)
    with make(transformers_serve).open() as session:
        told = "the server does not list it, and answers for it (listed: someone/else)"
        assert session.found["model"] == told
    other = dataclasses.replace(make(transformers_serve), model="someone/els")
    with pytest.raises(TeacherError, match=r"Server is pinned to .*Did you mean 'someone/else'"):
        other.open()


HOT = Sampling(max_new_tokens=160, temperature=1.5)
ONE = [Example(id=f"draw-{n}", prompt=ASKED[0].prompt) for n in range(6)]


def test_transformers_serve_draws_where_it_is_told_to(transformers_serve: Program, make: Make, tmp_path: Path) -> None:
    with make(transformers_serve).open() as session:
        assert len({a.text for a in session.answer(ONE, HOT)}) == 1  # the model's own settings say greedy, and win
    told = {"extra": {"generation_config": json.dumps({"do_sample": True})}, "concurrency": 1}
    with make(transformers_serve, **told).open() as session:
        first = session.answer(ONE, HOT)
    assert len({a.text for a in first}) > 1
    with make(transformers_serve, **told, store=str(tmp_path / "fresh.sqlite")).open() as session:
        assert session.answer(ONE[::-1], HOT)[::-1] == first


# vLLM.


def test_vllm_keeps_its_promise(vllm: Program, make: Make, lm: CausalLM) -> None:
    rendered = Renderer(lm.tokenizer, lm.context).render(problems(4, seed=12))
    batch = TokenBatch.of(rendered)
    with make(vllm, tokenizer=FOLDER, logprobs=20).open() as session:
        assert session.found["model"] == "the server lists it"
        assert session.found["scores by"] == "prompt_logprobs"
        assert session.found["written and scored lie apart by"] < 1e-2
        _check_signal(session, batch, session.provides, live=True)
        _check_causal(session, batch)
        scored = session.score(batch)
    with torch.no_grad():
        logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT)).flatten(0, 1)
    own = TopK.of(Dense(logits, lm.vocabulary), 20)
    real = (batch.examples_BT() >= 0).flatten()
    torch.testing.assert_close(scored.logprobs_NK[real], own.logprobs_NK[real], atol=1e-2, rtol=0)
    torch.testing.assert_close(scored.tail_N[real].exp(), own.tail_N[real].exp(), atol=1e-4, rtol=0)
    assert scored.logprobs_NK[~real].isnan().all()


def test_vllm_says_how_many_log_probabilities_it_gives(vllm: Program, make: Make) -> None:
    with pytest.raises(NeedsError, match=r"promises the 65 likeliest.*HTTP 400.*64.*--max-logprobs 65 or more"):
        make(vllm, tokenizer=FOLDER, logprobs=65).open()


def test_vllm_answers_token_ids_as_text(vllm: Program, make: Make, wanted: list[Answer]) -> None:
    with make(vllm, api="completions", tokenizer=FOLDER).open() as session:
        assert said(session.answer(ASKED, GREEDY)) == said(wanted)


def test_vllm_has_no_such_model(vllm: Program, make: Make) -> None:
    with pytest.raises(TeacherError, match=r"does not list 'teach'.*HTTP 404.*Did you mean 'teacher'"):
        dataclasses.replace(make(vllm), model="teach").open()


def test_vllm_refuses_what_is_too_long(vllm: Program, make: Make) -> None:
    with make(vllm).open() as session, pytest.raises(TeacherError, match=f"Example '{ASKED[0].id}' is too long"):
        session.answer(ASKED[:1], Sampling(max_new_tokens=2000))


def test_vllm_leaves_out_in_silence_what_it_does_not_know(vllm: Program, make: Make, wanted: list[Answer]) -> None:
    with make(vllm, extra={"top_kay": 5}).open() as session:
        assert said(session.answer(ASKED[:1], GREEDY)) == said(wanted[:1])


def test_vllm_draws_by_seed_and_example(vllm: Program, make: Make, tmp_path: Path) -> None:
    with make(vllm).open() as session:
        first = session.answer(ONE, HOT)
    assert len({a.text for a in first}) > 1
    with make(vllm, store=str(tmp_path / "fresh.sqlite")).open() as session:
        assert session.answer(ONE[::-1], HOT)[::-1] == first
