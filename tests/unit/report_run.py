"""A small but complete run folder as a finished run leaves it, hostile texts included: data for the report's tests."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

SCRIPT = "<script>alert('x')</script>"
BREAKER = "a|b `c` **d** </details> [x](javascript:alert(1)) @everyone <img src=x onerror=alert(1)>"

METRICS = {
    "tasks.accuracy": {"title": "Accuracy", "unit": "share", "better": "higher"},
    "likelihood.loss": {"title": "Loss", "unit": "nats/token", "better": "lower"},
    "likelihood.bits_per_byte": {"title": "Bits per byte", "unit": "bits/byte", "better": "lower"},
    "fidelity.kl": {"title": "KL(teacher, model)", "unit": "nats/token", "better": "lower"},
    "fidelity.top1_agreement": {"title": "Top-1 agreement", "unit": "share", "better": "higher"},
    "fidelity.top5_overlap": {"title": "Top-5 overlap", "unit": "share", "better": "higher"},
    "calibration.ece": {"title": "Expected calibration error", "unit": "share", "better": "lower"},
    "calibration.brier": {"title": "Brier score", "unit": "", "better": "lower"},
    "efficiency.parameters": {"title": "Parameters", "unit": "parameters", "better": "lower"},
    "efficiency.bytes": {"title": "Weights on disk", "unit": "bytes", "better": "lower"},
    "efficiency.prefill_tokens_per_second": {"title": "Reading", "unit": "tokens/s", "better": "higher"},
    "efficiency.decode_tokens_per_second": {"title": "Writing", "unit": "tokens/s", "better": "higher"},
    "efficiency.peak_memory_bytes": {"title": "Peak memory", "unit": "bytes", "better": "lower"},
}
# (teacher, student_before, control, student), standard error
VALUES = {
    "tasks.accuracy": ((0.612, 0.062, 0.39, 0.514), 0.0219),
    "likelihood.loss": ((1.312, 3.902, 1.688, 1.521), 0.0182),
    "likelihood.bits_per_byte": ((0.742, 2.207, 0.955, 0.861), 0.0103),
    "fidelity.kl": ((None, 2.731, 0.412, 0.228), 0.0071),
    "fidelity.top1_agreement": ((None, 0.171, 0.702, 0.781), 0.0061),
    "fidelity.top5_overlap": ((None, 0.214, 0.655, 0.742), 0.0048),
    "calibration.ece": ((0.021, 0.118, 0.064, 0.027), 0.0044),
    "calibration.brier": ((0.512, 0.911, 0.633, 0.571), 0.0058),
    "wizard_of_oz:likelihood.loss": ((2.911, 4.655, 3.402, 3.377), 0.031),
    "wizard_of_oz:likelihood.bits_per_byte": ((1.401, 2.240, 1.637, 1.625), 0.015),
    "efficiency.parameters": ((4_718_592, 524_288, 524_288, 524_288), None),
    "efficiency.bytes": ((18_874_368, 2_097_152, 2_097_152, 2_097_152), None),
    "efficiency.prefill_tokens_per_second": ((5_120.0, 31_300.0, 31_250.0, 31_400.0), 210.0),
    "efficiency.decode_tokens_per_second": ((142.0, 618.0, 620.0, 623.0), 4.1),
    "efficiency.peak_memory_bytes": ((142_000_000, 61_300_000, 61_300_000, 61_300_000), None),
}
MODELS = ("teacher", "student_before", "control", "student")


def evaluation() -> dict[str, Any]:
    """The evaluation of a run in which distilling helped."""
    models: dict[str, dict[str, Any]] = {model: {} for model in MODELS}
    for metric, (values, stderr) in VALUES.items():
        for model, value in zip(MODELS, values, strict=True):
            if value is not None:
                n = None if stderr is None else 500
                models[model][metric] = {"value": value, "stderr": stderr, "n": n}
    pairs = {f"student - {other}": compare(models["student"], models[other]) for other in MODELS[2::-1]}
    return {
        "format": 1,
        "headline": "tasks.accuracy",
        "models": models,
        "metrics": METRICS,
        "comparisons": pairs,
        "recovery": {
            "tasks.accuracy": {"value": 0.84, "low": 0.79, "high": 0.894},
            "fidelity.top1_agreement": None,
        },
        "gap_closed": {
            "tasks.accuracy": {"value": 0.559, "low": 0.38, "high": 0.74},
            "likelihood.loss": {"value": 0.444, "low": 0.41, "high": 0.479},
            "likelihood.bits_per_byte": {"value": 0.441, "low": 0.40, "high": 0.48},
            "calibration.ece": {"value": 0.86, "low": 0.55, "high": 2.6},
            "calibration.brier": {"value": 0.51, "low": 0.42, "high": 0.60},
            "wizard_of_oz:likelihood.loss": {"value": 0.051, "low": -0.04, "high": 0.14},
        },
        "reliability": {model: reliability(bend) for model, bend in zip(MODELS, (0.98, 0.7, 0.85, 0.96), strict=True)},
    }


def compare(student: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Paired differences with plausible intervals."""
    found = {}
    for metric, ours in student.items():
        if metric not in other or ours["stderr"] is None:
            continue
        difference, stderr = ours["value"] - other[metric]["value"], ours["stderr"] * 1.02
        low, high = difference - 1.96 * stderr, difference + 1.97 * stderr
        resolved = low > 0 or high < 0
        found[metric] = {
            "difference": difference, "low": low, "high": high, "resolved": resolved,
            "stderr": stderr, "mde": 2.8 * stderr, "n": 500,
        }  # fmt: skip
    return found


