"""What a server says about tokens, as a signal; and what it said about its own text, found again by that text's tokens.

A question with `logprobs` is answered with the likeliest tokens at every place of the text. An example that is that
question and that text need not be sent again to be scored.

Shapes: T tokens of one example, M = B * T positions of a batch, K kept entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from stillhouse.asking.client import Client
from stillhouse.asking.protocol import TOKEN_ID, Entry, Reply, Request
from stillhouse.data.batching import TokenBatch
from stillhouse.errors import NeedsError
from stillhouse.records import fingerprint
from stillhouse.signals.kinds import TopK

_LEAST_TAIL = 1e-7
"""The least probability of all tokens beyond the top k: what float32 leaves of one minus a sum is noise below that."""


def top_k(said: Iterable[Entry], k: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, log-probabilities and tail of T places, each [T, K], [T, K] and [T].

    Raises:
        NeedsError: fewer than k tokens at some place.

    >>> top_k([{"token_id:3": -0.1, "token_id:5": -3.0, "token_id:7": -4.0}], 2, 10)[0]
    tensor([[3, 5]])
    """
    ids, logprobs, tails = [], [], []
    for entry in said:
        best = sorted(entry.items(), key=lambda item: -item[1])[:k]  # the text's own token may stand beyond the k
        if len(best) < k:
            raise NeedsError(f"The server says {len(best)} tokens where {k} were asked for.")
        ids.append([int(name.removeprefix(TOKEN_ID)) for name, _ in best])
        logprobs.append([logprob for _, logprob in best])
        rest = 1 - math.fsum(math.exp(logprob) for _, logprob in best)
        tails.append(-math.inf if k == vocabulary else math.log(max(rest, _LEAST_TAIL)))
    return torch.tensor(ids), torch.tensor(logprobs), torch.tensor(tails)


class Said:
    """What is said about a batch, filled in example by example; NaN where nothing was said."""

    def __init__(self, batch: TokenBatch, k: int, vocabulary: int) -> None:
        self.batch, self.k, self.vocabulary = batch, k, vocabulary
        places = batch.tokens_BT.numel()
        self._ids_MK = torch.zeros(places, k, dtype=torch.long)
        self._logprobs_MK, self._tail_M = torch.full((places, k), torch.nan), torch.full((places,), torch.nan)

    def fill(self, example: int, said: Sequence[Entry]) -> None:
        """Note what is said at the last places of an example."""
        row, _, stop = self.batch.spans[example]
        end = row * self.batch.tokens_BT.shape[1] + stop
        rows = slice(end - len(said), end)
        self._ids_MK[rows], self._logprobs_MK[rows], self._tail_M[rows] = top_k(said, self.k, self.vocabulary)

    def signal(self) -> TopK:
        """All of it, where the batch is."""
        return TopK(self._ids_MK, self._logprobs_MK, self._tail_M, self.vocabulary).to(self.batch.tokens_BT.device)


class Kept:
    """What one server said about its own texts, in its request store.

    Args:
        client: of the server.
        k: how many tokens it promised to say at every place.

    Attributes:
        found: examples that were scored by what was kept with their text.
        missed: examples that had to be asked about.
    """

    def __init__(self, client: Client, k: int) -> None:
        self.client, self.k = client, k
        self.found = self.missed = 0

    def name(self, request: Request, reply: Reply) -> tuple[str, str]:
        """What the answer to a question from token ids is found by later, and its key.

        Raises:
            NeedsError: the server does not say there what it promised; the answer is forgotten.
        """
        key = request.key(self.client.teacher)
        if lack := self._lack(reply):
            self.client.store.forget([key])  # a server that was mended is asked anew
            raise NeedsError(f"Of its answer to example {request.id!r} {lack}.")
        return self._name([*request.body["prompt"], *_ids(reply)]), key

    def find(self, batch: TokenBatch) -> dict[int, list[Entry]]:
        """What is kept about the last places of examples, by their numbers: of those whose tokens are a question and
        its answer, and whose trained places are all in the answer."""
        names = [self._name(tokens) for tokens in sequences(batch)]
        there = self.client.store.get_named(names)
        found = {}
        for example, name in enumerate(names):
            said = [entry for entry in there[name].logprobs or [] if entry is not None] if name in there else []
            row, start, stop = batch.spans[example]
            if said and not batch.trained_BT[row, start : stop - len(said)].any():
                found[example] = said
        self.found += len(found)
        self.missed += len(names) - len(found)
        return found

    def _name(self, tokens: Sequence[int]) -> str:
        return fingerprint(["said", self.client.teacher, self.k, list(tokens)])

    def _lack(self, reply: Reply) -> str | None:
        """How the log-probabilities of a written text fall short of the promise."""
        names, entries = reply.tokens or [], reply.logprobs or []
        if reply.text and not names:
            return "it says no token"
        if strange := [name for entry in entries for name in entry or () if not name.startswith(TOKEN_ID)]:
            return f"it names tokens by their text ({strange[:3]}), not by their ids"
        least = min((len(entry or ()) for entry in entries), default=self.k)
        return f"it says {least} tokens at some place where {self.k} were asked for" if least < self.k else None


def sequences(batch: TokenBatch) -> list[list[int]]:
    """Every example's tokens, the last target included."""
    return [
        [*batch.tokens_BT[row, start:stop].tolist(), int(batch.targets_BT[row, stop - 1])]
        for row, start, stop in batch.spans
    ]


def _ids(reply: Reply) -> list[int]:
    return [int(name.removeprefix(TOKEN_ID)) for name in reply.tokens or ()]
