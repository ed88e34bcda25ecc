"""The contract of synthesizers as a check that anyone can call: `stillhouse.testing.check_synthesizer`.

It makes what it needs, sums to ask about and a teacher that answers from a script, and goes through the same code as
any run. Raises `AssertionError` with the clause that is broken and what was seen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stillhouse.contract import check_settings, demand
from stillhouse.data.batching import TokenBatch
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.signals.kinds import Signal
from stillhouse.synthesis.base import BLOCK, Synthesizer, Workbench
from stillhouse.teachers.base import Answer, TeacherSession

_SUM = re.compile(r"(\d+) \+ (\d+)")


class _Teacher(TeacherSession):
    """Answers from a script, and keeps what it was asked."""

    def __init__(self, says: Callable[[Example], Answer]) -> None:
        self.says = says
        self.asked: list[Example] = []
        self.samplings: set[Sampling] = set()

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        self.asked += asked
        self.samplings.add(sampling)
        return [self.says(example) for example in asked]

    def score(self, batch: TokenBatch) -> Signal:
        raise AssertionError("a synthesizer needs text, and asked the teacher for its distribution")

    def identity(self) -> dict[str, Any]:
        return {"name": "scripted"}

    @property
    def lm(self) -> None:
        return None


def check_synthesizer(
    synthesizer: Synthesizer,
    examples: Sequence[Example] | None = None,
    *,
    writes: Callable[[Example], str] | None = None,
    streams: bool = True,
) -> None:
    """Hold a synthesizer to its contract (C6, C9).

    Settings are a value. `request` announces the prompts and how they are answered, and at least as many questions and
    examples as `synthesize` then asks and makes, also where it is shown but half of the examples. Ids are unique. What
    is made says in `meta["made_by"]` by which method with which settings and by which teacher. The same settings make
    the same again, and leave the examples they were given alone. An answer that is empty becomes no example, one that
    did not end none that looks whole: each is counted in the notes, or marked `unfinished`. The first example comes
    before all questions are asked, where they are more than a teacher gets at once.

    Args:
        synthesizer: with settings of your choice.
        examples: what it is given; none takes sums such as `2 + 3 =`, answered by ` 5`, and empty asks for examples
            from nothing.
        writes: what the teacher answers to a question; none works out the sum that is asked and ends in `#### 5`.
        streams: say False for a method that has to see all answers first.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.synthesis.best_of_n import BestOfN
    >>> check_synthesizer(BestOfN(samples=3))
    """
    check_settings(synthesizer)
    demand(synthesizer.needs <= {"text"}, f"{synthesizer!r} needs {sorted(synthesizer.needs)}; teachers write text")
    given = _sums() if examples is None else list(examples)
    script = writes or _worked
    kept = copy.deepcopy(given)
    made, teacher, bench = _make(synthesizer, given, lambda e: Answer(script(e), True, len(script(e))))
    new = [example for example in made if example not in given]
    demand(bool(new), f"{synthesizer!r} made nothing of answers such as {script(teacher.asked[0])!r}")
    demand(given == kept, f"{synthesizer!r} changed the examples it was given; replace what is different")
    _check_request(synthesizer, given, made, teacher)
    _check_made(synthesizer, made, new, bench)
    again, _, _ = _make(synthesizer, given, lambda e: Answer(script(e), True, len(script(e))))
    demand(again == made, f"{synthesizer!r} made other examples the second time; seed every draw")
    _check_refusals(synthesizer, given, script)
    if streams:
        _check_stream(synthesizer, given, script)


def _sums() -> list[Example]:
    return [
        Example(id=f"sum-{n}", prompt=f"{n} + {3 * n} =", completion=f" {4 * n}", meta={"n": n}) for n in range(2, 10)
    ]


def _worked(asked: Example) -> str:
    """The sum that is asked for, worked out; where none is, another one by the name of the question."""
    prompt, number = asked.prompt or "", sum(map(ord, asked.id))
    a, b = map(int, _SUM.findall(prompt)[-1]) if prompt.endswith("=") else (number, number % 97)
    return f"{a} + {b} = {a + b}\n#### {a + b}"


def _make(
    synthesizer: Synthesizer, examples: Sequence[Example], says: Callable[[Example], Answer]
) -> tuple[list[Example], _Teacher, Workbench]:
    teacher = _Teacher(says)
    bench = Workbench(teacher)
    return list(synthesizer.synthesize(examples, bench)), teacher, bench


def _check_request(
    synthesizer: Synthesizer, given: Sequence[Example], made: Sequence[Example], teacher: _Teacher
) -> None:
    request = synthesizer.request(given, len(given))
    counts = {
        f"asked {len(teacher.asked)} questions where request() announced": (len(teacher.asked), request.count),
        f"made {len(made)} examples where request() announced": (len(made), request.makes),
    }
    for what, (found, announced) in counts.items():
        demand(found <= announced, f"{synthesizer!r} {what} {announced}; announce at least as many")
    unasked = {e.prompt for e in request.asked} - {e.prompt for e in teacher.asked}
    demand(bool(request.asked), f"{synthesizer!r}: request() shows none of the prompts that will be asked")
    demand(not unasked, f"{synthesizer!r}: request() shows {sorted(map(str, unasked))[:1]}, which was never asked")
    demand(
        request.sampling in teacher.samplings,
        f"{synthesizer!r}: request() announces {request.sampling}, and the teacher was asked by {teacher.samplings}",
    )
    half = synthesizer.request(given[: len(given) // 2], len(given))
    demand(
        (half.count, half.makes) == (request.count, request.makes),
        f"{synthesizer!r}: shown half of the examples, request() announces {half.count} questions and {half.makes} "
        f"examples, shown all {request.count} and {request.makes}; reckon from the count",
    )


def _check_made(synthesizer: Synthesizer, made: Sequence[Example], new: Sequence[Example], bench: Workbench) -> None:
    ids = [example.id for example in made]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    demand(twice is None, f"{synthesizer!r} made two examples with the id {twice!r}")
    expected = synthesizer.made(bench)["made_by"]
    for example in new:
        told = example.meta.get("made_by", {})
        missing = [key for key, value in expected.items() if told.get(key) != value]
        demand(
            not missing,
            f"example {example.id!r} does not say in meta['made_by'] its {', '.join(missing)}; take what "
            "Synthesizer.made() says",
        )


def _check_refusals(synthesizer: Synthesizer, given: Sequence[Example], script: Callable[[Example], str]) -> None:
    for text in ("", " \n"):
        made, _, bench = _make(synthesizer, given, lambda e, text=text: Answer(text, True, 0))
        wrong = [example.id for example in made if example not in given]
        demand(not wrong, f"{synthesizer!r} made {wrong[:3]} of the empty answer {text!r}; leave it out, and note it")
        demand(bench.notes.total() > 0, f"{synthesizer!r} left out empty answers in silence; count them in bench.notes")
    made, _, bench = _make(synthesizer, given, lambda e: Answer(script(e), False, len(script(e))))
    whole = [example.id for example in made if example not in given and not example.meta.get("unfinished")]
    demand(
        not whole,
        f"{synthesizer!r} made {whole[:3]} of answers that did not end; mark them unfinished in their meta, or leave "
        "them out",
    )
    demand(
        any(example.meta.get("unfinished") for example in made) or bench.notes.total() > 0,
        f"{synthesizer!r} left out answers that did not end in silence; count them in bench.notes",
    )


def _check_stream(synthesizer: Synthesizer, given: Sequence[Example], script: Callable[[Example], str]) -> None:
    times = 2 * BLOCK // max(1, len(given)) + 1
    many = [replace(example, id=f"{example.id}/{n}") for n in range(times) for example in given]
    announced = synthesizer.request(many, len(many)).count
    if announced <= BLOCK:
        return
    teacher = _Teacher(lambda e: Answer(script(e), True, len(script(e))))
    made = synthesizer.synthesize(many, Workbench(teacher))
    first = next((example for example in made if example not in many), None)
    demand(
        first is not None and len(teacher.asked) < announced,
        f"{synthesizer!r} asks all {announced} questions before it yields anything; use Synthesizer.ask and yield on "
        "the way, so that what is made can be stored",
    )