def lost() -> dict[str, Any]:
    """The same run after it has gone wrong: what it measured on other data, and a failure signature of a hostile
    writer."""
    evaluated = evaluation()
    models = evaluated["models"]

    def moved(metric: str, home: str, away: str, by: dict[str, float]) -> dict[str, Any]:
        spread = {"stderr": 0.01, "mde": 0.028, "n": 400}
        changes = {
            model: {"difference": value, "low": value - 0.02, "high": value + 0.02, "resolved": True, **spread}
            for model, value in by.items()
        }
        more = {f"student - {other}": by["student"] - by[other] for other in ("teacher", "control") if other in by}
        excess = {
            pair: {"difference": d, "low": d - 0.03, "high": d + 0.03, "resolved": abs(d) > 0.03, **spread}
            for pair, d in more.items()
        }
        return {"metric": metric, "home": home, "away": away, "changes": changes, "excess": excess}

    seen = {"teacher": 0.02, "student_before": 0.01, "control": 0.11, "student": 0.32}
    abroad = {
        model: models[model]["wizard_of_oz:likelihood.loss"]["value"] - models[model]["likelihood.loss"]["value"]
        for model in MODELS
    }
    return evaluated | {
        "generalisation": [
            moved("likelihood.loss", "train", "heldout", seen),
            moved("likelihood.loss", "heldout", "wizard_of_oz", abroad),
            moved("tasks.accuracy", "heldout", "wizard_of_oz", {"teacher": -0.02, "control": -0.2, "student": -0.21}),
        ],
        "signatures": [
            {
                "name": "overfitted",
                "claim": "The student is overfitted to the distillation data",
                "evidence": "its gap is +0.32, its teacher's +0.02",
                "rule": f"the gap is wider {SCRIPT}",
                "numbers": {"gap.student": 0.32},
                "advice": ["more training data", BREAKER],
                "source": "arXiv 2504.14772",
            }
        ],
    }


def reliability(bend: float) -> list[dict[str, float]]:
    """Ten bins of a model that is right less often than it is sure; the first is empty."""
    bins = []
    for place in range(10):
        sure = place / 10 + 0.05
        right = sure * bend - (1 - bend) * 0.1 if place else None
        bins.append({"confidence": sure, "accuracy": right, "count": place * (11 - place) * 40})
    return bins


