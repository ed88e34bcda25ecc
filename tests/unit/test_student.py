"""The student, from a configuration or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import ModelError
from stillhouse.models import CausalLM
from stillhouse.student import Student, student_config

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def test_vocabulary_and_special_tokens_come_from_the_tokenizer(tokenizer: Any, bos_tokenizer: Any) -> None:
    config = student_config(LLAMA, tokenizer)
    assert config.vocab_size == 300
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 2, 0)
    assert student_config(LLAMA, bos_tokenizer).bos_token_id == 1
    assert student_config({**LLAMA, "vocab_size": 320}, tokenizer).vocab_size == 320


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "qwen3", "head_dim": 8},
        {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
        {"model_type": "gpt_neox"},
        {"model_type": "gemma2", "head_dim": 8},
        {"model_type": "granite", "logits_scaling": 4.0},
        {"model_type": "cohere", "logit_scale": 0.25},
        {"model_type": "mistral"},
    ],
    ids=lambda c: c.get("model_type", "llama"),
)
def test_architectures_whose_loss_is_right(config: dict[str, Any], tokenizer: Any) -> None:
    """Scaled and capped logits included: hidden states and head give what the model itself gives."""
    whole = config if config.get("model_type") == "gpt2" else {**LLAMA, **config}
    lm = Student.from_config(whole, tokenizer).lm
    lm.model.eval()  # GPT-2 drops out
    tokens = torch.arange(20).view(2, 10)
    with torch.no_grad():
        ours = lm.head(lm.hidden(tokens))
        theirs = lm.model(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs)
    assert lm.head_parameters()


def test_weights_follow_the_seed_alone(tokenizer: Any) -> None:
    torch.manual_seed(1)
    one = Student.from_config(LLAMA, tokenizer, seed=4).lm.model.state_dict()
    torch.manual_seed(2)
    two = Student.from_config(LLAMA, tokenizer, seed=4).lm.model.state_dict()
    other = Student.from_config(LLAMA, tokenizer, seed=5).lm.model.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert {v.dtype for v in one.values()} == {torch.float32}


@pytest.mark.parametrize(
    "wrong",
    [
        {"model_type": "lama"},
        {"hidden_size": "sixteen"},
        {"hidden_size": 15},
        {"num_attention_heads": 3},
        {"vocab_size": 100},
        {"bos_token_id": 5},
    ],
    ids=str,
)
def test_impossible_configuration_is_a_model_error(wrong: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(ModelError) as caught:
        Student.from_config({**LLAMA, **wrong}, tokenizer)
    assert "student" in str(caught.value)


def test_folder_and_object_are_the_same_student(make_student: Any, tmp_path: Path) -> None:
    student = make_student(seed=6)
    student.save(tmp_path / "s", card="# A student\n")
    assert (tmp_path / "s" / "README.md").read_text() == "# A student\n"
    loaded = Student(str(tmp_path / "s"))
    assert isinstance(loaded.lm, CausalLM)
    assert loaded.tokenizer.get_vocab() == student.tokenizer.get_vocab()
    assert Student(loaded.lm).lm is loaded.lm
    for a, b in zip(student.lm.model.parameters(), loaded.lm.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_student_of_half_precision_weights_trains_in_float32(make_student: Any, tmp_path: Path) -> None:
    """bfloat16 master weights lose the small updates of small learning rates."""
    lm = make_student(seed=6).lm
    lm.model.bfloat16()
    lm.save(tmp_path)
    assert Student(str(tmp_path)).lm.model.dtype == torch.float32


def test_embedded_teacher_is_a_student_too() -> None:
    from stillhouse.locating import EMBEDDED

    if not (EMBEDDED["stillhouse:arithmetic"] / "model.safetensors").exists():
        pytest.skip("stillhouse:arithmetic has not been built in this checkout")
    assert Student("stillhouse:arithmetic").lm.parameters() < 4_000_000
