"""What all sections of recipes are made of: strict sections, and components by their names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from stillhouse import registry
from stillhouse.errors import did_you_mean

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def to_list(value: Any) -> Any:
    """A value that may stand alone where a list is meant."""
    return value if isinstance(value, list) else [value]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is absent by default is left out; a null in place of a value (clip: null) is a choice and stays.
        fields = type(self).model_fields
        return {k: v for k, v in write(self).items() if v is not None or fields[k].default is not None}


class Component(Section):
    """A component by its name, with its settings."""

    name: str
    settings: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and len(value) == 1 and "name" not in value:
            ((name, settings),) = value.items()
            if settings is not None and not isinstance(settings, dict):
                raise ValueError(f"the settings of {name!r} must be a mapping, such as {{{name}: {{weight: 1.0}}}}")
            return {"name": name, "settings": settings or {}}
        if isinstance(value, dict) and set(value) <= {"name", "settings"}:
            return value
        raise ValueError("a component is its name alone, or one key with its settings")

    @model_serializer
    def _to_short_form(self) -> Any:
        return {self.name: self.settings} if self.settings else self.name

    def lasting(self, family: str) -> Any:
        """The short form without the component's `manners`: what a run is made by and may not change under way."""
        passing = getattr(registry.component(family, self.name), "manners", ())
        return Component(
            name=self.name, settings={k: v for k, v in self.settings.items() if k not in passing}
        ).model_dump()

    def build(self, family: str) -> Any:
        """The component itself, its settings validated."""
        return registry.build(family, self.name, self.settings)


def named(family: str) -> AfterValidator:
    """Refuse a name that no component of the family bears, here, where the recipe's line is still known."""

    def check(component: Component) -> Component:
        known = registry.names(family)
        if component.name not in known:
            raise ValueError(f"there is no {family} named {component.name!r}. {did_you_mean(component.name, known)}")
        return component

    return AfterValidator(check)


TeacherName = Annotated[Component, named("teacher")]
ObjectiveName = Annotated[Component, named("objective")]
SynthesizerName = Annotated[Component, named("synthesizer")]
EvaluatorName = Annotated[Component, named("evaluator")]
TrackerName = Annotated[Component, named("tracker")]
TraceSignalName = Annotated[Component, named("trace_signal")]


STEP_FAMILIES = ("synthesizer", "selector")
"""What a step of `data.steps` may be: examples are made, or chosen."""


def _is_step(component: Component) -> Component:
    known = [name for family in STEP_FAMILIES for name in registry.names(family)]
    if component.name not in known:
        raise ValueError(f"there is no data step named {component.name!r}. {did_you_mean(component.name, known)}")
    return component


StepName = Annotated[Component, AfterValidator(_is_step)]


def once_each(where: str, otherwise: str) -> AfterValidator:
    """Demands that a list names no component twice; messages say where, and what would happen otherwise."""

    def check(items: list[Component]) -> list[Component]:
        names = [item.name for item in items]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{where} names {twice} twice, and {otherwise}; keep one")
        return items

    return AfterValidator(check)
