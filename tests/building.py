"""Builders that fixtures and test modules share: a real tokenizer trained in a blink, a tiny model's settings, and a
progress that stops a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Rendered
from stillhouse.models import Sampling
from stillhouse.records import Example
from stillhouse.signals.kinds import Signal
from stillhouse.student import Student
from stillhouse.teachers.base import Answer, TeacherSession

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_CORPUS = [
    "Ann has 2 apples and buys 3 apples, so Ann has 2 + 3 = 5 apples. The answer is 5.",
    "abcabcabc abcabcabc the cat sat on the mat, the cat ate the rat.",
]

MakeStudent = Callable[..., Student]
Render = Callable[..., list[Rendered]]

TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.4,  # far from uniform, so that a wrong answer is visibly wrong
}


def build_tokenizer(*, bos: bool = False, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A byte-level BPE with about 300 tokens that can write any text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    raw.post_processor = processors.ByteLevel(trim_offsets=False)
    if bos:
        begin = raw.token_to_id("<bos>")
        raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", begin)])
    named: dict[str, Any] = {"eos_token": "<eos>", "pad_token": "<pad>"}
    if bos:
        named["bos_token"] = "<bos>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **named)
    tokenizer.chat_template = chat_template
    return tokenizer


COLOURS: dict[str, Any] = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
}
"""A task of lm-eval, as its YAML file says; for rows such as `COLOUR_ROWS`."""
COLOUR_ROWS = [
    {"question": f"What colour is box {n}?", "choices": ["red", "deep green", "blue"], "label": n % 3} for n in range(9)
]


def write_task(folder: Path, name: str, config: dict[str, Any], rows: Sequence[dict[str, Any]] | Path) -> str:
    """Write an lm-eval task's YAML into `folder/tasks` and its rows beside it, where they are not a file already;
    returns what `include_path` takes."""
    path = rows if isinstance(rows, Path) else folder / f"{name}.jsonl"
    if not isinstance(rows, Path):
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test"}
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **config}), encoding="utf-8")
    return str(tasks)


class StoppedHereError(Exception):
    """What a test stops a run by."""


class StopAtTwo:
    """A run's progress that stops it once, as the student's second update ends, before it is kept in a checkpoint.

    Attributes:
        seen: the student's updates in the order they came, those of the run that was stopped and of the next.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, stage: str, done: int, total: int, note: str) -> None:
        """As `stages` reports."""
        if stage == "train student":
            self.seen.append(done)
            if self.seen == [1, 2]:
                raise StoppedHereError


class Scripted(TeacherSession):
    """A teacher that says what a function of the question says; it keeps what it was asked."""

    def __init__(self, says: Callable[[Example], str | Answer]) -> None:
        self.says = says
        self.asked: list[Example] = []

    def answer(self, asked: Sequence[Example], sampling: Sampling) -> list[Answer]:
        self.asked += asked
        said = [self.says(example) for example in asked]
        return [s if isinstance(s, Answer) else Answer(s, True, len(s.split())) for s in said]

    def score(self, batch: TokenBatch) -> Signal:
        raise NotImplementedError

    def identity(self) -> dict[str, Any]:
        return {"name": "scripted"}

    @property
    def lm(self) -> None:
        return None
