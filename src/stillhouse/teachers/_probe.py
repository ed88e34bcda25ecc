"""What a server really does: asked with a handful of tokens when it is opened, and believed no further than that.

Servers were seen whose log-probabilities are off by one token, tempered, left out in silence, or keyed by decoded text,
so that tokens collide. A few tokens are written and then scored as a prompt: what is said of them must agree. (A server
that tempers both alike cannot be told from a model that is less sure.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from stillhouse.asking.client import Client
from stillhouse.asking.exchange import RefusedError, UnreachableError
from stillhouse.asking.protocol import TOKEN_ID, Entry, Reply, Request, ScoringStyle, Wording, scoring_body
from stillhouse.errors import NeedsError, TeacherError, did_you_mean
from stillhouse.models import vocabulary_size

TOLERANCE = 1e-2
"""How far what is said of a token, written and scored, may lie apart; bfloat16 and batching explain less."""

_TEXT = "The answer to the question is"
_READ, _WRITTEN = 5, 4  # tokens
_STYLES: tuple[ScoringStyle, ...] = ("prompt_logprobs", "echo")


class Found(NamedTuple):
    """How a server scores: in which style, and how far its two accounts of the same tokens lie apart."""

    style: ScoringStyle
    apart: float


def find_model(client: Client, trial: Request) -> str:
    """See that the server has the model; what was seen, in words.

    One that is not listed is given a trial before it is said to be missing: `transformers serve` lists what lies in its
    cache, and not the folder that it serves.

    Raises:
        UnreachableError: nobody answers, and nothing is stored that could be read without a server.
        TeacherError: it has no such model, or refuses the key.
        BudgetError: the trial does not fit.
    """
    try:
        known = client.models()
    except UnreachableError as error:
        if not client.store.counts(client.teacher).answers:
            raise
        return f"not reached, what is stored is read: {error}"
    if known is None:
        return "the server lists no models; the first request will tell"
    model = client.server.model
    if model in known:
        return "the server lists it"
    try:
        client.ask_one(trial)
    except TeacherError as error:
        hint = did_you_mean(model, known)
        told = str(error) if hint in str(error) else f"{error} {hint}"
        raise TeacherError(
            f"The server at {client.server.url} does not list {model!r}, and does not answer for it. {told}"
        ) from error
    return f"the server does not list it, and answers for it (listed: {', '.join(sorted(known)) or 'none'})"


def find_style(client: Client, tokenizer: PreTrainedTokenizerBase, k: int) -> Found:
    """See that the server scores prompts, rightly, and how it wants to be asked.

    Raises:
        NeedsError: it does not; with what was seen.
        TeacherError: it cannot be asked.
    """
    probe = _Probe(client, tokenizer, k)
    try:
        return probe.run()
    except NeedsError:
        client.store.forget(probe.keys)  # a server that was mended is asked anew
        raise


class _Probe:
    def __init__(self, client: Client, tokenizer: PreTrainedTokenizerBase, k: int) -> None:
        self.client, self.tokenizer, self.k = client, tokenizer, k
        self.keys: list[str] = []

    def run(self) -> Found:
        """Write, score, compare."""
        size = vocabulary_size(self.tokenizer)
        if self.k > size:
            raise self._broken(f"the vocabulary has {size} tokens. Set a smaller logprobs")
        prompt = self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"][:_READ]
        # Drawn in a way of its own, so that a server that says what it draws from is noticed.
        model = self.client.server.model
        wording = Wording(model=model, max_tokens=_WRITTEN, temperature=0.5, top_p=0.5, logprobs=self.k)
        body = wording.completion(prompt, seed=0)
        try:
            reply = self._ask(body, len(prompt))
        except (RefusedError, NeedsError) as error:
            raise self._broken(f"asked for them, {error}") from error
        entries = [self._require_ids(entry) for entry in reply.logprobs or []]
        written = [int(name.removeprefix(TOKEN_ID)) for name in reply.tokens or [] if name.startswith(TOKEN_ID)]
        if not written or len(written) != len(entries):
            raise self._broken(f"of a written text it names the tokens {reply.tokens}, not their ids")
        self._check_vocabulary(written, reply.text)
        style, scored = self._score([*prompt, *written])
        return Found(style, self._compare(written, entries, scored[len(prompt) - 1 :]))

    def _ask(self, body: dict[str, object], reads: int) -> Reply:
        request = Request("probe", "completions", body, reads)
        self.keys.append(request.key(self.client.teacher))
        return self.client.ask_one(request)

    def _score(self, tokens: list[int]) -> tuple[ScoringStyle, list[Entry]]:
        seen = []
        for style in _STYLES:
            try:
                reply = self._ask(scoring_body(self.client.server.model, tokens, self.k, style), len(tokens))
                return style, [self._require_ids(entry) for entry in said_after(reply, tokens, style)]
            except (RefusedError, NeedsError) as error:
                seen.append(f"asked by {style}, {error}")
        raise self._broken(f"it scores no prompt. {' '.join(seen)}")

    def _require_ids(self, entry: Entry | None) -> Entry:
        if entry is None:
            raise self._broken("it says nothing of some tokens")
        by_text = [name for name in entry if not name.startswith(TOKEN_ID)]
        if by_text:
            raise self._broken(
                f"it names tokens by their text ({by_text[:3]}), which several tokens share: {len(entry)} names came "
                f"where {self.k} were asked for, and return_tokens_as_token_ids is not heeded"
            )
        if len(entry) < self.k:
            raise self._broken(f"it says {len(entry)} tokens where {self.k} were asked for")
        return entry

    def _check_vocabulary(self, written: list[int], text: str) -> None:
        own = str(self.tokenizer.decode(written, skip_special_tokens=True))
        if max(written) >= vocabulary_size(self.tokenizer) or (own.strip() != text.strip() and "\ufffd" not in own):
            raise self._broken(
                f"the tokenizer is not the server's: it wrote {text!r}, which its token ids {written} are not here "
                f"({own!r}). Name the model's own as tokenizer"
            )

    def _compare(self, written: Sequence[int], said: Sequence[Entry], scored: Sequence[Entry]) -> float:
        apart = 0.0
        for place, (token, one, other) in enumerate(zip(written, said, scored, strict=False)):
            name = f"{TOKEN_ID}{token}"
            if name not in one or name not in other:
                raise self._broken(f"what it scores at written token {place + 1} does not name that token")
            apart = max([apart, *(abs(one[n] - other[n]) for n in one.keys() & other.keys())])
            if apart > TOLERANCE:
                raise self._broken(
                    f"of token {place + 1} that it wrote it says a log-probability of {one[name]:.3f}, of the same "
                    f"token in a prompt {other[name]:.3f}; somewhere {apart:.3f} lie between its two accounts, where "
                    f"{TOLERANCE:g} would do. It is off by a token, or tempers one of the two, or cuts one off at top_p"
                )
        return apart

    def _broken(self, seen: str) -> NeedsError:
        return NeedsError(
            f"teacher.server.logprobs promises the {self.k} likeliest tokens of {self.client.server.name}, and the "
            f"server does not keep it: {seen.rstrip('.')}. Use another server (vLLM does, started with --max-logprobs "
            f"{self.k} or more), or leave logprobs out and learn from its text."
        )


def said_after(reply: Reply, tokens: Sequence[int], style: ScoringStyle) -> list[Entry]:
    """What a server says of the token after each of `tokens`.

    Raises:
        NeedsError: it speaks of other tokens, or of not all.
    """
    given, written = reply.logprobs or [], reply.prompt_logprobs
    said = [*(written or [])[1:], *given[:1]] if style == "prompt_logprobs" else given[1 : len(tokens) + 1]
    whole = [entry for entry in said if entry is not None]
    if len(whole) != len(tokens) or (reply.prompt_ids is not None and reply.prompt_ids != list(tokens)):
        raise NeedsError(
            f"The server speaks of {len(whole)} tokens where it was given {len(tokens)}"
            + ("" if reply.prompt_ids is None else f", and saw {len(reply.prompt_ids)} of which some are others")
            + ": it adds a token of its own, or leaves one out."
        )
    return whole
