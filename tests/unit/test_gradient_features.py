"""Gradient features: every part against PyTorch's own gradients and steps, in float64 where the claim is exactness."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from building import MakeStudent
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stillhouse import registry
from stillhouse.data.arithmetic import generate
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import DataError, ModelError, NeedsError, RecipeError
from stillhouse.features._adam import warm_up
from stillhouse.features._layers import choose_parameters
from stillhouse.features._perexample import batch_gradients, weighted_loss
from stillhouse.features._sketch import Sketch, hashed
from stillhouse.features.base import FeatureBench
from stillhouse.features.gradients import Gradients
from stillhouse.objectives.base import Objective
from stillhouse.objectives.cross_entropy import CrossEntropy
from stillhouse.objectives.forward_kl import ForwardKL
from stillhouse.recipe import LoRA
from stillhouse.records import Example
from stillhouse.student import Student
from stillhouse.teachers.base import TeacherSession
from stillhouse.teachers.hf import HFSession, HFTeacher

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
TEXTS = [
    "Ann has 2 apples.",
    "the cat<pad> sat on the mat, the cat ate the rat.",
    "abcabc",
    "2 + 3 = 5, and 5 is the answer",
]
EXAMPLES = [Example(id=str(n), text=text) for n, text in enumerate(TEXTS)]
EXAMPLES += [Example(id="p", prompt="2 + 2 =", completion=" 4"), Example(id="q", prompt="the cat", completion=" sat")]


# The sketch.


def splitmix(key: int, number: int) -> int:
    """The reference generator, in Python's own integers."""
    mask = 2**64 - 1
    z = (key + (number + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64() -> None:
    assert int(hashed(1234567, 0, 1)) == 6457827717110365317  # published with the generator
    for key in (0, 7, -3, 2**63 + 5, 2**70):
        got = [value % 2**64 for value in hashed(key, 10**12, 50).tolist()]
        assert got == [splitmix(key, 10**12 + n) for n in range(50)]


def test_the_sketch_is_a_signed_sum_with_one_bucket_a_coordinate() -> None:
    matrix = Sketch(width=32, seed=5).of(torch.eye(200))
    assert (matrix.abs().sum(1) == 1).all()
    for start in range(0, 200, 32):  # no two coordinates of a block share a bucket
        assert (matrix[start : start + 32].abs().sum(0) <= 1).all()
    assert not torch.equal(matrix, Sketch(width=32, seed=6).of(torch.eye(200)))
    four = Sketch(width=32, seed=5, sparsity=4).of(torch.eye(200))
    torch.testing.assert_close(four.abs(), four.ne(0) * 0.5)
    assert (four.ne(0).view(200, 4, 8).sum(2) == 1).all()


@pytest.mark.parametrize("sparsity", [1, 2])
def test_streaming_in_any_pieces_is_the_same_to_the_bit(sparsity: int) -> None:
    draws = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 300_000, generator=draws)
    sketch = Sketch(width=256, seed=1, sparsity=sparsity)
    whole, pieces = sketch.of(vectors), torch.zeros(3, 256)
    start = 0
    while start < vectors.shape[1]:
        stop = start + int(torch.randint(1, 60_000, (1,), generator=draws))
        sketch.add(pieces, start, vectors[:, start:stop])
        start = stop
    assert torch.equal(pieces, whole)


def heavy(kind: str) -> Tensor:
    """Unit vectors that resemble gradients: plain noise, or sums of outer products with loud rows and columns, whose
    period divides the sketch's blocks."""
    draws = torch.Generator().manual_seed(3)
    if kind == "noise":
        vectors = torch.randn(8, 4000, generator=draws) + 0.5
    else:
        loud_C, loud_R = (torch.randn(n, generator=draws).mul(1.5).exp() for n in (64, 80))
        left, right = torch.randn(8, 6, 80, generator=draws) * loud_R, torch.randn(8, 6, 64, generator=draws) * loud_C
        vectors = (left.mT @ right).flatten(1)
    return nn.functional.normalize(vectors, dim=1)


@pytest.mark.parametrize("kind", ["noise", "products"])
@pytest.mark.parametrize("sparsity", [1, 4])
def test_inner_products_are_unbiased_and_err_by_one_over_root_width(kind: str, sparsity: int) -> None:
    vectors, width, seeds = heavy(kind), 256, 80
    true = vectors @ vectors.T
    one, other = torch.triu_indices(8, 8, 1)
    sketches = torch.stack([Sketch(width=width, seed=s, sparsity=sparsity).of(vectors) for s in range(seeds)])
    errors = (sketches @ sketches.mT - true)[:, one, other]
    scores = errors.mean(0) / (errors.std(0) / seeds**0.5)
    assert scores.abs().max() < 3.5  # the largest of 28
    scale = (1 + true[one, other].square()).sqrt()  # of a count-sketch, for vectors of equal length
    root = (errors / scale).square().mean().sqrt() * width**0.5
    assert 0.7 < root < 1.1


def test_a_sketch_is_refused_what_it_cannot_be() -> None:
    with pytest.raises(ValueError, match="sparsity is 3; it must divide the width"):
        Sketch(width=32, sparsity=3)
    with pytest.raises(ValueError, match="width is 0"):
        Sketch(width=0)


# Gradients of single examples.


def batch_of(student: Student, examples: Sequence[Example] = EXAMPLES) -> TokenBatch:
    return TokenBatch.of(renderer_of(student).render(examples))


def renderer_of(student: Student, **settings: Any) -> Renderer:
    return Renderer(student.tokenizer, settings.pop("max_length", student.lm.context), **settings)


def one_by_one(
    student: Student, batch: TokenBatch, names: Sequence[str], objective: Objective, teacher: TeacherSession | None
) -> list[dict[str, Tensor]]:
    """Gradients by autograd alone, each example in a batch of its own."""
    parameters = dict(student.lm.model.named_parameters())
    found = []
    for row in range(len(batch.ids)):
        stop = batch.spans[row].stop
        fields = ("tokens_BT", "targets_BT", "trained_BT", "role_BT", "positions_BT")
        cut: dict[str, Any] = {name: getattr(batch, name)[row : row + 1, :stop] for name in fields}
        alone = dataclasses.replace(batch, ids=batch.ids[row : row + 1], spans=(batch.spans[row],), **cut)
        with student.lm.inference():
            logits = student.lm.model(input_ids=alone.tokens_BT, use_cache=False).logits.flatten(0, 1)
        rows = alone.trained_rows()
        signal = teacher.score(alone).select(rows) if teacher else None
        loss = objective.loss(logits[rows][:, : student.lm.vocabulary], signal, alone.select(rows)).mean()
        grads = torch.autograd.grad(loss, [parameters[name] for name in names])
        found.append(dict(zip(names, grads, strict=True)))
    return found


def whole(gradient: Any, rows: int) -> Tensor:
    blocks = list(gradient.blocks(torch.arange(rows), rows, whole=True))
    assert [start for start, _ in blocks] == list(np.cumsum([0, *(v.shape[1] for _, v in blocks[:-1])]))
    return torch.cat([values for _, values in blocks], dim=1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"tied": True}, {**GPT2}, {**GPT2, "tied": True}, {"model_type": "qwen3", "head_dim": 8}],
    ids=["llama", "tied", "gpt2", "gpt2 tied", "qwen3"],
)
def test_every_gradient_is_autograds(make_student: MakeStudent, settings: dict[str, Any]) -> None:
    student = make_student(double=True, **settings)
    batch = batch_of(student)
    parameters = choose_parameters(student.lm, "all")
    assert list(parameters) == [name for name, _ in student.lm.model.named_parameters()]
    weights = 1 / batch.trained_BT.sum(1).double()
    found = batch_gradients(student.lm, parameters, batch, None, [CrossEntropy()], weights)
    expected = one_by_one(student, batch, list(parameters), CrossEntropy(), None)
    for name, gradient in found.items():
        true = torch.stack([grads[name].flatten() for grads in expected])
        assert true.abs().max() > 1e-9, name
        torch.testing.assert_close(whole(gradient, len(batch.ids)), true, rtol=1e-9, atol=1e-12, msg=name)
        squares = gradient.squares(torch.arange(len(batch.ids)), len(batch.ids))
        torch.testing.assert_close(squares, true.square().sum(1), rtol=1e-9, atol=1e-15, msg=name)
    assert all(p.requires_grad and p.grad is None for p in parameters.values())
    assert not any(m._forward_hooks for m in student.lm.model.modules())


