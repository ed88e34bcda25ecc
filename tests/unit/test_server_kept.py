"""What a server said about its own text is kept with it, and found again by the text's tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from building import MakeStudent

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered, Renderer, Role
from stillhouse.errors import NeedsError
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.signals.kinds import Dense, TopK
from stillhouse.teachers._said import sequences
from stillhouse.teachers.server import ServerSession, ServerTeacher
from stillhouse.testing.server import Faults, Seen, Server, serve

K = 10
GREEDY = Sampling(max_new_tokens=12)
ASKED = [Example(id=f"e{n}", prompt=f"Ann has {n} apples") for n in range(4)]


@pytest.fixture(scope="module")
def lm(make_student: MakeStudent) -> CausalLM:
    return make_student(seed=4).lm


@pytest.fixture(scope="module")
def server(lm: CausalLM) -> Iterator[Server]:
    with serve(lm) as server:
        yield server


Make = Callable[..., ServerTeacher]


@pytest.fixture
def make(lm: CausalLM, tmp_path: Path) -> Make:
    lm.tokenizer.save_pretrained(tmp_path / "tokenizer")
    given = {"api": "completions", "tokenizer": str(tmp_path / "tokenizer"), "logprobs": K, "retries": 1}

    def build(server: Any, **settings: Any) -> ServerTeacher:
        return ServerTeacher(server.url, "teacher", **{**given, "store": str(tmp_path / "r.sqlite"), **settings})

    return build


def as_written(lm: CausalLM, sampling: Sampling = GREEDY) -> list[Rendered]:
    """The questions and the model's own tokens after them, which its text need not become again."""
    renderer, found = Renderer(lm.tokenizer, lm.context), []
    for example in ASKED:
        prompt = renderer.prompt_ids(example)
        ((ids, ended),) = lm.write([prompt], sampling)
        whole = [*prompt, *ids, *(lm.end_ids() if ended else [])]
        trained = [place >= len(prompt) for place in range(1, len(whole))]
        roles = [int(Role.ANSWER if t else Role.PROMPT) for t in trained]
        found.append(Rendered(example.id, whole[:-1], whole[1:], trained, roles, 1))
    return found


def scorings(seen: list[Seen]) -> list[dict[str, Any]]:
    return [one.body for one in seen if "prompt_logprobs" in one.body]


def counts(session: ServerSession) -> tuple[int, int]:
    return session.bill()["teacher_signals_kept"], session.bill()["teacher_signals_asked"]


