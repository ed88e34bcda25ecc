"""The recipe: one YAML file that names everything a run needs, validated before anything starts.

A component is its name alone (`likelihood`) or one key with its settings (`{forward_kl: {temperature: 2}}`). Unknown
keys are errors with the line they stand on; overrides from the command line are `key.path=value`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from stillhouse import registry
from stillhouse.recipe_data import DataSection, RoleName
from stillhouse.recipe_parts import (
    STEP_FAMILIES,
    Component,
    EvaluatorName,
    Name,
    ObjectiveName,
    Section,
    TeacherName,
    TrackerName,
    once_each,
    to_list,
)


class CutSection(Section):
    """What a student that is cut out of its teacher keeps of it; what is not named is kept whole."""

    layers: int | list[int] | None = Field(None, description="how many, or which: [0, 2, 5]")
    choose: Literal["importance", "evenly", "first_last"] = Field(
        "importance", description="which, of a number of layers"
    )
    num_attention_heads: int | None = Field(None, ge=1, description="alone, whole key-value groups go")
    num_key_value_heads: int | None = Field(None, ge=1, description="key-value groups")
    intermediate_size: int | None = Field(None, ge=1, description="channels of each MLP")
    hidden_size: int | None = Field(None, ge=1, description="width of the residual stream")
    calibration: int = Field(256, ge=1, description="training examples on which importance is measured")

    @model_validator(mode="after")
    def _layers_in_order(self) -> CutSection:
        if isinstance(self.layers, int) and self.layers < 1:
            raise ValueError(f"layers must be at least 1, found {self.layers}")
        if isinstance(self.layers, list) and (
            sorted({i for i in self.layers if i >= 0}) != self.layers or not self.layers
        ):
            raise ValueError("layers must name layers of the teacher in their order, each once, such as [0, 2, 5]")
        if self.choose != "importance" and not isinstance(self.layers, int):
            raise ValueError(f"choose: {self.choose} needs a number of layers to choose, such as layers: 4")
        return self

    def describe(self) -> str:
        """What is kept, in the names of the settings: `layers 4, intermediate_size 512`; `everything` without any."""
        kept = self.model_dump(exclude={"choose", "calibration"})
        return ", ".join(f"{name} {value}" for name, value in kept.items()) or "everything"


class LoRA(Section):
    """Low-rank adapters: the student's own weights stay as they are, and two thin factors beside each are trained."""

    r: int = Field(16, ge=1, description="rank of the factors")
    alpha: int = Field(32, ge=1, description="the adapters' output is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Annotated[list[str], Field(min_length=1)] | str = Field(
        "all-linear", description="names of layers; all-linear is every linear layer but the head; or a pattern"
    )
    modules_to_save: list[str] = Field([], description="names of layers that are trained whole")
    merge: bool = Field(True, description="save an ordinary model; false saves the adapters alone, as peft does")


class StudentSection(Section):
    """The student: an existing `model` folder or hub name, a `config` to start from scratch, or a cut out of the
    teacher."""

    model: str | None = None
    config: dict[str, Any] | None = None
    from_teacher: CutSection | None = Field(None, description="cut out of the teacher, whose weights it starts from")
    tokenizer: str | None = Field(None, description="for a config; none takes the teacher's")
    revision: str | None = None
    trust_remote_code: bool = False
    lora: LoRA | None = Field(None, description="train adapters in place of the weights; none trains the weights")

    @model_validator(mode="after")
    def _adapters_alone_name_their_model(self) -> StudentSection:
        if self.lora is not None and not self.lora.merge and self.model is None:
            raise ValueError(
                "student.lora.merge is false, which saves adapters that name the model they belong to, and a student "
                "without student.model lies in no folder that they could name. Leave merge out"
            )
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> StudentSection:
        origins = [name for name in ("model", "config", "from_teacher") if getattr(self, name) is not None]
        if len(origins) != 1:
            raise ValueError(
                "a student needs exactly one of model (a folder or hub name), config (such as {model_type: llama, "
                "...}) or from_teacher (such as {layers: 4}); found " + (" and ".join(origins) or "none")
            )
        if self.from_teacher is not None and self.tokenizer is not None:
            raise ValueError(
                "a student that is cut out of its teacher has the teacher's tokenizer; leave tokenizer out"
            )
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("student.config needs model_type, such as llama or qwen3")
        return self