def test_gradients_of_a_divergence_by_adapters(make_student: MakeStudent) -> None:
    student, teacher = make_student(double=True), HFSession(make_student(seed=1, double=True).lm)
    student.adapt(LoRA(r=3, alpha=6), seed=2)
    for name, p in student.lm.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    batch, objective = batch_of(student), ForwardKL(temperature=2.0)
    parameters = choose_parameters(student.lm, "all-linear")
    assert parameters
    assert all("lora_" in name for name in parameters)
    weights = 1 / batch.trained_BT.sum(1).double()
    found = batch_gradients(student.lm, parameters, batch, teacher.score(batch), [objective], weights)
    expected = one_by_one(student, batch, list(parameters), objective, teacher)
    for name, gradient in found.items():
        true = torch.stack([grads[name].flatten() for grads in expected])
        assert true.abs().max() > 1e-9, name
        torch.testing.assert_close(whole(gradient, len(batch.ids)), true, rtol=1e-9, atol=1e-12, msg=name)


def test_the_backward_pass_goes_no_deeper_than_asked(make_student: MakeStudent) -> None:
    student = make_student()
    in_graph: list[bool] = []
    for block in student.lm.layers():
        block.register_forward_hook(lambda module, given, output: in_graph.append(output.requires_grad))
    batch = batch_of(student)
    last = choose_parameters(student.lm, "last:1")
    batch_gradients(student.lm, last, batch, None, [CrossEntropy()], torch.ones(len(batch.ids)))
    assert len(last) == 7
    assert in_graph == [False, True]


