"""Loading, splitting, writing and saving models; and every folder that is refused, with the way out."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import ModelError
from stillhouse.locating import EMBEDDED, locate
from stillhouse.models import CausalLM, Sampling, load_config, load_tokenizer, vocabulary_size


@pytest.fixture
def folder(make_student: Any, tmp_path: Path) -> Path:
    make_student(seed=3).save(tmp_path / "model")
    return tmp_path / "model"


def refused(name: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        CausalLM.load(str(name))
    return str(caught.value)


# Refused.


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    """The file would run code when opened; it must not even be opened."""
    weights = CausalLM.load(str(folder)).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    message = refused(folder)
    assert "holds only pickled weights (pytorch_model.bin), which can run code when they are opened" in message
    assert "save_pretrained(folder)" in message


def test_pickle_that_runs_code_never_runs(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    refused(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "consolidated.00.pth"])
def test_other_pickles_are_refused_as_well(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert f"pickled weights ({name})" in refused(folder)


def test_pickle_beside_safetensors_is_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert CausalLM.load(str(folder)).parameters() > 0


def test_file_instead_of_a_folder(folder: Path) -> None:
    message = refused(folder / "model.safetensors")
    assert "is a file; a model is a folder with config.json, model.safetensors and tokenizer.json" in message


def test_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    message = refused(folder)
    assert "holds no config.json, so it is no model folder. It holds: " in message
    assert "model.safetensors" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "It holds: nothing." in refused(tmp_path)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors. It holds: config.json" in refused(folder)


def test_folder_without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert f"The tokenizer of {str(folder)!r} cannot be loaded" in refused(folder)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such/model", "a/b/c"])
def test_path_that_does_not_exist(name: str) -> None:
    assert f"There is no model folder {name!r}. Give the folder that holds config.json, or a hub name" in refused(name)


def test_unknown_embedded_name_suggests_the_known() -> None:
    message = refused("stillhouse:arithmetics")
    assert "There is no embedded model 'stillhouse:arithmetics'. Did you mean 'stillhouse:arithmetic'?" in message


def test_hub_name_without_a_network() -> None:
    assert "'nobody/no-such-model' cannot be loaded" in refused("nobody/no-such-model")
    assert locate("nobody/no-such-model") == "nobody/no-such-model"
    with pytest.raises(ModelError, match="configuration of 'nobody/no-such-model' cannot be loaded"):
        load_config("nobody/no-such-model")


def test_damaged_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[:100], b"", b"\xff" * 64):
        (folder / "model.safetensors").write_bytes(damaged)
        assert f"The model {str(folder)!r} cannot be loaded" in refused(folder)


def test_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", ')
    assert str(folder) in refused(folder)
    (folder / "config.json").write_text('{"model_type": "no-such-architecture"}')
    assert "cannot be loaded" in refused(folder)


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    assert "cannot be loaded" in refused(folder)


def test_weights_that_are_missing_a_layer_are_not_made_up(folder: Path) -> None:
    """transformers fills what is missing with noise and says so in a log line; a teacher of noise is no teacher."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    message = refused(folder)
    assert "model.layers.2" in message


def test_tokenizer_larger_than_the_embedding(make_student: Any, tokenizer: Any) -> None:
    from copy import deepcopy

    larger = deepcopy(tokenizer)
    larger.add_tokens(["<one>", "<two>"])
    with pytest.raises(
        ModelError, match=r"makes ids up to 301, its model embeds 300\. Use the tokenizer that the model"
    ):
        CausalLM("mine", make_student().lm.model, larger)


def test_vocabulary_is_the_largest_id_plus_one(tokenizer: Any) -> None:
    assert vocabulary_size(tokenizer) == 300


