"""A teacher behind an OpenAI-compatible API: text from any, top log-probabilities where the server really has them.

Where both are wanted, what it says about its own text comes with the text and is kept with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from stillhouse import world
from stillhouse.asking.budget import Amount, Budget
from stillhouse.asking.client import Client, Manner
from stillhouse.asking.exchange import Server
from stillhouse.asking.protocol import LIMITS, Reply, Request, Wording, scoring_body
from stillhouse.asking.store import RequestStore
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import BudgetError, DataError, NeedsError
from stillhouse.models import CausalLM, Sampling, load_tokenizer, vocabulary_size
from stillhouse.records import Example, fingerprint
from stillhouse.signals.kinds import TopK
from stillhouse.teachers._probe import find_model, find_style, said_after
from stillhouse.teachers._said import Kept, Said
from stillhouse.teachers.base import Answer, Teacher, TeacherSession

_TEMPLATE, _TURN = 64, 16
"""Tokens that a server's chat template adds at most: to a conversation, and to each of its turns."""
_FORBIDDEN = frozenset({"model", "messages", "prompt", "stream", "n", "best_of", "logprobs", "top_logprobs", "echo"})
_OURS = frozenset({*LIMITS, "temperature", "top_p", "seed", "stop"})


@dataclass(frozen=True)
class ServerTeacher(Teacher):
    """A model that a server runs, open or closed.

    Every answer is kept in a request store the moment it arrives, and never asked for again. The key comes out of the
    environment and goes nowhere but into the requests.

    Attributes:
        url: of the API, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1.
        model: its name there.
        api: `chat` sends conversations, which the server renders; `completions` sends text, or token ids where the
            tokenizer is known.
        key_env: the name of the environment variable that holds the key; local servers need none.
        system: what a conversation begins with, where it has no system turn of its own.
        tokenizer: the model's, a folder or hub name; a closed model has none.
        logprobs: the likeliest tokens at every place that the server promises to say; objectives that need its
            distribution can then be used. The promise is tested on opening. With `completions`, text is asked for
            together with them, so that it need not be scored afterwards.
        concurrency: requests under way at once, at most; it goes down by itself where the server bears less.
        timeout: seconds for an answer.
        retries: of a request.
        budget: hard limits in calls, tokens and money, over all that the store has paid for this model at this url.
        store: the file that answers are kept in; runs that share it share the answers.
        limit: the field that says how long an answer may be; newer models of OpenAI want max_completion_tokens.
        extra: further fields of every request for text, such as {chat_template_kwargs: {enable_thinking: false}}; null
            leaves one of ours out, such as {temperature: null}.
    """

    url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    key_env: str = "OPENAI_API_KEY"
    system: str | None = None
    tokenizer: str | None = None
    logprobs: int | None = None
    concurrency: int = 16
    timeout: float = 120.0
    retries: int = 6
    budget: Budget = Budget()  # noqa: RUF009 -- a value
    store: str = "runs/requests.sqlite"
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: Mapping[str, Any] | None = field(default=None, hash=False)

    provides: ClassVar[frozenset[str]] = frozenset({"text"})
    """Of an instance with `logprobs`: token_logprobs and distribution as well."""
    manners: ClassVar[frozenset[str]] = frozenset(
        {"key_env", "concurrency", "timeout", "retries", "budget", "store"}
    )  # fmt: skip
    """Settings that change no answer, so that a run may go on with others."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username or parts.password or "@" in parts.netloc:
            raise ValueError("url holds a user or a password, which would be written into reports; use key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("url must be the API's, without a query, such as http://127.0.0.1:8000/v1")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_env):
            raise ValueError(
                "key_env must be the name of an environment variable, such as OPENAI_API_KEY; the key itself belongs "
                "into that variable and nowhere else"
            )
        for name, least in {"concurrency": 1, "retries": 0, "logprobs": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; it must be positive")
        if self.logprobs is not None and self.tokenizer is None:
            raise ValueError("logprobs needs the model's tokenizer, which says what the server's token ids mean")
        if self.system is not None and self.api == "completions":
            raise ValueError("system belongs to conversations; with api completions, write it into the prompts")
        self._check_extra()
        if self.logprobs is not None:  # of the instance; frozen, so by the back door
            more = frozenset({"token_logprobs", "distribution"})
            object.__setattr__(self, "provides", type(self).provides | more)

    def _check_extra(self) -> None:
        extra = self.extra or {}
        if wrong := sorted(_FORBIDDEN & extra.keys()):
            raise ValueError(f"extra may not name {wrong[0]}, which the settings and the data decide")
        if wrong := sorted(key for key in _OURS & extra.keys() if extra[key] is not None):
            raise ValueError(f"extra may leave {wrong[0]} out (null), and not set it: who asks for text decides it")
        if self.limit in extra:
            raise ValueError(f"extra may not leave {self.limit} out: without a limit nobody knows what an answer costs")

    @property
    def recorded_at(self) -> float | None:
        """1 where there are log-probabilities: what is cut off after the top k cannot be tempered afterwards."""
        return None if self.logprobs is None else 1.0

    @property
    def shows(self) -> int | None:
        """What `logprobs` promises."""
        return self.logprobs

    def open(self, device: str = "cpu") -> ServerSession:
        """Connect, and see that the server has what is promised.

        Raises:
            TeacherError: it cannot be reached, refuses the key, or has no such model.
            NeedsError: it does not keep the promise of `logprobs`.
            RequestStoreError: the store cannot be used.
        """
        server = Server.of(self.url, self.model, self.key_env)
        manner = Manner(concurrency=self.concurrency, timeout=self.timeout, retries=self.retries)
        store = RequestStore(self.store)
        try:
            return ServerSession(self, Client(server, store, self.budget, manner))
        except BaseException:
            store.close()
            raise

    @property
    def here(self) -> bool:
        """Never: nothing of it but its answers."""
        return False

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, where the settings name one."""
        return load_tokenizer(self.tokenizer) if self.tokenizer is not None else None

    def fingerprint(self) -> str | None:
        """Nothing can be seen of it without asking."""
        return None

    def load_config(self) -> Any:
        """Not known."""
        return None

    def identity(self) -> dict[str, Any]:
        """What decides its answers."""
        names = ("url", "api", "system", "tokenizer", "logprobs", "extra")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        return {"name": self.model, **given}

    def _account(self, amount: Amount) -> dict[str, Any]:
        told: dict[str, Any] = {"calls": amount.calls, "tokens_read": amount.read, "tokens_written": amount.written}
        if self.budget.priced:
            told |= {"cost": self.budget.cost_of(amount), "currency": self.budget.currency}
        return told

    def afford(self, calls: int, prompt_tokens: int, new_tokens: int) -> list[dict[str, Any]]:
        """The estimate, and what the store has paid so far.

        Args:
            calls: requests.
            prompt_tokens: of all of them.
            new_tokens: of all answers.

        What is stored may be part of what is asked for, so the budget is held against the estimate alone; that it is
        not exceeded is seen to when asking.

        Raises:
            BudgetError: the whole budget is less than the estimate.
        """
        wanted = Amount(calls, prompt_tokens, new_tokens)
        if lack := self.budget.shortfall(Amount(), wanted):
            raise BudgetError(
                f"The budget of {self.model!r} at {self.url} is too small for this recipe, which takes up to "
                f"{self.budget.describe(wanted)}. {lack}. Raise teacher.server.budget, or ask for less (fewer examples "
                "or samples, shorter answers). Nothing was asked yet."
            )
        return [{"teacher": self.model, **self._account(wanted), "spent_before": self._account(self._spent())}]

    def _spent(self) -> Amount:
        if not Path(self.store).exists():
            return Amount()
        with RequestStore(self.store) as store:
            return store.spent(Client.name_of(self.url, self.model))


