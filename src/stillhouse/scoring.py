"""`score`: ask the teacher about every training example once, and keep what it says in a signal store.

Shapes: N trained tokens, V vocabulary, K kept entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stillhouse.data.batching import TokenBatch, in_order
from stillhouse.errors import NeedsError
from stillhouse.models import vocabulary_size
from stillhouse.records import fingerprint_file
from stillhouse.signals.kinds import Dense, Signal, TopK, log_softmax
from stillhouse.signals.store import TOKENIZER, StoreHeader, StoreWriter, open_writer
from stillhouse.signals.vocabulary import tokenizer_fingerprint
from stillhouse.workshop import Workshop

_BATCH = 8192
"""Tokens of a batch, padding counted. Fixed, because what a model says depends in its last bits on who shares its
batch, and a store that was continued must be the store that was not interrupted."""

_ROWS = 1024
"""Tokens whose full distributions exist at once."""


def write_signals(shop: Workshop) -> bool:
    """Fill `signals/` of the run folder from its training data; True if that was done before.

    Raises:
        NeedsError: the teacher does not say whole distributions.
        SignalStoreError: the store there holds other signals, k is impossible, or the teacher says NaN.
    """
    settings = shop.recipe.score
    assert settings is not None  # `stages.score` sees to it
    inputs = {
        "score": [settings.k, shop.plan.record_temperature],
        "data": fingerprint_file(shop.path / "data" / "train.jsonl"),
        "models": shop.models_in_play,
        "rendering": shop.rendering_in_play,
    }
    with shop.folder.stage("score", inputs) as (record, done):
        if done:
            return True
        rendered, teacher, folder = shop.rendered("train", record), shop.teacher, shop.path / "signals"
        vocabulary, key = vocabulary_size(teacher.tokenizer), tokenizer_fingerprint(teacher.tokenizer)
        temperature = shop.plan.record_temperature
        if settings.temperature is None:
            record.choose("score temperature", temperature, "that of the objectives that will read it")
        header = StoreHeader(teacher.identity(), key, vocabulary, settings.k, temperature)
        before = teacher.tokens_read
        measured, seen = torch.zeros(4, dtype=torch.float64), 0
        with open_writer(folder, header) as writer:
            if writer.repaired:
                reason = "a writer before this one was stopped in the middle of a record"
                record.choose("signals repaired", f"{writer.repaired} bytes cut off and scored again", reason)
            teacher.tokenizer.save_pretrained(folder / TOKENIZER)
            for index, batch in enumerate(in_order(rendered, _BATCH)):
                # The stored signal is held against the teacher on batches 0, 1, 2, 4, 8, ...: few, of all lengths.
                sampled = index & (index - 1) == 0
                if sampled or not all(name in writer for name in batch.ids):
                    signal = teacher.score(batch.to(shop.device))
                    measured += _keep(writer, batch, signal, measure=sampled)
                seen += len(batch.ids)
                shop.progress("score", seen, len(rendered), f"{writer.bytes_written() / 2**20:.1f} MiB")
            fidelity = _fidelity(measured, writer)
            writer.finish(fidelity)
        record.cost = {"teacher_tokens_read": teacher.tokens_read - before}
        record.out = {"k": header.k, "temperature": header.temperature, **fidelity}
    return False


def _keep(writer: StoreWriter, batch: TokenBatch, signal: Signal, *, measure: bool) -> Tensor:
    """Store what is not there yet; the sums of `closeness` where they are asked for."""
    sums = torch.zeros(4, dtype=torch.float64)
    for example, name in enumerate(batch.ids):
        if name in writer and not measure:
            continue
        kept = []
        for rows_N in batch.trained_rows_of(example).split(_ROWS):
            dense = _dense(signal, rows_N)
            kept.append(TopK.of(dense, writer.header.k, writer.header.temperature))
            if measure:
                sums += closeness(dense, kept[-1])
        if name not in writer:
            writer.add(name, batch.digest(example), TopK.join(kept))
    return sums


def _dense(signal: Signal, rows_N: Tensor) -> Dense:
    chosen = signal.select(rows_N)
    if not isinstance(chosen, Dense):
        raise NeedsError(
            f"score keeps the likeliest tokens of whole distributions; this teacher gives {type(chosen).__name__}. Use "
            "a teacher in process, such as hf."
        )
    return chosen


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


def _fidelity(sums: Tensor, writer: StoreWriter) -> dict[str, float]:
    kl, same, mass, tokens = sums.tolist()
    return {
        "kl_nats_per_token": kl / tokens,
        "top1_agreement": same / tokens,
        "kept_mass": mass / tokens,
        "measured_tokens": int(tokens),
        "bytes_per_token": writer.header.bytes_per_token(),
    }
