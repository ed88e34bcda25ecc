"""A teacher behind an API is scored: as the model is in process, and about its own text without being asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from building import StoppedHereError
from typer.testing import CliRunner

from stillhouse import stages
from stillhouse.checking.check import check
from stillhouse.cli import app
from stillhouse.data.batching import TokenBatch
from stillhouse.data.rendering import Renderer
from stillhouse.errors import NeedsError
from stillhouse.models import CausalLM
from stillhouse.recipe_file import load_recipe
from stillhouse.records import read_examples
from stillhouse.runs import RunFolder
from stillhouse.signals.kinds import Dense, TopK
from stillhouse.signals.store import SignalStore
from stillhouse.testing.server import Server, serve

EMBEDDED = "stillhouse:arithmetic"
K = 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: Any, make_student: Any) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "teacher"
    make_student(seed=7, using=chat_tokenizer, hidden_size=32, max_position_embeddings=512).save(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path, tiny_recipe: Any) -> Any:
    def write(server: Server, model: Any, *, steps: list[Any] | None = None, **sections: Any) -> str:
        """The place of a recipe that learns from a served model."""
        settings = {"url": server.url, "model": "teacher", "api": "completions", "tokenizer": str(model)}
        settings |= {"logprobs": K, "store": str(tmp_path / "r.sqlite")}
        given = {"objective": ["forward_kl"], "evaluate": ["likelihood"], "samples": 0, "control": False, **sections}
        recipe = tiny_recipe(model, **given) | {"teacher": {"server": settings}}
        recipe["data"]["steps"] = steps or []
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return str(tmp_path / "recipe.yaml")

    return write


def scorings(server: Server) -> list[list[int]]:
    """Prompts that were to be scored, the probe's aside."""
    return [body["prompt"] for one in server.seen if "prompt_logprobs" in (body := one.body)][1:]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["model"] == "student" and "loss" in row]


def require_in_process(folder: Path, model: str, k: int) -> None:
    """That a run's store holds what the model says in this process."""
    lm, store = CausalLM.load(model), SignalStore(folder / "signals")
    examples = list(read_examples(folder / "data" / "train.jsonl"))
    assert len(store) == len(examples) > 0
    for rendered in Renderer(lm.tokenizer, lm.context).render(examples):
        batch = TokenBatch.of([rendered])
        with torch.no_grad():
            logits = lm.head(lm.hidden(batch.tokens_BT, batch.positions_BT))[0]
        wanted = TopK.of(Dense(logits[batch.trained_BT[0]], lm.vocabulary), k)
        record = store.read(rendered.id, batch.digest(0))
        np.testing.assert_allclose(record.logprobs_NK, wanted.logprobs_NK.numpy(), atol=1e-4)
        np.testing.assert_allclose(np.exp(record.tail_N), wanted.tail_N.exp().numpy(), atol=1e-5)
        assert (record.ids_NK[:, 0] == wanted.ids_NK[:, 0].numpy()).all()


def test_a_server_s_record_is_the_model_s_and_says_what_nobody_can_measure(
    tiny: Path, write: Any, tmp_path: Path
) -> None:
    with serve(str(tiny)) as server:
        recipe = write(server, tiny)
        result = CliRunner().invoke(app, ["score", recipe, "score.k=8", "--out", str(tmp_path / "scored")])
        assert result.exit_code == 0, result.output
        assert "not measurable (the teacher shows its likeliest tokens alone)" in result.stdout
        assert len(scorings(server)) == 8
        require_in_process(tmp_path / "scored", str(tiny), 8)
        fidelity = SignalStore(tmp_path / "scored" / "signals").fidelity
        assert fidelity["kl_nats_per_token"] is None
        assert 0 < (fidelity["kept_mass"] or 0) < 1
        record = RunFolder(tmp_path / "scored").stage_record("score")
        assert record is not None
        assert (record.cost["teacher_signals_kept"], record.cost["teacher_signals_asked"]) == (0, 8)
        assert record.cost["teacher_calls"] >= 8
        assert "not measurable" in [choice["value"] for choice in record.choices]