def require_same(said: TopK, lm: CausalLM, batch: TokenBatch, rows: torch.Tensor) -> None:
    """Of these rows the model's own distributions, and nothing of all others."""
    with torch.no_grad():
        logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT)).flatten(0, 1)
    wanted = TopK.of(Dense(logits, lm.vocabulary), K)
    torch.testing.assert_close(said.logprobs_NK[rows], wanted.logprobs_NK[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(said.tail_N[rows].exp(), wanted.tail_N[rows].exp(), atol=1e-5, rtol=0)
    assert said.logprobs_NK[~rows].isnan().all()


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_not_asked_about_again(packed: bool, server: Server, lm: CausalLM, make: Make) -> None:
    with make(server).open() as session:
        session.answer(ASKED, GREEDY)
    before = len(server.seen)
    rendered = as_written(lm)
    batch = TokenBatch.packed([rendered]) if packed else TokenBatch.of(rendered)
    with make(server).open() as session:  # another process, as it were: all it has is the file
        said = session.score(batch)
        assert counts(session) == (4, 0)
        assert session.tokens_read == 0
    assert len(server.seen) == before
    require_same(said, lm, batch, batch.trained_BT.flatten())


def test_what_else_is_trained_or_written_is_asked_about(server: Server, lm: CausalLM, make: Make) -> None:
    first, second, third, fourth = as_written(lm)
    of_prompt = dataclasses.replace(first, trained=[True] * len(first.trained))
    longer = dataclasses.replace(
        second,
        tokens=[*second.tokens, second.targets[-1]],
        targets=[*second.targets, 7],
        trained=[*second.trained, True],
        role=[*second.role, 3],
    )
    other = dataclasses.replace(third, targets=[*third.targets[:-1], (third.targets[-1] + 1) % 200])
    batch = TokenBatch.of([of_prompt, longer, other, fourth])
    with make(server).open() as session:
        session.answer(ASKED, GREEDY)
        before, read = len(server.seen), session.tokens_read
        said = session.score(batch)
        assert counts(session) == (1, 3)
        assert session.tokens_read - read == sum(len(r.tokens) for r in (of_prompt, longer, other))
    asked = [body["prompt"] for body in scorings(server.seen[before:])]
    assert sorted(asked) == sorted([of_prompt.tokens, longer.tokens, other.tokens])
    rows = batch.examples_BT()
    require_same(said, lm, batch, ((rows >= 0) & ((rows != 3) | batch.trained_BT)).flatten())


def test_drawn_text_is_kept_at_temperature_one(server: Server, lm: CausalLM, make: Make) -> None:
    hot = Sampling(max_new_tokens=12, temperature=1.5, top_p=0.7)
    with make(server).open() as session:
        session.answer(ASKED, hot)
        written = [one.body for one in server.seen if one.body["temperature"] == 1.5]
        assert len(written) == 4
        assert all(body["logprobs"] == K for body in written)
        rendered = []
        for body in written:
            seeded = dataclasses.replace(hot, seed=body["seed"])
            ((ids, ended),) = lm.write([body["prompt"]], seeded)
            whole = [*body["prompt"], *ids, *(lm.end_ids() if ended else [])]
            trained = [place >= len(body["prompt"]) for place in range(1, len(whole))]
            rendered.append(Rendered(str(len(rendered)), whole[:-1], whole[1:], trained, [3] * len(trained), 1))
        batch = TokenBatch.of(rendered)
        said = session.score(batch)
        assert counts(session) == (4, 0)
    require_same(said, lm, batch, batch.trained_BT.flatten())


def test_text_that_becomes_other_tokens_is_asked_about(server: Server, lm: CausalLM, make: Make) -> None:
    with make(server).open() as session:
        answers = session.answer(ASKED, GREEDY)
        pairs = zip(ASKED, answers, strict=True)
        made = [dataclasses.replace(e, completion=a.text, meta={"unfinished": not a.finished}) for e, a in pairs]
        batch = TokenBatch.of(Renderer(session.tokenizer, lm.context).render(made))
        session.score(batch)
        alike = sum(ids in sequences(TokenBatch.of(as_written(lm))) for ids in sequences(batch))
        assert alike < 4  # random weights write bytes that are no text
        assert counts(session) == (alike, 4 - alike)


def test_a_chat_is_asked_for_text_alone(server: Server, make: Make) -> None:
    with make(server, api="chat").open() as session:
        session.answer(ASKED, GREEDY)
    assert "logprobs" not in server.seen[-1].body


def test_a_server_that_stops_keeping_its_promise_is_an_error_and_one_that_was_mended_is_believed(
    lm: CausalLM, make: Make
) -> None:
    with serve(lm) as honest:
        port = honest.port
        make(honest).open().close()
    with (
        serve(lm, port=port, faults=Faults(logprobs="missing")) as silent,
        make(silent).open() as session,
        pytest.raises(NeedsError, match=r"no logprobs, which were asked for.*logprobs promises 10 with every text"),
    ):
        session.answer(ASKED, GREEDY)
    with (
        serve(lm, port=port, faults=Faults(text_keys=True)) as by_text,
        make(by_text).open() as session,
        pytest.raises(NeedsError, match=r"example 'e0' it names tokens by their text.*leave logprobs out"),
    ):
        session.answer(ASKED[:1], GREEDY)
    with serve(lm, port=port) as mended, make(mended).open() as session:
        session.answer(ASKED, GREEDY)
        assert len(mended.seen) == 4
        session.score(TokenBatch.of(as_written(lm)))
        assert counts(session) == (4, 0)
