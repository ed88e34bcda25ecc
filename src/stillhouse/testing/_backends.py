"""What stands behind a server: a model, or a function that maps what is asked to text.

Shapes: T tokens of a sequence, N some of them, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example, fingerprint
from stillhouse.testing._faults import Faults, Lie, spoil
from stillhouse.testing._protocol import Entry, Job, Message, Position, Prompt, RefusedError, Written

T = TypeVar("T")

LEAST = -9999.0
"""What vLLM writes for the logarithm of zero."""


@dataclass(frozen=True)
class Order:
    """A job, and how the server misbehaves at it.

    Attributes:
        asked: a hash of the request that it came with.
        attempt: how often that was asked before.
    """

    job: Job
    faults: Faults
    asked: str
    attempt: int

    def heard(self) -> Order:
        """Without the log-probabilities that the server does not know of."""
        job, faults = self.job, self.faults
        logprobs = None if faults.logprobs == "missing" else job.logprobs
        prompt_logprobs = None if faults.prompt_logprobs == "missing" else job.prompt_logprobs
        return replace(self, job=replace(job, logprobs=logprobs, prompt_logprobs=prompt_logprobs))


class Backend(ABC, Generic[T]):
    """Reads a prompt as tokens of some kind and writes more of them."""

    context: int
    """Tokens of prompt and answer together."""
    vocabulary: int = 0
    """Tokens that there are; 0 where there are no log-probabilities."""

    def turn(self) -> AbstractContextManager[Any]:
        """Held while it works, so that what works on one request at a time does."""
        return nullcontext()

    def write(self, order: Order) -> Written:
        """Continue a prompt, in its `turn`.

        Raises:
            RefusedError: it is too long, or asks for what there is not.
        """
        order = order.heard()
        job = order.job
        prompt = self.read(job)
        limit = self._room(job, len(prompt))
        tokens, ended = self.generate(prompt, order, limit) if limit else ([], False)
        fault = order.faults.spoils(order.asked)
        if fault:
            tokens, ended = spoil(fault, tokens, limit, self.encode)
        tokens, text, stop = self._until(tokens, job.stop)
        whole = self.close(prompt, tokens) if ended and stop is None else tokens
        before, after = self.score(prompt, whole, order)
        return Written(
            prompt=self.decode(prompt),
            read=len(prompt),
            ids=self.ids(prompt, whole),
            text=text,
            count=len(whole),
            finish="length" if stop is None and not ended else "stop",
            stopped_by=stop,
            scores=after,
            prompt_scores=before,
            refusal=text if fault == "refusal" else None,
        )

    def _room(self, job: Job, read: int) -> int:
        limit = job.limit if job.limit is not None else 0
        if read + limit > self.context:
            # vLLM tokenizes no further than it must to know.
            seen = min(read, self.context - limit + 1)
            raise RefusedError(
                f"This model's maximum context length is {self.context} tokens. However, you requested {limit} output "
                f"tokens and your prompt contains at least {seen} input tokens, for a total of at least {seen + limit} "
                "tokens. Please reduce the length of the input prompt or the number of requested output tokens.",
                "input_tokens",
                seen,
            )
        room = self.context - read if job.limit is None else job.limit
        if job.limit is None and room < 1:
            raise RefusedError(f"max_tokens must be at least 1, got {room}.", "max_tokens", room)
        return room

    def _until(self, tokens: list[T], stops: Sequence[str]) -> tuple[list[T], str, str | None]:
        text = self.decode(tokens)
        if not any(stop in text for stop in stops):
            return tokens, text, None
        for count in range(1, len(tokens) + 1):
            text = self.decode(tokens[:count])
            if found := [(text.find(stop), stop) for stop in stops if stop in text]:
                place, stop = min(found)
                return tokens[:count], text[:place], stop
        raise AssertionError("a text holds what none of its beginnings holds, itself included")

    @abstractmethod
    def read(self, job: Job) -> list[T]:
        """The prompt as tokens."""

    @abstractmethod
    def generate(self, prompt: list[T], order: Order, limit: int) -> tuple[list[T], bool]:
        """What follows a prompt, without an end token, and whether it ends there of itself."""

    @abstractmethod
    def encode(self, text: str) -> list[T]:
        """Tokens of a text that nothing comes before."""

    @abstractmethod
    def decode(self, tokens: list[T]) -> str:
        """The text of tokens."""

    def close(self, prompt: list[T], tokens: list[T]) -> list[T]:
        """An answer with the end token that it ended by."""
        return tokens

    def ids(self, prompt: list[T], tokens: list[T]) -> tuple[list[int], list[int]] | None:
        """Tokens as ids, where they are."""
        return None

    @abstractmethod
    def score(
        self, prompt: list[T], tokens: list[T], order: Order
    ) -> tuple[list[Position] | None, list[Position] | None]:
        """Log-probabilities of the prompt and of what was written, where they were asked for."""


Asked = str | list[Message]
"""A prompt of text, or a conversation."""


class Answering(Backend[str]):
    """A function in the place of a model; its tokens are words, and it has no log-probabilities."""

    context = 2**15

    def __init__(self, function: Callable[[Asked], str]) -> None:
        self.function = function

    def read(self, job: Job) -> list[str]:
        """Words."""
        if job.logprobs is not None or job.prompt_logprobs is not None:
            raise RefusedError("There is no model here, so there are no log-probabilities.", "logprobs")
        if isinstance(job.prompt, str):
            return self.encode(job.prompt)
        return [word for message in _messages(job.prompt) for word in self.encode(message["content"])]

    def generate(self, prompt: list[str], order: Order, limit: int) -> tuple[list[str], bool]:
        """What the function says, as far as the limit allows."""
        asked = order.job.prompt
        words = self.encode(self.function(asked if isinstance(asked, str) else _messages(asked)))
        return words[:limit], len(words) <= limit

    def encode(self, text: str) -> list[str]:
        """Words, each with the space before it."""
        return re.findall(r"\s*\S+|\s+$", text)

    def decode(self, tokens: list[str]) -> str:
        """Joined as they were."""
        return "".join(tokens)

    def score(self, prompt: list[str], tokens: list[str], order: Order) -> tuple[None, None]:
        """Nothing."""
        return None, None


def _messages(prompt: Prompt) -> list[Message]:
    messages = [message for message in prompt if isinstance(message, dict)]
    if len(messages) < len(prompt):
        raise RefusedError("There is no model here, so there are no token ids.", "prompt")
    return messages


class ModelBackend(Backend[int]):
    """A model, one request at a time.

    A conversation goes through the chat template; where there is none, its last user content is the prompt.
    """

    def __init__(self, lm: CausalLM, max_logprobs: int) -> None:
        self.lm, self.context, self.vocabulary = lm, lm.context, lm.vocabulary
        self.most = lm.vocabulary if max_logprobs == -1 else max_logprobs
        plain = copy.deepcopy(lm.tokenizer)
        plain.chat_template = None
        self._plain, self._chat = Renderer(plain, lm.context), Renderer(lm.tokenizer, lm.context)
        self._lock = Lock()

    def turn(self) -> AbstractContextManager[Any]:
        """Alone with the model."""
        return self._lock

    def read(self, job: Job) -> list[int]:
        """As `Renderer.prompt_ids` does."""
        self._asked("sample", "logprobs", job.logprobs)
        self._asked("prompt", "prompt_logprobs", job.prompt_logprobs)
        ids = self._ids_of(job)
        if not ids:
            raise RefusedError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
        if (largest := max(ids)) >= self.vocabulary:
            raise RefusedError(f"Token id {largest} is out of vocabulary", "prompt", largest)
        return ids

    def _ids_of(self, job: Job) -> list[int]:
        if isinstance(job.prompt, str):
            return self._plain.prompt_ids(Example(id="", prompt=job.prompt)) if job.special else self.encode(job.prompt)
        if isinstance(job.prompt[0], int):
            return [i for i in job.prompt if isinstance(i, int)]
        messages = _messages(job.prompt)
        if messages[-1]["role"] == "assistant":
            raise RefusedError("The last message is the assistant's, so there is nothing to answer.", "messages")
        if self.lm.tokenizer.chat_template is None:
            users = [message["content"] for message in messages if message["role"] == "user"]
            return self._plain.prompt_ids(Example(id="", prompt=users[-1] if users else ""))
        try:
            return self._chat.prompt_ids(Example(id="of the request", messages=tuple(messages)))
        except DataError as error:
            raise RefusedError(str(error), "messages") from error

    def _asked(self, what: str, param: str, count: int | None) -> None:
        wanted = self.vocabulary if count == -1 else count or 0
        if wanted > self.most:
            raise RefusedError(
                f"Requested {what} logprobs of {wanted}, which is greater than max allowed: {self.most}", param, wanted
            )

    def generate(self, prompt: list[int], order: Order, limit: int) -> tuple[list[int], bool]:
        """By the model; a request without a seed is answered anew each time that it is asked."""
        job = order.job
        seed = job.seed if job.seed is not None else int(fingerprint([order.asked, order.attempt]), 16) % 2**31
        sampling = Sampling(max_new_tokens=limit, temperature=job.temperature, top_p=job.top_p, seed=seed)
        (ids,) = self.lm.generate([prompt], sampling)
        return ids, len(ids) < limit

    def encode(self, text: str) -> list[int]:
        """Without special tokens."""
        return list(self.lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, tokens: list[int]) -> str:
        """Without special tokens."""
        return str(self.lm.tokenizer.decode(tokens, skip_special_tokens=True))

    def close(self, prompt: list[int], tokens: list[int]) -> list[int]:
        """By the end token, the likeliest where there are several."""
        ends = self.lm.end_ids()
        if len(ends) < 2:
            return tokens + ends
        last_V = self._logprobs(self._hidden(prompt + tokens)[-1:])[0]
        return [*tokens, max(ends, key=lambda i: float(last_V[i]))]

    def ids(self, prompt: list[int], tokens: list[int]) -> tuple[list[int], list[int]]:
        """As they are."""
        return prompt, tokens

    def score(
        self, prompt: list[int], tokens: list[int], order: Order
    ) -> tuple[list[Position] | None, list[Position] | None]:
        """By one pass of the model over all."""
        job, faults, ids = order.job, order.faults, prompt + tokens
        if job.logprobs is None and job.prompt_logprobs is None:
            return None, None
        hidden_TD = self._hidden(ids)

        def said(places: range, count: int | None, lie: Lie) -> list[Position] | None:
            if count is None:
                return None
            temperature = faults.logprob_temperature if lie == "tempered" else 1.0
            known = [place for place in places if place > 0]
            rows_ND = hidden_TD[[place - (lie != "shifted") for place in known]]
            entries = self._entries(self._logprobs(rows_ND, temperature), [ids[place] for place in known], count)
            unknown: list[list[Entry]] = [[]] * (len(places) - len(known))
            return [Position(ids[p], self._text(ids[p]), e) for p, e in zip(places, unknown + entries, strict=True)]

        before = said(range(len(prompt)), job.prompt_logprobs, faults.prompt_logprobs)
        return before, said(range(len(prompt), len(ids)), job.logprobs, faults.logprobs)

    @torch.no_grad()
    def _hidden(self, ids: list[int]) -> Tensor:
        with self.lm.inference():
            return self.lm.hidden(torch.tensor([ids], device=self.lm.device))[0]

    @torch.no_grad()
    def _logprobs(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        logits_NV = self.lm.head(hidden_ND)[:, : self.vocabulary].float()
        return (logits_NV / temperature).log_softmax(-1)

    def _entries(self, logprobs_NV: Tensor, tokens: list[int], count: int) -> list[list[Entry]]:
        own_N1 = logprobs_NV.gather(1, torch.tensor(tokens, device=logprobs_NV.device)[:, None])
        ranks = (logprobs_NV >= own_N1).sum(1).tolist()
        top = logprobs_NV.topk(self.vocabulary if count == -1 else count)
        found = []
        for place, token in enumerate(tokens):
            likely = zip(top.indices[place].tolist(), top.values[place].tolist(), strict=True)
            entries = [(token, own_N1[place].item(), ranks[place])]
            entries += [(i, logprob, rank) for rank, (i, logprob) in enumerate(likely, start=1) if i != token]
            found.append([Entry(i, self._text(i), max(logprob, LEAST), rank) for i, logprob, rank in entries])
        return found

    def _text(self, token: int) -> str:
        return str(self.lm.tokenizer.decode([token]))
