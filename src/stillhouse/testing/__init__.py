"""The contracts as checks that anyone can call: a third party's component is held to the same law as ours.

Each function raises `AssertionError` with the clause that is broken and what was seen. They need no test framework and
no network.
Shapes: N tokens, V vocabulary, K support.

>>> from stillhouse.objectives.forward_kl import ForwardKL
>>> check_objective(ForwardKL(temperature=2.0))
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck

from stillhouse.condensation._contract import check_condenser
from stillhouse.consensus._contract import check_consensus_rule
from stillhouse.contract import check_settings, demand
from stillhouse.data.batching import TokenBatch, TokenSlice
from stillhouse.evaluation._contract import check_evaluator
from stillhouse.features._contract import check_features
from stillhouse.models import Sampling, vocabulary_size
from stillhouse.objectives.base import Divergence, Objective
from stillhouse.records import Example
from stillhouse.selection._contract import check_selector
from stillhouse.signals.kinds import Dense, Signal, TopK
from stillhouse.signals.support import align
from stillhouse.synthesis._contract import check_synthesizer
from stillhouse.teachers.base import TeacherSession
from stillhouse.traces._contract import check_trace_signal
from stillhouse.tracking._contract import check_tracker

__all__ = [
    "check_condenser",
    "check_consensus_rule",
    "check_evaluator",
    "check_features",
    "check_objective",
    "check_selector",
    "check_synthesizer",
    "check_teacher",
    "check_trace_signal",
    "check_tracker",
]

_N, _V, _PADDING = 7, 11, 5


def check_objective(objective: Objective, *, exact_gradient: bool = True) -> None:
    """Hold an objective to its contract (C2, C3, C6).

    Every objective: settings that are a value (frozen, equal, hashable, printable), one finite loss per token, computed
    row by row, unweighted, unmoved by a constant added to the logits, leaving its inputs alone, with the gradient that
    its value implies. Every divergence besides: at least zero, exactly zero with no gradient where student and teacher
    agree, whatever their heads are padded to, the same for a dense signal and for all of its entries as top-k, and
    never negative for fewer.

    Args:
        objective: with settings of your choice; check several if the settings change the formula.
        exact_gradient: its gradient is that of its value, which gradcheck confirms in float64. Say False for a formula
            that holds a part of itself constant on purpose, such as a weight computed from the student.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.objectives.generalized_jsd import GeneralizedJSD
    >>> check_objective(GeneralizedJSD(beta=0.1, normalized=True))
    """
    unknown = objective.needs - {"text", "token_logprobs", "distribution"}
    demand(not unknown, f"{objective!r} needs {sorted(unknown)}, which check_objective does not know how to make")
    check_settings(objective)
    _check_weight(objective)
    _check_per_token(objective)
    _check_invariances(objective)
    if exact_gradient:
        _check_exact_gradient(objective)
    _check_finite_gradient(objective)
    if isinstance(objective, Divergence):
        _check_divergence(objective)
        _check_top_k(objective)


def check_teacher(
    session: TeacherSession, batch: TokenBatch, provides: Collection[str] | None = None, *, live: bool = True
) -> None:
    """Hold an opened teacher to its contract.

    What it says is a signal with one row per token position, cut the same whether rows are asked for together or alone,
    without a gradient, the same when asked again, and looking at no token that comes later. Its weights are frozen.
    What it reads and writes is counted, what it writes comes in the order of the prompts and stays within its limit.

    Args:
        session: from `Teacher.open()`.
        batch: any batch made with its tokenizer, of at least two sequences.
        provides: what the teacher declares (`Teacher.provides`); its signal must agree.
        live: `Teacher.live`; a record is held to what it says about trained tokens alone.

    Raises:
        AssertionError: a clause is broken.

    >>> from stillhouse.teachers.hf import HFTeacher  # doctest: +SKIP
    >>> check_teacher(teacher.open(), batch, teacher.provides)  # doctest: +SKIP
    """
    _check_identity(session)
    _check_signal(session, batch, provides, live=live)
    if live:
        _check_causal(session, batch)
        _check_writing(session, batch)


def _logits(seed: int, width: int = _V, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    return (torch.randn(_N, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(
        dtype
    )


def _tokens(vocabulary: int = _V) -> TokenSlice:
    return TokenSlice(torch.arange(_N) * 3 % vocabulary, torch.full((_N,), 3, dtype=torch.uint8))


def _loss(objective: Objective, student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    return objective.loss(student_NV, Dense(teacher_NV, _V), _tokens())


def _check_weight(objective: Objective) -> None:
    half = 0.5 * objective
    demand(half.weight == 0.5 * objective.weight, f"0.5 * {objective!r} has weight {half.weight}")
    student, teacher = _logits(1), _logits(2)
    same = torch.equal(_loss(half, student, teacher), _loss(objective, student, teacher))
    demand(same, "the weight changes what loss() returns; the loop applies it, loss() must not")


def _check_per_token(objective: Objective) -> None:
    student, teacher, tokens = _logits(1), _logits(2), _tokens()
    kept = student.clone(), teacher.clone()
    loss_N = _loss(objective, student, teacher)
    demand(loss_N.shape == (_N,), f"loss has shape {tuple(loss_N.shape)}, expected one value per token, ({_N},)")
    untouched = torch.equal(student, kept[0]) and torch.equal(teacher, kept[1])
    demand(untouched, "loss() changed the logits it was given; work on copies")
    for rows in (torch.arange(_N).flip(0), torch.tensor([4, 0, 4]), torch.tensor([2])):
        few = TokenSlice(tokens.targets_N[rows], tokens.role_N[rows])
        some = objective.loss(student[rows], Dense(teacher, _V).select(rows), few)
        demand(
            torch.allclose(some, loss_N[rows], rtol=1e-9, atol=1e-12),
            f"the loss of tokens {rows.tolist()} depends on which other tokens are there: {some.tolist()} against "
            f"{loss_N[rows].tolist()}; return one value per token and take no mean",
        )
    for dtype in (torch.float32, torch.bfloat16):
        for scale in (1.0, 1e4):
            extreme = _loss(objective, _logits(1, dtype=dtype, scale=scale), _logits(2, dtype=dtype, scale=scale))
            demand(
                bool(extreme.isfinite().all()),
                f"loss of {dtype} logits of size {scale:g} is not finite: {extreme.tolist()}",
            )


def _check_invariances(objective: Objective) -> None:
    student, teacher = _logits(1), _logits(2)
    loss_N = _loss(objective, student, teacher)
    moved = _loss(objective, student + 3.0, teacher - 5.0)
    demand(
        torch.allclose(moved, loss_N, rtol=1e-9, atol=1e-9),
        "a constant added to the logits changes the loss; it is no probability",
    )
    padded = torch.cat([teacher, torch.full((_N, _PADDING), 9.0, dtype=torch.float64)], -1)
    demand(
        torch.equal(_loss(objective, student, padded), loss_N),
        "columns beyond the vocabulary (a padded head) change the loss; cut them before the softmax, as signals.align "
        "does",
    )


def _check_exact_gradient(objective: Objective) -> None:
    teacher = _logits(2)
    student = _logits(1).requires_grad_()

    def value(logits: Tensor) -> Tensor:
        return _loss(objective, logits, teacher)

    try:
        gradcheck(value, (student,))
    except GradcheckError as error:
        raise AssertionError(f"the gradient of {objective!r} is not that of its value: {error}") from error


def _check_finite_gradient(objective: Objective) -> None:
    logits = _logits(1, dtype=torch.float32, scale=40.0).requires_grad_()
    (gradient,) = torch.autograd.grad(
        _loss(objective, logits, _logits(2, dtype=torch.float32, scale=40.0)).sum(), logits
    )
    demand(bool(gradient.isfinite().all()), "the gradient is not finite where the two distributions hardly overlap")


def _check_divergence(objective: Divergence) -> None:
    for seed in range(3):
        student, teacher = _logits(2 * seed, dtype=torch.float32), _logits(2 * seed + 1, dtype=torch.float32)
        loss_N = _loss(objective, student, teacher)
        demand(bool((loss_N >= -1e-6).all()), f"a divergence is at least zero, got {loss_N.min().item():g}")
        demand(bool((loss_N > 1e-6).any()), "a divergence of two different distributions is zero")
    noise = _logits(9, _PADDING, torch.float32)
    for scale in (1.0, 30.0):
        student = _logits(1, dtype=torch.float32, scale=scale).requires_grad_()
        for teacher in (student.detach(), torch.cat([student.detach(), noise], -1)):
            loss_N = _loss(objective, student, teacher)
            (gradient,) = torch.autograd.grad(loss_N.sum(), student)
            width = f"teacher's head {teacher.shape[-1]} wide, vocabulary {_V}"
            demand(
                not loss_N.any(), f"student and teacher agree, yet the divergence is {loss_N.max().item():g} ({width})"
            )
            demand(
                gradient.abs().max().item() < 1e-5 * max(1.0, objective.temperature),
                f"student and teacher agree, yet the gradient is {gradient.abs().max().item():g} ({width})",
            )


def _check_top_k(objective: Divergence) -> None:
    student, teacher = _logits(1), Dense(_logits(2), _V)
    dense_N = objective.loss(student, teacher, _tokens())
    for k in (_V, 3, 1):
        signal = TopK.of(teacher, k, objective.temperature)
        loss_N = objective.loss(student, signal, _tokens())
        demand(bool(loss_N.isfinite().all()), f"loss on the top {k} entries is not finite")
        demand(
            bool((loss_N >= -1e-9).all()),
            f"loss on the top {k} entries and a tail is negative: {loss_N.min().item():g}",
        )
        if k == _V:
            equal = torch.allclose(loss_N, dense_N, rtol=1e-9, atol=1e-9)
            demand(equal, "all entries as top-k give another loss than the dense signal")


def _check_identity(session: TeacherSession) -> None:
    first = json.dumps(session.identity(), sort_keys=True)
    demand(first == json.dumps(session.identity(), sort_keys=True), "identity() changes from call to call")
    if session.lm is not None:
        trainable = [name for name, weight in session.lm.model.named_parameters() if weight.requires_grad]
        demand(not trainable, f"the teacher's weights are not frozen: {trainable[:3]}")
        demand(
            not session.lm.model.training,
            "the teacher is in training mode, so dropout makes it say something new every time",
        )


def _read(session: TeacherSession, signal: Signal, rows_N: Tensor) -> Tensor:
    """The teacher's log-probabilities of some rows, whatever the kind of signal."""
    chosen = signal.select(rows_N)
    anything_NV = torch.zeros(len(rows_N), vocabulary_size(session.tokenizer))
    return align(anything_NV, chosen, chosen.temperature if isinstance(chosen, TopK) else 1.0).teacher_NK


