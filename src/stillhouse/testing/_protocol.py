"""OpenAI's protocol as vLLM writes it: requests become jobs, what a back end wrote becomes a response, a refusal an
error object.

Nothing here knows a model, and what a server may do wrong is not here either.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from stillhouse.registry import explain

Message = dict[str, str]
"""Role and content of one turn."""
Prompt = str | list[int] | list[Message]
"""Text, token ids, or a conversation."""
Finish = Literal["stop", "length"]
Ids = Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)]
Count = Annotated[int, Field(ge=-1)]


class RefusedError(Exception):
    """A request that is answered by an error object."""

    def __init__(self, message: str, param: str | None = None, value: object = None, status: int = 400) -> None:
        super().__init__(message if value is None else f"{message} (parameter={param}, value={value})")
        self.param, self.status = param, status

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = {400: "BadRequestError", 404: "NotFoundError"}[self.status]
        return error_body(str(self), kind, self.status, self.param)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One prompt to continue.

    Attributes:
        special: put the tokenizer's special tokens, such as a beginning of sequence, before a prompt of text.
        limit: tokens to write at most; None for what the context has room for, 0 for none.
        logprobs: entries asked for at each written token; None for no log-probabilities, -1 for the vocabulary.
        prompt_logprobs: likewise of the prompt's tokens.
        seed: None where the request does not say.
    """

    prompt: Prompt
    special: bool
    limit: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    prompt_logprobs: int | None


@dataclass(frozen=True)
class Entry:
    """What is said of one token at one position; `rank` 1 is the most likely."""

    id: int
    text: str
    logprob: float
    rank: int