class ServerSession(TeacherSession):
    """A server that was found to have the model.

    Attributes:
        provides: what it was found to provide.
        found: what probing saw, for reports.
        client: which counts what was paid, and replies by their form.
    """

    def __init__(self, settings: ServerTeacher, client: Client) -> None:
        self.settings, self.client = settings, client
        self._tokenizer = settings.load_tokenizer()
        self.provides = settings.provides
        self._style = self._kept = None
        trial = self._request(Example(id="trial", prompt="Hello"), Sampling(max_new_tokens=1))
        self.found: dict[str, Any] = {"model": find_model(client, trial)}
        if settings.logprobs is not None:
            self._kept = Kept(client, settings.logprobs)
            self._style, apart = find_style(client, self.tokenizer, settings.logprobs)
            self.found |= {"scores by": self._style, "written and scored lie apart by": apart}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:  # ty: ignore[incompatible-property-override]
        """What its token ids mean.

        Raises:
            NeedsError: the settings do not say.
        """
        if self._tokenizer is None:
            raise NeedsError(
                f"This needs the tokenizer of {self.client.server.name}, and a teacher behind an API has none here. "
                "Name it (teacher.server.tokenizer: a folder or hub name), or use what needs its text alone."
            )
        return self._tokenizer

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        """Answers in the order asked: those stored are read, the others asked for. A sampled one is drawn by the seed
        and the example's id. What is refused, filtered or empty comes back as it is.

        Raises:
            TeacherError: a request failed for good; what arrived is kept.
            BudgetError: the next request does not fit.
            DataError: an example is no question.
            NeedsError: a conversation for `completions`, without a tokenizer to render it; log-probabilities that are
                promised and missing.
        """
        number, count = world.rank(), world.size()
        requests = [self._request(example, sampling) for example in asked[number::count]]  # processes share the work
        answers, names = {}, []
        try:
            for place, reply in self.client.ask(requests):
                answers[number + count * place] = _answer(reply, sampling)
                self.tokens_read += reply.read or 0
                if self._kept is not None and self.settings.api == "completions":
                    names.append(self._kept.name(requests[place], reply))
        except NeedsError as error:
            raise NeedsError(
                f"{error} teacher.server.logprobs promises {self.settings.logprobs} with every text that it writes. "
                "Use another server (vLLM keeps that), or leave logprobs out and learn from its text."
            ) from error
        self.client.store.name(names)
        self.tokens_written += sum(answer.tokens for answer in answers.values())
        whole = {place: answer for part in world.gather(answers) for place, answer in part.items()}
        return [whole[place] for place in range(len(asked))]

    def _request(self, example: Example, sampling: Sampling) -> Request:
        if example.form == "text":
            raise DataError(
                f"Example {example.id!r} is running text, which asks nothing of {self.client.server.name}. Map a "
                "prompt or messages column."
            )
        settings = self.settings
        wording = Wording(
            model=settings.model,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            limit=settings.limit,
            logprobs=settings.logprobs if settings.api == "completions" else None,
            extra=settings.extra or {},
        )
        seed = int(fingerprint([sampling.seed, example.id]), 16) % 2**31
        if settings.api == "completions":
            prompt = self._prompt(example)
            reads = len(prompt) if isinstance(prompt, list) else len(prompt.encode()) + 1  # a token to begin with
            return Request(example.id, "completions", wording.completion(prompt, seed), reads)
        messages = self._messages(example)
        reads = _TEMPLATE + sum(_TURN + len(message["content"].encode()) for message in messages)
        return Request(example.id, "chat/completions", wording.chat(messages, seed), reads)

    def _messages(self, example: Example) -> list[Mapping[str, str]]:
        """The conversation up to the turn that is asked for."""
        turns = list(example.messages or [{"role": "user", "content": example.prompt or ""}])
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise DataError(f"Example {example.id!r} is a conversation in which nobody asks anything.")
        if self.settings.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.settings.system})
        return turns

    def _prompt(self, example: Example) -> str | list[int]:
        """As token ids, as a model in this process would be given it; as text where there is no tokenizer."""
        if self._tokenizer is None and example.messages is None:
            return example.prompt or ""
        return Renderer(self.tokenizer, max_length=2**30).prompt_ids(example)

    def score(self, batch: TokenBatch) -> TopK:
        """The likeliest tokens after every token of a batch; of an example that it wrote itself, as what was kept with
        the text says, after every trained one. NaN elsewhere.

        Raises:
            NeedsError: no log-probabilities are promised, or some are missing.
            TeacherError: a request failed for good; what arrived is kept.
            BudgetError: the next request does not fit.
        """
        k = self.settings.logprobs
        if k is None or self._style is None or self._kept is None:
            raise NeedsError(
                f"{self.client.server.name} provides text alone. Where the server says log-probabilities, set logprobs "
                "and tokenizer of teacher.server."
            )
        said, kept = Said(batch, k, vocabulary_size(self.tokenizer)), self._kept.find(batch)
        for example, entries in kept.items():
            said.fill(example, entries)
        rest = [example for example in range(len(batch.ids)) if example not in kept]
        whole = [batch.tokens_BT[row, start:stop].tolist() for row, start, stop in (batch.spans[e] for e in rest)]
        bodies = (scoring_body(self.settings.model, tokens, k, self._style) for tokens in whole)
        asked = zip(rest, whole, bodies, strict=True)
        requests = (Request(batch.ids[e], "completions", body, len(tokens)) for e, tokens, body in asked)
        for place, reply in self.client.ask(requests):
            said.fill(rest[place], said_after(reply, whole[place], self._style))
        self.tokens_read += sum(map(len, whole))
        return said.signal()

    def bill(self) -> dict[str, int]:
        """Requests that were paid in this process, and those whose answers were stored before; of examples that were
        scored, those whose signals were kept with their text and those that were asked about."""
        bill = {"teacher_calls": self.client.tally.paid.calls, "teacher_answers_stored": self.client.tally.stored}
        if self._kept is not None:
            bill |= {"teacher_signals_kept": self._kept.found, "teacher_signals_asked": self._kept.missed}
        return bill

    def told(self) -> dict[str, str]:
        """What probing saw, what was paid in this process, why requests were sent again, and answers that are none."""
        tally = self.client.tally
        told = {name: str(value) for name, value in self.found.items()}
        if tally.paid.calls:
            told["paid"] = self.settings.budget.describe(tally.paid)
        if tally.retried:
            told["asked again"] = "; ".join(f"{count} x {reason}" for reason, count in tally.retried.most_common())
        if short := {form: count for form, count in tally.forms.items() if form != "answer"}:
            told["answers that fall short"] = ", ".join(f"{count} {form}" for form, count in sorted(short.items()))
        return told

    def identity(self) -> dict[str, Any]:
        """Model, url, and the settings that change answers."""
        return self.settings.identity()

    @property
    def lm(self) -> CausalLM | None:
        """Its weights are elsewhere."""
        return None

    def close(self) -> None:
        """Release the store."""
        self.client.store.close()


def _answer(reply: Reply, sampling: Sampling) -> Answer:
    written = sampling.max_new_tokens if reply.written is None else reply.written
    return Answer(reply.text, reply.finished, written)
