"""Which traces to trust: every signal, and their combinations, held against correctness where it is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from stillhouse import registry
from stillhouse.auroc import Area, area, difference
from stillhouse.locating import fingerprint_model
from stillhouse.models import CausalLM
from stillhouse.recipe_parts import Section, TraceSignalName, once_each
from stillhouse.records import fingerprint_file, whole
from stillhouse.report.findings import Findings
from stillhouse.runs import RunFolder
from stillhouse.solutions.tokens import without_annotations
from stillhouse.statistics import FloatArray
from stillhouse.studies._trace_page import page
from stillhouse.studies.base import Foresight, Study
from stillhouse.traces._card import card, wrong_equations
from stillhouse.traces._combine import cross_fitted, two_views
from stillhouse.traces._reading import beyond_context
from stillhouse.traces._source import TraceSource, read_traces
from stillhouse.traces.base import Trace, TraceSignal
from stillhouse.workshop import Progress, choose_device

_BELIEF, _BASELINE = "reliability", "agreement"
_TABLE = "signals.npy"


class TraceData(Section):
    """The data of this study."""

    traces: TraceSource


class TraceQuality(Study):
    """Which traces of a file to trust, without a gold answer in any signal.

    `traces.json` holds the AUROC of each signal and of four combinations: `combined`, fitted to the correctness of
    other questions; `combined_alone`, the same from what sees one trace alone; `unsupervised` and `unsupervised_alone`,
    which no label has touched. `scores.jsonl` holds every trace's scores, `equations.json` the equations that do not
    hold. Where nobody knows what is right, the card remains and the unsupervised scores.
    """

    result: ClassVar[str] = "traces.json"

    data: TraceData
    signals: Annotated[list[TraceSignalName], once_each("signals", "both would bear the same name in the result")] = (
        Field([], description="which; none takes every one, those that need a model only where there is one")
    )
    model: str | None = Field(
        "stillhouse:arithmetic", description="the small model that reads along, a folder or hub name; null for none"
    )
    device: str = "auto"
    folds: int = Field(
        10, ge=2, description="parts of the questions, each judged by a combination fitted on the others"
    )
    resamples: int = Field(2000, ge=100, description="draws of questions behind each interval")

    @model_validator(mode="after")
    def _signals_have_their_model(self) -> TraceQuality:
        for name, signal in self.chosen().items():
            if signal.needs_model and self.model is None:
                raise ValueError(
                    f"signals names {name}, which needs a model, and model is null. Name one, or drop {name}"
                )
        return self

    def chosen(self) -> dict[str, TraceSignal]:
        """The signals by name."""
        if self.signals:
            return {signal.name: signal.build("trace_signal") for signal in self.signals}
        every = {name: registry.build("trace_signal", name, {}) for name in registry.names("trace_signal")}
        return {name: signal for name, signal in every.items() if self.model is not None or not signal.needs_model}

    def find(self, folder: RunFolder, progress: Progress) -> dict[str, Any]:
        """The card, the scores and their AUROC.

        Raises:
            DataError: the file of traces cannot be read, as `read_traces`.
        """
        traces, left_out = read_traces(self.data.traces)
        device, reason = choose_device(self.device)
        wrong = wrong_equations(traces)
        columns, cut = self._columns(folder, traces, device, progress)
        scores = columns | self._combinations(traces, columns)
        folder.write_json("equations.json", wrong)
        _write_scores(folder.path / "scores.jsonl", traces, scores)
        alone = [name for name, signal in self.chosen().items() if signal.alone]
        return {
            "n": sum(trace.correct is not None for trace in traces),
            "card": card(traces, wrong) | {"left_out": left_out, "cut": cut},
            **self._areas(traces, scores, progress),
            "sees_one_trace": [name for name in scores if name.partition(".")[0] in alone or name.endswith("_alone")],
            "means": {
                _column(name, part): says
                for name, signal in self.chosen().items()
                for part, says in signal.columns.items()
            },
            "choices": [{"name": "device", "value": device, "reason": reason}],
            "settings": self.resolved(),
        }

    def foresee(self) -> Foresight:
        """The file and the signals.

        Raises:
            DataError: as `find`.
        """
        traces, left_out = read_traces(self.data.traces)
        labelled = sum(trace.correct is not None for trace in traces)
        return Foresight(
            {
                "traces": f"{len(traces):,}, {labelled:,} known to be right or wrong; {left_out:,} left out",
                "signals": ", ".join(self.chosen()),
                "model": self.model or "none, so that signals which need one are left out",
            }
        )

    def show(self, found: Mapping[str, Any]) -> Findings:
        """The AUROC of everything, and the card."""
        return page(found)

    def _columns(
        self, folder: RunFolder, traces: Sequence[Trace], device: str, progress: Progress
    ) -> tuple[dict[str, FloatArray], int]:
        """Every column of every signal, scored once for a run that is continued; and how many traces the model's
        context cut."""
        signals, table = self.chosen(), folder.path / _TABLE
        inputs = {
            "traces": [self.data.model_dump(mode="json"), fingerprint_file(Path(self.data.traces.path).expanduser())],
            "signals": {name: repr(signal) for name, signal in signals.items()},
            "model": [self.model, self.model and fingerprint_model(self.model)],
        }
        names = [_column(name, part) for name, signal in signals.items() for part in signal.columns]
        with folder.stage("signals", inputs) as (record, done):
            if not done:
                model, record.out = None, {"cut": 0}
                if self.model is not None and any(signal.needs_model for signal in signals.values()):
                    model = CausalLM.load(self.model, device=device)
                    texts = [trace.question for trace in traces], [without_annotations(trace.text) for trace in traces]
                    record.out = {"cut": beyond_context(model, *texts)}
                scored = []
                for place, (name, signal) in enumerate(signals.items()):
                    progress("signals", place, len(signals), name)
                    told = signal.score(traces, model)
                    scored += [told[part] for part in signal.columns]
                progress("signals", len(signals), len(signals), "")
                with whole(table) as partial, partial.open("wb") as stream:
                    np.save(stream, np.array(scored, dtype=np.float64))
        return dict(zip(names, np.load(table), strict=True)), record.out["cut"]

    def _combinations(self, traces: Sequence[Trace], columns: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The combinations that these traces allow: with labels, where some are known; without, where the answers of
        several questions were weighed."""
        signals = self.chosen()
        alone = [name for name in columns if signals[name.partition(".")[0]].alone]
        group_E = [trace.group for trace in traces]
        if len(set(group_E)) < 2:
            return {}
        right_E = np.array([np.nan if trace.correct is None else float(trace.correct) for trace in traces])
        found: dict[str, FloatArray] = {}

        def fitted(names: Sequence[str], target_E: FloatArray) -> FloatArray:
            columns_EC = np.column_stack([columns[name] for name in names])
            return cross_fitted(columns_EC, target_E, group_E, folds=self.folds, seed=self.seed)

        if len(np.unique(right_E[~np.isnan(right_E)])) == 2:
            found["combined"] = fitted(list(columns), right_E)
            if alone:
                found["combined_alone"] = fitted(alone, right_E)
        if _BELIEF in columns and alone:
            found["unsupervised_alone"] = fitted(alone, columns[_BELIEF])
            found["unsupervised"] = two_views(columns[_BELIEF], found["unsupervised_alone"])
        return found

    def _areas(
        self, traces: Sequence[Trace], scores: Mapping[str, FloatArray], progress: Progress
    ) -> dict[str, dict[str, Any]]:
        known = [place for place, trace in enumerate(traces) if trace.correct is not None]
        right_E = np.array([float(bool(traces[place].correct)) for place in known])
        group_E = [traces[place].group for place in known]
        areas: dict[str, Area] = {}
        for place, (name, score_E) in enumerate(scores.items() if len(np.unique(right_E)) == 2 else ()):
            progress("intervals", place, len(scores), name)
            areas[name] = area(score_E[known], right_E, group_E, resamples=self.resamples, seed=self.seed)
        progress("intervals", len(scores), len(scores), "")
        gains = {
            name: dict(zip(("difference", "low", "high"), difference(areas[name], areas[_BASELINE]), strict=True))
            for name in ("combined", "unsupervised", _BELIEF)
            if name in areas and _BASELINE in areas
        }
        return {
            "auroc": {name: found.value for name, found in areas.items()},
            "intervals": {name: [found.low, found.high] for name, found in areas.items()},
            "within": {name: found.within for name, found in areas.items()},
            "over_agreement": gains,
        }


def _column(signal: str, part: str) -> str:
    return f"{signal}.{part}" if part else signal


def _write_scores(place: Path, traces: Sequence[Trace], scores: Mapping[str, FloatArray]) -> None:
    with whole(place) as partial, partial.open("w", encoding="utf-8") as stream:
        for row, trace in enumerate(traces):
            answer = None if trace.answer is None else str(trace.answer)
            known = {"id": trace.id, "source": trace.source, "answer": answer, "correct": trace.correct}
            values = {name: round(float(score_E[row]), 6) for name, score_E in scores.items()}
            stream.write(json.dumps({**known, "scores": values}, ensure_ascii=False) + "\n")