def test_an_embedding_gives_only_the_rows_that_occur(make_student: MakeStudent) -> None:
    student = make_student()
    batch = batch_of(student)
    parameters = choose_parameters(student.lm, ("*embed_tokens.weight",))
    (gradient,) = batch_gradients(
        student.lm, parameters, batch, None, [CrossEntropy()], torch.ones(len(batch.ids))
    ).values()
    owners = torch.arange(len(batch.ids))
    starts = [start for start, _ in gradient.blocks(owners, len(owners), whole=False)]
    assert starts == [int(token) * 16 for token in batch.tokens_BT.unique()]
    sparse, dense = (sum_of(gradient, owners, whole=whole) for whole in (False, True))
    torch.testing.assert_close(sparse, dense)


def sum_of(gradient: Any, owners: Tensor, *, whole: bool) -> Tensor:
    found = torch.zeros(len(owners), 64)
    for start, values in gradient.blocks(owners, len(owners), whole=whole):
        Sketch(width=64).add(found, start, values)
    return found


class Mixing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).view(*x.shape[:-1], -1)


def test_a_layer_that_is_not_understood_is_refused(make_student: MakeStudent) -> None:
    student = make_student()
    block: Any = student.lm.layers()[1]
    block.mlp.up_proj.__class__ = Mixing
    batch = batch_of(student)
    with pytest.raises(ModelError, match=r"by Mixing are not known.*Choose layers by name"):
        batch_gradients(
            student.lm,
            choose_parameters(student.lm, "all-linear"),
            batch,
            None,
            [CrossEntropy()],
            torch.ones(len(batch.ids)),
        )
    assert all(p.requires_grad for p in student.lm.model.parameters())


