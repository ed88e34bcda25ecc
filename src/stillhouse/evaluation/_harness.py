"""lm-eval in this process: its tasks found and loaded, our models as its models, its noise kept away.

The one place that runs `lm_eval`. `evaluate` is called rather than `simple_evaluate`, which is the same with seeds set
for good, a search for a git repository and a survey of the machine around it.
"""

from __future__ import annotations

import copy
import difflib
import io
import logging
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from lm_eval.api import metrics as known
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from stillhouse.errors import DataError, ModelError, RecipeError
from stillhouse.evaluation._scores import Samples, Suite, mean_nats
from stillhouse.models import CausalLM

_UNLOADABLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    ImportError,
    DatasetsError,
    TemplateError,
)
"""What lm-eval, datasets and a task's own functions raise for data that is not there or a task that does not fit it."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the length of an answer."""


@dataclass(frozen=True)
class Ask:
    """What is asked for: which tasks, from where, and what of their settings is replaced."""

    names: tuple[str, ...]
    include_path: str | None
    num_fewshot: int | None
    max_new_tokens: int | None


@lru_cache(maxsize=8)
def load_suite(ask: Ask, stamps: tuple[object, ...]) -> Suite:
    """The tasks and their data, loaded once for all models; `stamps` changes when files do.

    Raises:
        RecipeError: there is no such task, or it cannot be run.
        DataError: its data is not there.
    """
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    with _quiet(), _seeded(0):
        manager = _manager(ask)
        for name in ask.names:
            loaded = _load(manager, name)
            if twice := sorted(tasks.keys() & loaded["tasks"].keys()):
                raise RecipeError(f"lm_eval.tasks names {twice[0]} twice, once as part of a group. Leave one out.")
            tasks |= loaded["tasks"]
            groups |= loaded.get("groups", {})
    for name, task in tasks.items():
        _prepare(name, task, ask)
    return Suite(tasks, groups)


def local_configs(include_path: str) -> list[Mapping[str, Any]]:
    """The configurations of a folder's tasks, as their YAML files say."""
    with _quiet():
        entries = TaskManager(include_path=include_path, include_defaults=False).task_index.values()
    return [entry.cfg for entry in entries if entry.cfg]


def _manager(ask: Ask) -> TaskManager:
    """The index of the tasks' names; lm-eval's own fifteen thousand, which take seconds, only where one is named."""
    if ask.include_path is not None:
        local = TaskManager(include_path=ask.include_path, include_defaults=False)
        if set(ask.names) <= set(local.all_tasks):
            return local
        _refuse_unreadable(Path(ask.include_path))
    manager = TaskManager(include_path=ask.include_path) if ask.include_path else _own_tasks()
    for name in ask.names:
        if name not in manager.task_index:
            place = f" or in {ask.include_path}" if ask.include_path else ""
            close = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.6)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            raise RecipeError(
                f"There is no task {name!r} among the {len(manager.all_tasks):,} of lm-eval{place}. {hint}"
                "`lm-eval ls tasks` lists its own; YAML files of yours are found in the folder lm_eval.include_path."
            )
    return manager


@lru_cache(maxsize=1)
def _own_tasks() -> TaskManager:
    return TaskManager()


