"""lm-eval's tasks: any of the evaluation harness's thousands by name, or one's own by a YAML file."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import MissingExtraError
from stillhouse.evaluation.base import Evaluator, Heldout, Result
from stillhouse.models import CausalLM
from stillhouse.statistics import Measurement, Metric

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from stillhouse.evaluation._scores import Samples, Suite


@dataclass(frozen=True, kw_only=True)
class LmEval(Evaluator):
    """Scores on tasks of the Language Model Evaluation Harness (Gao et al. 2024, doi 10.5281/zenodo.12608602), in this
    process, example by example.

    A task's scores are named `task/metric`, and `task/metric/filter` where it reads answers in several ways; a group
    gives those of its tasks and its own mean. Whatever is a mean over examples or a ratio of sums is kept by example
    and compared pairwise. Of a perplexity the logarithm is (`task/log_word_perplexity`), beside the perplexity itself
    where a float holds it. Scores of a whole corpus (BLEU, F1) have a bootstrapped error, those that a task computes
    by code of its own have none. Where prompts exceed the context, lm-eval cuts off their beginning; `task/truncated`
    then says how many. In a recipe::

        evaluate:
          - lm_eval: {tasks: [arc_easy, hellaswag], limit: 200, num_fewshot: 0, batch_size: 16}
          - lm_eval: {tasks: [my_task], include_path: tasks/}     # YAML files of one's own
          - lm_eval: {tasks: [gsm8k], num_fewshot: 5, name: five}

    Tasks and their data are loaded before training starts, because a run may take hours and must not find out at its
    end that a name is wrong or a data set is out of reach. lm-eval's own index of names takes seconds; it is only read
    where a task is not in `include_path`. Functions that a YAML file names (`!function`) are run.

    Attributes:
        tasks: names of tasks, groups or tags.
        include_path: folder of YAML files; the files of data that they name count from the working folder.
        limit: examples of each task at most, its first.
        num_fewshot: solved examples in each prompt; none takes the task's own number.
        batch_size: texts at once.
        chat: whether prompts go through the tokenizer's chat template.
        max_new_tokens: of an answer; none takes the task's own number, or 256.
        seed: of the solved examples and of sampled answers; 1234 is lm-eval's own.
        name: put before the metrics' names, so that one recipe can ask the same task in two ways.
    """

    tasks: tuple[str, ...]
    include_path: str | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int = 16
    chat: bool = False
    max_new_tokens: int | None = None
    seed: int = 1234
    name: str = ""

    def __post_init__(self) -> None:
        if find_spec("lm_eval") is None:
            raise MissingExtraError(
                "lm_eval runs the Language Model Evaluation Harness, which is not installed: "
                'pip install "stillhouse[eval]"'
            )
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one, such as [arc_easy]")
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks names a task twice: {', '.join(self.tasks)}")
        for key, least in {"limit": 1, "num_fewshot": 0, "batch_size": 1, "max_new_tokens": 1, "seed": 0}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"{key} is {value}; it must be at least {least}")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(
                f"include_path is {self.include_path!r}, which is no folder; it holds the tasks' YAML files"
            )

    @property
    def once(self) -> bool:
        """Yes: the tasks bring their own examples."""
        return True

    def files(self) -> list[Path]:
        """Those of the folder, and the local data that its tasks name."""
        if self.include_path is None:
            return []
        from stillhouse.evaluation._harness import local_configs

        named = [path for config in local_configs(self.include_path) for path in _data_files(config)]
        beside = [p for p in Path(self.include_path).rglob("*") if p.is_file() and p.parent.name != "__pycache__"]
        return sorted({*beside, *(Path(p) for path in named for p in glob.glob(path))})

    def metrics(self) -> Mapping[str, Metric]:
        """Of every task and group; loads the tasks with their data the first time.

        Raises:
            RecipeError: there is no such task, or it cannot be run here.
            DataError: a task's data is out of reach or does not fit it.
        """
        from stillhouse.evaluation._scores import announced

        return announced(self._suite(), self.name)

    def evaluate(self, model: CausalLM, data: Heldout, teacher: CausalLM | None) -> Result:
        """Put every task to the model; neither the held-out data nor the teacher is looked at.

        Raises:
            ModelError: the model has no room for a task's answers, no end token, or no chat template for `chat`.
        """
        from stillhouse.evaluation._harness import run
        from stillhouse.evaluation._scores import measured

        suite = self._suite()
        found = run(suite, model, limit=self.limit, batch_size=self.batch_size, chat=self.chat, seed=self.seed)
        result = measured(suite, found, self.name)
        for name, task in suite.tasks.items():
            self._tell(name, task, found["samples"][name], model, result)
        return result

    def _tell(self, name: str, task: Task, samples: Samples, model: CausalLM, result: Result) -> None:
        """What the model wrote, and whether prompts were cut."""
        from stillhouse.evaluation._harness import cut_prompts
        from stillhouse.evaluation._scores import name_of, truncation

        first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        if task.OUTPUT_TYPE == "generate_until":
            result.outputs |= {f"{name}/{name_of(sample)}": str(sample["resps"][0][0]) for sample in first}
        cut = cut_prompts(task, first, model)
        if any(cut):
            metric, _ = truncation(name, self.name)
            sums_E2 = np.array([[float(yes), 1.0] for yes in cut])
            result.measurements[metric] = Measurement(tuple(map(name_of, first)), sums_E2)

    def _suite(self) -> Suite:
        from stillhouse.evaluation._harness import Ask, load_suite

        ask = Ask(self.tasks, self.include_path, self.num_fewshot, self.max_new_tokens)
        return load_suite(ask, tuple(_stamps(self.files())))


def _data_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Paths, or patterns of them, that a task's YAML file names as its data."""
    named = [config.get("dataset_path"), (config.get("dataset_kwargs") or {}).get("data_files")]
    while named:
        match named.pop():
            case str(path):
                yield path
            case list(several):
                named += several
            case dict(several):
                named += several.values()


def _stamps(paths: list[Path]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                facts = file.stat()
                yield str(file), facts.st_mtime_ns, facts.st_size
