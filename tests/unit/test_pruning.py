"""Students cut out of their teachers: what is kept equals the teacher, what goes is what matters least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from stillhouse.checking.skeletons import measure_size
from stillhouse.data.batching import TokenBatch, in_order
from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.errors import ModelError, RecipeError
from stillhouse.locating import EMBEDDED
from stillhouse.models import CausalLM, Sampling
from stillhouse.pruning.architecture import SUPPORTED, planned_layers, shrunk_config
from stillhouse.pruning.cut import choose, choose_layers, cut, shrink
from stillhouse.pruning.importance import Importance, measure
from stillhouse.recipe import CutSection
from stillhouse.records import Example
from stillhouse.shortcuts import problems
from stillhouse.student import Student

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
BIASED = {"model_type": "llama", "attention_bias": True, "mlp_bias": True}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
KINDS: list[dict[str, Any]] = [
    *({"model_type": kind, **(ALTERNATING if kind == "gemma3_text" else {})} for kind in SUPPORTED),
    BIASED,
]
WIDTH_KINDS = [kind for kind in KINDS if not kind["model_type"].startswith("gemma")]


def name_of_kind(kind: dict[str, Any]) -> str:
    return kind["model_type"] + ("-biased" if "mlp_bias" in kind else "")


def build(kind: dict[str, Any], tokenizer: Any, *, tied: bool = False) -> CausalLM:
    """A random teacher none of whose weights is trivially one or zero, norms and biases included."""
    settings = {**SHAPE, "tie_word_embeddings": tied, **kind}
    given = {name: value for name, value in settings.items() if value is not None}
    lm = Student.from_config(given, tokenizer, seed=3).lm
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in lm.model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=draw))
    lm.model.eval()
    return lm


@pytest.fixture(scope="module")
def text(render: Any, examples: list[Example]) -> list[Rendered]:
    return render(examples)


def batches(rendered: Sequence[Rendered]) -> list[TokenBatch]:
    return list(in_order(rendered, 256))


@torch.no_grad()
def logits(lm: CausalLM) -> Tensor:
    tokens = torch.arange(60).view(3, 20)
    return lm.model(input_ids=tokens).logits


def weight(lm: CausalLM, name: str) -> Tensor:
    return lm.model.get_parameter(name)


def kill(lm: CausalLM, layer: int, module: str, rows: slice) -> None:
    """Zero rows of a projection and of its bias."""
    part = lm.model.get_submodule(f"model.layers.{layer}.{module}")
    with torch.no_grad():
        for tensor in part.parameters():
            tensor[rows] = 0


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of_kind)
def test_all_kept_is_the_teacher_to_the_last_bit(kind: dict[str, Any], tied: bool, tokenizer: Any, text: Any) -> None:
    teacher = build(kind, tokenizer, tied=tied)
    student = shrink(teacher, CutSection(layers=4, num_attention_heads=4, intermediate_size=24), batches(text))
    assert torch.equal(logits(student), logits(teacher))
    assert student.parameters() == teacher.parameters()
    assert student.model is not teacher.model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS, ids=name_of_kind)
def test_dead_groups_channels_and_layers_go_first(kind: dict[str, Any], tied: bool, tokenizer: Any, text: Any) -> None:
    """In every layer other ones are dead, so that a mistaken row of one layer cannot hide behind another."""
    teacher = build(kind, tokenizer, tied=tied)
    for layer in range(4):
        group = layer % 2
        kill(teacher, layer, "self_attn.v_proj", slice(8 * group, 8 * group + 8))
        kill(teacher, layer, "mlp.up_proj", slice(3 * layer, 3 * layer + 5))
    kill(teacher, 2, "self_attn.o_proj", slice(None))
    kill(teacher, 2, "mlp.down_proj", slice(None))
    settings = CutSection(layers=3, num_attention_heads=2, intermediate_size=19)
    importance = measure(teacher, batches(text))
    kept = choose(teacher.model.config, settings, importance)
    assert kept.layers == [0, 1, 3]
    assert [g.tolist() for g in kept.groups] == [[1], [0], [0]]
    assert [h.tolist() for h in kept.heads] == [[2, 3], [0, 1], [0, 1]]
    assert kept.channels[1].tolist() == [c for c in range(24) if c not in range(3, 8)]
    assert importance.influence_L[2] < 1e-6
    student = cut(teacher, settings, kept, importance)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-3, atol=1e-3)
    assert student.parameters() < teacher.parameters()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", WIDTH_KINDS, ids=name_of_kind)
def test_dead_width_goes_first_and_norms_keep_their_size(
    kind: dict[str, Any], tied: bool, tokenizer: Any, text: Any
) -> None:
    teacher = build(kind, tokenizer, tied=tied)
    dead = slice(4, 16)
    with torch.no_grad():
        weight(teacher, "model.embed_tokens.weight")[:, dead] = 0
    for layer in range(4):
        kill(teacher, layer, "self_attn.o_proj", dead)
        kill(teacher, layer, "mlp.down_proj", dead)
    settings = CutSection(hidden_size=20)
    student = shrink(teacher, settings, batches(text))
    assert student.model.config.hidden_size == 20
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-3, atol=2e-3)


def test_a_head_within_a_group_goes_with_its_own_queries(tokenizer: Any, text: Any) -> None:
    teacher = build({"model_type": "qwen3"}, tokenizer)
    for layer in range(4):
        for head in (0, 3):
            with torch.no_grad():
                weight(teacher, f"model.layers.{layer}.self_attn.o_proj.weight")[:, 8 * head : 8 * head + 8] = 0
    settings = CutSection(num_attention_heads=2, num_key_value_heads=2)
    importance = replace(measure(teacher, batches(text)), heads_LH=torch.tensor([[0.0, 1.0, 1.0, 0.0]] * 4))
    student = cut(teacher, settings, choose(teacher.model.config, settings, importance), importance)
    assert student.model.config.num_key_value_heads == 2
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-3, atol=1e-3)


class TestWhichLayers:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({}, [0, 1, 2, 3, 4, 5]),
            ({"layers": [1, 4]}, [1, 4]),
            ({"layers": 1, "choose": "evenly"}, [0]),
            ({"layers": 2, "choose": "evenly"}, [0, 5]),
            ({"layers": 6, "choose": "evenly"}, [0, 1, 2, 3, 4, 5]),
            ({"layers": 1, "choose": "first_last"}, [0]),
            ({"layers": 4, "choose": "first_last"}, [0, 1, 4, 5]),
            ({"layers": 6, "choose": "first_last"}, [0, 1, 2, 3, 4, 5]),
            ({"layers": 3}, [1, 2, 4]),
        ],
        ids=str,
    )
    def test_choice(self, settings: dict[str, Any], expected: list[int]) -> None:
        influence_L = torch.tensor([0.1, 0.5, 0.3, 0.1, 0.9, 0.2])
        assert choose_layers(6, CutSection(**settings), influence_L) == expected

    def test_distilbert_was_made_so(self) -> None:
        assert planned_layers(12, CutSection(layers=6, choose="evenly")) == [0, 2, 4, 7, 9, 11]

    def test_every_layer_keeps_its_weights_and_gets_its_number(self, tokenizer: Any, text: Any) -> None:
        teacher = build({"model_type": "gemma2"}, tokenizer)
        student = shrink(teacher, CutSection(layers=[1, 2, 3]), batches(text))
        decoder: Any = student.model.base_model
        for new, old in enumerate([1, 2, 3]):
            assert decoder.layers[new].self_attn.layer_idx == new  # the cache is addressed by it
            assert decoder.layers[new].self_attn.layer_type == teacher.model.config.layer_types[old]
            name = "model.layers.{}.mlp.up_proj.weight"
            assert torch.equal(weight(student, name.format(new)), weight(teacher, name.format(old)))
        assert student.model.config.layer_types == teacher.model.config.layer_types[1:]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text"])
def test_generation_with_its_cache_is_generation_without(kind: str, tokenizer: Any, text: Any) -> None:
    teacher = build({"model_type": kind}, tokenizer)
    student = shrink(teacher, CutSection(layers=[0, 3], num_attention_heads=2), batches(text))
    prompt = [5, 9, 40]
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(student.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    (written,) = student.generate([prompt], Sampling(max_new_tokens=8))
    expected = ids[3:]
    assert written == expected[: len(written)]
    assert len(written) == 8 or expected[len(written)] in student.end_ids()


@pytest.mark.parametrize("kind", KINDS, ids=name_of_kind)
def test_the_saved_folder_is_the_same_model(kind: dict[str, Any], tokenizer: Any, text: Any, tmp_path: Path) -> None:
    teacher = build(kind, tokenizer, tied=True)
    settings = CutSection(layers=2, num_attention_heads=2, intermediate_size=7)
    student = shrink(teacher, settings, batches(text))
    student.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=torch.arange(60).view(3, 20)).logits, logits(student))
    assert loaded.config.head_dim == 8


def test_the_size_is_known_without_weights(tokenizer: Any, text: Any) -> None:
    teacher = build({"model_type": "qwen2", "head_dim": None}, tokenizer, tied=True)
    settings = CutSection(layers=3, num_attention_heads=2, intermediate_size=10, hidden_size=18)
    planned = shrunk_config(teacher.model.config, settings)
    student = shrink(teacher, settings, batches(text))
    assert measure_size(planned).parameters == student.parameters()
    assert planned.head_dim == student.model.config.head_dim == 8
    assert teacher.model.config.hidden_size == 32


class TestImportance:
    def test_block_influence_against_the_models_own_hidden_states(self, tokenizer: Any, text: Any) -> None:
        teacher = build({"model_type": "llama"}, tokenizer)
        sums, count = torch.zeros(3), 0
        with torch.no_grad():
            for one in text:
                states = teacher.model(input_ids=torch.tensor([one.tokens]), output_hidden_states=True).hidden_states
                for i in range(3):  # the last one is normalized already
                    sums[i] += (1 - torch.cosine_similarity(states[i][0], states[i + 1][0], dim=-1)).sum()
                count += len(one.tokens)
        measured = measure(teacher, batches(text)).influence_L[:3]
        torch.testing.assert_close(measured.float(), sums / count, rtol=1e-4, atol=1e-5)

    def test_padding_and_the_cut_into_batches_do_not_count(self, tokenizer: Any, text: Any) -> None:
        teacher = build({"model_type": "llama"}, tokenizer)
        together = measure(teacher, [TokenBatch.of(text)])
        alone = measure(teacher, [TokenBatch.of([one]) for one in text])
        for name in ("influence_L", "heads_LH", "channels_LF", "width_D"):
            torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=1e-5)

    def test_channels_against_the_formula(self, tokenizer: Any, text: Any) -> None:
        """Mean over a sequence's tokens of the size, L2 norm over sequences."""
        teacher = build({"model_type": "llama"}, tokenizer)
        seen: list[Tensor] = []
        decoder: Any = teacher.model.base_model
        with decoder.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0])):
            alone = [TokenBatch.of([one]) for one in text]
            measured = measure(teacher, alone).channels_LF[1]
        oracle = torch.stack([x_1TF[0].abs().mean(0) for x_1TF in seen]).square().sum(0).sqrt()
        torch.testing.assert_close(measured.float(), oracle)

    def test_listening_leaves_nothing_behind(self, tokenizer: Any, text: Any) -> None:
        teacher = build({"model_type": "llama"}, tokenizer)
        before = logits(teacher)
        state = torch.random.get_rng_state()
        shrink(teacher, CutSection(layers=2), batches(text))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(logits(teacher), before)
        hooks = [m for m in teacher.model.modules() if m._forward_pre_hooks or m._forward_hooks]
        assert not hooks


