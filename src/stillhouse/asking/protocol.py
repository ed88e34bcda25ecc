"""The OpenAI protocol as pure functions: what is sent, and what a reply says.

Chat and completions, with vLLM's extensions where log-probabilities are asked for. Tokens are named `token_id:287` in
every reply, whichever of the three ways the server said it in; a name without that prefix is decoded text, which
several tokens of a byte-level vocabulary can share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stillhouse.records import fingerprint

TOKEN_ID = "token_id:"
"""What a token's name begins with where it is named by its id."""
LIMITS = ("max_tokens", "max_completion_tokens")
"""Fields that limit an answer; newer models of OpenAI want the second."""

_ENDED = frozenset({"stop", "eos_token", "stop_sequence", "end_turn", "tool_calls", "function_call"})
"""Reasons by which an answer came to its own end; all others cut it off."""

Entry = dict[str, float]
"""Log-probabilities at one place, by the tokens' names."""


class MalformedError(ValueError):
    """A reply that is not what the protocol says; the message says what came instead."""


class MissingLogprobsError(MalformedError):
    """A reply without the log-probabilities that were asked for; asking again brings no others."""


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        id: the example's, for messages; it is no part of what the answer is known by.
        path: below the server's url.
        body: everything that is sent.
        reads: at most how many tokens the server will read.
    """

    id: str
    path: Literal["chat/completions", "completions"]
    body: Mapping[str, Any]
    reads: int

    @property
    def writes(self) -> int:
        """At most how many tokens the server will write.

        Raises:
            ValueError: the body has no limit, so nobody could say what it may cost.
        """
        given = [self.body[name] for name in LIMITS if self.body.get(name) is not None]
        if not given:
            raise ValueError(f"request {self.id!r} limits its answer by none of {', '.join(LIMITS)}")
        return max(given)

    def key(self, teacher: str) -> str:
        """What the answer is known by: who is asked, and all that is sent."""
        return fingerprint([teacher, self.path, self.body])


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How answers are asked for; what every request of a teacher has in common.

    Attributes:
        model: its name on the server.
        max_tokens: at most this many tokens an answer.
        temperature: 0 is greedy.
        top_p: smallest set of tokens whose mass reaches it.
        stop: texts that end an answer.
        limit: the field that says `max_tokens`.
        logprobs: how many of the likeliest tokens to say at every written place.
        extra: further fields of the body; one that is null is left out, whoever put it there.
    """

    model: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    limit: str = LIMITS[0]
    logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def _common(self, seed: int | None) -> dict[str, Any]:
        drawn = {} if self.temperature == 0 else {"top_p": self.top_p, "seed": seed}
        return {
            "model": self.model,
            self.limit: self.max_tokens,
            "temperature": self.temperature,
            **drawn,
            "stop": list(self.stop) or None,
        }

    def _finish(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in {**body, **self.extra}.items() if value is not None}

    def chat(self, messages: Sequence[Mapping[str, str]], seed: int | None = None) -> dict[str, Any]:
        """The body of a request to `chat/completions`. A greedy answer has no seed, so that it is one answer."""
        asked = {} if self.logprobs is None else {"logprobs": True, "top_logprobs": self.logprobs, **_NAMED_BY_ID}
        return self._finish({**self._common(seed), "messages": [dict(m) for m in messages], **asked})

    def completion(self, prompt: str | Sequence[int], seed: int | None = None) -> dict[str, Any]:
        """The body of a request to `completions`, from text or from token ids."""
        sent = prompt if isinstance(prompt, str) else list(prompt)
        asked = {} if self.logprobs is None else {"logprobs": self.logprobs, **_NAMED_BY_ID}
        return self._finish({**self._common(seed), "prompt": sent, **asked})


_NAMED_BY_ID = {"return_tokens_as_token_ids": True}

ScoringStyle = Literal["prompt_logprobs", "echo"]