def _check_signal(session: TeacherSession, batch: TokenBatch, provides: Collection[str] | None, *, live: bool) -> None:
    before = session.tokens_read
    signal = session.score(batch)
    read = session.tokens_read - before
    asked = batch.real_count() if live else 0
    demand(read == asked, f"score() counted {read} tokens as read, the batch has {asked}")
    if provides is not None:
        missing = set(provides) - {"text"} - signal.provides
        demand(
            not missing,
            f"the teacher declares {sorted(missing)}, its {type(signal).__name__} signal does not provide it",
        )
    if "distribution" not in signal.provides:
        return
    real = (batch.examples_BT() >= 0 if live else batch.trained_BT).flatten().nonzero().squeeze(1)
    whole = _read(session, signal, real)
    demand(len(whole) == len(real), f"{len(real)} rows were selected, {len(whole)} came back")
    demand(not whole.requires_grad, "the teacher's signal carries a gradient; score under torch.no_grad()")
    mass = whole.exp().sum(-1)
    demand(
        torch.allclose(mass, torch.ones_like(mass), atol=1e-3),
        f"probabilities of a row sum to {mass.min():g}..{mass.max():g}",
    )
    few = real[[-1, 0]]
    demand(
        torch.allclose(_read(session, signal, few), whole[[-1, 0]], atol=1e-4),
        "rows selected alone differ from rows selected together",
    )
    demand(
        torch.equal(_read(session, session.score(batch), real), whole),
        "asked twice, the teacher says two different things",
    )