def test_the_same_student_every_time(tokenizer: Any, text: Any) -> None:
    teacher = build({"model_type": "qwen3"}, tokenizer)
    settings = CutSection(layers=2, num_attention_heads=2, intermediate_size=9, hidden_size=20)
    one, two = (shrink(teacher, settings, batches(text)).model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_teacher_of_half_precision_gives_a_student_of_full(tokenizer: Any, text: Any) -> None:
    teacher = build({"model_type": "llama"}, tokenizer)
    teacher.model.bfloat16()
    student = shrink(teacher, CutSection(layers=2), batches(text))
    assert {p.dtype for p in student.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("llama", {"layers": 5}, r"layers is 5, the teacher has 4"),
        ("llama", {"layers": [0, 4]}, r"names layer 4; the teacher's 4 layers are numbered 0 to 3"),
        ("llama", {"num_attention_heads": 3}, r"multiple of 2, or say num_key_value_heads"),
        ("llama", {"num_attention_heads": 3, "num_key_value_heads": 2}, r"one of 2, 4"),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 1}, r"one of 1, 2"),
        ("llama", {"num_attention_heads": 8}, r"num_attention_heads is 8, the teacher has 4"),
        ("llama", {"num_key_value_heads": 3}, r"num_key_value_heads is 3, the teacher has 2"),
        ("llama", {"intermediate_size": 25}, r"intermediate_size is 25, the teacher has 24"),
        ("llama", {"hidden_size": 33}, r"hidden_size is 33, the teacher has 32"),
        ("llama", {"hidden_size": 31}, r"impossible 'llama' model: .*31"),
        ("gemma2", {"hidden_size": 16}, r"scales its embeddings by the width"),
    ],
    ids=str,
)
def test_impossible_cuts_are_refused_before_any_weights(
    kind: str, settings: dict[str, Any], told: str, tokenizer: Any
) -> None:
    config = build({"model_type": kind}, tokenizer).model.config
    with pytest.raises(RecipeError, match=told):
        shrunk_config(config, CutSection(**settings))


