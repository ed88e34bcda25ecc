"""The model card of a student: what it was distilled from, how, and what it is worth."""

from __future__ import annotations

from typing import Any

import yaml

from stillhouse import __version__
from stillhouse.data.sources import describe
from stillhouse.recipe import LoRA, Recipe


def model_card(recipe: Recipe, role: str, facts: dict[str, Any]) -> str:
    """Markdown with the metadata block that model hubs read.

    Args:
        recipe: how the model was made.
        role: `student`, `control` for the one trained without the teacher, or `random` and `random_control` for the
            same two on random rows.
        facts: teacher's identity, parameters of the model and those of them that were trained, trained tokens, steps.
    """
    teacher = facts["teacher"]
    cut = recipe.student.from_teacher
    base = teacher["name"] if cut is not None else recipe.student.model
    start = f"{base}, of which it kept: {cut.describe()}" if cut is not None else base or "random weights"
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "stillhouse"],
    }
    lora = recipe.student.lora
    if base and not base.startswith(("/", ".", "stillhouse:")):
        header["base_model"] = base
    if lora is not None:
        header["tags"].append("lora")
        header["library_name"] = "transformers" if lora.merge else "peft"
    how = ", ".join(str(item.model_dump(mode="json")) for item in recipe.objective)
    size = f" ({teacher['parameters']:,} parameters)" if "parameters" in teacher else ""  # a closed one does not say
    if role.endswith("control"):
        made = "trained without the teacher, as the control of a distillation: plain cross-entropy for as many updates"
    else:
        made = f"distilled from **{teacher['name']}**{size} with {how}"
    if role.startswith("random"):
        made += ", on as many random rows as were chosen for the student"
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {recipe.name} ({role})

A language model of {facts["parameters"]:,} parameters, {made}.

| | |
| --- | --- |
| started from | {start} |
| trained | {_trained(lora, facts)} |
| training data | {describe(recipe.data.train)} |
| updates | {facts["steps"]:,} |
| trained tokens | {facts["tokens"]:,} |
| learning rate | {recipe.train.lr:g}, {recipe.train.schedule}, {recipe.train.warmup} updates of warm-up |
| seed | {recipe.seed} |
| made with | stillhouse {__version__} |

What it kept of its teacher, with intervals and beside a control, stands in the run's `report.html`. The recipe:

```yaml
{yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True).strip()}
```
"""


def _trained(lora: LoRA | None, facts: dict[str, Any]) -> str:
    """What of the model training moved."""
    if lora is None:
        return "all weights"
    targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
    whole = f", and {', '.join(lora.modules_to_save)} whole" if lora.modules_to_save else ""
    now = "merged into its weights" if lora.merge else "saved alone: load them with peft on the model they name"
    return (
        f"LoRA adapters of rank {lora.r} (alpha {lora.alpha}) on {targets}{whole}: {facts['trainable']:,} parameters, "
        f"{now}"
    )
