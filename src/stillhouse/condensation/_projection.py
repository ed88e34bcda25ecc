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
    rows = [
        _row(vectors_TD[mask_T.bool()], vocabulary, fluency, weight, candidates if fluency else 1, beams)
        for vectors_TD, mask_T in zip(condensed.inputs_RTD, condensed.mask_RT, strict=True)
    ]
    texts = tuple(vocabulary.text(pieces) for pieces, _ in rows)
    log_probs_R = fluency(texts) if fluency else torch.full((len(texts),), float("nan"))
    return Projected(texts, tuple(pieces for pieces, _ in rows), torch.tensor([far for _, far in rows]), log_probs_R)


def _row(
    vectors_TD: Tensor, vocabulary: Vocabulary, fluency: Fluency | None, weight: float, candidates: int, beams: int
) -> tuple[tuple[int, ...], float]:
    readable_V = vocabulary.readable_V.nonzero()[:, 0]
    distance_TV = torch.cdist(vectors_TD, vocabulary.table_VD[readable_V])
    near_TK = distance_TV.topk(candidates, largest=False)
    pieces_TK = readable_V[near_TK.indices]
    cost_TK = near_TK.values.square() / vectors_TD.shape[1]
    kept: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for place in range(len(vectors_TD)):
        longer = [
            (cost + float(cost_TK[place, k]), (*pieces, int(pieces_TK[place, k])))
            for cost, pieces in kept
            for k in range(candidates)
        ]
        scores = torch.tensor([-cost for cost, _ in longer])
        if fluency is not None:
            scores = scores + weight * fluency([vocabulary.text(pieces) for _, pieces in longer])
        order = scores.argsort(descending=True, stable=True)[:beams].tolist()
        kept = [longer[at] for at in order]
    pieces = kept[0][1]
    moved = (vectors_TD - vocabulary.table_VD[torch.tensor(pieces, dtype=torch.long)]).norm(dim=1)
    return pieces, float(moved.mean()) if len(pieces) else 0.0