def test_live_and_from_its_own_record_a_server_teaches_the_same(tiny: Path, write: Any, tmp_path: Path) -> None:
    with serve(str(tiny)) as server:
        recipe = write(server, tiny)
        stages.run(load_recipe(recipe), tmp_path / "online")
        stages.run(load_recipe(recipe, [f"score.k={K}"]), tmp_path / "offline")
    online = losses(tmp_path / "online")
    assert len(online) == 3
    assert losses(tmp_path / "offline") == pytest.approx(online, rel=1e-6)
    assert "not measurable" in (tmp_path / "offline" / "report.html").read_text()
    cost = json.loads((tmp_path / "online" / "manifest.json").read_text())["cost"]
    assert cost["teacher_signals_asked"] > 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["score.k=21"], "score.k is 21, and server says the 20 likeliest tokens.*Set score.k to 20 or less"),
        (["score.k=8", "score.temperature=2"], "score.temperature is 2, what server says is at 1.*Leave"),
    ],
)
def test_a_record_of_more_than_the_server_says_is_refused(
    overrides: list[str], message: str, tiny: Path, write: Any, tmp_path: Path
) -> None:
    with serve(str(tiny)) as server:
        recipe = load_recipe(write(server, tiny), overrides)
        with pytest.raises(NeedsError, match=message):
            stages.score(recipe, tmp_path / "scored")
        assert not server.seen


@pytest.mark.parametrize("overrides", [[], [f"score.k={K}"]])
def test_a_check_asks_nobody(overrides: list[str], tiny: Path, write: Any, tmp_path: Path) -> None:
    with serve(str(tiny)) as server:
        found = check(load_recipe(write(server, tiny), overrides))
        assert not server.seen
    assert not (tmp_path / "r.sqlite").exists()
    assert ("score" in found["estimate"]["stages"]) == bool(overrides)


def test_a_record_is_cut_smaller_without_the_teacher(tiny: Path, write: Any, tmp_path: Path) -> None:
    with serve(str(tiny)) as server:
        recipe = write(server, tiny)
        stages.score(load_recipe(recipe, [f"score.k={K}"]), tmp_path / "scored")
    teacher = f"teacher={{stored: {{path: {tmp_path / 'scored' / 'signals'}}}}}"
    with pytest.raises(NeedsError, match=r"score\.k is 30, and stored says the 20 likeliest"):
        stages.score(load_recipe(recipe, [teacher, "score.k=30"]), tmp_path / "more")
    stages.score(load_recipe(recipe, [teacher, "score.k=5"]), tmp_path / "less")
    require_in_process(tmp_path / "less", str(tiny), 5)


STEPS = {
    "teacher_text": [{"teacher_text": {"temperature": 0.0, "max_new_tokens": 96}}],
    "rationales": [{"rationales": {"keep": "all", "max_new_tokens": 96}}],
}


@pytest.mark.parametrize("step", STEPS)
def test_text_and_signals_come_in_one_pass(step: str, write: Any, tmp_path: Path) -> None:
    """Also where the run is stopped between the two."""

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage == "render train":
            raise StoppedHereError

    with serve(EMBEDDED) as server:
        recipe = load_recipe(write(server, EMBEDDED, steps=STEPS[step]), [f"score.k={K}"])
        with pytest.raises(StoppedHereError):
            stages.score(recipe, tmp_path / "scored", stop)
        before = len(server.seen)
        assert before == 2 + 8  # the probe and the texts
        assert stages.score(recipe, tmp_path / "scored").skipped == ["data"]
        asked = scorings(server)
        assert len(server.seen) == before + len(asked)
    record = RunFolder(tmp_path / "scored").stage_record("score")
    assert record is not None
    made = len(list(read_examples(tmp_path / "scored" / "data" / "train.jsonl")))
    assert record.cost["teacher_signals_kept"] == made - len(asked) > made // 2
    assert record.cost["teacher_signals_asked"] == record.cost["teacher_calls"] == len(asked)
    require_in_process(tmp_path / "scored", EMBEDDED, K)