def scoring_body(model: str, tokens: Sequence[int], k: int, style: ScoringStyle) -> dict[str, Any]:
    """Ask what a model says after every token of a text: in its prompt by vLLM's `prompt_logprobs` or OpenAI's older
    `echo`, and after the last one by the token it must write. At temperature 1, so that a server that tempers what it
    says tells the truth."""
    asked = {"prompt_logprobs": k, "return_token_ids": True} if style == "prompt_logprobs" else {"echo": True}
    common = {"model": model, "prompt": list(tokens), "max_tokens": 1, "temperature": 1.0, "seed": 0}
    return {**common, "logprobs": k, **_NAMED_BY_ID, **asked}


@dataclass(frozen=True)
class Reply:
    """What a server answered.

    Attributes:
        text: of the answer, without the reasoning that some servers say apart; may be empty.
        finished: it came to its own end; neither a limit nor a filter cut it off.
        ended: by what, in the server's word: stop, length, content_filter.
        read: tokens it read; None where it did not say.
        written: tokens it wrote; None where it did not say.
        refusal: why it would not answer, in its own words.
        reasoning: what it thought before, where it says so.
        tokens: names of the written tokens (with `echo`, of the prompt's before them).
        logprobs: at each of those, the likeliest tokens; None where nothing comes before.
        prompt_logprobs: the same at every place of the prompt, None at its first.
        prompt_ids: the prompt as the server saw it.
    """

    text: str
    finished: bool
    ended: str
    read: int | None = None
    written: int | None = None
    refusal: str | None = None
    reasoning: str | None = None
    tokens: list[str] | None = None
    logprobs: list[Entry | None] | None = None
    prompt_logprobs: list[Entry | None] | None = None
    prompt_ids: list[int] | None = None

    @property
    def form(self) -> str:
        """`answer`, or how it falls short of one: `empty`, `refusal`, `filtered`, `cut off`."""
        if self.refusal is not None:
            return "refusal"
        if self.ended == "content_filter":
            return "filtered"
        if not self.text.strip():
            return "empty"
        return "answer" if self.finished else "cut off"

    def to_json(self) -> str:
        """One line without absent fields."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Reply:
        """The inverse of `to_json`."""
        return cls(**json.loads(line))


def parse(request: Request, content: bytes) -> Reply:
    """What came back with status 200.

    Raises:
        MalformedError: it is not what was asked for, log-probabilities that were asked for and are missing included.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise MalformedError(f"no JSON but {_shown(content.decode(errors='replace'))}") from error
    choices = _at(found, "choices", list)
    if len(choices) != 1:
        raise MalformedError(f"{len(choices)} choices where one was asked for")
    choice = _typed(choices[0], "choices[0]", dict)
    chat = request.path == "chat/completions"
    text, refusal, reasoning = _message(choice) if chat else (_at(choice, "text", str), None, None)
    usage = _typed(found.get("usage") or {}, "usage", dict)
    ended = _typed(choice.get("finish_reason") or "", "finish_reason", str)
    tokens, logprobs = _written(choice, chat=chat)
    said, ids = (choice.get(n) or found.get(n) for n in ("prompt_logprobs", "prompt_token_ids"))  # as the api has it
    reply = Reply(
        text=text,
        finished=ended in _ENDED,
        ended=ended,
        read=_count(usage, "prompt_tokens"),
        written=_count(usage, "completion_tokens"),
        refusal=refusal,
        reasoning=reasoning,
        tokens=tokens,
        logprobs=logprobs,
        prompt_logprobs=None if said is None else [_by_id(e) for e in _typed(said, "prompt_logprobs", list)],
        prompt_ids=_list(ids, "prompt_token_ids") or None,
    )
    _require_logprobs(request, reply)
    return reply