def rows() -> list[dict[str, Any]]:
    """metrics.jsonl of student and control: 400 updates, an evaluation every hundred, one infinite loss."""
    noise = random.Random(0)
    found: list[dict[str, Any]] = []
    for model, floor in (("control", 1.69), ("student", 1.52)):
        for step in range(1, 401):
            entropy = floor + 2.4 * math.exp(-step / 60) + noise.gauss(0, 0.05)
            parts = {"cross_entropy": entropy}
            if model == "student":
                parts = {"forward_kl": 0.2 + 2.5 * math.exp(-step / 50) + abs(noise.gauss(0, 0.02)), **parts}
            row = {"model": model, "step": step, "loss": sum(parts.values()), "objectives": parts, "lr": 1e-3}
            found.append({**row, "grad_norm": 0.8, "tokens": 4096, "seconds": 0.11})
            if step in (1, 100, 200, 300, 400):
                near = math.exp(-step / 80)
                measured = {"likelihood.loss": floor + 2.3 * near, "tasks.accuracy": (0.39, 0.51)[model == "student"]}
                measured["tasks.accuracy"] *= 1 - near
                found.append({"model": model, "step": step, "evaluation": measured})
    found.append({"model": "student", "step": 401, "loss": float("inf"), "objectives": {"forward_kl": float("inf")}})
    return found


RECIPE = f"""name: quickstart
seed: 0
# {SCRIPT} ``` and a fence
teacher: {{hf: {{model: stillhouse/arithmetic-teacher}}}}
student: {{model: stillhouse/arithmetic-student}}
data:
  train: {{path: arithmetic/train.jsonl, prompt: question, completion: answer}}
objective:
  - forward_kl: {{weight: 0.9, temperature: 2.0}}
  - cross_entropy: {{weight: 0.1}}
train: {{steps: 400, lr: 1.0e-3, tokens_per_step: 4096}}
evaluate: [likelihood, fidelity, calibration, tasks]
control: true
"""

ENVIRONMENT = {
    "stillhouse": "0.1.0", "python": "3.11.9", "platform": "Linux-6.1-x86_64", "cpu": "AMD EPYC", "cores": 2,
    "memory_bytes": 8_200_000_000, "packages": {"torch": "2.13.0", "transformers": "5.16.0"},
    "git": {"commit": "0123abc", "dirty": True}, "device": "cpu", "seed": 0,
    "choices": [{"name": "device", "value": "cpu", "reason": "torch sees no accelerator on this machine"},
                {"name": "dtype", "value": "float32", "reason": f"no bfloat16 matrix units {SCRIPT} {BREAKER}"}],
}  # fmt: skip

STAGES = [
    {"stage": "prepare", "seconds": 1.21, "cost": {}, "bytes": {"train data": 412_322}, "choices": []},
    {
        "stage": "train", "seconds": 61.4,
        "cost": {"teacher_tokens_read": 1_638_400, "student_tokens_trained": 3_276_800},
        "bytes": {"student": 2_097_152}, "choices": [
            {"name": "tokens per forward", "value": 2048, "reason": "two chunks of logits fit a quarter of the memory"},
        ],
    },
    {"stage": "evaluate", "seconds": 24.9, "cost": {"teacher_tokens_read": 204_800}, "choices": []},
]  # fmt: skip


def samples() -> list[dict[str, Any]]:
    """Thirty samples: most alike, some in which the models disagree, one hostile, one endless."""
    found = []
    for place in range(30):
        a, b = 17 + place, 5 * place + 3
        right = {
            "teacher": place % 7 != 6,
            "student_before": False,
            "control": place % 3 == 0,
            "student": place % 4 != 3,
        }
        outputs = {model: f"{a} + {b} = {a + b if good else a + b - 10}" for model, good in right.items()}
        found.append({
            "id": f"sum-{place}", "prompt": f"Tom has {a} marbles and finds {b} more. How many has he now?",
            "reference": str(a + b), "outputs": outputs, "correct": right,
        })  # fmt: skip
    found[1]["prompt"] = f"Row with markup {SCRIPT} and \u202e reversed & \x00 control"
    found[1]["outputs"]["student"] = SCRIPT + BREAKER
    found[2]["outputs"]["control"] = "Let us think step by step. " * 60 + "unbroken" * 60
    return found


def write_run(
    path: Path,
    evaluated: dict[str, Any] | None = None,
    *,
    only_evaluation: bool = False,
) -> Path:
    """Write the run folder, with another evaluation if one is given."""
    (path / "stages").mkdir(parents=True)
    (path / "evaluation.json").write_text(json.dumps(evaluated or evaluation()))
    if only_evaluation:
        return path
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()) + '{"model": "stu')
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples()))
    (path / "recipe.yaml").write_text(RECIPE)
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    for place, stage in enumerate(STAGES):
        (path / "stages" / f"{place}-{stage['stage']}.json").write_text(json.dumps(stage))
    return path