def _check_causal(session: TeacherSession, batch: TokenBatch) -> None:
    """Row t is about the token after t: changing later tokens must not change it."""
    signal = session.score(batch)
    if "distribution" not in signal.provides or batch.tokens_BT.shape[1] < 2:
        return
    changed = batch.tokens_BT.clone()
    changed[:, 1:] = (changed[:, 1:] + 1) % vocabulary_size(session.tokenizer)
    other = session.score(dataclasses.replace(batch, tokens_BT=changed))
    first = torch.arange(len(batch.ids)) * batch.tokens_BT.shape[1]
    same = torch.allclose(_read(session, signal, first), _read(session, other, first), atol=1e-4)
    demand(
        same,
        "what the teacher says after the first token depends on later tokens; rows are shifted, or attention looks "
        "ahead",
    )
    differ = not torch.allclose(_read(session, signal, first + 1), _read(session, other, first + 1), atol=1e-6)
    demand(differ, "what the teacher says after the second token does not depend on it; rows are shifted the other way")


def _check_writing(session: TeacherSession, batch: TokenBatch) -> None:
    asked = []
    for name, (row, start, stop) in zip(batch.ids, batch.spans, strict=True):
        ids = batch.tokens_BT[row, start : start + max(1, (stop - start) // 2)].tolist()
        asked.append(Example(id=name, prompt=str(session.tokenizer.decode(ids, skip_special_tokens=True))))
    sampling = Sampling(max_new_tokens=5, temperature=0.0)
    before = session.tokens_written
    first = session.answer(asked, sampling)
    demand(len(first) == len(asked), f"{len(asked)} prompts, {len(first)} answers")
    counts = [answer.tokens for answer in first]
    demand(max(counts) <= 5, f"answers of {counts} tokens where at most 5 were allowed")
    written = session.tokens_written - before
    demand(written == sum(counts), f"answer() counted {written} tokens, its answers have {sum(counts)}")
    end = str(session.tokenizer.eos_token)
    demand(not any(end in answer.text for answer in first), "an answer contains the end token; cut it off")
    demand(
        session.answer(asked, sampling) == first, "at temperature 0 the teacher writes something else the second time"
    )
    demand(session.answer(asked[::-1], sampling) == first[::-1], "answers do not come in the order of the prompts")
