"""Rendering: where shift, mask, roles and byte counts are born, and where alone they can go wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.data.rendering import Rendered, Renderer, Role
from stillhouse.errors import DataError
from stillhouse.records import Example


def sequence(rendered: Rendered) -> list[int]:
    """All token ids, inputs and the last target."""
    return [*rendered.tokens, rendered.targets[-1]]


def learned(tokenizer: Any, rendered: Rendered, role: Role | None = None) -> str:
    """The text of the targets that count, or of those with a role."""
    chosen = [
        target
        for target, counts, found in zip(rendered.targets, rendered.trained, rendered.role, strict=True)
        if (counts if role is None else found == role)
    ]
    return tokenizer.decode(chosen)


def one(tokenizer: Any, example: Example, **settings: Any) -> Rendered:
    (rendered,) = Renderer(tokenizer, settings.pop("max_length", 200), **settings).render([example])
    return rendered


def text_size(tokenizer: Any, rendered: Rendered) -> int:
    special = set(tokenizer.all_special_tokens)
    targets = [t for t, counts in zip(rendered.targets, rendered.trained, strict=True) if counts]
    return len(tokenizer.decode([t for t in targets if tokenizer.convert_ids_to_tokens(t) not in special]).encode())


# The plain form: prompt and completion.


def test_targets_are_the_tokens_shifted_by_one(tokenizer: Any) -> None:
    rendered = one(tokenizer, Example(id="a", prompt="2 + 3 =", completion=" 5"))
    assert rendered.targets[:-1] == rendered.tokens[1:]
    lengths = {len(rendered.tokens), len(rendered.targets), len(rendered.trained), len(rendered.role)}
    assert len(lengths) == 1
    assert tokenizer.decode(sequence(rendered)) == "2 + 3 = 5<eos>"


def test_completion_and_its_end_are_trained_and_the_prompt_is_not(tokenizer: Any) -> None:
    rendered = one(tokenizer, Example(id="a", prompt="2 + 3 =", completion=" 5."))
    assert learned(tokenizer, rendered) == " 5.<eos>"
    assert learned(tokenizer, rendered, Role.PROMPT) == " + 3 ="  # the first token is nobody's target


def test_end_token_is_trained_and_has_no_bytes(tokenizer: Any) -> None:
    rendered = one(tokenizer, Example(id="a", prompt="2 + 3 =", completion=" 5"))
    assert rendered.targets[-1] == tokenizer.eos_token_id
    assert rendered.trained[-1]
    assert rendered.size == len(b" 5")


def test_train_on_chooses_the_roles(tokenizer: Any) -> None:
    example = Example(id="a", prompt="2 + 3 =", rationale=" two and three", completion="5")
    assert learned(tokenizer, one(tokenizer, example)) == " two and three\n5<eos>"
    assert learned(tokenizer, one(tokenizer, example, train_on=frozenset({Role.ANSWER}))) == "5<eos>"
    assert learned(tokenizer, one(tokenizer, example, train_on=frozenset({Role.RATIONALE}))) == " two and three\n"
    everything = one(tokenizer, example, train_on=frozenset({Role.PROMPT, Role.RATIONALE, Role.ANSWER}))
    assert all(everything.trained)


def test_rationale_and_answer_have_their_own_roles(tokenizer: Any) -> None:
    rendered = one(tokenizer, Example(id="a", prompt="2 + 3 =", rationale="  think.  \n", completion="5"))
    assert learned(tokenizer, rendered, Role.RATIONALE) == "  think.\n"
    assert learned(tokenizer, rendered, Role.ANSWER) == "5<eos>"


def test_empty_prompt_with_a_beginning_token_trains_the_whole_completion(bos_tokenizer: Any) -> None:
    rendered = one(bos_tokenizer, Example(id="a", prompt="", completion="the cat"))
    assert rendered.tokens[0] == bos_tokenizer.bos_token_id
    assert learned(bos_tokenizer, rendered) == "the cat<eos>"
    assert sequence(rendered).count(bos_tokenizer.bos_token_id) == 1


def test_beginning_token_is_there_once_and_carries_no_bytes(bos_tokenizer: Any) -> None:
    for example in (Example(id="a", prompt="2 + 3 =", completion=" 5"), Example(id="b", text="the cat")):
        rendered = one(bos_tokenizer, example)
        assert rendered.tokens[0] == bos_tokenizer.bos_token_id
        assert sequence(rendered).count(bos_tokenizer.bos_token_id) == 1
        assert rendered.size == text_size(bos_tokenizer, rendered)


@pytest.mark.parametrize("completion", ["", None])
def test_prompt_without_a_completion(tokenizer: Any, completion: str | None) -> None:
    example = Example(id="row-7", prompt="2 + 3 =", completion=completion)
    if completion is None:
        with pytest.raises(DataError, match=r"'row-7' has a prompt and no completion.*teacher_text"):
            one(tokenizer, example)
    else:  # sources refuse it; here it means: say nothing and end
        assert learned(tokenizer, one(tokenizer, example)) == "<eos>"


def test_nothing_to_train_on_names_the_roles_and_the_setting(tokenizer: Any) -> None:
    example = Example(id="row-7", prompt="2 + 3 =", completion=" 5")
    with pytest.raises(DataError, match=r"'row-7' has no token to train on .*answer.*prompt.*train_on \['rationale'\]"):
        one(tokenizer, example, train_on=frozenset({Role.RATIONALE}))
    renderer = Renderer(tokenizer, 200, train_on=frozenset({Role.RATIONALE}), overflow="drop")
    assert renderer.render([example]) == []
    assert renderer.notices == {"examples without a token to train on (dropped)": 1}


# Generation meets the same tokens as training.

prompts = st.text(st.sampled_from("abc 2+3=\n\té😀Ann"), min_size=1, max_size=12)


@given(prompts, st.text(st.sampled_from("abc 5.\né😀"), min_size=1, max_size=12))
def test_prompt_ids_are_the_head_of_the_rendered_tokens(tokenizer: Any, prompt: str, completion: str) -> None:
    example = Example(id="a", prompt=prompt, completion=completion)
    renderer = Renderer(tokenizer, 200)
    (rendered,) = renderer.render([example])
    head = renderer.prompt_ids(example)
    assert sequence(rendered)[: len(head)] == head
    assert tokenizer.decode(sequence(rendered)) == prompt + completion + "<eos>"
    assert rendered.trained == [False] * (len(head) - 1) + [True] * (len(rendered.tokens) - len(head) + 1)
    assert rendered.size == len(completion.encode())


@given(prompts, st.text(st.sampled_from("abc 5.\né😀"), min_size=1, max_size=12))
def test_prompt_ids_are_the_head_under_a_chat_template(chat_tokenizer: Any, prompt: str, completion: str) -> None:
    example = Example(id="a", prompt=prompt, completion=completion)
    renderer = Renderer(chat_tokenizer, 200)
    (rendered,) = renderer.render([example])
    head = renderer.prompt_ids(example)
    assert sequence(rendered)[: len(head)] == head
    assert chat_tokenizer.decode(head) == f"<|user|>\n{prompt}<eos>\n<|assistant|>\n"
    assert learned(chat_tokenizer, rendered) == f"{completion}<eos>\n"


def test_prompt_ids_begin_like_training_does(bos_tokenizer: Any, chat_tokenizer: Any) -> None:
    asked = Example(id="a", prompt="2 + 3 =")
    assert Renderer(bos_tokenizer, 99).prompt_ids(asked) == bos_tokenizer("2 + 3 =")["input_ids"]
    assert Renderer(bos_tokenizer, 99).prompt_ids(Example(id="a", prompt="")) == [bos_tokenizer.bos_token_id]
    conversation = Example(id="a", messages=({"role": "user", "content": "hi"},))
    text = "<|user|>\nhi<eos>\n<|assistant|>\n"
    assert chat_tokenizer.decode(Renderer(chat_tokenizer, 99).prompt_ids(conversation)) == text


def test_merge_across_the_boundary_is_undone_and_noticed(tokenizer: Any) -> None:
    """`the cat` is one pair of tokens; cut inside a word, the tokenizer would merge what generation meets apart."""
    example = Example(id="a", prompt="th", completion="e cat")
    whole, head = tokenizer("the cat")["input_ids"], tokenizer("th")["input_ids"]
    assert whole[: len(head)] != head  # or this test shows nothing
    renderer = Renderer(tokenizer, 99)
    (rendered,) = renderer.render([example])
    assert sequence(rendered)[: len(head)] == head
    assert learned(tokenizer, rendered) == "e cat<eos>"
    assert list(renderer.notices) == ["examples whose tokenizer merges across the prompt's end; encoded in two parts"]
    renderer.render([Example(id="b", prompt="2 + 3 =", completion=" 5")])
    assert renderer.notices.total() == 1


# Bytes: what bits per byte divides by.


@pytest.mark.parametrize(
    "text",
    ["the cat", "naïve café", "日本語 abc", "😀😀 a👨‍👩‍👧b", "  two  spaces ", "a\n\n\tb", "é" * 30],
)
def test_sizes_add_up_to_the_bytes_of_the_trained_text(
    tokenizer: Any, bos_tokenizer: Any, chat_tokenizer: Any, text: str
) -> None:
    assert one(tokenizer, Example(id="a", prompt="say 😀:", completion=text)).size == len(text.encode())
    assert one(bos_tokenizer, Example(id="a", prompt="say 😀:", completion=text)).size == len(text.encode())
    assert one(bos_tokenizer, Example(id="a", text=text)).size == len(text.encode())
    chat = one(chat_tokenizer, Example(id="a", prompt="say 😀:", completion=text))
    assert chat.size == len(f"{text}<eos>\n".encode())


def test_without_a_beginning_token_the_first_piece_of_running_text_is_nobodys_target(tokenizer: Any) -> None:
    rendered = one(tokenizer, Example(id="a", text="the cat sat"))
    assert learned(tokenizer, rendered) == " cat sat<eos>"
    assert rendered.size == len(b" cat sat")


@pytest.mark.parametrize("trim", [False, True])
def test_tokenizers_that_trim_offsets_train_and_count_whitespace(tokenizer: Any, trim: bool) -> None:
    """GPT-NeoX's offsets leave out leading spaces, and whitespace alone altogether; it is text all the same."""
    from copy import deepcopy

    from tokenizers import processors

    trimming = deepcopy(tokenizer)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    for prompt, completion in [
        ("the cat", " ate the rat"),
        ("ask:\n", "  \n 5\n\n6  \n"),
        ("a \n", "\n b"),
        ("é ", "😀 \n😀"),
    ]:
        rendered = one(trimming, Example(id="a", prompt=prompt, completion=completion))
        assert learned(trimming, rendered) == completion + "<eos>"
        assert learned(trimming, rendered, Role.ANSWER) == completion + "<eos>"
        assert rendered.size == len(completion.encode())
    split = one(trimming, Example(id="a", prompt="q", rationale="one \n two", completion=" \n5"))
    assert learned(trimming, split, Role.RATIONALE) == "one \n two\n"
    assert learned(trimming, split, Role.ANSWER) == " \n5<eos>"


