"""LoRA on any student: fresh adapters change nothing, merged ones compute the same, mistakes are told beforehand."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stillhouse import adapters
from stillhouse.errors import MissingExtraError, ModelError, RecipeError
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM, Sampling, load_config
from stillhouse.recipe import LoRA, StudentSection
from stillhouse.student import Student

TOKENS = torch.arange(20).view(2, 10)
VARIANTS = {
    "linear": LoRA(r=4),
    "named": LoRA(r=4, target_modules=["q_proj", "layers.1.mlp.up_proj"]),
    "pattern": LoRA(r=4, target_modules=r".*\.(k|v)_proj"),
    "head": LoRA(r=4, target_modules=["lm_head"]),
    "embeddings": LoRA(r=4, target_modules=["embed_tokens", "o_proj"]),
    "both ends": LoRA(r=4, target_modules=["embed_tokens", "lm_head"]),
    "whole head": LoRA(r=4, modules_to_save=["lm_head"]),
    "whole embeddings": LoRA(r=4, modules_to_save=["embed_tokens", "norm"]),
}
PARTED = {"head", "embeddings", "both ends", "whole head", "whole embeddings"}
"""Those that part a tied head from its embeddings."""


@pytest.fixture
def folder(make_student: Any, tmp_path: Path) -> Callable[..., Path]:
    def make(*, tied: bool = False) -> Path:
        place = tmp_path / f"base-{tied}"
        make_student(seed=3, tied=tied).save(place)
        return place

    return make


@torch.no_grad()
def logits(lm: CausalLM) -> Tensor:
    with lm.inference():
        return lm.head(lm.hidden(TOKENS))


def shake(student: Student, seed: int = 1) -> None:
    """Move everything that training would move, factors B included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.lm.model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def adapted(place: Path, lora: LoRA, seed: int = 0) -> Student:
    student = Student(str(place))
    student.adapt(lora, seed=seed)
    return student


# Fresh.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS)
def test_fresh_adapters_change_nothing_and_freeze_all_else(folder: Any, lora: LoRA, tied: bool) -> None:
    place = folder(tied=tied)
    plain = Student(str(place))
    student = adapted(place, lora)
    assert torch.equal(logits(student.lm), logits(plain.lm))
    student.lm.check_split()
    trained = [name for name, p in student.lm.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert student.parameters() == plain.lm.parameters()
    assert type(student.lm.model) is type(plain.lm.model)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS)
def test_trainable_parameters_are_counted_without_weights(folder: Any, lora: LoRA, tied: bool) -> None:
    place = folder(tied=tied)
    config = load_config(str(place))
    assert adapters.trainable_parameters(config, lora) == adapted(place, lora).trainable_parameters()
    assert adapters.trainable_parameters(config) == Student(str(place)).lm.parameters()


def test_the_seed_alone_decides_the_factors(folder: Any) -> None:
    place = folder()
    torch.manual_seed(5)
    one = adapted(place, LoRA(), seed=2).lm.model.state_dict()
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)  # the global generator was left alone
    two = adapted(place, LoRA(), seed=2).lm.model.state_dict()
    other = adapted(place, LoRA(), seed=3).lm.model.state_dict()
    factors = [name for name in one if "lora_A" in name]
    assert factors
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in factors)


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("linear", []),
        ("head", ["lm_head.lora_A.default.weight", "lm_head.lora_B.default.weight"]),
        ("whole head", ["lm_head.modules_to_save.default.weight"]),
    ],
)
def test_head_parameters_are_those_of_the_head_that_are_trained(folder: Any, variant: str, names: list[str]) -> None:
    for tied in (False, True):
        lm = adapted(folder(tied=tied), VARIANTS[variant]).lm
        of_head = {id(p) for p in lm.head_parameters()}
        assert [name for name, p in lm.model.named_parameters() if id(p) in of_head] == names


# Saved.


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_folder_computes_what_the_adapted_model_does(
    folder: Any, variant: str, tied: bool, tmp_path: Path
) -> None:
    place = folder(tied=tied)
    before = {name: tensor.clone() for name, tensor in Student(str(place)).lm.model.state_dict().items()}
    student = adapted(place, VARIANTS[variant])
    shake(student)
    ours = logits(student.lm)
    assert (ours - logits(Student(str(place)).lm)).abs().max() > 0.05
    student.save(tmp_path / "merged")
    assert torch.equal(logits(student.lm), ours)  # it can train on
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, ours, rtol=1e-5, atol=2e-5)
    assert plain.config.tie_word_embeddings is (tied and variant not in PARTED)
    assert set(plain.state_dict()) == set(before)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_adapter_folder_loads_with_peft_and_here(folder: Any, variant: str, tied: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    place = folder(tied=tied)
    student = adapted(place, VARIANTS[variant].model_copy(update={"merge": False}))
    shake(student)
    ours = logits(student.lm)
    student.save(tmp_path / "adapter", card="# Adapters\n")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"}
    assert not names & {"config.json", "model.safetensors"}
    facts = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == str(place)
    targets = facts["target_modules"]  # in one order, so that every process writes the same file
    assert targets == (sorted(targets) if isinstance(targets, list) else VARIANTS[variant].target_modules)
    base = AutoModelForCausalLM.from_pretrained(place)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(TOKENS).logits, ours, rtol=1e-5, atol=2e-5)
    here = CausalLM.load(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(here), ours, rtol=1e-5, atol=2e-5)
    here.check_split()
    assert not adapters.is_adapted(here.model)