# Adam.


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-9])
def test_the_direction_is_the_step_that_adam_takes(scale: float) -> None:
    draws = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 4, generator=draws, dtype=torch.float64))
    pulls = [torch.randn(5, 4, generator=draws, dtype=torch.float64) * scale for _ in range(4)]
    moments = warm_up({"w": weight}, [[(weight * pull).sum()] for pull in pulls[:3]], lr=0.1)
    optimizer = torch.optim.Adam([again := nn.Parameter(weight.detach().clone())], lr=1e-3)
    optimizer.state[again] = {
        "step": torch.tensor(3.0),
        "exp_avg": moments.first["w"].view(5, 4).clone(),
        "exp_avg_sq": moments.second["w"].view(5, 4).clone(),
    }
    again.grad = pulls[3]
    optimizer.step()
    step = (weight - again).detach().flatten() / 1e-3
    gradient = pulls[3].flatten()[None]
    pieces = [moments.direction("w", start, gradient[:, start : start + 7]) for start in range(0, 20, 7)]
    torch.testing.assert_close(torch.cat(pieces, 1)[0], step, rtol=1e-9, atol=1e-10)


def test_the_warm_up_is_adams_training() -> None:
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=draws, dtype=torch.float64)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    moments = warm_up({"w": ours}, (iter([ours.square().sum() / 2, ours.sin().sum()]) for _ in range(5)), lr=0.01)
    optimizer = torch.optim.Adam([theirs], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        (theirs.square().sum() / 2 + theirs.sin().sum()).backward()
        optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert moments.steps == 5
    torch.testing.assert_close(moments.second["w"], optimizer.state[theirs]["exp_avg_sq"])


# The component.


def bench_of(make_student: MakeStudent, *, teacher: TeacherSession | None = None, **settings: Any) -> FeatureBench:
    rendering = {key: settings.pop(key) for key in ("max_length", "overflow") if key in settings}
    student = lambda: make_student(**settings)  # noqa: E731
    return FeatureBench(student=student, renderer=renderer_of(student(), **rendering), teacher=teacher)


def cosines(student: Student, objective: Objective, teacher: TeacherSession | None = None) -> np.ndarray:
    batch = batch_of(student)
    names = list(choose_parameters(student.lm, "all-linear"))
    found = one_by_one(student, batch, names, objective, teacher)
    vectors = torch.stack([torch.cat([g.flatten() for g in grads.values()]) for grads in found])
    unit = nn.functional.normalize(vectors, dim=1)
    return (unit @ unit.T).detach().numpy()


@pytest.mark.parametrize("objective", [CrossEntropy(), ForwardKL(temperature=2.0)])
def test_vectors_keep_the_cosines_of_the_gradients(make_student: MakeStudent, objective: Objective) -> None:
    teacher = HFSession(make_student(seed=1).lm)
    bench = bench_of(make_student, teacher=teacher)
    vectors = Gradients(objective=(objective,), width=4096).compute(EXAMPLES, bench)
    assert vectors.dtype == np.float32
    assert vectors.shape == (6, 4096)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    errors = vectors @ vectors.T - cosines(make_student(), objective, teacher)
    assert np.abs(errors).max() < 4 / math.sqrt(4096)


def test_the_objective_decides(make_student: MakeStudent) -> None:
    bench = bench_of(make_student, teacher=HFSession(make_student(seed=1).lm))
    made = [
        registry.build("feature", "gradients", {"objective": objective, "normalize": False}).compute(EXAMPLES, bench)
        for objective in (["cross_entropy"], {"forward_kl": {"temperature": 2}}, ["cross_entropy", "forward_kl"])
    ]
    assert not np.allclose(made[0], made[1], atol=1e-3)
    plain = Gradients(objective=(ForwardKL(),), normalize=False).compute(EXAMPLES, bench)
    np.testing.assert_allclose(made[0] + plain, made[2], atol=1e-5)  # the sketch is linear


@pytest.mark.parametrize("settings", [{}, {"precondition": "adam", "warmup": 2}, {"layers": "all"}])
def test_the_size_of_a_batch_changes_nothing_and_a_seed_says_all(
    make_student: MakeStudent, settings: dict[str, Any]
) -> None:
    bench = bench_of(make_student)
    one = Gradients(**settings, tokens_per_batch=1).compute(EXAMPLES, bench)
    several = Gradients(**settings).compute(EXAMPLES, bench)
    np.testing.assert_allclose(one, several, atol=2e-4 if settings else 1e-5)
    assert several.tobytes() == Gradients(**settings).compute(EXAMPLES, bench).tobytes()
    assert not np.allclose(several, Gradients(**settings, seed=1).compute(EXAMPLES, bench), atol=1e-2)
    turned = Gradients(**settings).compute(EXAMPLES[::-1], bench) if not settings else several[::-1]
    np.testing.assert_allclose(turned, several[::-1], atol=1e-5)


def test_norms_are_exact(make_student: MakeStudent) -> None:
    student = make_student()
    batch = batch_of(student)
    parameters = list(choose_parameters(student.lm, "all"))
    expected = [
        math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
        for grads in one_by_one(student, batch, parameters, CrossEntropy(), None)
    ]
    norms = Gradients(layers="all", tokens_per_batch=100).norms(EXAMPLES, bench_of(make_student))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_an_example_cut_into_windows_is_one_gradient(make_student: MakeStudent) -> None:
    long = Example(id="long", text=" ".join(TEXTS))
    bench = bench_of(make_student, max_length=16)
    assert bench.renderer is not None
    windows = bench.renderer.render([long])
    assert len(windows) > 2
    features = Gradients(normalize=False, layers="all", width=64)
    vectors = features.compute([long, *EXAMPLES[:2]], bench)
    student = make_student()
    counts = [sum(window.trained) for window in windows]
    parameters = choose_parameters(student.lm, "all")
    batch = TokenBatch.of(windows)
    loss = weighted_loss(student.lm, batch, None, [CrossEntropy()], torch.full((len(windows),), 1 / sum(counts)))
    true = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parameters.values()))])
    np.testing.assert_allclose(vectors[0], Sketch(width=64).of(true[None])[0].numpy(), atol=1e-4)
    norms = features.norms([long, *EXAMPLES[:2]], bench)
    np.testing.assert_allclose(norms[0], float(true.norm()), rtol=1e-5)