def test_sizes_agree_for_a_trained_sentencepiece_like_tokenizer(stories: str) -> None:
    from stillhouse.models import load_tokenizer

    tokenizer = load_tokenizer(stories)
    for text in ("Once upon a time", "café 😀 naïve"):
        rendered = one(tokenizer, Example(id="a", text=text))
        assert rendered.size == len(text.encode())


# Conversations.

TURNS = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "2 + 3?"},
    {"role": "assistant", "content": "five"},
    {"role": "user", "content": "plus 1?"},
    {"role": "assistant", "content": "six"},
)


def test_every_assistant_turn_is_trained_with_its_end_and_nothing_else(chat_tokenizer: Any) -> None:
    rendered = one(chat_tokenizer, Example(id="a", messages=TURNS))
    full = chat_tokenizer.apply_chat_template(list(TURNS), tokenize=False)
    assert chat_tokenizer.decode(sequence(rendered)) == full
    assert learned(chat_tokenizer, rendered) == "five<eos>\nsix<eos>\n"
    assert rendered.size == len(b"five<eos>\nsix<eos>\n")


def test_prompt_of_a_conversation_ends_where_the_last_answer_begins(chat_tokenizer: Any) -> None:
    renderer = Renderer(chat_tokenizer, 200)
    example = Example(id="a", messages=TURNS)
    head = renderer.prompt_ids(example)
    text = chat_tokenizer.apply_chat_template(list(TURNS[:-1]), tokenize=False, add_generation_prompt=True)
    assert chat_tokenizer.decode(head) == text
    assert sequence(renderer.render([example])[0])[: len(head)] == head


