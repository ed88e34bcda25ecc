"""Signatures by which a distillation that failed is known, looked for in what a run measured; numpy only.

The survey on distillation (arXiv 2504.14772) names three: a student that matches its teacher on what it has seen and
not beyond, an over-confident student of a calibrated teacher, and good perplexity with poor reasoning. Here each is a
rule with a margin, and holds only where the whole confidence interval lies beyond it: no signature means that none was
seen, not that nothing is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.generalising import HELDOUT, TRAIN, Measured, Shift
from stillhouse.statistics import Comparison, Measurement, Metric, compare, estimate, gap_closed, recovery

SOURCE = "arXiv 2504.14772"

OVERFITTED = 0.1
"""Of the student's bits per byte on held-out data: how much wider its gap from training data must be than the
reference's. Whatever is trained knows its training data a little better, by some hundredths, which is no failure."""
CALIBRATED = 0.05
"""The largest calibration error of a teacher that is called calibrated: its probabilities are off by one in twenty on
average. With few examples even a perfect model shows an error of some hundredths."""
OVERCONFIDENT = 0.02
"""How much larger than its teacher's the student's calibration error must be: below that its probabilities serve as
well as its teacher's."""
FLUENT = 0.8
"""Share of the way in bits per byte from the student before training to its teacher: most of what there was to learn
has been learned."""
NEAR = 1.25
"""Times its teacher's perplexity, the student's at most. A student that starts from nothing makes most of the way by
learning which words there are; it writes like its teacher only where it is hardly more often surprised."""
WRONG = 0.5
"""Share of its teacher's score below which a student that writes like its teacher cannot do what its teacher does."""
_Z95 = 1.96

_LOSS, _PER_TOKEN = "likelihood.bits_per_byte", "likelihood.loss"
_ECE, _OVERCONFIDENCE = "calibration.ece", "calibration.overconfidence"
_TASKS = ("tasks.", "lm_eval.")


@dataclass(frozen=True)
class Signature:
    """A way to fail that a run shows.

    Attributes:
        name: for programs.
        claim: what is the matter, in a sentence without a full stop.
        evidence: the numbers in words.
        rule: when the signature is said to be there.
        numbers: by name, shares and differences as they are.
        advice: what to try, the likeliest first.
        source: who describes it.
    """

    name: str
    claim: str
    evidence: str
    rule: str
    numbers: dict[str, float]
    advice: tuple[str, ...]
    source: str = SOURCE


def find_signatures(measured: Measured, metrics: Mapping[str, Metric], moved: Sequence[Shift]) -> list[Signature]:
    """Every signature that the measurements show; nothing is said where what a rule needs was not measured.

    Args:
        measured: of each model its measurements.
        metrics: what their names mean.
        moved: `generalising.shifts` of the same measurements.
    """
    found = [_overfitted(measured, moved), _overconfident(measured), *_fluent_but_wrong(measured, metrics)]
    return [signature for signature in found if signature is not None]


def _overfitted(measured: Measured, moved: Sequence[Shift]) -> Signature | None:
    gap = next((s for s in moved if (s.metric, s.home, s.away) == (_LOSS, TRAIN, HELDOUT)), None)
    if gap is None or not gap.excess:
        return None
    pair, excess = next(iter(gap.excess.items()))  # the teacher where it was measured, else the control
    reference = pair.removeprefix("student - ")
    heldout = estimate(measured["student"][_LOSS]).value
    if not excess.resolved or _known(excess.low) < OVERFITTED * heldout:
        return None
    numbers = {f"gap.{role}": change.difference for role, change in gap.changes.items()}
    numbers |= {f"excess.{other}": found.difference for other, found in gap.excess.items()}
    gaps = ", ".join(f"{role.replace('_', ' ')} {change.difference:+.3f}" for role, change in gap.changes.items())
    return Signature(
        "overfitted",
        "The student is overfitted to the distillation data: on data it has not seen it falls behind, by more than its "
        + reference,
        f"bits per byte on held-out minus training data: {gaps}; student minus {reference} {_interval(excess)}",
        f"the student's gap between training and held-out data is wider than its {reference}'s by at least "
        f"{OVERFITTED:.0%} of its bits per byte on held-out data, by the whole 95 % interval",
        {**numbers, "heldout_bits_per_byte": heldout, "low": _known(excess.low), "high": _known(excess.high)},
        (
            "more, and more varied, training data (data.train), or fewer passes over it (train.steps)",
            "softer targets: a higher temperature of the objective, and more weight on the divergence than on "
            "cross_entropy",
            "a smaller train.lr, some train.weight_decay, or adapters (student.lora) in place of all weights",
        ),
    )


