"""Computing activations again changes memory and nothing else; evaluation and writing do not know of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data.batching import TokenBatch
from stillhouse.errors import ModelError
from stillhouse.models import CausalLM, Sampling
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.recipe import LoRA
from stillhouse.student import Student
from stillhouse.teachers.hf import HFSession
from stillhouse.training.chunking import batch_loss

WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 6}
LORAS = {
    "weights": None,
    "adapters": LoRA(r=4),
    "adapters with dropout": LoRA(r=4, dropout=0.3),
    "adapters of the last layer": LoRA(r=4, target_modules=["layers.5.mlp.down_proj"]),
    "head": LoRA(r=4, target_modules=["lm_head"]),
}


@pytest.fixture
def batch(render: Any, examples: Any) -> TokenBatch:
    return TokenBatch.of(render(examples))


def made(make_student: Any, lora: LoRA | None, *, recompute: bool) -> Student:
    student = make_student(seed=1, **WIDE)
    if lora is not None:
        student.adapt(lora, seed=2)
    if recompute:
        student.checkpoint_activations()
    student.lm.model.train()
    return student


class Kept:
    """Bytes of activations that a forward pass keeps for the backward pass; weights are not counted."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.storages: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


def backward(student: Student, teacher: HFSession, batch: TokenBatch) -> tuple[dict[str, Tensor], int]:
    torch.manual_seed(0)
    lm, kept = student.lm, Kept(student.lm.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        hidden = lm.hidden(batch.tokens_BT, batch.positions_BT)
    batch_loss(lm, hidden, batch, teacher.score(batch), [ForwardKL()], 16).total.backward()
    return {n: p.grad for n, p in lm.model.named_parameters() if p.grad is not None}, sum(kept.storages.values())


@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
def test_the_same_gradients_to_the_last_bit_from_less_memory(
    make_student: Any, lora: LoRA | None, batch: TokenBatch
) -> None:
    teacher = HFSession(make_student(seed=9).lm)
    plain, much = backward(made(make_student, lora, recompute=False), teacher, batch)
    again, little = backward(made(make_student, lora, recompute=True), teacher, batch)
    assert plain.keys() == again.keys()
    assert plain
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
    if lora is None or lora.target_modules == "all-linear":
        assert little < 0.3 * much


def test_evaluation_and_writing_keep_their_cache(make_student: Any) -> None:
    student = made(make_student, LoRA(), recompute=True)
    plain = made(make_student, LoRA(), recompute=False)
    prompts, sampling = [[5, 6, 7], [8]], Sampling(max_new_tokens=8)
    lengths: list[int] = []
    student.lm.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, arguments: lengths.append(arguments[0].shape[1])
    )
    assert student.lm.generate(prompts, sampling) == plain.lm.generate(prompts, sampling)
    assert lengths[0] > 1
    assert set(lengths[1:]) == {1}  # one token at a time: the cache was there
    assert student.lm.model.training
    seen, tokens = Kept(student.lm.model), torch.arange(8)[None]
    with student.lm.inference(), torch.autograd.graph.saved_tensors_hooks(seen.pack, lambda tensor: tensor):
        student.lm.hidden(tokens)
    everything = Kept(plain.lm.model)
    with plain.lm.inference(), torch.autograd.graph.saved_tensors_hooks(everything.pack, lambda tensor: tensor):
        plain.lm.hidden(tokens)
    assert len(seen.storages) >= len(everything.storages)  # nothing is computed again


def test_architecture_that_cannot_is_told(tokenizer: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("openai-gpt", vocab_size=300, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    student = Student(CausalLM("old", AutoModelForCausalLM.from_config(config), tokenizer))
    with pytest.raises(ModelError, match="OpenAIGPTLMHeadModel cannot compute activations again"):
        student.checkpoint_activations()
