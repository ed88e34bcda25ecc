"""The memory and the disk that a run will take at their peaks, from what its pieces took in rehearsal."""

from __future__ import annotations

from stillhouse.checking.rehearsing import Sample, shortened, writes
from stillhouse.checking.seconds import Work, like
from stillhouse.checking.updates import cut_update
from stillhouse.data.batching import in_order
from stillhouse.evaluation._logits import rows_at_once
from stillhouse.models import vocabulary_size
from stillhouse.scoring import TOKENS_AT_ONCE
from stillhouse.signals.layout import bytes_per_token
from stillhouse.workshop import CALIBRATION_BATCH

_WARM = 35 * 2**20
"""What libraries touch of themselves at the first work, beside what importing them took."""
_LOOSE = 2.4
"""Resident bytes for each byte of small tensors: the C library's heap keeps what they leave behind, in pieces. Measured
on batches of many lengths; with every tensor in pages of its own it was 1.0."""
_PAGES = 2**25
"""From this size on the C library gives a tensor pages of its own and returns them at once (glibc)."""
_LOG_ROW = 212
_EVALUATION_ROW = 250
"""Bytes in metrics.jsonl of an update, and in evaluation/ of a model's held-out example."""


def stage_bytes(work: Work, *, on_cpu: bool) -> dict[str, float]:
    """The peak of every stage: on a CPU that of the process, on an accelerator that of its tensors."""
    plan, settings = work.plan, work.plan.recipe.train
    data = sum(s.examples * s.held_bytes for s in work.splits.values())
    base, loose = (work.resident + _WARM + data, _LOOSE) if on_cpu else (0.0, 1.0)
    teacher = work.bytes("teacher weights")
    stages = {"data": base}
    if written := [a.name for s in work.splits.values() for a in s.askings if a.name in work.writings]:
        stages["data"] += teacher + max(_writing(work, name) for name in written) * loose
    if plan.recorded:
        tokens = _largest(work.splits["train"].sample, TOKENS_AT_ONCE)
        stages["score"] = base + teacher + _loosely(work, "teacher", tokens, work.bytes("teacher token"), loose)
    if work.calibration:
        tokens = min(work.calibration, _largest(work.splits["train"].sample, CALIBRATION_BATCH))
        reading = _loosely(work, "teacher", int(tokens), work.bytes("teacher token"), loose)
        stages["initial"] = base + teacher + max(reading, work.bytes("student weights"))
    opened = teacher if written or plan.white_box or work.calibration else 0.0
    sharded = work.processes if settings.shard == "always" else 1
    for role in plan.trained:
        _, tokens = cut_update(settings)
        alike = like(role)
        update = _loosely(work, "student", tokens, work.bytes(f"{alike} update") / tokens, loose)
        aside = _evaluation(work, "student", loose, asked=False) if settings.evaluate_every else 0.0
        stages[f"train-{role}"] = base + opened + work.bytes(f"{alike} state") / sharded + max(update, aside)
    for role in work.roles:
        player = "teacher" if role == "teacher" else "student"
        own = work.bytes("student weights") if player == "student" else 0.0
        stages[f"evaluate-{role}"] = base + teacher + own + _evaluation(work, player, loose, asked=True)
    return stages


def _evaluation(work: Work, player: str, loose: float, *, asked: bool) -> float:
    """The largest of the evaluators, those that ask the teacher only where it is `asked`."""
    tokens = _largest(work.splits["heldout"].sample)
    sample = work.rehearsed["heldout"]
    peak = 0.0
    for place, evaluator in work.evaluators():
        if evaluator.needs and not asked:
            continue
        if writes(evaluator):
            peak = max(peak, _writing(work, f"{player} writes {place}") * loose)
        elif shortened(evaluator) is evaluator:
            readers = {player, "teacher"} if evaluator.needs else {player}
            kept = sum(4 * work.sizes[r].width for r in readers if r in work.sizes)
            reading = max(work.bytes(f"{r} token") for r in readers)
            rows = _rows(work, sample.trained())
            row = max(0.0, work.bytes(f"{player} evaluator {place}") - kept * _largest(sample)) / max(1, rows)
            full = _rows(work, tokens * sample.trained() / max(1, sample.tokens()))
            whole = full * 4 * vocabulary_size(work.plan.student_tokenizer) >= _PAGES
            chunks = full * row * (1.0 if whole else loose) + tokens * kept
            peak = max(peak, chunks, _loosely(work, player, tokens, reading, loose))
    return peak


def _rows(work: Work, trained: float) -> float:
    """Trained tokens of a batch whose logits exist at once."""
    return min(trained, rows_at_once(vocabulary_size(work.plan.student_tokenizer)))


def _largest(sample: Sample, *tokens: int) -> int:
    """Tokens of the largest batch of one pass, padding counted."""
    return max(batch.tokens_BT.numel() for batch in in_order(sample.rendered, *tokens))


def _loosely(work: Work, player: str, tokens: int, token: float, loose: float) -> float:
    """Resident bytes of work on so many tokens at once; none of a teacher elsewhere."""
    if player not in work.sizes:
        return 0.0
    return tokens * token * (1.0 if 4 * tokens * work.sizes[player].width > _PAGES else loose)


def _writing(work: Work, name: str) -> float:
    """Keys and values of the longest text, and one layer's copy of them."""
    if name not in work.writings:
        return 0.0
    writing = work.writings[name]
    tokens = len(writing.prompts) * (max(map(len, writing.prompts)) + writing.length)
    layers = work.sizes[writing.role].layers
    return tokens * work.bytes(f"{writing.role} cache") * (1 + 1 / layers)


def disk_bytes(work: Work) -> dict[str, float]:
    """What the run's folder holds at its fullest, by part."""
    settings = work.plan.recipe.train
    roles = len(work.plan.trained)
    every = settings.checkpoint_every or max(1, settings.steps // 5)
    kept = min(settings.keep_checkpoints, -(-settings.steps // every))
    # One more checkpoint than are kept exists while the newest is written and the oldest not yet gone.
    lora = work.plan.recipe.student.lora
    student = work.bytes("student weights" if lora is None or lora.merge else "student trainable")
    found = {
        "checkpoints": work.bytes("student checkpoint") * (roles * kept + 1),
        "students": student * roles + (work.bytes("student weights") if work.calibration else 0),
        "data": sum(s.examples * s.file_bytes for s in work.splits.values()),
        "log": _LOG_ROW * settings.steps * roles,
        "evaluation": _EVALUATION_ROW * len(work.roles) * work.splits["heldout"].examples,
        "report and tokenizers": 2**18 + (2 * roles + 1) * len(work.plan.student_tokenizer.backend_tokenizer.to_str()),
    }
    if work.plan.recorded and work.plan.recipe.score is not None:
        vocabulary = vocabulary_size(work.plan.student_tokenizer)  # which is the teacher's
        found["signals"] = work.splits["train"].trained * bytes_per_token(vocabulary, work.plan.recipe.score.k)
    return found
