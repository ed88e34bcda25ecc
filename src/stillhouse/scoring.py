"""`score`: ask the teacher about every training example once, and keep what it says in a signal store.

Shapes: N trained tokens, V vocabulary, K kept entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stillhouse import world
from stillhouse.data.batching import TokenBatch, in_order
from stillhouse.data.rendering import Rendered
from stillhouse.errors import NeedsError
from stillhouse.models import vocabulary_size
from stillhouse.records import fingerprint_file
from stillhouse.runs import StageRecord
from stillhouse.signals.kinds import Dense, Signal, TopK, log_softmax
from stillhouse.signals.store import TOKENIZER, StoreHeader, StoreWriter, open_writer
from stillhouse.signals.vocabulary import tokenizer_fingerprint
from stillhouse.teachers.base import TeacherSession
from stillhouse.workshop import Workshop

TOKENS_AT_ONCE = 8192
"""Tokens of a batch, padding counted. Fixed, because what a model says depends in its last bits on who shares its
batch, and a store that was continued must be the store that was not interrupted."""

_ROWS = 1024
"""Tokens whose full distributions exist at once."""


def write_signals(shop: Workshop, source: str = "train") -> bool:
    """Fill the signal store of one of the run's training files; True if that was done before.

    Raises:
        NeedsError: the teacher says neither whole distributions nor enough of them.
        SignalStoreError: the store there holds other signals, k is impossible, or the teacher says NaN.
    """
    settings = shop.recipe.score
    assert settings is not None  # `stages.score` sees to it
    inputs = {
        "score": [settings.k, shop.plan.record_temperature],
        "data": fingerprint_file(shop.path / "data" / f"{source}.jsonl"),
        "models": shop.models_in_play,
        "rendering": shop.rendering_in_play,
    }
    stage = "score" if source == "train" else f"score-{source}"
    with shop.folder.stage(stage, inputs) as (record, done):
        if done:
            return True
        paid = shop.teacher.bill() if "teacher" in vars(shop) else {}
        rendered, teacher, folder = shop.rendered(source, record), shop.teacher, shop.signals_folder(source)
        vocabulary, key = vocabulary_size(teacher.tokenizer), tokenizer_fingerprint(teacher.tokenizer)
        temperature = shop.plan.record_temperature
        if settings.temperature is None:
            record.choose("score temperature", temperature, "that of the objectives that will read it")
        header = StoreHeader(teacher.identity(), key, vocabulary, settings.k, temperature)
        before = teacher.tokens_read
        with ExitStack() as held:
            fidelity = _ask(shop, _Asked(rendered, teacher, header, _open(folder, header, teacher, record, held)))
        record.cost = _cost(teacher, before, paid)
        record.tell(teacher.told())
        record.out = {"k": header.k, "temperature": header.temperature, **fidelity}
        if fidelity["kl_nats_per_token"] is None:
            record.choose("KL(teacher, stored)", "not measurable", "the teacher shows its likeliest tokens alone")
    return False


def _cost(teacher: TeacherSession, read: int, paid: Mapping[str, int]) -> dict[str, int]:
    """What all processes read and paid since the teacher had read so much and its bill was that."""
    bill = teacher.bill()
    counts = [teacher.tokens_read - read, *(bill[name] - paid.get(name, 0) for name in bill)]
    return dict(zip(["teacher_tokens_read", *bill], world.add(torch.tensor(counts)).tolist(), strict=True))


def _open(
    folder: Path, header: StoreHeader, teacher: TeacherSession, record: StageRecord, held: ExitStack
) -> StoreWriter | None:
    """The store's writer, which the first process alone has."""
    opened: list[StoreWriter] = []

    def open_it() -> None:
        opened.append(held.enter_context(open_writer(folder, header)))
        teacher.tokenizer.save_pretrained(folder / TOKENIZER)

    world.first(open_it)
    if opened and opened[0].repaired:
        reason = "a writer before this one was stopped in the middle of a record"
        record.choose("signals repaired", f"{opened[0].repaired} bytes cut off and scored again", reason)
    return opened[0] if opened else None


class _Asked(NamedTuple):
    """About which examples which teacher is asked, what is kept, and where."""

    rendered: Sequence[Rendered]
    teacher: TeacherSession
    header: StoreHeader
    writer: StoreWriter | None


class _Told(NamedTuple):
    """What a teacher said about a batch: name, digest and signal of each example, and the sums of `_closeness`."""

    kept: list[tuple[str, bytes, TopK]]
    sums: Tensor


