# ruff: noqa: E402 -- the environment is set before anything that reads it is imported
"""What tests share: a real tokenizer, real tiny models, and a home folder of their own.

Nothing here is a mock. The tokenizer is a byte-level BPE trained in a blink, the models are random Llamas of a few
thousand weights; they go through the same code as an 8B model. Hugging Face's caches point at a folder that dies with
the session.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_CACHE = tempfile.mkdtemp(prefix="stillhouse-tests-")
os.environ["HF_HOME"] = _CACHE
os.environ["HF_DATASETS_CACHE"] = str(Path(_CACHE) / "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from building import CHAT_TEMPLATE, TINY, MakeStudent, Render, build_tokenizer
from hypothesis import settings
from transformers import PreTrainedTokenizerBase

from stillhouse.data.rendering import Rendered, Renderer
from stillhouse.models import CausalLM
from stillhouse.records import Example
from stillhouse.student import Student

# The same examples on every machine and every run: a red test is a bug, not bad luck.
settings.register_profile("stillhouse", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("stillhouse")


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Without a chat template and without a beginning-of-sequence token, like a base model's."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerBase:
    """One that puts `<bos>` before everything, as Llama's does."""
    return build_tokenizer(bos=True)


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerBase:
    """With a chat template, like an instruct model's."""
    return build_tokenizer(chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def make_student(tokenizer: PreTrainedTokenizerBase) -> MakeStudent:
    """A factory of tiny random students: `make_student(seed=1, tied=True, double=True, hidden_size=32)`."""

    def make(
        seed: int = 0,
        *,
        tied: bool = False,
        double: bool = False,
        using: PreTrainedTokenizerBase | None = None,
        **settings: Any,
    ) -> Student:
        student = Student.from_config({**TINY, "tie_word_embeddings": tied, **settings}, using or tokenizer, seed=seed)
        if double:
            student.lm.model.double()
        return student

    return make


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Twelve sums, their lengths all different, so that every batch has padding."""
    return [
        Example(
            id=f"sum-{n}", prompt=f"{'Ann has apples. ' * (n % 4)}{n} + {n * n} =", completion=f" {n + n * n}" + "!" * n
        )
        for n in range(12)
    ]


@pytest.fixture(scope="session")
def render(tokenizer: PreTrainedTokenizerBase) -> Render:
    """`render(examples, tokenizer=..., max_length=...)`: examples as tokens."""

    def run(
        examples: Sequence[Example],
        using: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int = 128,
        **settings: Any,
    ) -> list[Rendered]:
        return Renderer(using or tokenizer, max_length, **settings).render(examples)

    return run


@pytest.fixture
def pad_head() -> Callable[[CausalLM, int], None]:
    """Widen a model's embeddings and head beyond its vocabulary, as real checkpoints are; the added rows are noise."""

    def pad(lm: CausalLM, more: int) -> None:
        width = int(lm.model.get_parameter("model.embed_tokens.weight").shape[0])
        lm.model.resize_token_embeddings(width + more, mean_resizing=False)
        with torch.no_grad():
            next(lm.model.get_output_embeddings().parameters())[width:].normal_(std=3.0)

    return pad


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models and data beside the checkout, where there is one."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(
            "no ../shared folder beside this checkout; it holds real models and data, and no test of the maths needs it"
        )
    return folder


@pytest.fixture(scope="session")
def stories(shared: Path) -> str:
    """A trained Llama of 260 thousand weights."""
    folder = shared / "models" / "stories260K"
    if not (folder / "model.safetensors").exists():
        pytest.skip("../shared/models/stories260K is not there")
    return str(folder)