def test_conversation_that_ends_with_the_user_trains_the_answers_before(chat_tokenizer: Any) -> None:
    rendered = one(chat_tokenizer, Example(id="a", messages=TURNS[:4]))
    assert learned(chat_tokenizer, rendered) == "five<eos>\n"


def test_rationale_under_a_template_keeps_its_role(chat_tokenizer: Any) -> None:
    rendered = one(chat_tokenizer, Example(id="a", prompt="2 + 3?", rationale="2 and 3 make", completion="5"))
    assert learned(chat_tokenizer, rendered, Role.RATIONALE) == "2 and 3 make\n"
    assert learned(chat_tokenizer, rendered, Role.ANSWER) == "5<eos>\n"


def test_rationale_that_the_user_quoted_is_not_mistaken_for_the_assistants(chat_tokenizer: Any) -> None:
    rendered = one(chat_tokenizer, Example(id="a", prompt="is it 5\n?", rationale="5", completion="5\n"))
    assert learned(chat_tokenizer, rendered, Role.RATIONALE) == "5\n"
    assert learned(chat_tokenizer, rendered) == "5\n5\n<eos>\n"


def test_conversation_without_a_template_names_the_way_out(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"'a' is a conversation.*no chat template.*map prompt and completion"):
        one(tokenizer, Example(id="a", messages=TURNS))


