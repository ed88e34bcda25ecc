"""Examples as questions: a prompt to put to a model, the answer that counts, and, where there are some, the choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.data.templates import fill
from stillhouse.errors import DataError, did_you_mean
from stillhouse.recipe_data import Source
from stillhouse.records import Example

_ANSWERS = ("answer", "final")
_FIELDS = ("prompt", "completion", "rationale")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """What is asked, as an example whose prompt is complete, and the answer's text or value as the data gives it."""

    example: Example
    gold: Any


def questions(
    examples: Sequence[Example], source: Source | None, *, template: str | None, answer: str | None, by: str
) -> list[Question]:
    """Examples with their prompts built and their answers found.

    Args:
        examples: with a prompt or a conversation.
        source: whose column names the template may use besides those of examples; None for held-out data.
        template: of the prompt, with `{column}` placeholders; None leaves it.
        answer: column of the answer; None takes `answer`, `final` or the completion.
        by: whose settings these are, for messages.

    Raises:
        DataError: a row without an answer, a placeholder without a column, running text.
    """
    mapped = {} if source is None else {getattr(source, key): key for key in _FIELDS if getattr(source, key)}
    found = []
    for example in examples:
        columns = _columns(example, mapped)
        asked = example if template is None else _fill(example, template, columns, by)
        found.append(Question(asked, _gold(example, columns, answer, by)))
    return found


def prompted(example: Example, template: str, *, by: str) -> Example:
    """An example whose prompt is made by a template with `{column}` placeholders.

    Raises:
        DataError: a placeholder without a column.
    """
    return _fill(example, template, _columns(example, {}), by)


def choices_of(question: Question, choices: str | Sequence[str]) -> list[str]:
    """The choices of one question: those of a column, or the same for all.

    Raises:
        DataError: no such column, or fewer than two choices in it.
    """
    if not isinstance(choices, str):
        return list(choices)
    listed = question.example.meta.get(choices)
    if not isinstance(listed, list | tuple) or len(listed) < 2:
        raise DataError(
            f"Example {question.example.id!r} has {listed!r} in the column {choices!r}; tasks.choices expects a list "
            f"of at least two choices there. {did_you_mean(choices, question.example.meta)}"
        )
    return [str(choice) for choice in listed]


def place_of(question: Question, choices: Sequence[str]) -> int:
    """Which choice is right: the one that the answer spells out, or its number counted from 0, or its letter.

    Raises:
        DataError: the answer is none of these.
    """
    gold, offered = question.gold, [choice.strip() for choice in choices]
    text = str(gold).strip()
    if text in offered:
        return offered.index(text)
    place = _LETTERS.find(text.upper()) if len(text) == 1 else -1
    if isinstance(gold, int) and not isinstance(gold, bool):  # true is no second choice
        place = gold
    if not 0 <= place < len(choices):
        raise DataError(
            f"Example {question.example.id!r} has the answer {gold!r}, which is none of its choices {list(choices)}, "
            "nor the number (from 0) or the letter of one. Mend the row, or set tasks.answer to the column that holds "
            "the answer."
        )
    return place


def _columns(example: Example, mapped: Mapping[str, str]) -> dict[str, Any]:
    own = {name: getattr(example, name) for name in _FIELDS if getattr(example, name) is not None}
    return {**own, **{column: own[key] for column, key in mapped.items() if key in own}, **example.meta}


def _fill(example: Example, template: str, columns: Mapping[str, Any], by: str) -> Example:
    prompt = fill(template, columns, f"{by}.template", f"example {example.id!r}")
    return Example(id=example.id, prompt=prompt, completion=example.completion, meta=example.meta)


def _gold(example: Example, columns: Mapping[str, Any], answer: str | None, by: str) -> Any:
    if answer is not None:
        if columns.get(answer) is None:
            raise DataError(
                f"Example {example.id!r} has no column {answer!r}, which {by}.answer names. "
                f"{did_you_mean(answer, columns)}"
            )
        return columns[answer]
    for name in _ANSWERS:
        if example.meta.get(name) is not None:
            return example.meta[name]
    if example.completion is not None:
        return example.completion
    if example.messages and example.messages[-1]["role"] == "assistant":
        return example.messages[-1]["content"]
    raise DataError(
        f"Example {example.id!r} holds no answer to judge by: no column named answer or final, and no completion. Set "
        f"{by}.answer to the column that holds it. The columns are: {', '.join(columns) or 'none'}."
    )


def one_of(example: Example, choice: str, number: int, *, spaced: bool) -> Example:
    """The question continued by one choice, to be scored; not ended, because the model need not stop there.

    Args:
        example: the question.
        choice: the text of the choice.
        number: of the choice, which goes into the id.
        spaced: whether a space belongs between prompt and choice where neither brings one.

    Raises:
        DataError: a conversation, which has no one prompt to continue.
    """
    if example.prompt is None:
        raise DataError(
            f"Example {example.id!r} is a conversation, and choices continue a prompt. Map a prompt column, or write "
            "tasks.template."
        )
    apart = not spaced or not example.prompt or example.prompt[-1].isspace() or choice[:1].isspace()
    return dataclasses.replace(
        example,
        id=f"{example.id}#{number}",
        completion=choice if apart else f" {choice}",
        rationale=None,
        meta={"unfinished": True},
    )