def test_an_unknown_architecture_is_refused_with_the_known_ones(tokenizer: Any) -> None:
    lm = Student.from_config({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, tokenizer).lm
    with pytest.raises(ModelError, match=r"'gpt2' model; .*llama, mistral, qwen2, qwen3"):
        shrink(lm, CutSection(layers=1), [])


@torch.no_grad()
def loss(lm: CausalLM, rendered: Sequence[Rendered]) -> float:
    total, count = 0.0, 0
    for batch in in_order(rendered):
        logprobs = torch.log_softmax(lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT)), -1)
        loss_BT = -logprobs.gather(-1, batch.targets_BT[..., None])[..., 0]
        total, count = total + float(loss_BT[batch.trained_BT].sum()), count + batch.trained_count()
    return total / count


def at_random(importance: Importance, seed: int) -> Importance:
    """The same shares of the norms, and a rank of everything that means nothing."""
    draw = torch.Generator().manual_seed(seed)
    names = ("influence_L", "heads_LH", "channels_LF", "width_D")
    return replace(importance, **{n: torch.rand(getattr(importance, n).shape, generator=draw) for n in names})


@pytest.fixture(scope="module")
def trained() -> CausalLM:
    if not (EMBEDDED["stillhouse:arithmetic"] / "model.safetensors").exists():
        pytest.skip("stillhouse:arithmetic has not been built in this checkout")
    return CausalLM.load("stillhouse:arithmetic")