def test_template_that_rewrites_earlier_turns_is_refused(chat_tokenizer: Any) -> None:
    """Qwen3's template drops the reasoning of earlier turns: then nobody knows which tokens the assistant wrote."""
    from copy import deepcopy

    rewriting = deepcopy(chat_tokenizer)
    rewriting.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<gone>{% else %}"
        "{{ m.role }}:{{ m.content }}{% endif %}<eos>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(DataError, match=r"'a': the chat template rewrites earlier turns .*turn 5"):
        one(rewriting, Example(id="a", messages=TURNS))
    assert learned(rewriting, one(rewriting, Example(id="b", prompt="2 + 3?", completion="5"))) == "5<eos>"


def test_template_that_trims_the_answer_still_trains_all_of_it(chat_tokenizer: Any) -> None:
    from copy import deepcopy

    trimming = deepcopy(chat_tokenizer)
    trimming.chat_template = trimming.chat_template.replace("message['content']", "message['content'] | trim")
    rendered = one(trimming, Example(id="a", prompt=" 2 + 3? ", completion="  5  "))
    assert learned(trimming, rendered) == "5<eos>\n"


def test_running_text_knows_no_template(chat_tokenizer: Any) -> None:
    rendered = one(chat_tokenizer, Example(id="a", text="the cat sat"))
    assert chat_tokenizer.decode(sequence(rendered)) == "the cat sat<eos>"


# Too long.


@given(st.integers(2, 12), st.integers(1, 60))
def test_windows_of_running_text_overlap_by_one_and_count_every_token_once(
    bos_tokenizer: Any, width: int, words: int
) -> None:
    text = " ".join(f"{n}é" for n in range(words))
    (whole,) = Renderer(bos_tokenizer, 10**6).render([Example(id="a", text=text)])
    windows = Renderer(bos_tokenizer, width).render([Example(id="a", text=text)])
    assert [t for w in windows for t in w.targets] == whole.targets
    assert [t for w in windows for t in w.tokens] == whole.tokens
    assert all(len(sequence(w)) <= width for w in windows)
    for earlier, later in pairwise(windows):
        assert later.tokens[0] == earlier.targets[-1]
    assert all(all(w.trained) for w in windows)
    assert sum(w.size for w in windows) == len(text.encode())
    if len(windows) > 1:
        assert [w.id for w in windows] == [f"a/{n}" for n in range(len(windows))]


LONG = Example(id="row-9", prompt="2 + 3 =", completion=" 5" * 50)


def test_overlong_example_is_an_error_that_names_the_choices(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"'row-9' has \d+ tokens, the limit is 20 .*data.overflow: drop or truncate"):
        one(tokenizer, LONG, max_length=20)


