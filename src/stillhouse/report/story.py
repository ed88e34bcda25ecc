"""The headline: what the run shows and how sure that is, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.report.numbers import Metric, fixed, is_number, percent
from stillhouse.report.reading import Comparison, Evaluation, Interval

Verdict = Literal["better", "worse", "unresolved", "unknown"]
CONTROL = "student - control"
BEFORE = "student - student_before"
RANDOM = "student - random"


@dataclass(frozen=True)
class Sentence:
    """A claim, and in brackets behind it the evidence."""

    claim: str
    evidence: str = ""

    def __str__(self) -> str:
        return f"{self.claim} ({self.evidence})." if self.evidence else f"{self.claim}."


@dataclass(frozen=True)
class Headline:
    """The sentences that open the report, and the verdict on distilling against plain training."""

    verdict: Verdict
    sentences: tuple[Sentence, ...]

    def __str__(self) -> str:
        return " ".join(map(str, self.sentences))


def tell(evaluation: Evaluation) -> Headline:
    """Word the headline of a run."""
    metric = evaluation.headline
    if metric is None:
        wanted = evaluation.raw.get("headline")
        lack = f"the student was not measured on {wanted}" if wanted else "no metric was named to sum it up"
        opening = Sentence(f"This run has no headline, because {lack}")
        return Headline("unknown", (opening, *missing_control(evaluation)))
    verdict, worth = worth_of_distilling(evaluation, metric)
    sentences = [kept(evaluation, metric), *worth, *worth_of_choosing(evaluation, metric)]
    before = evaluation.comparison(BEFORE, metric.id)
    if before is not None and verdict_of(before, metric) == "worse":
        sentences.append(Sentence("It is worse than the same student before training", evidence(before, metric, True)))
    elif before is not None and verdict_of(before, metric) == "unresolved":
        claim = "Even the difference to the same student before training is unresolved"
        sentences.append(Sentence(claim, evidence(before, metric, True)))
    return Headline(verdict, tuple(sentences))


def kept(evaluation: Evaluation, metric: Metric) -> Sentence:
    """How much of its teacher the student kept, and at what size."""
    size = size_of(evaluation)
    recovery = evaluation.interval("recovery", metric.id)
    if recovery is not None and metric.better == "higher":
        verb = "keeps" if recovery.value <= 1 else "reaches"
        share = percent(recovery.value)
        return Sentence(f"The student {verb} {share} of its teacher’s {metric.name}{size}", interval_evidence(recovery))
    student, teacher = (evaluation.measurement(model, metric.id) for model in ("student", "teacher"))
    said = metric.value(student.value, student.stderr, unit=True) if student else ""
    claim = f"The student’s {metric.name} is {said}"
    if teacher is not None:
        claim += f", its teacher’s {metric.value(teacher.value, teacher.stderr, unit=True)}"
    hint = {"higher": "higher is better", "lower": "lower is better"}.get(metric.better, "")
    return Sentence(claim + ("," + size if size and teacher is not None else size), hint)


def size_of(evaluation: Evaluation) -> str:
    """The student's size beside its teacher's: ` at 1/9 of the size`; empty when it is not known."""
    for name in ("efficiency.parameters", "efficiency.bytes"):
        student, teacher = (evaluation.measurement(model, name) for model in ("student", "teacher"))
        if student and teacher and is_number(ratio := student.over(teacher)):
            return f" at {fraction(ratio)}"
    return ""


def fraction(ratio: float) -> str:
    """A ratio of sizes as one says it.

    >>> fraction(0.111), fraction(0.4), fraction(1.0), fraction(2.5)
    ('1/9 of the size', '40\xa0% of the size', 'the same size', '2.5 times the size')
    """
    if 0.97 <= ratio <= 1.03:
        return "the same size"
    if ratio > 1:
        return f"{fixed(ratio, 1 if ratio < 10 else 0)} times the size"
    parts = round(1 / ratio)
    if parts >= 2 and (parts >= 9 or abs(1 / ratio - parts) < 0.06 * parts):
        return f"1/{fixed(parts, 0)} of the size"
    return f"{percent(ratio)} of the size"


def worth_of_distilling(evaluation: Evaluation, metric: Metric) -> tuple[Verdict, tuple[Sentence, ...]]:
    """What the teacher added: the student against the control, which saw the same data without a teacher."""
    comparison = evaluation.comparison(CONTROL, metric.id)
    if comparison is None:
        return "unknown", missing_control(evaluation, metric)
    if not is_number(comparison.difference):
        claim = "The difference to plain training is not a finite number, because one of the two diverged"
        return "unknown", (Sentence(claim),)
    verdict = verdict_of(comparison, metric)
    proof = evidence(comparison, metric, verdict == "unresolved")
    amount = metric.difference(comparison.difference, comparison.half_width, unit=True)
    size = metric.difference(abs(comparison.difference), comparison.half_width, unit=True, signed=False)
    if verdict == "unresolved":
        claim = "Whether distilling helped is unresolved: the difference to plain training cannot be told from noise"
    elif verdict == "unknown":
        claim = f"Distilling changes it by {amount} over plain training on the same data"
    elif metric.better == "higher":
        claim = f"Distilling is worth {amount} over plain training on the same data"
        if verdict == "worse":
            claim = f"Distilling did harm: {amount} against plain training on the same data"
    elif verdict == "better":
        claim = f"Distilling lowers it by {size} below plain training on the same data"
    else:
        claim = f"Distilling did harm: it is {size} higher than after plain training on the same data"
    return verdict, (Sentence(claim, proof),)


def worth_of_choosing(evaluation: Evaluation, metric: Metric) -> tuple[Sentence, ...]:
    """What choosing the data added: the student against one on as many random rows, with the same teacher."""
    comparison = evaluation.comparison(RANDOM, metric.id)
    if comparison is None or not is_number(comparison.difference):
        return ()
    verdict = verdict_of(comparison, metric)
    amount = metric.difference(comparison.difference, comparison.half_width, unit=True)
    claim = {
        "unresolved": "Whether choosing the rows helped is unresolved: random ones do as well within the noise",
        "better": f"Choosing the rows is worth {amount} over as many random ones with the same teacher",
        "worse": f"Choosing the rows did harm: {amount} against as many random ones with the same teacher",
    }.get(verdict, f"Choosing the rows changes it by {amount} over as many random ones")
    return (Sentence(claim, evidence(comparison, metric, verdict == "unresolved")),)


def missing_control(evaluation: Evaluation, metric: Metric | None = None) -> tuple[Sentence, ...]:
    """Why nothing can be concluded about the teacher's part."""
    if "control" not in evaluation.models:
        lack = "There is no control (the same student and data without a teacher)"
    elif metric is None:
        return ()
    else:
        lack = f"The control was not compared on {metric.name}"
    return (Sentence(f"{lack}, so nothing can be concluded about what the teacher added"),)