@dataclass(frozen=True)
class Position:
    """The token at a position and what is said there: of that token first, then of the most likely ones, as vLLM orders
    them; of nothing where no token stands before."""

    id: int
    text: str
    entries: list[Entry]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a back end made of a job.

    Attributes:
        prompt: its text.
        read: tokens of the prompt.
        ids: of the prompt and of what was written, the end token included; None where there are no tokens.
        count: tokens written.
        stopped_by: the stop string that ended it.
        scores: of each written token; None where they were not asked for, or are kept back.
        prompt_scores: of each token of the prompt.
        refusal: the model's own words where it refuses.
    """

    prompt: str
    read: int
    ids: tuple[list[int], list[int]] | None
    text: str
    count: int
    finish: Finish
    stopped_by: str | None = None
    scores: list[Position] | None = None
    prompt_scores: list[Position] | None = None
    refusal: str | None = None


class Request(BaseModel):
    """What both endpoints know; other fields are ignored, as vLLM ignores them."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    stop: str | list[str] = []
    stream: Literal[False] = False
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    prompt_logprobs: Count | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @field_validator("*", mode="before")
    @classmethod
    def _null_is_absent(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        return field.default if value is None and not field.is_required() else value

    def jobs(self) -> list[Job]:
        """One for each prompt."""
        raise NotImplementedError

    def body(self, model: str, written: Sequence[Written]) -> dict[str, Any]:
        """The response."""
        raise NotImplementedError

    def _job(self, prompt: Prompt, limit: int | None, logprobs: int | None, *, special: bool = True) -> Job:
        if limit == 0 and not getattr(self, "echo", False):
            raise RefusedError("max_tokens must be at least 1, got 0.", "max_tokens", 0)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        return Job(
            prompt=prompt,
            special=special,
            limit=limit,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(filter(None, stops)),
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )

    def _named(self, token: Entry | Position) -> str:
        return f"token_id:{token.id}" if self.return_tokens_as_token_ids else token.text

    def _ids(self, written: Written, place: int) -> list[int] | None:
        return written.ids[place] if written.ids and self.return_token_ids else None

    def _prompt_logprobs(self, written: Written) -> list[dict[str, Any] | None] | None:
        if written.prompt_scores is None:
            return None
        return [
            {
                str(entry.id): {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.text}
                for entry in position.entries
            }
            or None
            for position in written.prompt_scores
        ]


class Turn(BaseModel):
    """One message of a conversation; its content may come in parts of text."""

    role: str
    content: str | list[dict[str, Any]] = ""

    def message(self) -> Message:
        """Role and whole content."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        if strange := {part.get("type") for part in self.content} - {"text"}:
            raise RefusedError(f"Unknown part type: {sorted(map(str, strange))[0]}", "messages")
        return {"role": self.role, "content": "\n".join(str(part["text"]) for part in self.content)}


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool = False
    top_logprobs: Count = 0

    def jobs(self) -> list[Job]:
        """The conversation."""
        if self.top_logprobs and not self.logprobs:
            raise RefusedError("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        messages = [turn.message() for turn in self.messages]
        return [self._job(messages, limit, self.top_logprobs if self.logprobs else None)]

    def body(self, model: str, written: Sequence[Written]) -> dict[str, Any]:
        """A `chat.completion`."""
        (answer,) = written
        said = None if answer.refusal else answer.text
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said, "refusal": answer.refusal, "tool_calls": []},
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish,
            "stop_reason": answer.stopped_by,
            "token_ids": self._ids(answer, 1),
        }
        extra = {"prompt_logprobs": self._prompt_logprobs(answer), "prompt_token_ids": self._ids(answer, 0)}
        return {**_envelope("chat.completion", "chatcmpl", model, [choice], written), **extra}

    def _logprobs(self, answer: Written) -> dict[str, Any] | None:
        if not self.logprobs or answer.scores is None:
            return None
        most = None if self.top_logprobs == -1 else self.top_logprobs
        content = []
        for position in answer.scores:
            told = [self._token(entry) for entry in position.entries]
            content.append({**told[0], "top_logprobs": told[:most]})
        return {"content": content, "refusal": None}

    def _token(self, entry: Entry) -> dict[str, Any]:
        return {"token": self._named(entry), "logprob": entry.logprob, "bytes": list(entry.text.encode())}


class CompletionRequest(Request):
    """POST /v1/completions."""

    prompt: str | Ids | list[str] | list[Ids]
    echo: bool = False
    logprobs: Count | None = None
    add_special_tokens: bool = True

    def jobs(self) -> list[Job]:
        """One for each prompt; of an echoed prompt the log-probabilities are asked as well."""
        prompts: list[Any] = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if prompts and isinstance(prompts[0], int):
            prompts = [prompts]
        if not prompts or not all(prompts):
            raise RefusedError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        limit = 16 if self.max_tokens is None else self.max_tokens
        jobs = [self._job(prompt, limit, self.logprobs, special=self.add_special_tokens) for prompt in prompts]
        if not self.echo or self.prompt_logprobs is not None:
            return jobs
        return [replace(job, prompt_logprobs=self.logprobs) for job in jobs]

    def body(self, model: str, written: Sequence[Written]) -> dict[str, Any]:
        """A `text_completion`."""
        choices = [self._choice(index, answer) for index, answer in enumerate(written)]
        return _envelope("text_completion", "cmpl", model, choices, written)

    def _choice(self, index: int, answer: Written) -> dict[str, Any]:
        # vLLM leaves the prompt's text out of an echo where ids are returned.
        before = answer.prompt if self.echo and not self.return_token_ids else ""
        return {
            "index": index,
            "text": before + answer.text,
            "logprobs": self._logprobs(answer),
            "finish_reason": answer.finish,
            "stop_reason": answer.stopped_by,
            "prompt_logprobs": self._prompt_logprobs(answer),
            "prompt_token_ids": self._ids(answer, 0),
            "token_ids": self._ids(answer, 1),
        }

    def _logprobs(self, answer: Written) -> dict[str, Any] | None:
        if self.logprobs is None or answer.scores is None or (self.echo and answer.prompt_scores is None):
            return None
        told = [*(answer.prompt_scores or ()), *answer.scores] if self.echo else answer.scores
        most = None if self.logprobs == -1 else self.logprobs + 1
        tokens = [self._named(position) for position in told]
        return {
            "text_offset": [0, *accumulate(map(len, tokens))][: len(tokens)],
            "token_logprobs": [position.entries[0].logprob if position.entries else None for position in told],
            "tokens": tokens,
            "top_logprobs": [
                {self._named(entry): entry.logprob for entry in position.entries[:most]} or None for position in told
            ],
        }


def read_request(path: str, raw: bytes) -> Request:
    """What was asked of an endpoint.

    Raises:
        RefusedError: no such endpoint, or a body that it does not understand.
    """
    kind = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}.get(path)
    if kind is None:
        raise RefusedError("Not Found", status=404)
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise RefusedError(explain(error)) from error


def error_body(message: str, kind: str, code: int | str, param: str | None = None) -> dict[str, Any]:
    """An error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def models_body(name: str, context: int) -> dict[str, Any]:
    """GET /v1/models."""
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "stillhouse", "root": name}
    return {"object": "list", "data": [{**card, "parent": None, "max_model_len": context, "permission": []}]}


def _envelope(
    kind: str, prefix: str, model: str, choices: Sequence[dict[str, Any]], written: Sequence[Written]
) -> dict[str, Any]:
    read, count = sum(answer.read for answer in written), sum(answer.count for answer in written)
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        "usage": {"prompt_tokens": read, "completion_tokens": count, "total_tokens": read + count},
    }