class TrainSection(Section):
    """The optimisation: how many updates, how large, how fast."""

    steps: int = Field(1000, ge=1)
    lr: float = Field(2e-5, gt=0)
    tokens_per_step: int = Field(32768, ge=1, description="padded tokens of one update")
    accumulate: int | None = Field(
        None, ge=1, description="micro-batches of one update, all processes together; none takes one in each"
    )
    shard: Literal["auto", "never", "always"] = Field(
        "auto", description="spread the student over the processes; auto where it does not fit into one"
    )
    role_weights: dict[RoleName, Annotated[float, Field(ge=0)]] | None = Field(
        None,
        description="what the mean loss of each role counts, {rationale: 0.5, answer: 0.5}; none: all tokens alike",
    )
    packing: bool = Field(False, description="several examples a row, none of which attends to another")
    warmup: int = Field(0, ge=0, description="updates of linear warm-up")
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; none leaves it alone")
    weight_decay: float = Field(0.0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1)
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon learns faster from scratch")
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    chunk: int | None = Field(None, ge=1, description="tokens whose logits exist at once; none chooses")
    activation_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    evaluate_every: int | None = Field(None, ge=1)
    checkpoint_every: int | None = Field(None, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class ScoreSection(Section):
    """What is kept of the teacher's distributions when it is asked once, before training, not at every update."""

    k: int = Field(64, ge=1, description="likeliest tokens kept; the mass of all others is one tail bucket")
    temperature: float | None = Field(None, gt=0, description="of the kept distributions; none takes the objectives'")


class Recipe(Section):
    """Everything a run needs; `stillhouse show RECIPE` prints the resolved form."""

    name: Name = "run"
    seed: int = 0
    device: str = "auto"
    teacher: TeacherName
    student: StudentSection
    data: DataSection
    objective: Annotated[list[ObjectiveName], BeforeValidator(to_list), Field(min_length=1)]
    train: TrainSection = TrainSection()
    score: ScoreSection | None = Field(None, description="ask the teacher once and train from its record")
    evaluate: list[EvaluatorName] = Field([Component(name="likelihood"), Component(name="fidelity")])
    track: Annotated[
        list[TrackerName], BeforeValidator(to_list), once_each("track", "both would write to the same place")
    ] = Field([], description="where else the curves are shown; metrics.jsonl and the report hold them anyway")
    headline: str | None = Field(None, description="the metric of the report's first sentence; none chooses")
    control: bool = True
    baselines: bool = Field(True, description="where data are chosen or condensed, train on random rows as well")
    samples: int = Field(40, ge=0, description="held-out prompts answered by all models, side by side")

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_by_model(cls, value: Any) -> Any:
        # `teacher: Qwen/Qwen3-8B` is what everyone writes first; it can only mean a model in process.
        if isinstance(value, str) and value not in registry.names("teacher"):
            return {"hf": {"model": value}}
        return value

    @model_validator(mode="after")
    def _muon_trains_whole_matrices(self) -> Recipe:
        if self.student.lora is not None and self.train.optimizer == "muon":
            raise ValueError(
                "train.optimizer is muon, which orthogonalises the update of a whole weight matrix; orthogonal updates "
                "of LoRA's two factors make no orthogonal update of their product. Set train.optimizer: adamw"
            )
        return self

    def components(self) -> Iterator[tuple[tuple[str | int, ...], str, Component]]:
        """Every component that is named, with its place in the recipe and its family."""
        yield ("teacher",), "teacher", self.teacher
        yield from ((("objective", i), "objective", item) for i, item in enumerate(self.objective))
        yield from ((("evaluate", i), "evaluator", item) for i, item in enumerate(self.evaluate))
        yield from ((("track", i), "tracker", item) for i, item in enumerate(self.track))
        yield from (
            (("data", "steps", i), registry.family_of(item.name, STEP_FAMILIES), item)
            for i, item in enumerate(self.data.steps)
        )
        for name, source in self.data.sources().items():
            if source.synthesizer is not None:
                place = ("data", name) if name in ("train", "heldout") else ("data", "out_of_domain", name)
                yield place, "synthesizer", source.synthesizer

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default written out, as plain data; this is what a run stores."""
        return self.model_dump(mode="json")


def builtin_recipes() -> dict[str, Path]:
    """Recipes that ship with the package, by name."""
    folder = Path(__file__).parent / "assets" / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
