"""A causal language model with adapters as a condenser's learner."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from building import MakeStudent
from torch import Tensor

from stillhouse.condensation._decoder import DecoderLearner, decoder_learner, token_vectors
from stillhouse.condensation._matching import class_batches, weights_of
from stillhouse.condensation._outer import Synthetic
from stillhouse.condensation._rows import rows_of_classes
from stillhouse.condensation.base import Real
from stillhouse.condensation.gradient_matching import GradientMatching
from stillhouse.condensation.select_and_relabel import SelectAndRelabel
from stillhouse.errors import DataError, NeedsError
from stillhouse.models import CausalLM
from stillhouse.recipe import LoRA

pytest.importorskip("peft")
SMALL = LoRA(r=2, alpha=4, target_modules=["q_proj", "v_proj"])
ANSWERS = (40, 41)


@pytest.fixture(scope="module")
def lm(make_student: MakeStudent) -> CausalLM:
    return make_student(double=True).lm


def sums(lm: CausalLM) -> Real:
    prompts = [f"{'Ann' if n % 2 else 'the cat'} has {n} apples" for n in range(16)]
    vectors, mask = token_vectors(lm, prompts, 6)
    classes = torch.arange(16) % 2
    return Real(vectors, mask, torch.eye(2, dtype=torch.float64)[classes], classes)


def test_fed_a_prompts_own_embeddings_it_expects_what_the_model_expects(lm: CausalLM) -> None:
    vectors, mask = token_vectors(lm, ["the cat", "Ann has apples."], 8)
    learner = DecoderLearner(lm, ANSWERS, SMALL, seed=0)
    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
        found = learner(vectors, mask)
        for row, prompt in enumerate(["the cat", "Ann has apples."]):
            logits = lm.model(torch.tensor([lm.tokenizer.encode(prompt)])).logits[0, -1]
            assert torch.allclose(found[row], logits[list(ANSWERS)])


def test_only_adapters_are_matched_and_the_model_is_left_alone(lm: CausalLM) -> None:
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    one, again, other = (weights_of(DecoderLearner(lm, ANSWERS, SMALL, seed=seed)) for seed in (0, 0, 1))
    assert all("lora_" in name for name in one)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    made = GradientMatching(per_class=1, rounds=1, steps=2).condense(sums(lm), decoder_learner(lm, ANSWERS, SMALL))
    assert made.inputs_RTD.isfinite().all()
    assert all(torch.equal(before[name], p) for name, p in lm.model.named_parameters())


def test_outer_gradient_through_a_decoder(lm: CausalLM) -> None:
    """Along some directions: the architecture's norms compute in float32, so that steps cannot be small."""
    real, condenser = sums(lm), GradientMatching(per_class=1, distance="l2")
    module = DecoderLearner(lm, ANSWERS, SMALL, seed=0)
    batches = class_batches(real, rows_of_classes(real), 3, np.random.default_rng(0))
    begun = Synthetic.begin(real, 1, "random", 0, learn_labels=True)

    def loss(inputs: Tensor) -> Tensor:
        return condenser.loss(module, weights_of(module), dataclasses.replace(begun, inputs_RTD=inputs), batches)

    (gradient,) = torch.autograd.grad(loss(begun.inputs_RTD), begun.inputs_RTD)
    draw, at, step = torch.Generator().manual_seed(0), begun.inputs_RTD.detach(), 1e-3
    for _ in range(4):
        way = torch.randn(at.shape, generator=draw, dtype=at.dtype) * begun.mask_RT[..., None]
        slope = (loss(at + step * way) - loss(at - step * way)).item() / (2 * step)
        assert slope == pytest.approx((gradient * way).sum().item(), rel=0.02, abs=0.02 * float(gradient.norm()))


def test_matching_brings_the_gradients_together(lm: CausalLM) -> None:
    same = DecoderLearner(lm, ANSWERS, SMALL, seed=0)
    condenser = GradientMatching(per_class=1, rounds=6, steps=4, lr=0.02, learner_steps=0, distance="l2")
    losses = [entry["loss"] for entry in condenser.condense(sums(lm), lambda seed: same).history]
    assert losses[-1] < 0.5 * losses[0]


def test_rows_can_be_chosen_for_a_decoder(lm: CausalLM) -> None:
    real = sums(lm)
    condenser = SelectAndRelabel(per_class=2, learners=1, learner_steps=1, batch=4)
    made = condenser.condense(real, decoder_learner(lm, ANSWERS, SMALL))
    assert torch.equal(made.inputs_RTD, real.inputs_NTD[made.rows_R])


def test_a_model_that_cannot_be_fed_vectors_is_refused(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm.model, "forward", lambda input_ids: input_ids)
    with pytest.raises(NeedsError, match="cannot be fed any"):
        decoder_learner(lm, ANSWERS, SMALL)


def test_prompts_and_answers_that_cannot_be_used(lm: CausalLM) -> None:
    with pytest.raises(DataError, match="at least two, each once"):
        DecoderLearner(lm, (1, 1), SMALL, seed=0)
    with pytest.raises(DataError, match="1 prompts hold no token"):
        token_vectors(lm, ["a", ""], 3)


def test_a_long_prompt_keeps_its_end(lm: CausalLM) -> None:
    short, _ = token_vectors(lm, ["cat sat"], 3)
    ids = lm.tokenizer.encode("cat sat")[-3:]
    table = lm.model.get_input_embeddings().weight
    assert torch.equal(short[0, : len(ids)], table[ids].detach())