def verdict_of(comparison: Comparison, metric: Metric) -> Verdict:
    """Whether a difference is for the better, for the worse, or not told from noise."""
    if metric.better == "none" or not is_number(comparison.difference):
        return "unknown"
    if not comparison.resolved:
        return "unresolved"
    return "better" if (comparison.difference > 0) == (metric.better == "higher") else "worse"


def evidence(comparison: Comparison, metric: Metric, unresolved: bool) -> str:
    """Interval and number of examples; for an unresolved difference also the smallest effect the test could see."""
    spread, parts = comparison.half_width, []
    if unresolved and is_number(comparison.difference):
        parts.append(metric.difference(comparison.difference, spread, unit=True))
    if is_number(comparison.low) and is_number(comparison.high):
        low, high = metric.difference(comparison.low, spread), metric.difference(comparison.high, spread)
        parts.append(f"95\u00a0% interval {low} to {high}")
    if is_number(comparison.n):
        parts.append(f"n\u00a0=\u00a0{fixed(comparison.n, 0)}")
    text = ", ".join(parts)
    if unresolved and not comparison.resolved and is_number(comparison.mde):
        smallest = metric.difference(comparison.mde, spread, unit=True, signed=False)
        text += f"; the smallest effect this test could see is {smallest}"
    return text


def interval_evidence(share: Interval) -> str:
    """The interval of a share."""
    if not is_number(share.low) or not is_number(share.high):
        return ""
    return f"95\u00a0% interval {fixed(100 * share.low, 0)} to {percent(share.high)}"
