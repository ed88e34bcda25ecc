"""Examples become token ids, and here alone shift and mask are born (contract C1).

`targets[t]` is the token that follows `tokens[t]`; `role[t]` says what that target is; `trained[t]` whether its
prediction counts.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from stillhouse.errors import DataError
from stillhouse.recipe_data import Trace
from stillhouse.records import Example, fingerprint


class Role(IntEnum):
    """What a token is in its example."""

    OTHER = 0
    PROMPT = 1
    RATIONALE = 2
    ANSWER = 3


ANSWER_TASK, RATIONALE_TASK = "[label] ", "[rationale] "
"""What tells the two tasks of `trace: two_tasks` apart, before the prompt (Hsieh et al. 2023, arXiv 2305.02301)."""

Span = tuple[str, Role]
"""A piece of text and the role of its tokens."""
Encoded = tuple[list[int], list[Role], list[int]]
"""Token ids, the role of each, and the bytes of text behind each."""


@dataclass(frozen=True)
class Rendered:
    """One example as tokens. All sequences have the same length T; `size` is the bytes of UTF-8 text behind the
    trained targets, `weight` how many examples this one stands for (`meta["weight"]`)."""

    id: str
    tokens: list[int]
    targets: list[int]
    trained: list[bool]
    role: list[int]
    size: int
    weight: float = 1.0


@dataclass
class Renderer:
    """Turns examples into tokens, by the tokenizer's chat template where there is one.

    Attributes:
        tokenizer: a fast tokenizer.
        max_length: the longest sequence in tokens, the end token included.
        train_on: roles whose tokens count in the loss; running text is all answer.
        trace: what of a worked solution is rendered, and in which order; see `stillhouse.recipe_data.Trace`. Two tasks
            make two of each example, `id/answer` and `id/rationale`.
        overflow: what to do with an example longer than `max_length`; running text is cut into windows instead.
        notices: what happened on the way that a user should know, counted; read it after rendering.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    train_on: frozenset[Role] = frozenset({Role.RATIONALE, Role.ANSWER})
    overflow: Literal["error", "drop", "truncate"] = "error"
    trace: Trace = "rationale_first"
    notices: Counter[str] = field(default_factory=Counter)

    def render(self, examples: Sequence[Example]) -> list[Rendered]:
        """All examples as tokens, in order; those dropped for their length are counted in `notices`.

        Raises:
            DataError: an empty or overlong example, or `messages` without a chat template.
        """
        return list(self.stream(examples))

    def stream(self, examples: Iterable[Example]) -> Iterator[Rendered]:
        """As `render`, one example in memory at a time; `notices` are complete at the end.

        Raises:
            DataError: as `render`, when the example is reached.
        """
        for example in examples:
            weight = _weight(example)
            for task in self._tasks(example):
                yield from (replace(r, weight=weight) if weight != 1 else r for r in self._render(task))

    def prompt_ids(self, example: Example) -> list[int]:
        """What a model is given to answer: the prompt alone, ready to be continued."""
        if self.trace == "two_tasks":
            example = self._tasks(example)[0]
        spans = self._spans(example)
        prompt = "".join(text for text, role in spans[: _last_prompt(spans) + 1])
        ids, roles, sizes = self._encode([(prompt, Role.PROMPT)], templated=self._templated(example))
        return self._begin(example, ids, roles, sizes)[0]

    def expected(self, example: Example) -> str:
        """What the data would have a model write there: answer and steps in the order in which they are learned."""
        return "".join(text for text, _ in self._answer_spans(example))

    def identity(self) -> dict[str, Any]:
        """All that decides what it makes of an example: renderers of one identity render alike."""
        raw: Any = self.tokenizer
        coding = json.loads(raw.backend_tokenizer.to_str())
        coding |= {"truncation": None, "padding": None}  # what the last call happened to ask for
        special = [self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, *sorted(self.tokenizer.all_special_ids)]
        return {
            "tokenizer": fingerprint([coding, self.tokenizer.chat_template, special]),
            "max_length": self.max_length,
            "train_on": sorted(role.name.lower() for role in self.train_on),
            "overflow": self.overflow,
            "trace": self.trace,
            "versions": {library.__name__: library.__version__ for library in (tokenizers, transformers)},
        }

    def _begin(self, example: Example, ids: list[int], roles: list[Role], sizes: list[int]) -> Encoded:
        """Running text, and text written from nothing, start at the beginning-of-sequence token if there is one."""
        begin = self.tokenizer.bos_token_id
        if (
            begin is None
            or ids[:1] == [begin]
            or self._templated(example)
            or (example.form == "prompt" and example.prompt)
        ):
            return ids, roles, sizes
        return [begin, *ids], [Role.PROMPT, *roles], [0, *sizes]

    def _templated(self, example: Example) -> bool:
        return example.form != "text" and self.tokenizer.chat_template is not None

    def _spans(self, example: Example) -> list[Span]:
        if example.form == "text":
            return [(example.text or "", Role.ANSWER)]
        if example.form == "messages":
            return self._message_spans(example, example.messages or ())
        answer = self._answer_spans(example)
        if self.tokenizer.chat_template is None:
            return [(example.prompt or "", Role.PROMPT), *answer]
        full = "".join(text for text, _ in answer)
        conversation = [{"role": "user", "content": example.prompt or ""}, {"role": "assistant", "content": full}]
        spans = self._message_spans(example, conversation)
        if example.meta.get("unfinished"):  # the template ends the turn; its writer did not
            turn, role = spans[-1]
            spans[-1] = (turn[: turn.rfind(full) + len(full)], role)
        return _split_answer(spans, answer)

    def _answer_spans(self, example: Example) -> list[Span]:
        """What the model is to write, in the order in which it is to write it."""
        rationale, completion = example.rationale, example.completion
        if completion is None:
            return [(rationale, Role.RATIONALE)] if rationale else []
        if not rationale or self.trace == "answer_only":
            return [(completion, Role.ANSWER)]
        if self.trace == "answer_first":
            return [(_apart(completion), Role.ANSWER), (rationale.strip(), Role.RATIONALE)]
        return [(_apart(rationale), Role.RATIONALE), (completion, Role.ANSWER)]

    def _tasks(self, example: Example) -> list[Example]:
        """An example as what it is learned as: itself, or one task for the answer and one for the steps."""
        if self.trace != "two_tasks" or example.form != "prompt":
            return [example]
        answer = replace(example, id=f"{example.id}/answer", prompt=f"{ANSWER_TASK}{example.prompt}", rationale=None)
        if not example.rationale:
            return [answer]
        steps, asked = example.rationale.strip(), f"{RATIONALE_TASK}{example.prompt}"
        return [answer, replace(example, id=f"{example.id}/rationale", prompt=asked, rationale=steps, completion=None)]

    def _message_spans(self, example: Example, messages: Sequence[Mapping[str, str]]) -> list[Span]:
        """The rendered conversation, cut where each assistant turn begins and ends."""
        if self.tokenizer.chat_template is None:
            raise DataError(
                f"Example {example.id!r} is a conversation (messages), and the tokenizer has no chat template to "
                "render it with. Use a chat model's tokenizer, set tokenizer.chat_template, or map prompt and "
                "completion columns instead."
            )
        spans: list[Span] = []
        done = ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._template(messages[:turn], generate=True)
            after = self._template(messages[: turn + 1], generate=False)
            if not before.startswith(done) or not after.startswith(before):
                raise DataError(
                    f"Example {example.id!r}: the chat template rewrites earlier turns when a later one is added (turn "
                    f"{turn + 1}), so it is not clear which tokens the assistant wrote. Train on the last turn alone: "
                    "map prompt and completion."
                )
            spans += [(before[len(done) :], Role.PROMPT), (after[len(before) :], Role.ANSWER)]
            done = after
        if not spans or messages[-1]["role"] != "assistant":
            spans.append((self._template(messages, generate=True)[len(done) :], Role.PROMPT))
        return spans

    def _template(self, messages: Sequence[Mapping[str, str]], *, generate: bool) -> str:
        turns = [dict(m) for m in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
        assert isinstance(text, str)
        return text

    def _encode(self, spans: Sequence[Span], *, templated: bool) -> Encoded:
        """The prompt is encoded as generation will see it. Where the tokenizer would merge across the boundary, the two
        sides are encoded apart and concatenated, so that training and generation meet the same tokens; the notices
        count such examples.
        """
        text = "".join(piece for piece, _ in spans)
        ids, offsets = self._tokenize(text, special=not templated)
        first, cut = spans[0][0], 0
        if len(spans) > 1 and first:
            prefix, prefix_offsets = self._tokenize(first, special=not templated)
            cut = len(prefix)
            if ids[:cut] != prefix:
                self.notices["examples whose tokenizer merges across the prompt's end; encoded in two parts"] += 1
                rest, rest_offsets = self._tokenize(text[len(first) :], special=False)
                ids = prefix + rest
                offsets = prefix_offsets + [(a + len(first), b + len(first)) for a, b in rest_offsets]
        boundary = len(first) if cut else 0
        ends = self._ends(ids[:cut], offsets[:cut], (0, boundary))
        ends += self._ends(ids[cut:], offsets[cut:], (boundary, len(text)))
        return ids, _roles(spans, ends), [len(text[a:b].encode()) for a, b in pairwise([0, *ends])]

    def _ends(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], piece: tuple[int, int]) -> list[int]:
        """Where in the text each token of a piece ends, so that the tokens cover it without gap or overlap: a character
        that several tokens share counts once, and whitespace that a tokenizer trims from its offsets is its token's.
        """
        begin, following = piece
        ends: list[int] = []
        for token, (start, end) in zip(reversed(ids), reversed(offsets), strict=True):
            if end > start:
                ends.append(end)
                following = start
            else:  # whitespace trimmed to nothing, or a special token, which has no text
                ends.append(begin if token in self._special else following)
        return list(accumulate(reversed(ends), max))

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    def _tokenize(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        coded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ids, offsets = list(coded["input_ids"]), list(coded["offset_mapping"])
        if special and ids and ids[-1] == self.tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
            return ids[:-1], offsets[:-1]  # some tokenizers append the end token themselves; `_render` decides about it
        return ids, offsets

    def _render(self, example: Example) -> list[Rendered]:
        spans = self._spans(example)
        if example.form == "prompt" and example.completion is None and example.rationale is None:
            raise DataError(
                f"Example {example.id!r} has a prompt and no completion, so there is nothing to train on. Map a "
                "completion column, or let the teacher write it: data.steps: [teacher_text]."
            )
        ids, roles, sizes = self._encode(spans, templated=self._templated(example))
        ids, roles, sizes = self._begin(example, ids, roles, sizes)
        end = self.tokenizer.eos_token_id
        # A template writes its own end of turn, and a text that its writer was stopped in must not be taught to end
        # there.
        if end is not None and not self._templated(example) and not example.meta.get("unfinished"):
            ids, roles, sizes = [*ids, end], [*roles, spans[-1][1]], [*sizes, 0]
        if len(ids) > self.max_length:
            return self._overflow(example, ids, roles, sizes)
        return self._shift(example.id, ids, roles, sizes)

    def _overflow(self, example: Example, ids: list[int], roles: list[Role], sizes: list[int]) -> list[Rendered]:
        step = self.max_length
        if example.form == "text":  # windows that overlap by the one token the next window needs as its first input
            starts = range(0, len(ids) - 1, step - 1)
            cut = [(f"{example.id}/{i}", slice(s, s + step)) for i, s in enumerate(starts)]
            return [r for name, at in cut for r in self._shift(name, ids[at], roles[at], sizes[at])]
        if self.overflow == "error":
            raise DataError(
                f"Example {example.id!r} has {len(ids)} tokens, the limit is {step} (the model's context or "
                "data.max_length). Shorten it, raise data.max_length if the model allows, or choose data.overflow: "
                "drop or truncate."
            )
        self.notices[
            f"examples longer than {step} tokens ({'dropped' if self.overflow == 'drop' else 'truncated'})"
        ] += 1
        return [] if self.overflow == "drop" else self._shift(example.id, ids[:step], roles[:step], sizes[:step])

    def _shift(self, name: str, ids: list[int], roles: list[Role], sizes: list[int]) -> list[Rendered]:
        trained = [role in self.train_on for role in roles[1:]]
        if not any(trained):
            if self.overflow == "error":
                raise DataError(
                    f"Example {name!r} has no token to train on ({len(ids)} tokens, roles "
                    f"{sorted({r.name.lower() for r in roles})}, data.train_on "
                    f"{sorted(r.name.lower() for r in self.train_on)}). Fill it, remove it, or change data.train_on."
                )
            self.notices["examples without a token to train on (dropped)"] += 1
            return []
        size = sum(n for n, counts in zip(sizes[1:], trained, strict=True) if counts)
        return [Rendered(name, ids[:-1], ids[1:], trained, [int(r) for r in roles[1:]], size)]


def _weight(example: Example) -> float:
    weight = example.meta.get("weight", 1.0)
    if not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise DataError(
            f"Example {example.id!r} has the weight {weight!r}; it must be a positive number: how many examples it "
            "stands for. Correct it, or leave the column `weight` out."
        )
    return float(weight)


def _last_prompt(spans: Sequence[Span]) -> int:
    return max((i for i, (_, role) in enumerate(spans) if role == Role.PROMPT), default=-1)


def _split_answer(spans: list[Span], answer: Sequence[Span]) -> list[Span]:
    """Cut the assistant's turn where its first part ends; what the template adds after the last belongs to that."""
    *before, (turn, _) = spans
    if len(answer) < 2:
        return [*before, (turn, answer[0][1])] if answer else spans
    (first, role), (_, last) = answer
    start = turn.find(first)
    if start < 0:
        return spans  # the template reformatted the turn; all of it stays answer
    end = start + len(first)
    return [*before, (turn[:end], role), (turn[end:], last)]


def _apart(text: str) -> str:
    """A text that another follows: after the space that it ends in, else on a new line."""
    bare = text.rstrip()
    return bare + (text[-1] if text != bare else "\n")


def _roles(spans: Sequence[Span], ends: Sequence[int]) -> list[Role]:
    """The role of each token: that of the span its last character lies in."""
    stops = list(accumulate(len(text) for text, _ in spans))
    places = [bisect_right(stops, max(0, end - 1)) for end in ends]
    return [spans[min(place, len(spans) - 1)][1] for place in places]