def test_adam_after_a_warm_up_of_adapters(make_student: MakeStudent) -> None:
    bench = bench_of(make_student)
    settings: dict[str, Any] = {"lora": 2, "warmup": 3, "lr": 1e-2, "normalize": False}
    plain = Gradients(**settings).compute(EXAMPLES, bench)
    adam = Gradients(**settings, precondition="adam").compute(EXAMPLES, bench)
    assert np.abs(plain).sum(1).min() > 0
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (plain, adam)]
    agreement = (unit[0] * unit[1]).sum(1)
    assert (agreement < 0.9).all()  # another direction
    fresh = Gradients(lora=2, normalize=False)
    student = make_student()
    student.adapt(LoRA(r=2, alpha=4), seed=0)
    first = [name for name in choose_parameters(student.lm, "all-linear") if "lora_A" in name]
    only = dataclasses.replace(fresh, layers=tuple(first), normalize=True)
    assert (only.compute(EXAMPLES, bench) == 0).all()  # as the docstring warns


@pytest.mark.parametrize("layers", ["all-linear", "all"])
def test_vectors_are_the_steps_that_adam_would_take(make_student: MakeStudent, layers: str) -> None:
    """The whole way against PyTorch's own optimiser: trained, asked for one step an example, put back."""
    settings: dict[str, Any] = {"layers": layers, "warmup": 2, "lr": 1e-3, "normalize": False, "width": 64}
    settings["tokens_per_batch"] = 1  # so that a batch lacks tokens that others have, which Adam moves all the same
    vectors = Gradients(precondition="adam", **settings).compute(EXAMPLES, bench_of(make_student, double=True))
    student = make_student(double=True)
    batch = batch_of(student)
    parameters = choose_parameters(student.lm, layers)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)

    def step(gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    for _ in range(2):
        everywhere = torch.full((len(EXAMPLES),), 1 / batch.trained_count(), dtype=torch.float64)
        loss = weighted_loss(student.lm, batch, None, [CrossEntropy()], everywhere)
        step(torch.autograd.grad(loss, list(parameters.values())))
    alone = one_by_one(student, batch, list(parameters), CrossEntropy(), None)
    before = [p.detach().clone() for p in parameters.values()]
    known = copy.deepcopy(optimizer.state_dict())
    for vector, gradients in zip(vectors, alone, strict=True):
        step(list(gradients.values()))
        after = [p.detach().clone() for p in parameters.values()]
        moved = torch.cat([(old - new).flatten() for old, new in zip(before, after, strict=True)]) / 1e-3
        np.testing.assert_allclose(vector, Sketch(width=64).of(moved[None])[0].numpy(), rtol=1e-4, atol=1e-3)
        optimizer.load_state_dict(copy.deepcopy(known))
        with torch.no_grad():
            for parameter, old in zip(parameters.values(), before, strict=True):
                parameter.copy_(old)


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [
            leaf.untyped_storage().nbytes() // leaf.itemsize for leaf in tree_leaves(made) if torch.is_tensor(leaf)
        ]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("settings", [{}, {"precondition": "adam", "warmup": 1}])
def test_gradients_are_never_whole(
    make_student: MakeStudent, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("stillhouse.features._perexample._NUMBERS", 2**15)
    student = make_student(hidden_size=64, intermediate_size=160)
    bench = FeatureBench(student=lambda: student, renderer=renderer_of(student))
    examples = [Example(id=str(n), text=f"{n}a") for n in range(24)]
    with Largest() as largest:
        Gradients(layers="all", width=2048, **settings).compute(examples, bench)
    of_one_layer = len(examples) * 64 * 160
    assert 2**14 < largest.numbers < of_one_layer / 3
    assert of_one_layer < len(examples) * student.lm.parameters() / 8


def test_what_is_missing_is_named(make_student: MakeStudent) -> None:
    bench = bench_of(make_student)
    with pytest.raises(NeedsError, match="computed with a student"):
        Gradients().compute(EXAMPLES, FeatureBench())
    with pytest.raises(NeedsError, match="gradients of forward_kl need a teacher"):
        Gradients(objective=(ForwardKL(),)).compute(EXAMPLES, bench)
    with pytest.raises(RecipeError, match="has 2 blocks"):
        Gradients(layers="last:3").compute(EXAMPLES, bench)
    with pytest.raises(RecipeError, match=r"no such trainable parameter. Did you mean 'model.norm.weight'"):
        Gradients(layers=("model.nom.weight",)).compute(EXAMPLES, bench)
    with pytest.raises(DataError, match="Example '3' has no gradient"):
        Gradients().compute(
            [Example(id="3", prompt="the cat sat on", completion=" the mat")],
            bench_of(make_student, max_length=3, overflow="drop"),
        )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"width": 0}, "width is 0; it must be at least 1"),
        ({"layers": "first:2"}, "layers is 'first:2'; it must be all, all-linear"),
        ({"layers": []}, "layers is an empty list"),
        ({"precondition": "adam"}, "warmup is 0; it must be at least 1 update"),
        ({"lora": 0}, "lora is 0"),
        ({"lr": 0}, "lr is 0"),
        ({"objective": []}, r"objective is \(\)"),
        ({"objective": ["foward_kl"]}, "Did you mean 'forward_kl'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        registry.build("feature", "gradients", settings)


def test_short_forms_and_needs() -> None:
    built = registry.build(
        "feature", "gradients", {"objective": {"forward_kl": {"temperature": 2}}, "layers": ["model.layers.*"]}
    )
    assert built == Gradients(objective=(ForwardKL(temperature=2.0),), layers=("model.layers.*",))
    assert built.needs == {"distribution"}
    assert not built.of_text
    assert Gradients().needs == frozenset()
    assert hash(built)


def test_the_embedded_teacher_teaches_a_real_student() -> None:
    teacher = HFTeacher("stillhouse:arithmetic").open()
    problems = enumerate(generate(12, steps=(1, 2)))
    examples = [Example(id=str(n), prompt=p.question, completion=p.solution) for n, p in problems]
    student = lambda: Student.from_config(  # noqa: E731
        {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2},
        teacher.tokenizer,
    )  # fmt: skip
    bench = FeatureBench(student=student, teacher=teacher, renderer=Renderer(teacher.tokenizer, 128))
    vectors = Gradients(objective=(ForwardKL(),), layers="last:1").compute(examples, bench)
    assert vectors.shape == (12, 2048)
    assert np.isfinite(vectors).all()
    assert teacher.tokens_read > 0