def _ask(shop: Workshop, asked: _Asked) -> dict[str, float | None]:
    """Every batch once, as many at a time as there are processes; stored in order, whoever was asked."""
    measured, seen = torch.zeros(5, dtype=torch.float64), 0
    batches = enumerate(in_order(asked.rendered, TOKENS_AT_ONCE))
    while group := list(islice(batches, world.size())):
        # The stored signal is held against the teacher on batches 0, 1, 2, 4, 8, ...: few, of all lengths.
        sampled = [index & (index - 1) == 0 for index, _ in group]
        known = asked.writer is not None and all(n in asked.writer for _, batch in group for n in batch.ids)
        if any(sampled) or not world.agree(known):
            mine = min(world.rank(), len(group) - 1)
            told = _tell(asked, group[mine][1].to(shop.device), measure=sampled[mine])
            for number, one in enumerate(world.collect(told)[: len(group)]):
                measured += one.sums if sampled[number] else 0
                _keep(asked.writer, one)
        seen += sum(len(batch.ids) for _, batch in group)
        written = asked.writer.bytes_written() if asked.writer is not None else 0
        shop.progress("score", seen, len(asked.rendered), f"{written / 2**20:.1f} MiB")

    def finish() -> dict[str, float | None]:
        assert asked.writer is not None  # only the first process comes here
        fidelity = _fidelity(measured, asked.header)
        asked.writer.finish(fidelity)
        return fidelity

    return world.first(finish)


def _tell(asked: _Asked, batch: TokenBatch, *, measure: bool) -> _Told:
    signal, sums, told = asked.teacher.score(batch), torch.zeros(5, dtype=torch.float64), []
    for example, name in enumerate(batch.ids):
        kept = []
        for rows_N in batch.trained_rows_of(example).split(_ROWS):
            said = signal.select(rows_N)
            kept.append(_cut(said, asked.header))
            if measure:
                sums += _closeness(said, kept[-1])
        told.append((name, batch.digest(example), TopK.join(kept).to("cpu")))
    return _Told(told, sums)


def _keep(writer: StoreWriter | None, told: _Told) -> None:
    """Store what is not there yet."""
    if writer is None:
        return
    for name, digest, signal in told.kept:
        if name not in writer:
            writer.add(name, digest, signal)


def _cut(said: Signal, header: StoreHeader) -> TopK:
    """What is kept of it; what a teacher left out of a distribution is in the tail already."""
    if isinstance(said, Dense):
        return TopK.of(said, header.k, header.temperature)
    if isinstance(said, TopK) and said.temperature == header.temperature:
        return said.cut(header.k)
    raise NeedsError(
        f"score keeps the likeliest tokens of distributions at temperature {header.temperature:g}; this teacher gives "
        f"{type(said).__name__}, at another or none. Use a teacher in process, such as hf, or a server that says "
        "log-probabilities."
    )


def _closeness(said: Signal, kept: TopK) -> Tensor:
    """The sums of `closeness`, and last over how many tokens the first of them goes: those whose whole distribution is
    known. Of others the likeliest token is kept, because it is among those that were said."""
    if isinstance(said, Dense):
        sums = closeness(said, kept)
        return torch.cat([sums, sums[-1:]])
    tokens, mass = len(kept.tail_N), kept.logprobs_NK.double().exp().sum()
    return torch.tensor([0.0, tokens, float(mass), tokens, 0.0], dtype=torch.float64)


def closeness(dense: Dense, kept: TopK) -> Tensor:
    """Sums over N tokens, shape [4]: KL(teacher, stored) in nats, equal likeliest tokens, kept mass, and N.

    The stored distribution spreads its tail evenly over the tokens outside, the least it could be taken to say.
    """
    teacher_NV = log_softmax(dense.logits_NV[..., : kept.vocabulary], kept.temperature).double()
    outside = kept.vocabulary - kept.ids_NK.shape[-1]
    even_N1 = kept.tail_N.double()[:, None] - torch.log(torch.tensor(float(max(1, outside)), dtype=torch.float64))
    stored_NV = even_N1.expand_as(teacher_NV).scatter(-1, kept.ids_NK, kept.logprobs_NK.double())
    kl_N = (teacher_NV.exp() * (teacher_NV - stored_NV)).sum(-1)
    same_N = teacher_NV.argmax(-1) == kept.ids_NK[:, 0]
    mass_N = kept.logprobs_NK.double().exp().sum(-1)
    return torch.stack([kl_N.sum(), same_N.double().sum(), mass_N.sum(), kl_N.new_tensor(float(len(kl_N)))]).cpu()


def _fidelity(sums: Tensor, header: StoreHeader) -> dict[str, float | None]:
    kl, same, mass, tokens, whole = sums.tolist()
    return {
        "kl_nats_per_token": kl / whole if whole else None,
        "top1_agreement": same / tokens,
        "kept_mass": mass / tokens,
        "measured_tokens": int(tokens),
        "bytes_per_token": header.bytes_per_token(),
    }
