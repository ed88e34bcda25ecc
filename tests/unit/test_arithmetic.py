import re
from itertools import islice

import pytest

from stillhouse.data.arithmetic import Problem, combination_split, generate, row, shape_ids
from stillhouse.data.arithmetic_shapes import BLOCKS, read_block

OPERATIONS = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left // right,
}
NUMBER_WORDS = {
    2: ("twice", "half"),
    3: ("third",),
    4: ("quarter",),
    5: ("fifth",),
    6: ("sixth",),
    7: ("seventh",),
    8: ("eighth",),
    9: ("ninth",),
}


@pytest.fixture(scope="module", params=["train", "heldout"])
def problems(request: pytest.FixtureRequest) -> tuple[str, list[Problem]]:
    return request.param, list(generate(1500, seed=3, split=request.param))


def words(texts: list[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", text).lower())}


def test_derivation_is_exact_and_leads_to_the_answer(problems: tuple[str, list[Problem]]) -> None:
    for problem in problems[1]:
        for step in problem.steps:
            assert OPERATIONS[step.op](step.left, step.right) == step.result
            assert step.op != "/" or step.left % step.right == 0
            assert min(step.left, step.right, step.result) >= 0
        assert problem.answer == problem.steps[-1].result
        assert problem.solution.endswith(f"#### {problem.answer}")
        assert problem.solution.count("####") == 1


def test_every_operand_comes_from_the_question_or_an_earlier_step(problems: tuple[str, list[Problem]]) -> None:
    for problem in problems[1]:
        stated = {int(number) for number in re.findall(r"\d+", problem.question)}
        stated |= {value for value, names in NUMBER_WORDS.items() if any(name in problem.question for name in names)}
        known = set(stated)
        for step in problem.steps:
            assert {step.left, step.right} <= known, problem
            known.add(step.result)


def test_equations_written_in_the_solution_are_true(problems: tuple[str, list[Problem]]) -> None:
    for problem in problems[1]:
        equations = re.findall(r"(\d+) ([-+*/]) (\d+)((?: = \d+(?: [-+] \d+)?)+)", problem.solution)
        assert len(equations) == len(problem.steps)
        for (left, op, right, rest), step in zip(equations, problem.steps, strict=True):
            assert (int(left), op, int(right)) == (step.left, step.op, step.right)
            for side in rest.split(" = ")[1:]:
                assert sum(map(int, side.replace(" - ", " + -").split(" + "))) == step.result


def test_number_combinations_and_shapes_stay_in_their_split(problems: tuple[str, list[Problem]]) -> None:
    split, drawn = problems
    allowed = shape_ids(split)  # ty: ignore[invalid-argument-type]
    for problem in drawn:
        assert set(problem.shapes) <= allowed
        assert all(combination_split(step.left, step.op, step.right) == split for step in problem.steps)


def test_no_duplicates(problems: tuple[str, list[Problem]]) -> None:
    assert len({problem.question for problem in problems[1]}) == 1500


def test_splits_share_no_shape_and_each_category_has_both() -> None:
    train, heldout = shape_ids("train"), shape_ids("heldout")
    assert not train & heldout
    for category in BLOCKS:
        texts = {split: {text for _, text, s in read_block(category) if s == split} for split in ("train", "heldout")}
        assert not texts["train"] & texts["heldout"]
        assert 0.1 < len(texts["heldout"]) / len(read_block(category)) < 0.25


def test_there_are_hundreds_of_distinct_clauses_and_thousands_of_shapes() -> None:
    shapes = [text for category in BLOCKS for _, text, _ in read_block(category)]
    assert len({part.strip() for block in BLOCKS.values() for part in block.split("|")}) >= 300
    assert len(set(shapes)) == len(shapes) >= 2000


def test_who_gives_to_whom_can_be_told_without_knowing_the_owner() -> None:
    def clauses(*categories: str) -> set[str]:
        # without its frame: the first of a clause's frames is empty, unless the clause brings its own
        bare = (text for c in categories for name, text, _ in read_block(c) if name.endswith("-0"))
        return {re.sub(r"\{(who|other)\}", "X", re.sub(r"^(Then|Later,) ", "", text)) for text in bare}

    assert not clauses("gain", "earn") & clauses("loss", "spend", "eat")


def test_words_of_heldout_shapes_are_known_from_train_shapes() -> None:
    shapes = [(text, split) for category in BLOCKS for _, text, split in read_block(category)]
    assert words([t for t, split in shapes if split == "heldout"]) <= words(
        [t for t, split in shapes if split == "train"]
    )


def test_a_pair_of_numbers_is_held_out_from_every_operation_and_the_times_table_from_none() -> None:
    pairs = [(left, right) for left in range(2, 102) for right in range(2, 62)]
    for left, right in pairs:
        splits = {combination_split(a, op, b) for op in OPERATIONS for a, b in ((left, right), (right, left))}  # ty: ignore
        assert len(splits) == 1
        if max(left, right) <= 10 or (left % right == 0 and left // right <= 10):
            assert splits == {"train"}
    assert 0.10 < sum(combination_split(a, "+", b) == "heldout" for a, b in pairs) / len(pairs) < 0.15


def test_the_hash_of_a_combination_is_stable() -> None:
    heldout = [n for n in range(2, 60) if combination_split(n, "+", 7) == "heldout"]
    assert heldout == [17, 33, 36, 39, 40, 44, 50, 52]


def test_same_seed_gives_the_same_problems_and_other_seeds_do_not() -> None:
    first = list(generate(50, seed=5))
    assert first == list(generate(50, seed=5))
    assert first == list(islice(generate(90, seed=5), 50))
    assert not {p.question for p in first} & {p.question for p in generate(50, seed=6)}


@pytest.mark.parametrize("steps", [(1, 1), (2, 2), (3, 5), (6, 6)])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_steps_setting_is_respected(steps: tuple[int, int], split: str) -> None:
    counts = {len(problem.steps) for problem in generate(200, steps=steps, split=split)}  # ty: ignore
    assert counts == set(range(steps[0], steps[1] + 1))


def test_distractors_setting_is_respected() -> None:
    for chance, expected in ((0.0, 0), (1.0, 200)):
        drawn = generate(200, distractors=chance)
        assert sum(any(shape.startswith("noise") for shape in p.shapes) for p in drawn) == expected


def test_solutions_word_the_same_operation_in_several_ways() -> None:
    leads = {re.split(r"\d", problem.solution)[0].split(" ", 1)[-1] for problem in generate(300, steps=(1, 1))}
    assert len(leads) >= 8


def test_row_is_in_the_gsm8k_form() -> None:
    problem = next(generate(1, seed=1))
    made = row(problem)
    assert made["question"] == problem.question
    assert made["answer"].rpartition("#### ")[2] == str(made["final"]) == str(problem.answer)
    assert made["derivation"] == [f"{s.left} {s.op} {s.right} = {s.result}" for s in problem.steps]
    assert made["steps"] == len(problem.steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count is -1.*non-negative"),
        ({"count": 1, "steps": (3, 2)}, r"steps is \(3, 2\).*pass for example \(2, 4\)"),
        ({"count": 1, "steps": (0, 2)}, r"steps is \(0, 2\)"),
        ({"count": 1, "steps": (2, 99)}, "<= 6"),
        ({"count": 1, "split": "test"}, "split is 'test'.*'train' or 'heldout'"),
        ({"count": 1, "distractors": 1.5}, "distractors is 1.5.*from 0.0 to 1.0"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**arguments)
