"""Diversity: how much a model's answers to one prompt differ, and how open it is about what comes next."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stillhouse.data.rendering import Rendered, Role
from stillhouse.errors import DataError, MissingExtraError
from stillhouse.evaluation._logits import Chunk, renderer_for, sum_by_example
from stillhouse.evaluation.base import Evaluator, Heldout, Result, start
from stillhouse.models import CausalLM, Sampling
from stillhouse.statistics import Measurement, Metric

ORDERS = (1, 2, 3)
"""Lengths of the n-grams that are counted."""


@dataclass(frozen=True, kw_only=True)
class Diversity(Evaluator):
    """Several answers sampled to each held-out prompt, held against one another.

    `distinct_n` is the number of distinct n-grams in the answers to a prompt over the number of all n-grams in them
    (Li et al. 2016, arXiv 1510.03055), averaged over prompts, so that it has a standard error and pairs. The figure
    that papers give for a whole corpus is another: it also counts what recurs from prompt to prompt, and falls as more
    prompts are asked. `self_bleu` is the BLEU of each answer with the other answers to its prompt as references (Zhu et
    al. 2018, arXiv 1802.01886, who take a model's whole output for references), by sacrebleu, smoothed exponentially
    over the orders that an answer is long enough for. `entropy` is that of the model's next-token distribution, as the
    model gives it, at every place of its own answers, in nats.

    More is not better in itself: noise is as diverse as can be. Read recovery, the student's figure over its teacher's,
    beside a measure of quality. Answers that are longer repeat more words (Liu et al. 2022, arXiv 2202.13587), so
    compare models at like `length`. In a recipe::

        evaluate:
          - likelihood
          - diversity                                # 4 answers to each of the first 100 prompts
          - diversity: {samples: 8, max_new_tokens: 128, temperature: 0.7, top_p: 0.95}

    Attributes:
        samples: answers to each prompt.
        limit: prompts at most; none takes all.
        unit: what n-grams are made of: words with punctuation marks each for itself, or characters, for scripts that
            put no spaces between words.
        max_new_tokens: of an answer.
        temperature: of the draws.
        top_p: smallest set of tokens whose mass reaches it.
        seed: of the draws.
        batch_size: answers written at once.
    """

    samples: int = 4
    limit: int | None = 100
    unit: Literal["words", "characters"] = "words"
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if find_spec("sacrebleu") is None:
            raise MissingExtraError(
                'diversity takes BLEU from sacrebleu, which is not installed: pip install "stillhouse[eval]"'
            )
        if self.samples < 2:
            raise ValueError(
                f"samples is {self.samples}; answers are held against one another, so it must be 2 or more"
            )
        for key in ("limit", "max_new_tokens", "batch_size"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; it must be at least 1")
        if self.temperature <= 0:
            raise ValueError(
                f"temperature is {self.temperature}, at which all answers are the same; raise it, 1 is plain"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1 (1 keeps all tokens)")

    def metrics(self) -> Mapping[str, Metric]:
        """`distinct_1` to `distinct_3`, `self_bleu`, `entropy` and `length`."""
        return {
            **{f"distinct_{n}": Metric(f"Distinct {n}-grams", "share", "higher") for n in ORDERS},
            "self_bleu": Metric("Self-BLEU", "share", "lower"),
            "entropy": Metric("Entropy of the next token", "nats/token", "higher"),
            "length": Metric("Length of answers", self.unit),
        }

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Answers from one draw, and one pass over them for the entropy; the teacher is not asked.

        Raises:
            DataError: there is no prompt.
            ModelError: a prompt leaves no room in the model's context.
        """
        asked = data.examples[: self.limit]
        if not asked:
            raise DataError(f"The held-out data {data.name or 'heldout'!r} has no example to write from.")
        renderer = renderer_for(model, data, fit=True)
        prompts = [ids for example in asked for ids in [start(renderer, example)] * self.samples]
        written = model.generate(prompts, Sampling.of(self))
        words = [self._words(str(model.tokenizer.decode(ids, skip_special_tokens=True))) for ids in written]
        sets = [words[i : i + self.samples] for i in range(0, len(words), self.samples)]
        paths = [_path(i, *path) for i, path in enumerate(zip(prompts, written, strict=True))]
        sums_ES2 = sum_by_example(model, paths, _openness).reshape(len(asked), self.samples, 2)
        names, bleu = tuple(example.id for example in asked), _sentence_bleu()
        by_prompt = {
            **{f"distinct_{n}": [(distinct(answers, n), 1) for answers in sets] for n in ORDERS},
            "self_bleu": [(self_bleu(answers, bleu), 1) for answers in sets],
            "entropy": sums_ES2.sum(1),
            "length": [(sum(map(len, answers)), self.samples) for answers in sets],
        }
        return Result({name: Measurement(names, np.array(sums, dtype=np.float64)) for name, sums in by_prompt.items()})

    def _words(self, text: str) -> list[str]:
        return re.findall(r"\S" if self.unit == "characters" else r"\w+|[^\w\s]", text)


Score = Callable[[Sequence[str], Sequence[Sequence[str]]], float]
"""BLEU, 0 to 1, of words against one or several others."""


def distinct(answers: Sequence[Sequence[str]], n: int) -> float:
    """Distinct n-grams in all answers over n-grams in them; 0 where they hold none.

    >>> distinct([["a", "b"], ["a", "c"]], 1)
    0.75
    """
    grams = [tuple(answer[i : i + n]) for answer in answers for i in range(len(answer) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(answers: Sequence[Sequence[str]], score: Score) -> float:
    """The mean score of each answer against the others; an empty one equals another empty one and nothing else."""
    total = 0.0
    for i, answer in enumerate(answers):
        others = [*answers[:i], *answers[i + 1 :]]
        total += score(answer, others) if answer else float([] in [list(other) for other in others])
    return total / len(answers)


def _sentence_bleu() -> Score:
    from sacrebleu.metrics import BLEU

    # The words are cut already; `force` keeps it from warning about that.
    metric = BLEU(tokenize="none", effective_order=True, force=True)

    def score(words: Sequence[str], others: Sequence[Sequence[str]]) -> float:
        found = metric.sentence_score(" ".join(words), [" ".join(other) for other in others])
        return min(1.0, found.score / 100)

    return score


def _path(number: int, prompt: Sequence[int], ids: Sequence[int]) -> Rendered:
    """An answer as the model wrote it; every place counts at which it chose a token, the one after the last included.
    What the targets are is not looked at."""
    tokens = [*prompt, *ids]
    counts = [place >= len(prompt) - 1 for place in range(len(tokens))]
    return Rendered(str(number), tokens, tokens, counts, [int(Role.ANSWER)] * len(tokens), 0)


def _openness(chunk: Chunk) -> Sequence[Tensor]:
    """The entropy of each distribution, and 1 to count it by."""
    entropy_N = torch.special.entr(chunk.logits_NV.softmax(-1)).sum(-1)
    return entropy_N, torch.ones_like(entropy_N)
