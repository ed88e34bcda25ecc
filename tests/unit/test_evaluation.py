"""Evaluators against hand computations, float64 and brute force, on real tiny models.

Shapes: B sequences, T tokens, N trained tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import MakeStudent, build_tokenizer
from numpy.typing import NDArray
from safetensors.torch import load_file

from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError, ModelError, NeedsError, RecipeError
from stillhouse.evaluation import _logits, _memory
from stillhouse.evaluation.base import Heldout
from stillhouse.evaluation.calibration import Calibration, equal_mass_bins
from stillhouse.evaluation.efficiency import Efficiency, weight_bytes
from stillhouse.evaluation.fidelity import Fidelity
from stillhouse.evaluation.likelihood import Likelihood
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.statistics import Measurement, estimate

Floats = NDArray[np.float64]
PadHead = Callable[[CausalLM, int], None]


def heldout(examples: list[Example], tokenizer: Any, max_length: int = 128, **settings: Any) -> Heldout:
    renderer = Renderer(tokenizer, max_length, **settings)
    return Heldout("", examples, renderer.render(examples), renderer)


@pytest.fixture
def data(examples: list[Example], tokenizer: Any) -> Heldout:
    return heldout(examples, tokenizer)


@torch.no_grad()
def by_hand(lm: CausalLM, data: Heldout) -> list[tuple[Floats, NDArray[np.int64]]]:
    """Each example alone, through the model's own forward: log-probabilities [N, V] and targets [N] of trained
    tokens."""
    found = []
    for r in data.rendered:
        logits_TV = lm.model.eval()(input_ids=torch.tensor([r.tokens])).logits[0, :, : lm.vocabulary].double()
        counts = torch.tensor(r.trained)
        found.append((logits_TV.log_softmax(-1)[counts].numpy(), np.array(r.targets)[counts.numpy()]))
    return found


def value(measurement: Measurement) -> float:
    return estimate(measurement).value


class TestLikelihood:
    def test_loss_and_bits_per_byte_by_hand(self, make_student: MakeStudent, data: Heldout) -> None:
        lm = make_student(seed=1).lm
        found = Likelihood().evaluate(lm, data, None).measurements
        nats = [-logq[np.arange(len(y)), y].sum() for logq, y in by_hand(lm, data)]
        tokens = [sum(r.trained) for r in data.rendered]
        text = [len((e.completion or "").encode()) for e in data.examples]
        assert found["loss"].ids == tuple(e.id for e in data.examples)
        np.testing.assert_allclose(found["loss"].sums_EM, np.column_stack([nats, tokens]), rtol=1e-5)
        assert value(found["loss"]) == pytest.approx(sum(nats) / sum(tokens), rel=1e-5)
        assert value(found["bits_per_byte"]) == pytest.approx(sum(nats) / math.log(2) / sum(text), rel=1e-5)

    def test_bytes_are_not_characters(self, make_student: MakeStudent, tokenizer: Any) -> None:
        data = heldout([Example(id="a", prompt="x", completion=" ünïcödé 🙂")], tokenizer)
        found = Likelihood().evaluate(make_student().lm, data, None).measurements["bits_per_byte"]
        assert found.sums_EM[0, 1] == len(" ünïcödé 🙂".encode())

    def test_windows_of_a_long_text_are_measured_each(self, make_student: MakeStudent, tokenizer: Any) -> None:
        data = heldout([Example(id="long", text="the cat sat on the mat, " * 12)], tokenizer, max_length=40)
        found = Likelihood().evaluate(make_student().lm, data, None).measurements["loss"]
        assert found.ids[:2] == ("long/0", "long/1")
        assert found.ids == tuple(r.id for r in data.rendered)

    def test_a_model_with_other_tokens_reads_the_text_in_its_own(
        self, make_student: MakeStudent, data: Heldout, stories: str
    ) -> None:
        other = CausalLM.load(stories)
        found = Likelihood().evaluate(other, data, None).measurements
        own = heldout(list(data.examples), other.tokenizer)
        again = Likelihood().evaluate(other, own, None).measurements
        assert value(found["bits_per_byte"]) == value(again["bits_per_byte"])
        ours = Likelihood().evaluate(make_student().lm, data, None).measurements["bits_per_byte"]
        assert found["bits_per_byte"].ids == ours.ids  # so that the two can be compared

    def test_a_trained_model_finds_its_own_language_likelier(self, stories: str) -> None:
        lm = CausalLM.load(stories)
        told = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
        data = heldout([Example(id="story", text=told), Example(id="noise", text=told[::-1])], lm.tokenizer)
        sums = Likelihood().evaluate(lm, data, None).measurements["bits_per_byte"].sums_EM
        story, noise = sums[:, 0] / sums[:, 1]
        assert story < 1.2 < 3 < noise

    def test_chunks_do_not_change_the_sums(
        self, make_student: MakeStudent, data: Heldout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lm = make_student().lm
        whole = Likelihood().evaluate(lm, data, None).measurements["loss"].sums_EM
        monkeypatch.setattr(_logits, "_FEWEST_ROWS", 1)
        monkeypatch.setattr(_logits, "_LOGITS_BYTES", 3 * 4 * lm.vocabulary)
        assert max(len(c.targets_N) for _, c in _logits.chunks(lm, data.rendered)) == 3
        np.testing.assert_allclose(Likelihood().evaluate(lm, data, None).measurements["loss"].sums_EM, whole, rtol=1e-6)

    def test_nothing_left_to_measure_on(self, make_student: MakeStudent, tokenizer: Any) -> None:
        data = heldout([Example(id="a", prompt="x" * 50, completion="y")], tokenizer, max_length=8, overflow="drop")
        with pytest.raises(DataError, match="all 1 were dropped for their length"):
            Likelihood().evaluate(make_student().lm, data, None)


class TestFidelity:
    def test_divergences_in_float64(self, make_student: MakeStudent, data: Heldout) -> None:
        student, teacher = make_student(seed=1).lm, make_student(seed=2, hidden_size=32).lm
        found = Fidelity().evaluate(student, data, teacher).measurements
        log_q = np.concatenate([logq for logq, _ in by_hand(student, data)])
        log_p = np.concatenate([logp for logp, _ in by_hand(teacher, data)])
        assert value(found["kl"]) == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(-1).mean(), rel=1e-5)
        assert value(found["reverse_kl"]) == pytest.approx((np.exp(log_q) * (log_q - log_p)).sum(-1).mean(), rel=1e-5)
        same = log_q.argmax(-1) == log_p.argmax(-1)
        assert value(found["top1_agreement"]) == pytest.approx(same.mean())
        tops = zip(np.argsort(-log_q)[:, :5], np.argsort(-log_p)[:, :5], strict=True)
        assert value(found["top5_overlap"]) == pytest.approx(np.mean([len({*a} & {*b}) / 5 for a, b in tops]))

    @pytest.mark.parametrize(("own", "others"), [(0, 37), (37, 0), (5, 60)])
    def test_padded_heads_of_equal_models_agree_exactly(
        self, make_student: MakeStudent, data: Heldout, pad_head: PadHead, own: int, others: int
    ) -> None:
        student, teacher = make_student(seed=1).lm, make_student(seed=1).lm
        for lm, more in ((student, own), (teacher, others)):
            if more:
                pad_head(lm, more)
        found = {name: value(m) for name, m in Fidelity().evaluate(student, data, teacher).measurements.items()}
        # The heads' matrix products run over different widths, which may round the last bit differently.
        assert found["kl"] == pytest.approx(0, abs=1e-7)
        assert found["reverse_kl"] == pytest.approx(0, abs=1e-7)
        assert (found["top1_agreement"], found["top5_overlap"]) == (1, 1)

    def test_equal_models_diverge_by_exactly_nothing(self, make_student: MakeStudent, data: Heldout) -> None:
        found = Fidelity().evaluate(make_student(seed=1).lm, data, make_student(seed=1).lm).measurements
        assert value(found["kl"]) == 0.0
        assert value(found["reverse_kl"]) == 0.0

    def test_silent_without_a_teacher_and_exact_about_the_teacher_itself(
        self, make_student: MakeStudent, data: Heldout
    ) -> None:
        lm = make_student().lm
        assert Fidelity().evaluate(lm, data, None).measurements == {}
        itself = {name: value(m) for name, m in Fidelity().evaluate(lm, data, lm).measurements.items()}
        assert itself == {"kl": 0, "reverse_kl": 0, "top1_agreement": 1, "top5_overlap": 1}

    def test_another_k_names_another_metric(self, make_student: MakeStudent, data: Heldout) -> None:
        found = Fidelity(k=3).evaluate(make_student(seed=1).lm, data, make_student(seed=2).lm).measurements
        assert "top3_overlap" in found
        assert found.keys() == Fidelity(k=3).metrics().keys()

    def test_k_beyond_the_vocabulary(self, make_student: MakeStudent, data: Heldout) -> None:
        with pytest.raises(RecipeError, match="Set a smaller k"):
            Fidelity(k=10_000).evaluate(make_student(seed=1).lm, data, make_student(seed=2).lm)
        with pytest.raises(ValueError, match="at least 1"):
            Fidelity(k=0)

    def test_other_tokens_are_refused(self, make_student: MakeStudent, data: Heldout, stories: str) -> None:
        with pytest.raises(NeedsError, match="different tokenizers"):
            Fidelity().evaluate(make_student().lm, data, CausalLM.load(stories))


class TestCalibration:
    def test_expected_calibration_error_by_brute_force(self, make_student: MakeStudent, data: Heldout) -> None:
        lm = make_student(seed=3).lm
        found = Calibration(bins=4).evaluate(lm, data, None)
        log_q = np.concatenate([logq for logq, _ in by_hand(lm, data)])
        targets = np.concatenate([y for _, y in by_hand(lm, data)])
        confidence, correct = np.exp(log_q).max(-1), log_q.argmax(-1) == targets
        order = sorted(range(len(targets)), key=confidence.__getitem__)
        ece, points = 0.0, []
        for b in range(4):
            inside = [i for rank, i in enumerate(order) if int((rank + 0.5) * 4 / len(order)) == b]
            sure, right = confidence[inside].mean(), correct[inside].mean()
            ece += len(inside) / len(order) * abs(right - sure)
            points.append((sure, right, len(inside)))
        assert max(p[2] for p in points) - min(p[2] for p in points) <= 1
        assert value(found.measurements["ece"]) == pytest.approx(ece, abs=1e-6)
        for point, (sure, right, count) in zip(found.reliability, points, strict=True):
            assert point == {"confidence": pytest.approx(sure), "accuracy": pytest.approx(right), "count": count}
        assert value(found.measurements["overconfidence"]) == pytest.approx(
            confidence.mean() - correct.mean(), abs=1e-6
        )

    def test_brier_score_by_its_definition(self, make_student: MakeStudent, data: Heldout) -> None:
        lm = make_student(seed=3).lm
        log_q = np.concatenate([logq for logq, _ in by_hand(lm, data)])
        targets = np.concatenate([y for _, y in by_hand(lm, data)])
        brier = ((np.exp(log_q) - np.eye(lm.vocabulary)[targets]) ** 2).sum(-1).mean()
        found = Calibration().evaluate(lm, data, None).measurements["brier"]
        assert value(found) == pytest.approx(brier, rel=1e-5)

    def test_contributions_add_up_over_examples(self, make_student: MakeStudent, data: Heldout) -> None:
        found = Calibration(bins=4).evaluate(make_student(seed=3).lm, data, None).measurements
        gaps, tokens = found["ece"].sums_EM[:, :-1], found["ece"].sums_EM[:, -1]
        np.testing.assert_array_equal(tokens, [sum(r.trained) for r in data.rendered])
        np.testing.assert_allclose(gaps.sum(1), found["overconfidence"].sums_EM[:, 0])

    def test_equal_confidences_share_a_bin(self) -> None:
        confidence = np.array([0.2, 0.5, 0.5, 0.5, 0.5, 0.9])
        bins = equal_mass_bins(confidence, 3)
        assert len(set(bins[1:5])) == 1
        assert (bins[0], bins[1], bins[5]) == (0, 1, 2)

    def test_more_bins_than_tokens(self, make_student: MakeStudent, tokenizer: Any) -> None:
        data = heldout(
            [Example(id="a", prompt="x", completion="y"), Example(id="b", prompt="x", completion="z")], tokenizer
        )
        found = Calibration(bins=50).evaluate(make_student().lm, data, None)
        assert 0 <= value(found.measurements["ece"]) <= 1
        assert sum(point["count"] for point in found.reliability) == 4


class TestEfficiency:
    def test_bytes_are_those_of_the_weights_file(self, make_student: MakeStudent, tmp_path: Path) -> None:
        for tied in (False, True):
            lm = make_student(tied=tied).lm
            lm.save(tmp_path / str(tied))
            saved = load_file(tmp_path / str(tied) / "model.safetensors")
            assert weight_bytes(lm) == sum(t.nbytes for t in saved.values())
            assert weight_bytes(lm) == 4 * lm.parameters()

    def test_half_the_precision_half_the_bytes(self, make_student: MakeStudent) -> None:
        whole, half = make_student().lm, make_student().lm
        half.model.bfloat16()
        assert 2 * weight_bytes(half) == weight_bytes(whole)

    def test_speeds_come_with_their_noise(self, make_student: MakeStudent, data: Heldout) -> None:
        found = Efficiency(memory=False, trials=3, new_tokens=4).evaluate(make_student().lm, data, None).estimates
        assert found["parameters"].value == make_student().lm.parameters()
        assert found["parameters"].stderr is None
        assert "peak_memory_bytes" not in found
        for name in ("prefill_tokens_per_second", "decode_tokens_per_second"):
            assert found[name].value > 0
            assert found[name].stderr is not None
            assert found[name].n == 3
        assert found["prefill_tokens_per_second"].value > found["decode_tokens_per_second"].value

    def test_one_trial_knows_no_noise(self, make_student: MakeStudent, data: Heldout) -> None:
        found = Efficiency(memory=False, trials=1, new_tokens=2).evaluate(make_student().lm, data, None).estimates
        assert found["decode_tokens_per_second"].stderr is None

    def test_memory_is_that_of_a_process_of_its_own(
        self, make_student: MakeStudent, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_memory, "_measured", {})
        small = make_student().lm
        large = make_student(hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, seed=1).lm
        load = _memory.Load(batch=1, prompt=4, new=2)
        less, more = _memory.peak_of_own_process(small, load), _memory.peak_of_own_process(large, load)
        assert more - less > 0.7 * weight_bytes(large)
        assert less > 50e6  # Python and PyTorch are in it
        assert _memory.peak_of_own_process(make_student(seed=5).lm, load) == less  # the same shapes, not measured again

    def test_a_process_that_fails_says_why(self, make_student: MakeStudent, tmp_path: Path) -> None:
        lm = make_student().lm
        lm.save(tmp_path / "model")
        (tmp_path / "model" / "config.json").write_text("{}")
        lm.model.name_or_path = str(tmp_path / "model")
        with pytest.raises(ModelError, match="memory: false"):
            _memory.peak_of_own_process(lm, _memory.Load(1, 3, 1))

    def test_a_short_context_shortens_the_work(self, make_student: MakeStudent, data: Heldout) -> None:
        lm = make_student(max_position_embeddings=16).lm
        found = Efficiency(memory=False, trials=2).evaluate(lm, data, None).estimates
        assert found["prefill_tokens_per_second"].value > 0


def test_a_text_is_measured_the_same_whatever_else_is_in_the_data(make_student: MakeStudent, data: Heldout) -> None:
    lm = make_student().lm
    alone = Heldout("", data.examples[3:4], data.rendered[3:4], data.renderer)
    both = [Likelihood().evaluate(lm, d, None).measurements["loss"] for d in (data, alone)]
    np.testing.assert_allclose(both[0].sums_EM[3], both[1].sums_EM[0], rtol=1e-5)


def test_a_bfloat16_model_is_summed_in_float32(make_student: MakeStudent, data: Heldout) -> None:
    lm = make_student().lm
    exact = value(Likelihood().evaluate(lm, data, None).measurements["loss"])
    lm.model.bfloat16()
    assert value(Likelihood().evaluate(lm, data, None).measurements["loss"]) == pytest.approx(exact, rel=0.02)


def test_tokenizers_of_equal_tokens_count_as_one(make_student: MakeStudent, data: Heldout) -> None:
    lm = make_student(using=build_tokenizer()).lm
    assert lm.tokenizer is not data.renderer.tokenizer
    assert _logits.rendered_for(lm, data) is data.rendered
