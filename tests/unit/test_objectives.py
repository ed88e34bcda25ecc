"""Golden values: each formula against a few lines of float64 numpy that share no code with it.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.data.batching import TokenSlice
from stillhouse.errors import NeedsError
from stillhouse.objectives.base import Divergence
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.objectives.generalized_jsd import GeneralizedJSD
from stillhouse.objectives.reverse_kl import ReverseKL
from stillhouse.signals import Aligned, Dense, TopK, align

Floats = NDArray[np.float64]


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    weights = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return weights / weights.sum(-1, keepdims=True)


def kl(first: Floats, second: Floats) -> Floats:
    return (first * np.log(first / second)).sum(-1)


def jsd(q: Floats, p: Floats, beta: float) -> Floats:
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Floats, Floats, float]:
    """Student logits, teacher logits, temperature."""
    rows, width = draw(st.integers(1, 5)), draw(st.integers(2, 40))
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0]))
    return (*draws.normal(scale=scale, size=(2, rows, width)), draw(st.sampled_from([0.5, 1.0, 2.0, 7.5])))


def tokens(rows: int) -> TokenSlice:
    return TokenSlice(torch.zeros(rows, dtype=torch.long), torch.full((rows,), 3, dtype=torch.uint8))


def loss(objective: Any, student: Floats | Tensor, teacher: Floats | Tensor, vocabulary: int | None = None) -> Tensor:
    student, teacher = torch.as_tensor(student), torch.as_tensor(teacher)
    return objective.loss(student, Dense(teacher, vocabulary), tokens(len(student)))


@given(pairs())
def test_forward_kl_is_kl_of_teacher_and_student(drawn: tuple[Floats, Floats, float]) -> None:
    student, teacher, tau = drawn
    expected = tau**2 * kl(softmax(teacher, tau), softmax(student, tau))
    np.testing.assert_allclose(loss(ForwardKL(temperature=tau), student, teacher), expected, rtol=1e-9, atol=1e-12)


@given(pairs())
def test_reverse_kl_is_kl_of_student_and_teacher(drawn: tuple[Floats, Floats, float]) -> None:
    student, teacher, tau = drawn
    expected = tau**2 * kl(softmax(student, tau), softmax(teacher, tau))
    np.testing.assert_allclose(loss(ReverseKL(temperature=tau), student, teacher), expected, rtol=1e-9, atol=1e-12)


@given(pairs(), st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]), st.booleans())
def test_generalized_jsd_is_the_formula_of_gkd(
    drawn: tuple[Floats, Floats, float], beta: float, normalized: bool
) -> None:
    student, teacher, tau = drawn
    expected = (
        tau**2 * jsd(softmax(student, tau), softmax(teacher, tau), beta) / (beta * (1 - beta) if normalized else 1)
    )
    actual = loss(GeneralizedJSD(temperature=tau, beta=beta, normalized=normalized), student, teacher)
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-10)


@given(pairs())
def test_cross_entropy_is_minus_the_log_probability_of_the_token(drawn: tuple[Floats, Floats, float]) -> None:
    student, _, _ = drawn
    rows, width = student.shape
    targets = torch.arange(rows) % width
    expected = -np.log(softmax(student))[np.arange(rows), targets.numpy()]
    actual = CrossEntropy().loss(torch.as_tensor(student), None, TokenSlice(targets, tokens(rows).role_N))
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_direction_by_hand() -> None:
    """Teacher (1/2, 1/2), student (1/4, 3/4): the two directions differ, and each is the one its name says."""
    student, teacher = torch.tensor([[0.25, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    reverse = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    assert loss(ForwardKL(), student, teacher).item() == pytest.approx(forward, rel=1e-6)
    assert loss(ReverseKL(), student, teacher).item() == pytest.approx(reverse, rel=1e-6)
    assert forward == pytest.approx(0.1438, abs=1e-4)
    assert reverse == pytest.approx(0.1308, abs=1e-4)


def test_forward_kl_punishes_what_the_student_leaves_out_and_reverse_kl_what_it_adds() -> None:
    broad, narrow = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[9.0, 0.0, 0.0]])
    assert loss(ForwardKL(), narrow, broad) > 3 * loss(ReverseKL(), narrow, broad)
    assert loss(ReverseKL(), broad, narrow) > 3 * loss(ForwardKL(), broad, narrow)


@pytest.mark.parametrize("objective", [ForwardKL, ReverseKL, lambda **kw: GeneralizedJSD(normalized=True, **kw)])
def test_temperature_squared_keeps_the_size_of_the_gradient(objective: Any) -> None:
    """Where logits are small against the temperature every KL tends to ||student - teacher||^2 / 2V, whatever it is."""
    draws = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, generator=draws, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(), teacher - teacher.mean()
    expected = (student - teacher).square().sum() / (2 * 6)
    for tau in (100.0, 1000.0):
        assert loss(objective(temperature=tau), student, teacher).item() == pytest.approx(expected.item(), rel=0.05)


# The generalised JSD and its ends (trap 1 of the catalogue).

P = np.array([[0.7, 0.2, 0.1]])
Q = np.array([[0.1, 0.3, 0.6]])


def between(beta: float, normalized: bool) -> float:
    return loss(GeneralizedJSD(beta=beta, normalized=normalized), np.log(Q), np.log(P)).item()


def test_normalized_jsd_ends_in_forward_and_reverse_kl_without_a_jump() -> None:
    forward, reverse = kl(P, Q).item(), kl(Q, P).item()
    assert between(0.0, True) == pytest.approx(forward, rel=1e-12)
    assert between(1.0, True) == pytest.approx(reverse, rel=1e-12)
    for near in (1e-3, 1e-5):
        assert between(near, True) == pytest.approx(forward, rel=5 * near)
        assert between(1 - near, True) == pytest.approx(reverse, rel=5 * near)


def test_plain_jsd_vanishes_at_its_ends_like_beta_times_kl() -> None:
    assert between(1e-6, False) / 1e-6 == pytest.approx(kl(P, Q).item(), rel=1e-4)
    assert between(1 - 1e-6, False) / 1e-6 == pytest.approx(kl(Q, P).item(), rel=1e-4)


def test_jsd_is_symmetric_at_one_half_and_bounded_by_log_2() -> None:
    half = GeneralizedJSD(beta=0.5)
    assert loss(half, np.log(Q), np.log(P)).item() == pytest.approx(loss(half, np.log(P), np.log(Q)).item(), rel=1e-12)
    far = loss(half, torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])).item()
    assert far == pytest.approx(np.log(2), rel=1e-6)


@given(pairs(), st.floats(0.05, 0.95))
def test_swapping_the_sides_and_beta_changes_nothing(drawn: tuple[Floats, Floats, float], beta: float) -> None:
    student, teacher, _ = drawn
    one = loss(GeneralizedJSD(beta=beta), student, teacher)
    two = loss(GeneralizedJSD(beta=1 - beta), teacher, student)
    np.testing.assert_allclose(one, two, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize(("beta", "instead"), [(0, "forward_kl"), (1, "reverse_kl")])
def test_plain_jsd_refuses_its_ends_and_says_what_was_meant(beta: float, instead: str) -> None:
    with pytest.raises(ValueError, match=f"zero for any student; use {instead}, or normalized: true"):
        GeneralizedJSD(beta=beta)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneralizedJSD(beta=1.5), "beta is 1.5; it must lie between 0 and 1"),
        (lambda: ForwardKL(temperature=0), "temperature is 0; it must be positive"),
        (lambda: ReverseKL(temperature=float("nan")), "temperature is nan; it must be positive"),
        (lambda: CrossEntropy(weight=0), "weight is 0; it must be positive"),
        (lambda: -0.5 * CrossEntropy(), "weight is -0.5; it must be positive"),
    ],
)
def test_bad_settings_are_refused_with_the_value(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Traps.

DIVERGENCES: list[Divergence] = [
    ForwardKL(),
    ReverseKL(temperature=2.0),
    GeneralizedJSD(),
    GeneralizedJSD(beta=0.1, normalized=True),
]


@pytest.mark.parametrize("objective", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_padded_differently_give_exactly_zero(objective: Divergence, dtype: torch.dtype) -> None:
    """Trap 8. The usual remedy, zeros in the missing columns, gives them mass: the same pair then is far from zero."""
    student = torch.randn(4, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    teacher = torch.cat([student, torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).to(dtype)], -1)
    assert not loss(objective, student, teacher, 10).any()
    wider = torch.cat([student, torch.full((4, 3), 5.0, dtype=dtype)], -1)
    assert not loss(objective, wider, teacher, 10).any()
    zero_padded = torch.cat([student, torch.zeros(4, 6, dtype=dtype)], -1)
    assert (loss(objective, zero_padded, teacher) > 1e-3).all()


@pytest.mark.parametrize("objective", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite_with_their_gradient(objective: Divergence, dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4], [1e4, 0.0, -1e4], [-1e4, 1e4, 1e4]], dtype=dtype)
    loss_N = loss(objective, student, teacher)
    (gradient,) = torch.autograd.grad(loss_N.sum(), student)
    assert loss_N.isfinite().all()
    assert gradient.isfinite().all()
    assert loss_N[0] > 0.1
    assert loss_N[2] == 0
    assert loss_N.dtype == torch.float32


@pytest.mark.parametrize("beta", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("distance", [5.0, 20.0, 60.0, 79.0, 81.0, 200.0])
def test_jsd_of_nearly_disjoint_distributions_has_the_gradient_of_float64(beta: float, distance: float) -> None:
    """Gradients stay finite and right long after exp() of the log-ratio would have overflowed."""

    def gradient(dtype: torch.dtype) -> Tensor:
        student = torch.tensor([[distance, 0.0, 1.0]], dtype=dtype, requires_grad=True)
        value = loss(GeneralizedJSD(beta=beta), student, torch.tensor([[0.0, distance, 1.0]], dtype=dtype)).sum()
        return torch.autograd.grad(value, student)[0].double()

    def oracle() -> Floats:
        def value(student: Floats) -> float:
            return jsd(softmax(student), softmax(np.array([0.0, distance, 1.0])), beta).item()

        at, step = np.array([distance, 0.0, 1.0]), 1e-4
        return np.array([(value(at + step * unit) - value(at - step * unit)) / (2 * step) for unit in np.eye(3)])

    single = gradient(torch.float32)
    assert single.isfinite().all()
    np.testing.assert_allclose(single[0], gradient(torch.float64)[0], atol=1e-6)
    np.testing.assert_allclose(single[0], oracle(), atol=1e-5)


@pytest.mark.parametrize("objective", DIVERGENCES, ids=repr)
def test_top_k_with_a_tail_is_a_lower_bound_that_grows_with_k(objective: Divergence) -> None:
    """Merging outcomes can only hide a difference (data processing inequality); all tokens kept hide nothing."""
    draws = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(20, 30, generator=draws, dtype=torch.float64) for _ in range(2))
    dense = objective.loss(student, Dense(teacher), tokens(20))
    kept = [
        objective.loss(student, TopK.of(Dense(teacher), k, objective.temperature), tokens(20))
        for k in (1, 4, 12, 29, 30)
    ]
    for fewer, more in zip(kept, [*kept[1:], dense], strict=True):
        assert (fewer >= -1e-12).all()
        assert (fewer <= more + 1e-9).all()
    np.testing.assert_allclose(kept[-1], dense, rtol=1e-9)


def test_the_tail_of_a_confident_teacher_is_exact() -> None:
    """Two equal tokens outside lose nothing by being one bucket, though 1 - kept would be 0 in float32."""
    teacher, student = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[3.0, 0.0, 0.0]])
    exact = ReverseKL().loss(student, Dense(teacher), tokens(1)).item()
    kept = ReverseKL().loss(student, TopK.of(Dense(teacher), 1), tokens(1)).item()
    assert kept == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("k", [1, 5, 29])
@pytest.mark.parametrize("objective", DIVERGENCES, ids=repr)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_the_top_k(objective: Divergence, k: int) -> None:
    logits = (8 * torch.randn(20, 30, generator=torch.Generator().manual_seed(5))).requires_grad_()
    loss_N = objective.loss(logits, TopK.of(Dense(logits.detach()), k, objective.temperature), tokens(20))
    assert loss_N.abs().max() == 0


def test_top_k_of_another_temperature_is_refused() -> None:
    signal = TopK.of(Dense(torch.randn(2, 8)), 3, temperature=2.0)
    with pytest.raises(
        NeedsError, match=r"asks for temperature 1, the stored top-k signal was made at 2.*cannot be re-tempered"
    ):
        ForwardKL().loss(torch.randn(2, 8), signal, tokens(2))


def test_divergence_alone_takes_an_aligned_pair() -> None:
    """Level 1 of the Python interface: just a formula, in anyone's trainer, with any leading shape."""
    student, teacher = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    pair = align(student, Dense(teacher))
    assert isinstance(pair, Aligned)
    assert ReverseKL().divergence(pair).shape == (2, 3)


def test_weights_multiply() -> None:
    assert (0.5 * (0.5 * ForwardKL(temperature=2.0))) == ForwardKL(weight=0.25, temperature=2.0)
    assert len({ForwardKL(), ForwardKL(weight=1.0), 2 * ForwardKL()}) == 2