def _overconfident(measured: Measured) -> Signature | None:
    student, teacher = measured.get("student", {}), measured.get("teacher", {})
    if not {_ECE, _OVERCONFIDENCE} <= student.keys() or _ECE not in teacher:
        return None
    worse = compare(student[_ECE], teacher[_ECE])
    theirs, ours = estimate(teacher[_ECE]).value, estimate(student[_ECE]).value
    excess = estimate(student[_OVERCONFIDENCE])
    surely = excess.stderr is not None and excess.value > _Z95 * excess.stderr
    if theirs > CALIBRATED or not worse.resolved or _known(worse.low) < OVERCONFIDENT or not surely:
        return None
    return Signature(
        "overconfident",
        "The student is over-confident where its teacher is calibrated: it is surer of its tokens than it is right",
        f"calibration error {ours:.1%}, its teacher's {theirs:.1%}, difference {_interval(worse, share=True)}; mean "
        f"confidence {100 * excess.value:.1f} points above accuracy",
        f"the teacher's calibration error is at most {CALIBRATED:.0%}, the student's is larger by at least "
        f"{100 * OVERCONFIDENT:.0f} points, by the whole 95 % interval, and its mean confidence exceeds its accuracy "
        "by more than chance",
        {
            "ece.student": ours,
            "ece.teacher": theirs,
            "difference": worse.difference,
            "low": _known(worse.low),
            "high": _known(worse.high),
            "overconfidence": excess.value,
        },
        (
            "another temperature of the objective: the survey tries 1, 2, 4 and 8",
            "less weight on cross_entropy, whose targets are always certain, or forward_kl in place of reverse_kl",
            "a smaller gap in capacity: a larger student, or a teacher between the two",
        ),
    )


def _fluent_but_wrong(measured: Measured, metrics: Mapping[str, Metric]) -> list[Signature]:
    student, teacher, before = (measured.get(role, {}) for role in ("student", "teacher", "student_before"))
    if not {_LOSS, _PER_TOKEN} <= student.keys() or _LOSS not in teacher or _LOSS not in before:
        return []
    way = gap_closed(student[_LOSS], before[_LOSS], teacher[_LOSS])
    falls = estimate(teacher[_LOSS]).value < estimate(before[_LOSS]).value
    if way is None or not falls or way.low < FLUENT:
        return []
    times, at_most = _perplexities(student, teacher)
    if at_most > NEAR:
        return []
    tasks = [name for name in student if name in teacher and name.startswith(_TASKS)]
    shares = {name: recovery(student[name], teacher[name]) for name in tasks if metrics[name].better == "higher"}
    fluent = {"way": way.value, "way.low": way.low, "perplexity": times, "perplexity.high": at_most}
    return [
        Signature(
            "fluent_but_wrong",
            "The student writes like its teacher and is wrong: good perplexity, poor reasoning "
            f"({metrics[name].title[:1].lower()}{metrics[name].title[1:]})",
            f"{times:.2f} times its teacher's perplexity (95 % interval up to {at_most:.2f}), {way.value:.0%} of the "
            f"way to it in bits per byte ({way.low:.0%} to {way.high:.0%}), and {kept.value:.0%} of its score in "
            f"{name} ({kept.low:.0%} to {kept.high:.0%})",
            f"the student's perplexity is at most {NEAR:g} times its teacher's, it has gone at least {FLUENT:.0%} of "
            f"the way there from before training, and keeps less than {WRONG:.0%} of its teacher's score in a task, "
            "each by the whole 95 % interval",
            {**fluent, "recovery": kept.value, "recovery.low": kept.low, "recovery.high": kept.high},
            (
                "rationales: train on worked steps and not on answers alone (data.trace; data.steps: rationales)",
                "cross_entropy on right answers mixed into the divergence",
                "longer training: what the steps say is learned after how they sound (train.steps)",
            ),
        )
        for name, kept in shares.items()
        if kept is not None and kept.high < WRONG
    ]


def _perplexities(student: Mapping[str, Measurement], teacher: Mapping[str, Measurement]) -> tuple[float, float]:
    """The student's perplexity over its teacher's, and the upper end of its interval. It is that of the student's
    tokens: the teacher's bits go by the byte, so that it may have other tokens."""
    more = compare(student[_LOSS], teacher[_LOSS])
    bytes_per_token = student[_LOSS].sums_EM[:, 1].sum() / student[_PER_TOKEN].sums_EM[:, 1].sum()
    nats = math.log(2) * float(bytes_per_token)
    return math.exp(nats * more.difference), math.exp(nats * _known(more.high))


def _interval(found: Comparison, *, share: bool = False) -> str:
    """A difference with its interval; of shares in points."""
    factor, digits, unit = (100, 1, " points") if share else (1, 3, "")
    low, high = (factor * _known(end) for end in (found.low, found.high))
    told = f"{factor * found.difference:+.{digits}f}{unit}"
    return f"{told} (95 % interval {low:+.{digits}f} to {high:+.{digits}f}, n = {found.n:,})"


def _known(end: float | None) -> float:
    """An end of the interval of a resolved difference, which has one."""
    assert end is not None
    return end
