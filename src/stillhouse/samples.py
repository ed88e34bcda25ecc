"""What the models of a run write, side by side: the answers that tasks asked for, or a continuation of each prompt."""

from __future__ import annotations

import json
from typing import Any

from stillhouse.evaluation.base import Heldout, start
from stillhouse.models import CausalLM, Sampling
from stillhouse.records import Example
from stillhouse.results import ModelResult
from stillhouse.workshop import Workshop

CONTINUATION = Sampling(max_new_tokens=80)
"""How they continue where no task says otherwise."""


def continuations(model: CausalLM, data: Heldout) -> dict[str, str]:
    """What a model writes where no task asks it to: answers to the prompts, or running text from its first words."""
    written = model.generate([start(data.renderer, e) for e in data.examples], CONTINUATION)
    return {e.id: str(model.tokenizer.decode(ids)) for e, ids in zip(data.examples, written, strict=True)}


def write_samples(shop: Workshop, results: dict[str, ModelResult]) -> None:
    """Prompts with every model's answer, those first on which student and control disagree."""
    examples, renderer = {e.id: e for e in shop.examples("heldout")}, shop.renderer()

    def agreement(name: str) -> tuple[bool, bool]:
        verdicts = {role: result.correct.get(name) for role, result in results.items()}
        return verdicts.get("student") == verdicts.get("control"), verdicts.get("student") == verdicts.get("teacher")

    answered = [name for name in results["student"].outputs if name in examples]
    with (shop.path / "samples.jsonl").open("w", encoding="utf-8") as stream:
        for name in sorted(answered, key=agreement)[: shop.recipe.samples]:
            example = examples[name]
            row: dict[str, Any] = {
                "id": name,
                "prompt": example.prompt or (example.messages or [{}])[0].get("content") or _beginning(shop, example),
                "reference": renderer.expected(example) or example.text or "",
                "outputs": {role: result.outputs.get(name, "") for role, result in results.items()},
                "correct": {role: result.correct[name] for role, result in results.items() if name in result.correct},
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _beginning(shop: Workshop, example: Example) -> str:
    return str(shop.plan.student_tokenizer.decode(start(shop.renderer(), example), skip_special_tokens=True))