def _message(choice: dict[str, Any]) -> tuple[str, str | None, str | None]:
    message = _at(choice, "message", dict)
    content = message.get("content")
    if isinstance(content, list):  # in parts
        content = "".join(_at(_typed(part, "content[]", dict), "text", str) for part in content)
    if "content" not in message and "refusal" not in message and "tool_calls" not in message:
        raise MalformedError(f"a message without content: {_shown(message)}")
    reasoning = message.get("reasoning") or message.get("reasoning_content")
    refusal = message.get("refusal")
    return (
        _typed(content or "", "message.content", str),
        None if refusal is None else _typed(refusal, "message.refusal", str),
        _typed(reasoning, "message.reasoning", str) if reasoning else None,
    )


def _written(choice: dict[str, Any], *, chat: bool) -> tuple[list[str] | None, list[Entry | None] | None]:
    said = choice.get("logprobs")
    if said is None:
        return None, None
    said = _typed(said, "logprobs", dict)
    if chat:
        places = _list(said.get("content"), "logprobs.content")
        return [_at(place, "token", str) for place in places], [_likeliest(place) for place in places]
    names, own = _at(said, "tokens", list), _at(said, "token_logprobs", list)
    tops = _list(said.get("top_logprobs"), "logprobs.top_logprobs") or [None] * len(names)
    if not len(names) == len(tops) == len(own):
        raise MalformedError(
            f"{len(names)} tokens, {len(own)} log-probabilities and {len(tops)} lists of the likeliest"
        )
    entries: list[Entry | None] = []
    for name, top, logprob in zip(names, tops, own, strict=True):
        named = _typed(top or {}, "logprobs.top_logprobs[]", dict).items()
        own_name = _typed(name, "logprobs.tokens[]", str)
        likeliest = {key: _logprob(value) for key, value in named}
        entries.append(None if logprob is None else {**likeliest, own_name: _logprob(logprob)})
    return names, entries


def _likeliest(place: dict[str, Any]) -> Entry | None:
    """What a chat's reply says at one place: the likeliest tokens, and the one that stands there."""
    named = [*_list(place.get("top_logprobs"), "logprobs.content[].top_logprobs"), place]
    return {_at(one, "token", str): _logprob(one.get("logprob")) for one in named}


def _by_id(entry: Any) -> Entry | None:
    """An entry of vLLM's `prompt_logprobs`, which is keyed by bare ids."""
    if entry is None:
        return None
    named = _typed(entry, "prompt_logprobs[]", dict).items()
    return {
        (TOKEN_ID + key if key.isdecimal() else key): _logprob(
            value.get("logprob") if isinstance(value, dict) else value
        )
        for key, value in named
    }


def _require_logprobs(request: Request, reply: Reply) -> None:
    """What a server left out in silence is an answer to another question, and must not be kept as one to this."""
    asked = request.body
    wanted = {"prompt_logprobs": asked.get("prompt_logprobs"), "logprobs": asked.get("logprobs") or None}
    for name, k in wanted.items():
        if k is not None and getattr(reply, name) is None:
            raise MissingLogprobsError(f"no {name}, which were asked for: the server leaves the field out in silence")


def _logprob(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise MalformedError(f"a log-probability that is {value!r}")
    return float(value)


def _count(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise MalformedError(f"usage.{name} is {value!r}, no number of tokens")
    return value


def _at(place: Any, name: str, kind: type) -> Any:
    if not isinstance(place, dict) or name not in place:
        raise MalformedError(f"no {name!r} but {_shown(place)}")
    return _typed(place[name], name, kind)


def _typed(value: Any, name: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise MalformedError(f"{name} is {_shown(value)}, expected {kind.__name__}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    """A list, empty where there is none."""
    return _typed([] if value is None else value, name, list)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text[:120] + ("..." if len(text) > 120 else "")) if text else "nothing"


def complaint(content: bytes) -> tuple[str, str]:
    """What an error response says, in words and as a code: the message of OpenAI's or vLLM's form, or the text as it
    is."""
    text = content.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return text[:300], ""
    inner = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict):
        return str(inner)[:300], ""
    words = inner.get("message") or inner.get("detail") or inner
    return str(words)[:300], str(inner.get("code") or inner.get("type") or "")