def test_architecture_whose_logits_are_not_understood_is_refused(make_student: Any) -> None:
    lm = make_student(seed=3).lm
    lm.check_split()
    lm.model.config.final_logit_softcapping = (
        0.1  # Llama does not cap: hidden states and head no longer give its logits
    )
    with pytest.raises(ModelError, match="LlamaForCausalLM computes its logits in a way stillhouse does not know"):
        lm.check_split()


# Loaded.


def test_saved_and_loaded_is_the_same_model(make_student: Any, folder: Path) -> None:
    lm, loaded = make_student(seed=3).lm, CausalLM.load(str(folder))
    tokens = torch.arange(10)[None]
    assert torch.equal(lm.model.eval()(input_ids=tokens).logits, loaded.model(input_ids=tokens).logits)
    assert not loaded.model.training
    assert loaded.tokenizer.get_vocab() == lm.tokenizer.get_vocab()
    assert loaded.identity()["config"] == lm.identity()["config"] | {
        k: v for k, v in loaded.identity()["config"].items() if k not in lm.identity()["config"]
    }
    assert json.dumps(loaded.identity())


def test_tied_head_survives_the_round_trip(make_student: Any, tmp_path: Path) -> None:
    make_student(seed=3, tied=True).save(tmp_path)
    loaded = CausalLM.load(str(tmp_path))
    assert loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    assert loaded.parameters() == make_student(tied=True).lm.parameters()
    assert loaded.parameters() == make_student(tied=False).lm.parameters() - 300 * 16