@pytest.fixture(scope="module")
def heldout(trained: CausalLM) -> list[Rendered]:
    return Renderer(trained.tokenizer, 384).render(problems(40, seed=2, steps=(1, 2), split="heldout"))


@pytest.fixture(scope="module")
def importance(trained: CausalLM) -> Importance:
    made = problems(64, seed=1, steps=(1, 2))
    return measure(trained, in_order(Renderer(trained.tokenizer, 384).render(made)))


def test_important_channels_beat_random_ones(trained: CausalLM, heldout: Any, importance: Importance) -> None:
    settings, config = CutSection(intermediate_size=96), trained.model.config
    ours = loss(cut(trained, settings, choose(config, settings, importance), importance), heldout)
    for seed in range(3):
        kept = choose(config, settings, at_random(importance, seed))
        assert ours < 0.8 * loss(cut(trained, settings, kept, importance), heldout)


def test_the_least_influential_layer_is_missed_least(trained: CausalLM, heldout: Any, importance: Importance) -> None:
    losses = {}
    for how in ("importance", "evenly"):
        settings = CutSection.model_validate({"layers": 3, "choose": how})
        kept = choose(trained.model.config, settings, importance)
        losses[how] = loss(cut(trained, settings, kept, importance), heldout)
    assert losses["importance"] < 0.3 * losses["evenly"]


def test_a_real_model_shrinks_along_every_axis(stories: str) -> None:
    teacher = CausalLM.load(stories)
    settings = CutSection(layers=4, num_attention_heads=4, intermediate_size=128, hidden_size=48)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside with her red ball."
    rendered = Renderer(teacher.tokenizer, 256).render([Example(id="a", text=story), Example(id="b", text=story * 2)])
    student = shrink(teacher, settings, batches(rendered))
    assert student.parameters() == measure_size(shrunk_config(teacher.model.config, settings)).parameters
    assert student.parameters() < 0.6 * teacher.parameters()
    assert loss(student, rendered) < 6.3  # it knows more than nothing, which is ln 512
    assert len(student.generate([rendered[0].tokens[:5]], Sampling(max_new_tokens=5))[0]) == 5
