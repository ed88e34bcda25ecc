"""A recipe's data as `check` sees it: read and rendered as a run would, but a few thousand examples of it alone, or
made up where the teacher is going to write it."""

from __future__ import annotations

import dataclasses
import random
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from stillhouse.checking.metering import seconds_of
from stillhouse.checking.rehearsing import Asking, Sample
from stillhouse.checking.seconds import Split
from stillhouse.data.rendering import Rendered, Renderer, Role
from stillhouse.data.sources import describe, iter_source
from stillhouse.data.tokens import TokenFile, open_tokens, write_tokens
from stillhouse.models import vocabulary_size
from stillhouse.preflight import Plan
from stillhouse.recipe_data import Source
from stillhouse.records import Example, bytes_under, read_examples, write_examples
from stillhouse.synthesis.base import Request, Synthesizer
from stillhouse.workshop import render_settings

_SAMPLE = 2000
"""Examples that are tokenized to estimate lengths; a million-row data set must not make `check` slow."""
_WEIGHED = 100
"""Examples whose Python objects are weighed."""
_BYTES_PER_TOKEN = 3
"""Of text, at least, in the tokenizers of today's models; for estimates where the teacher's is not known."""
_PLACE_BYTES = 250
"""What a training example takes in memory besides its tokens: the hash of its id, its length, its place in an epoch."""


def look_at(plan: Plan, name: str, source: Source, scratch: Path) -> tuple[Split, dict[str, Any], list[Asking]]:
    """A split, what to tell the user about it, and what the teacher is asked for it."""
    renderer = Renderer(plan.student_tokenizer, plan.max_length, **render_settings(plan.recipe))
    data, folder = scratch / f"{name}.jsonl", scratch / "tokens" / name
    sample, count, reading, requests = _read(plan, name, source)
    askings = [_asking(plan, f"teacher makes {name} {i}", request) for i, request in enumerate(requests)]
    storing = seconds_of(lambda: write_examples(data, sample))
    if not askings:
        rendering = seconds_of(lambda: open_tokens(folder, data, renderer))
    else:
        noise = _noise(renderer, sample, askings[-1].sampling.max_new_tokens)
        rendering = seconds_of(lambda: write_tokens(folder, noise, {}, {}))
    tokens = TokenFile(folder)
    rendered = list(tokens)
    if source.synthesizer is not None:
        sample = [
            dataclasses.replace(e, prompt=None, text=str(plan.student_tokenizer.decode(r.tokens)))
            for e, r in zip(sample, rendered, strict=True)
        ]
        write_examples(data, sample)
    each = rendering / max(1, len(sample))
    held = _PLACE_BYTES + bytes_under(folder) / len(sample) if name == "train" else _weigh(data, tokens)
    split = Split(
        examples=count,
        sample=Sample(sample, rendered),
        read_seconds=reading + storing / len(sample) * count,
        render_seconds=each * count,
        held_bytes=held,
        file_bytes=(data.stat().st_size + bytes_under(folder)) / len(sample),
        askings=tuple(askings),
    )
    facts = {
        "source": describe(source),
        "examples": count,
        "mean_tokens": round(split.tokens / max(1, count), 1),
        "longest_tokens": max((len(r.tokens) for r in rendered), default=0),
        "notices": dict(tokens.notices),
        "seconds_per_1000": round(each * 1000, 3),
    }
    return split, facts | ({"written": split.written} if askings else {}), askings


def _read(plan: Plan, name: str, source: Source) -> tuple[list[Example], int, float, list[Request]]:
    """The first examples, how many there will be, the seconds that reading them all took, and what the teacher is asked
    to write."""
    started = time.perf_counter()
    if source.synthesizer is not None:
        requests = [source.synthesizer.build("synthesizer").request([], 0)]
        count = requests[0].makes
        sample = [Example(id=f"made-{i}", prompt="") for i in range(min(count, _SAMPLE))]
    else:
        requests, examples = [], iter_source(source)
        sample = list(islice(examples, _SAMPLE))
        count = len(sample) + sum(1 for _ in examples)
    reading = time.perf_counter() - started
    for step in plan.steps if name == "train" else ():
        if isinstance(step, Synthesizer):
            requests.append(step.request(sample, count))
            count = requests[-1].makes
        elif (budget := step.budgeted()) is not None:
            count = min(count, budget.rows)
    return sample, count, reading, requests


def _asking(plan: Plan, name: str, request: Request) -> Asking:
    """With its prompts as the teacher's tokens, at least one batch of them; by their bytes where it shows none."""
    sampling = request.sampling
    if plan.teacher_tokenizer is None:
        sizes = [len((e.prompt or "").encode()) // _BYTES_PER_TOKEN + 1 for e in request.asked]
        prompts = [[0] * size for size in sizes]
    else:
        renderer = Renderer(plan.teacher_tokenizer, _context(plan))
        prompts = [renderer.prompt_ids(e) for e in request.asked]
    batch = (prompts * -(-sampling.batch_size // len(prompts)))[: sampling.batch_size]
    return Asking(name, request.count, batch, sampling, sum(map(len, prompts)) / len(prompts))


def _context(plan: Plan) -> int:
    return int(getattr(plan.teacher_config, "max_position_embeddings", None) or 2**30)


def _weigh(data: Path, tokens: TokenFile) -> float:
    """Bytes that an example and its tokens take as Python objects."""
    tracemalloc.start()
    held: list[object] = list(islice(read_examples(data), _WEIGHED))
    taken = len(held)
    held += tokens[:_WEIGHED]
    traced = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return traced / max(1, taken)


def _noise(renderer: Renderer, examples: Iterable[Example], written: int) -> Iterator[Rendered]:
    """What the teacher will write, as long as it may become."""
    draw, top = random.Random(0), vocabulary_size(renderer.tokenizer)
    for example in examples:
        prompt = renderer.prompt_ids(example) or [0]
        length = min(written, renderer.max_length - len(prompt))
        ids = [*prompt, *(draw.randrange(top) for _ in range(max(1, length)))]
        role = Role.ANSWER if Role.ANSWER in renderer.train_on else Role.OTHER
        trained = [i >= len(prompt) - 1 and role == Role.ANSWER for i in range(len(ids) - 1)]
        roles = [int(role if t else Role.PROMPT) for t in trained]
        yield Rendered(example.id, ids[:-1], ids[1:], trained, roles, len(ids))