def test_overlong_example_is_dropped_when_asked_and_counted(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, 20, overflow="drop")
    kept = renderer.render([LONG, Example(id="short", prompt="2 + 3 =", completion=" 5"), LONG])
    assert [r.id for r in kept] == ["short"]
    assert renderer.notices == {"examples longer than 20 tokens (dropped)": 2}


def test_overlong_example_is_truncated_when_asked_and_counted(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, 20, overflow="truncate")
    (kept,) = renderer.render([LONG])
    assert len(sequence(kept)) == 20
    assert tokenizer.decode(sequence(kept)) == tokenizer.decode(
        tokenizer(f"{LONG.prompt}{LONG.completion}")["input_ids"][:20]
    )
    assert kept.size == text_size(tokenizer, kept)
    assert renderer.notices == {"examples longer than 20 tokens (truncated)": 1}


def test_truncation_that_leaves_only_the_prompt_drops_the_example(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer, 4, overflow="truncate")
    assert renderer.render([LONG]) == []
    assert renderer.notices["examples without a token to train on (dropped)"] == 1


def test_example_of_exactly_the_limit_passes(tokenizer: Any) -> None:
    example = Example(id="a", prompt="2 + 3 =", completion=" 5")
    length = len(sequence(one(tokenizer, example)))
    assert one(tokenizer, example, max_length=length)
    with pytest.raises(DataError, match=f"has {length} tokens, the limit is {length - 1}"):
        one(tokenizer, example, max_length=length - 1)


WORKED = Example(id="a", prompt="2 + 3 =", rationale="two and three. ", completion="#### 5")


def test_a_rationale_keeps_the_space_that_it_ends_in(tokenizer: Any) -> None:
    rendered = one(tokenizer, WORKED)
    assert learned(tokenizer, rendered) == "two and three. #### 5<eos>"
    assert learned(tokenizer, rendered, Role.ANSWER) == "#### 5<eos>"


def test_answer_first_and_answer_only(tokenizer: Any) -> None:
    rendered = one(tokenizer, WORKED, trace="answer_first")
    assert learned(tokenizer, rendered) == "#### 5\ntwo and three.<eos>"
    assert learned(tokenizer, rendered, Role.ANSWER) == "#### 5\n"
    assert learned(tokenizer, rendered, Role.RATIONALE) == "two and three.<eos>"
    assert learned(tokenizer, one(tokenizer, WORKED, trace="answer_only")) == "#### 5<eos>"


@pytest.mark.parametrize(
    ("trace", "text"),
    [
        ("rationale_first", "two and three. #### 5"),
        ("answer_first", "#### 5\ntwo and three."),
        ("answer_only", "#### 5"),
    ],
)
def test_what_is_expected_of_a_model_reads_as_it_is_learned(tokenizer: Any, trace: Any, text: str) -> None:
    assert Renderer(tokenizer, 200, trace=trace).expected(WORKED) == text
    glued = Example(id="a", prompt="?", rationale="It was tried.", completion="yes")
    assert "tried.yes" not in Renderer(tokenizer, 200, trace=trace).expected(glued)


@pytest.mark.parametrize("using", ["tokenizer", "chat_tokenizer"])
def test_two_tasks_are_two_examples_told_apart_by_their_prompts(using: str, request: Any) -> None:
    tokenizer = request.getfixturevalue(using)
    renderer = Renderer(tokenizer, 200, trace="two_tasks")
    answer, steps = renderer.render([WORKED])
    assert [answer.id, steps.id] == ["a/answer", "a/rationale"]
    assert learned(tokenizer, answer).startswith("#### 5")
    assert learned(tokenizer, steps).startswith("two and three.")
    assert learned(tokenizer, steps, Role.ANSWER) == ""
    assert "[label] 2 + 3 =" in tokenizer.decode(renderer.prompt_ids(WORKED))
    assert answer.tokens[: len(renderer.prompt_ids(WORKED))] == renderer.prompt_ids(WORKED)
    assert "[rationale] 2 + 3 =" in tokenizer.decode(steps.tokens)
    (alone,) = renderer.render([Example(id="b", prompt="2 + 3 =", completion="5")])
    assert alone.id == "b/answer"