def test_layers_laid_out_the_other_way_merge_alike(tokenizer: Any, tmp_path: Path) -> None:
    """GPT-2 stores its weights transposed."""
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    student = Student.from_config(config, tokenizer, seed=1)
    student.adapt(LoRA(r=4, target_modules=["c_attn", "c_fc"]))
    shake(student)
    student.save(tmp_path)
    torch.testing.assert_close(logits(CausalLM.load(str(tmp_path))), logits(student.lm), rtol=1e-5, atol=1e-5)


def test_adapted_student_writes_what_its_merged_folder_writes(folder: Any, tmp_path: Path) -> None:
    student = adapted(folder(tied=True), LoRA())
    shake(student)
    student.save(tmp_path / "merged")
    prompts, sampling = [[5, 6, 7], [8]], Sampling(max_new_tokens=8)
    written = student.lm.generate(prompts, sampling)
    assert written == CausalLM.load(str(tmp_path / "merged")).generate(prompts, sampling)


def test_a_folder_of_adapters_is_a_model_like_any_other(folder: Any, tmp_path: Path) -> None:
    """As a teacher, and as the start of a student that is adapted again."""
    place, own = folder(), tmp_path / "adapter"
    first = adapted(place, LoRA(merge=False))
    shake(first)
    first.save(own)
    assert load_config(str(own)).hidden_size == first.lm.model.config.hidden_size
    second = adapted(own, LoRA(), seed=4)
    torch.testing.assert_close(logits(second.lm), logits(first.lm), rtol=1e-5, atol=2e-5)
    second.lora = LoRA(merge=False)
    with pytest.raises(ModelError, match="lies in no folder of its own"):
        second.save(tmp_path / "again")
    before = fingerprint_model(str(own))
    (place / "README.md").write_text("The model under the adapters changed.")
    assert fingerprint_model(str(own)) != before


# Refused.


def test_missing_peft_names_its_extra(make_student: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r'pip install "stillhouse\[peft\]"'):
        make_student().adapt(LoRA())


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        (LoRA(target_modules=["q_proj", "v_prj"]), ["target_modules names 'v_prj'", "Did you mean 'v_proj'?"]),
        (LoRA(target_modules=["proj"]), ["target_modules names 'proj'"]),  # a part of a name is no name
        (LoRA(target_modules=["self_attn"]), ["target_modules names 'self_attn'"]),  # no layer with a weight
        (LoRA(target_modules=["norm"]), ["target_modules names 'norm'"]),  # no matrix
        (LoRA(target_modules="all-liner"), ["'all-liner'", "Did you mean 'all-linear'?"]),
        (LoRA(target_modules="q_proj"), ["whole names such as model.embed_tokens", "as a list: [q_proj]"]),
        (LoRA(modules_to_save=["lmhead"]), ["modules_to_save names 'lmhead'", "Did you mean 'lm_head'?"]),
        (LoRA(modules_to_save=["layers"]), ["modules_to_save names 'layers'"]),
        (LoRA(target_modules=["lm_head"], modules_to_save=["lm_head"]), ["Keep one of the two"]),
    ],
    ids=lambda value: str(getattr(value, "target_modules", "")),
)
def test_layers_that_do_not_exist_are_named_with_the_closest_that_does(
    make_student: Any, lora: LoRA, told: list[str]
) -> None:
    student = make_student()
    with pytest.raises(RecipeError) as caught:
        student.adapt(lora)
    assert all(part in str(caught.value) for part in told), str(caught.value)
    assert not adapters.is_adapted(student.lm.model)


def test_a_second_set_of_adapters_is_refused(make_student: Any) -> None:
    student = make_student()
    student.adapt(LoRA())
    with pytest.raises(ModelError, match="has adapters already"):
        student.adapt(LoRA())


def test_adapters_alone_need_a_model_that_they_can_name(make_student: Any, tmp_path: Path) -> None:
    student = make_student()
    student.adapt(LoRA(merge=False))
    with pytest.raises(ModelError, match=r"lora\.merge: true"):
        student.save(tmp_path)
    with pytest.raises(ValueError, match=r"lora\.merge is false"):
        StudentSection.model_validate({"config": {"model_type": "llama"}, "lora": {"merge": False}})


def broken(place: Path, how: str) -> None:
    settings, weights = place / "adapter_config.json", place / "adapter_model.safetensors"
    facts = json.loads(settings.read_text())
    if how == "pickled":
        weights.rename(place / "adapter_model.bin")
    elif how == "incomplete":
        kept = dict(list(load_file(weights).items())[2:])
        save_file(kept, weights)
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif how == "kind":
        settings.write_text(json.dumps(facts | {"peft_type": "IA3"}))
    elif how == "nameless":
        settings.write_text(json.dumps(facts | {"base_model_name_or_path": None}))
    elif how == "settings":
        settings.write_text("{")
    elif how == "rank":
        settings.write_text(json.dumps(facts | {"r": 3}))
    elif how == "base":
        shutil.rmtree(facts["base_model_name_or_path"])


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("pickled", "read from safetensors only"),
        ("incomplete", "missing adapter keys"),
        ("truncated", "do not fit the model they name"),
        ("kind", "of the kind IA3"),
        ("nameless", "set base_model_name_or_path"),
        ("settings", "is damaged"),
        ("rank", "do not fit the model they name"),
        ("base", "There is no model folder"),
    ],
)
def test_broken_folder_of_adapters_is_told(folder: Any, how: str, told: str, tmp_path: Path) -> None:
    student = adapted(folder(), LoRA(r=4, merge=False))
    student.save(tmp_path / "adapter")
    CausalLM.load(str(tmp_path / "adapter"))
    broken(tmp_path / "adapter", how)
    with pytest.raises(ModelError, match=told):
        CausalLM.load(str(tmp_path / "adapter"))