def test_saved_folder_is_an_ordinary_one_without_our_package(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer is not None
    ids = tokenizer("Ann has 2", return_tensors="pt")
    assert model(**ids).logits.shape[-1] == 300
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_dtype_is_asked_for(folder: Path) -> None:
    assert CausalLM.load(str(folder)).model.dtype == torch.float32
    assert CausalLM.load(str(folder), dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_and_head_give_the_models_logits(make_student: Any, tied: bool) -> None:
    lm = make_student(seed=3, tied=tied).lm
    tokens = torch.arange(12).view(2, 6)
    logits = lm.head(lm.hidden(tokens))
    assert torch.equal(logits, lm.model(input_ids=tokens).logits)
    assert [p.shape for p in lm.head_parameters()] == [(300, 16)]


def test_context_is_the_models(make_student: Any) -> None:
    assert make_student().lm.context == 128


# Written.


@pytest.fixture(scope="module")
def writer(make_student: Any) -> CausalLM:
    return make_student(seed=5, double=True).lm


PROMPTS = [[50, 60], [70, 80, 90, 100, 110], [40], [50, 61, 72]]


def greedy(lm: CausalLM, prompt: list[int], count: int) -> list[int]:
    """The oracle: one argmax after the other, no cache, no padding, no batch."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            best = int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1, : lm.vocabulary].argmax())
        if best in lm.end_ids():
            break
        ids.append(best)
    return ids[len(prompt) :]


def test_greedy_writing_is_one_argmax_after_the_other(writer: CausalLM) -> None:
    """Batched, left-padded and cached, in the order of the prompts."""
    expected = [greedy(writer, prompt, 12) for prompt in PROMPTS]
    for batch_size in (1, 2, 64):
        assert writer.generate(PROMPTS, Sampling(max_new_tokens=12, batch_size=batch_size)) == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_writing_ends_at_the_end_token_which_is_cut_off(make_student: Any) -> None:
    lm = make_student(seed=5, double=True).lm
    prompt = max(PROMPTS, key=lambda p: len(greedy(lm, p, 6)))
    free = greedy(lm, prompt, 6)
    assert len(set(free)) > 1
    end = next(i for i in free if i != free[0])
    lm.model.generation_config.eos_token_id = [end]
    assert lm.generate([prompt], Sampling(max_new_tokens=6)) == [free[: free.index(end)]]
    assert set(lm.end_ids()) == {end, lm.tokenizer.eos_token_id}


def test_the_heads_padding_is_never_written(make_student: Any, pad_head: Any) -> None:
    lm = make_student(seed=5).lm
    pad_head(lm, 600)
    lm.model.get_output_embeddings().weight.data[300:] *= 10
    for temperature in (0.0, 1.0):
        written = lm.generate(PROMPTS, Sampling(max_new_tokens=20, temperature=temperature))
        assert max(i for ids in written for i in ids) < 300


def test_same_seed_same_text_and_the_callers_generator_is_left_alone(writer: CausalLM) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=1.5, seed=3)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = writer.generate(PROMPTS, sampling)
    assert torch.equal(torch.rand(1), expected)
    torch.manual_seed(99)
    assert writer.generate(PROMPTS, sampling) == first
    assert writer.generate(PROMPTS, Sampling(max_new_tokens=10, temperature=1.5, seed=4)) != first


def test_sampled_tokens_follow_the_models_probabilities(make_student: Any) -> None:
    lm = make_student(seed=5).lm
    with torch.no_grad():
        logits = lm.model.eval()(input_ids=torch.tensor([[50, 60]])).logits[0, -1]
    for temperature in (1.0, 3.0):
        sampling = Sampling(max_new_tokens=1, temperature=temperature, batch_size=2000)
        drawn = [ids[0] if ids else 2 for ids in lm.generate([[50, 60]] * 2000, sampling)]
        expected = (logits / temperature).softmax(-1)
        best = int(expected.argmax())
        share = sum(i == best for i in drawn) / 2000
        assert share == pytest.approx(expected[best].item(), abs=4 * (expected[best].item() / 2000) ** 0.5)


def test_prompt_that_fills_the_context_is_an_error_and_near_it_the_text_is_shorter(writer: CausalLM) -> None:
    with pytest.raises(ModelError, match="A prompt of 128 tokens leaves no room in the context of 128 of 'student'"):
        writer.generate([[50] * 128], Sampling(max_new_tokens=5))
    assert len(writer.generate([[50] * 126], Sampling(max_new_tokens=50))[0]) <= 2


def test_no_prompts_no_text(writer: CausalLM) -> None:
    assert writer.generate([], Sampling()) == []


def test_writing_leaves_training_mode_as_it_was(make_student: Any) -> None:
    lm = make_student().lm
    for training in (True, False):
        lm.model.train(training)
        lm.generate([[50]], Sampling(max_new_tokens=1))
        assert lm.model.training is training


# Shipped, and beside the checkout.


def test_trained_model_tells_a_story(stories: str) -> None:
    lm = CausalLM.load(stories)
    prompt = lm.tokenizer("Once upon a time")["input_ids"]
    text = lm.tokenizer.decode(lm.generate([prompt], Sampling(max_new_tokens=20))[0])
    assert "there was a" in text


@pytest.mark.parametrize("name", sorted(EMBEDDED))
def test_embedded_teacher_loads_from_a_copy_without_its_package(name: str, tmp_path: Path) -> None:
    if not (EMBEDDED[name] / "model.safetensors").exists():
        pytest.skip(f"{name} has not been built in this checkout")
    copy = shutil.copytree(EMBEDDED[name], tmp_path / "copy")
    one, two = CausalLM.load(name), CausalLM.load(str(copy))
    assert one.parameters() == two.parameters() < 4_000_000
    assert load_tokenizer(name).get_vocab() == two.tokenizer.get_vocab()


def test_a_tokenizer_is_loaded_without_the_padding_it_was_saved_with(tmp_path: Path, make_student: Any) -> None:
    student = make_student()
    tokenizer = copy.deepcopy(student.tokenizer)
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(tmp_path)
    assert '"padding": null' not in (tmp_path / "tokenizer.json").read_text()
    load_tokenizer(str(tmp_path)).save_pretrained(tmp_path / "again")
    assert '"padding": null' in (tmp_path / "again" / "tokenizer.json").read_text()
    assert '"truncation": null' in (tmp_path / "again" / "tokenizer.json").read_text()