def _refuse_unreadable(folder: Path) -> None:
    """lm-eval passes over files that it cannot read; a task is then missing without a word."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, ValueError, OSError) as error:
            raise RecipeError(f"{path} cannot be read as a task: {' '.join(str(error).split())}") from error


def _load(manager: TaskManager, name: str) -> Mapping[str, Any]:
    try:
        return manager.load([name])
    except _UNLOADABLE as error:
        entry = manager.task_index[name]
        path = (entry.cfg or {}).get("dataset_path")
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, ConnectionError):
            raise DataError(
                f"The data of lm-eval's task {name!r} cannot be fetched ({path or 'see its YAML'}): {said} Run once "
                "where there is a network, so that it stays in the cache of Hugging Face's datasets, or describe the "
                "task by a YAML file over a local file (dataset_path: json, dataset_kwargs: {data_files: ...}) in the "
                "folder lm_eval.include_path."
            ) from error
        raise DataError(
            f"The task {name!r} of lm-eval cannot be set up: {type(error).__name__}: {said}. Look at its data "
            f"({path or 'see its YAML'}), its splits and its columns in {entry.yaml_path or 'its configuration'}."
        ) from error


def _prepare(name: str, task: Task, ask: Ask) -> None:
    """Refuse what cannot be run here, and replace what the recipe replaces."""
    if getattr(task, "UNSAFE_CODE", False):
        raise RecipeError(f"{name} runs code that the model writes, which stillhouse does not do. Leave it out.")
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(f"{name} asks about images or sound; the models here read text. Leave it out.")
    default = task.get_config("num_fewshot")
    if ask.num_fewshot and default == 0:
        raise RecipeError(
            f"{name} is defined with num_fewshot: 0, which lm-eval does not let anyone change. Leave num_fewshot out, "
            "or name the task in an entry of its own."
        )
    task.set_config("num_fewshot", default or 0 if ask.num_fewshot is None else ask.num_fewshot)
    if task.OUTPUT_TYPE == "generate_until" and ask.max_new_tokens is not None:
        kept = {k: v for k, v in (task.get_config("generation_kwargs") or {}).items() if k not in _LENGTHS}
        task.set_config("generation_kwargs", {**kept, "max_gen_toks": ask.max_new_tokens})
    aggregations: Any = task.aggregation()
    for metric, aggregation in list(aggregations.items()):
        if aggregation in (known.perplexity, known.weighted_perplexity):
            aggregations[metric] = mean_nats


def run(suite: Suite, model: CausalLM, *, limit: int | None, batch_size: int, chat: bool, seed: int) -> Any:
    """lm-eval's results with a sample for each example; the model and the random generators stay as they were.

    Raises:
        ModelError: the model has no room for the answers, no end token, or no chat template where one is asked for.
    """
    if chat and model.tokenizer.chat_template is None:
        raise ModelError(f"{model.name!r} has no chat template. Leave lm_eval.chat out, or give it one.")
    for name, task in suite.tasks.items():
        task.set_fewshot_seed(seed)  # anew for each model, so that all see the same examples
        room, asked = model.context, answer_length(task)
        if asked >= room:
            raise ModelError(
                f"lm-eval's task {name!r} lets the model write {asked} tokens; the whole context of {model.name!r} is "
                f"{room}. Set lm_eval.max_new_tokens to less."
            )
    with model.inference(), _quiet(), _seeded(seed, model.device):
        found = evaluate(
            _Model(model, batch_size),
            {"tasks": dict(suite.tasks), "groups": dict(suite.groups)},
            limit=limit,
            bootstrap_iters=0,  # lm-eval's starts as many processes as there are cores; ours is in _scores
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    for task in suite.tasks.values():
        task._instances = None  # the requests, which the loaded task would keep alive
    return found


def answer_length(task: Task) -> int:
    """How many tokens a task lets a model write; 0 for one that scores given text."""
    if task.OUTPUT_TYPE != "generate_until":
        return 0
    return int(normalize_gen_kwargs(task.get_config("generation_kwargs") or {})["max_gen_toks"])


def cut_prompts(task: Task, samples: Samples, model: CausalLM) -> list[bool]:
    """Which examples' prompts exceeded the context, so that lm-eval cut off their beginning."""
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return [False] * len(samples)
    room = model.context - answer_length(task)
    writes = task.OUTPUT_TYPE == "generate_until"
    texts = [[args[0] if writes else args[0] + args[1] for args in s["arguments"]] for s in samples]
    # A token stands for a byte at least; the last token of a choice is predicted and not read.
    return [any(_exceeds(model, text, room if writes else room + 1) for text in several) for several in texts]


def _exceeds(model: CausalLM, text: str, room: int) -> bool:
    return len(text.encode()) + 2 > room and len(model.tokenizer(text)["input_ids"]) > room


class _Model(HFLM):
    """A model as lm-eval asks it: the columns of the head that are no tokens have no share, and nothing is drawn on
    the screen."""

    def __init__(self, lm: CausalLM, batch_size: int) -> None:
        self.lm = lm
        context = lm.context if lm.context < 2**30 else None
        # A copy of the tokenizer, because lm-eval gives it a padding token where it has none.
        tokenizer: Any = copy.deepcopy(lm.tokenizer)
        if tokenizer.eos_token_id is None:
            if not lm.end_ids():
                raise ModelError(f"The tokenizer of {lm.name!r} has no end token, by which lm-eval bounds texts.")
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(lm.end_ids()[0])
        super().__init__(
            pretrained=lm.model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=context,
            softmax_dtype=torch.float32,
        )

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super()._model_call(inps, *args, **kwargs)[..., : self.lm.vocabulary]

    def _model_generate(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        embeddings: Any = self.lm.model.get_input_embeddings()
        padding = list(range(self.lm.vocabulary, embeddings.weight.shape[0]))
        kwargs["suppress_tokens"] = [*(kwargs.get("suppress_tokens") or []), *padding] or None
        return super()._model_generate(*args, **{"eos_token_id": self.lm.end_ids(), **kwargs})


@contextmanager
def _quiet() -> Generator[None]:
    """lm-eval tells of its progress on standard output, standard error and its logger; errors are raised, not told."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _seeded(seed: int, device: torch.device | None = None) -> Generator[None]:
    """Draws from a seed; the process's random generators are after the block as before."""
    python, array = random.getstate(), np.random.get_state()
    accelerators = [device] if device is not None and device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=accelerators):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
