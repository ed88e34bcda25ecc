"""The way back to text: for each place a readable piece near its vector, such that a language model finds the whole
likely; and what was lost on the way.

Shapes: R rows, T places, D width, V pieces, B beams, K candidates of a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.condensation._tokens import Vocabulary
from stillhouse.condensation.base import Condensed
from stillhouse.models import CausalLM

Fluency = Callable[[Sequence[str]], Tensor]
"""Of texts the log-probability of each, by a model with a tokenizer of its own."""


@dataclass(frozen=True)
class Projected:
    """Condensed rows as text.

    Attributes:
        texts: of each row.
        pieces: of each row.
        moved_R: the mean distance of a place from its vector to that of its piece.
        log_probs_R: of each text by the language model; NaN without one.
    """

    texts: tuple[str, ...]
    pieces: tuple[tuple[int, ...], ...]
    moved_R: Tensor
    log_probs_R: Tensor


def fluency_of(lm: CausalLM) -> Fluency:
    """A causal language model as a judge of texts; its tokenizer need not be that of the vectors."""

    @torch.no_grad()
    def judge(texts: Sequence[str]) -> Tensor:
        begin = [lm.tokenizer.bos_token_id] if lm.tokenizer.bos_token_id is not None else []
        rows = [[*begin, *lm.tokenizer.encode(text, add_special_tokens=False)][: lm.context] for text in texts]
        longest = max(2, *(len(row) for row in rows))
        tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=lm.device)
        counts_BT = torch.arange(1, longest)[None] < torch.tensor([len(row) for row in rows])[:, None]
        hidden_BTD = lm.hidden(tokens_BT)[:, :-1]
        log_BTV = lm.head(hidden_BTD.flatten(0, 1)).float().log_softmax(-1).view(*hidden_BTD.shape[:2], -1)
        said_BT = log_BTV.gather(2, tokens_BT[:, 1:, None])[..., 0].cpu()
        return (said_BT * counts_BT).sum(1)

    return judge


def project(
    condensed: Condensed,
    vocabulary: Vocabulary,
    fluency: Fluency | None = None,
    *,
    weight: float = 0.1,
    candidates: int = 8,
    beams: int = 4,
) -> Projected:
    """A text for each row, by beam search from its first place to its last.

    A text's score is minus the sum over its places of the squared distance between vector and piece, divided by the
    width, plus `weight` times its log-probability: what the language model makes of the decoded words, not of pieces.

    Args:
        condensed: sequences of vectors of the vocabulary's width.
        vocabulary: the pieces.
        fluency: the language model; none takes the nearest piece of each place.
        weight: of the log-probability.
        candidates: nearest readable pieces of each place that are considered.
        beams: beginnings that are kept at each place.
    """
    readable_V = vocabulary.readable_V.nonzero()[:, 0]
    table_VD = vocabulary.table_VD[readable_V]
    found: list[tuple[int, ...]] = []
    moved: list[float] = []
    for vectors_TD, mask_T in zip(condensed.inputs_RTD, condensed.mask_RT.bool(), strict=True):
        seen_TD = vectors_TD[mask_T].to(table_VD.dtype)
        near_TK = torch.cdist(seen_TD, table_VD).topk(candidates if fluency else 1, largest=False)
        pieces_TK = readable_V[near_TK.indices]
        cost_TK = near_TK.values.square() / seen_TD.shape[1]
        pieces = _beam(pieces_TK, cost_TK, lambda texts: weight * fluency(texts) if fluency else 0.0, vocabulary, beams)
        found.append(pieces)
        moved.append(float((seen_TD - vocabulary.table_VD[torch.tensor(pieces)]).norm(dim=1).mean()))
    texts = tuple(vocabulary.text(pieces) for pieces in found)
    log_probs_R = fluency(texts) if fluency else torch.full((len(texts),), float("nan"))
    return Projected(texts, tuple(found), torch.tensor(moved), log_probs_R)


def _beam(
    pieces_TK: Tensor,
    cost_TK: Tensor,
    bonus: Callable[[Sequence[str]], Tensor | float],
    vocabulary: Vocabulary,
    beams: int,
) -> tuple[int, ...]:
    """One piece a place, of those near it."""
    if pieces_TK.shape[1] == 1:
        return tuple(pieces_TK[:, 0].tolist())
    kept: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for near, costs in zip(pieces_TK.tolist(), cost_TK.tolist(), strict=True):
        longer = [
            (so_far + cost, (*pieces, piece))
            for so_far, pieces in kept
            for piece, cost in zip(near, costs, strict=True)
        ]
        scores = torch.tensor([-cost for cost, _ in longer]) + bonus([vocabulary.text(pieces) for _, pieces in longer])
        kept = [longer[at] for at in scores.argsort(descending=True, stable=True)[:beams].tolist()]
    return kept[0][1]
