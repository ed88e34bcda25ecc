"""Four small classifiers of sequences of vectors: they see no tokens, so that data may be vectors that no token has.

Each is features and a linear head on top, smooth enough to be differentiated twice.
Shapes: B rows, T places of a row, D width of a vector, F features, C classes, H heads, W inner width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import RecipeError, did_you_mean


class VectorClassifier(nn.Module, ABC):
    """`(inputs_BTD, mask_BT) -> logits_BC`: a linear head on features."""

    head: nn.Linear

    @abstractmethod
    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """What the head sees, [B, F]; places outside the mask change nothing."""

    def forward(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Logits, [B, C]."""
        return self.head(self.features(inputs_BTD, mask_BT))


def masked_mean(inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """The mean of the places that count, [B, D]; zero for a row without any."""
    mask_BT1 = mask_BT[..., None].to(inputs_BTD.dtype)
    return (inputs_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)


def unit_scale(vectors_BD: Tensor) -> Tensor:
    """Vectors scaled to a mean square of one; zero stays zero.

    >>> unit_scale(torch.tensor([[3.0, 3.0]]))
    tensor([[1., 1.]])
    """
    return functional.normalize(vectors_BD, dim=-1, eps=1e-6) * vectors_BD.shape[-1] ** 0.5


class Linear(VectorClassifier):
    """Multinomial logistic regression on the mean of a row's vectors, scaled to a mean square of one."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, classes)

    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The scaled mean, [B, D]."""
        return unit_scale(masked_mean(inputs_BTD, mask_BT))


class MLP(VectorClassifier):
    """One hidden layer on the same mean."""

    def __init__(self, width: int, classes: int, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.head = nn.Linear(hidden, classes)

    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The hidden layer, [B, F]."""
        return functional.gelu(self.hidden(unit_scale(masked_mean(inputs_BTD, mask_BT))))


class TextCNN(VectorClassifier):
    """Filters over neighbouring places, the largest answer of each (Kim 2014, arXiv 1408.5882)."""

    def __init__(self, width: int, classes: int, filters: int = 24, spans: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.spans = spans
        self.filters = nn.ModuleList(nn.Linear(width * span, filters) for span in spans)
        self.head = nn.Linear(filters * len(spans), classes)

    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Each filter's largest answer at a place that counts, [B, F]; what the filter sees beyond the row is zero."""
        seen_BTD = inputs_BTD * mask_BT[..., None].to(inputs_BTD.dtype)
        found = []
        for span, filters in zip(self.spans, self.filters, strict=True):
            # A matrix product of neighbours side by side: its second derivative is far cheaper than a convolution's.
            ahead = [functional.pad(seen_BTD[:, shift:], (0, 0, 0, shift)) for shift in range(span)]
            answers_BTF = functional.gelu(filters(torch.cat(ahead, 2)))
            found.append(answers_BTF.masked_fill(~mask_BT.bool()[..., None], -1.0).amax(1))
        return torch.cat(found, 1)


class Encoder(VectorClassifier):
    """One pre-norm transformer layer (Vaswani 2017, arXiv 1706.03762) with sinusoidal places and a masked mean."""

    def __init__(self, width: int, classes: int, inner: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter = nn.Linear(width, inner)
        self.before_attention, self.before_mlp, self.last = (nn.LayerNorm(inner) for _ in range(3))
        self.queries_keys_values = nn.Linear(inner, 3 * inner)
        self.leave = nn.Linear(inner, inner)
        self.up, self.down = nn.Linear(inner, 2 * inner), nn.Linear(2 * inner, inner)
        self.head = nn.Linear(inner, classes)

    def features(self, inputs_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """The mean of the layer's outputs, normed, [B, F]."""
        hidden_BTW = self.enter(inputs_BTD)
        hidden_BTW = hidden_BTW + _places(hidden_BTW)
        hidden_BTW = hidden_BTW + self._attend(self.before_attention(hidden_BTW), mask_BT)
        hidden_BTW = hidden_BTW + self.down(functional.gelu(self.up(self.before_mlp(hidden_BTW))))
        return self.last(masked_mean(hidden_BTW, mask_BT))

    def _attend(self, hidden_BTW: Tensor, mask_BT: Tensor) -> Tensor:
        """Written out, because fused attention has no second derivative."""
        B, T, W = hidden_BTW.shape
        parts = self.queries_keys_values(hidden_BTW).view(B, T, 3, self.heads, W // self.heads)
        query_BHTK, key_BHTK, value_BHTK = parts.permute(2, 0, 3, 1, 4)
        scores_BHTT = query_BHTK @ key_BHTK.transpose(2, 3) / math.sqrt(W // self.heads)
        # A large number in place of infinity: a row without a place attends to nothing in particular, and is no NaN.
        scores_BHTT = scores_BHTT.masked_fill(~mask_BT.bool()[:, None, None], -1e9)
        return self.leave((scores_BHTT.softmax(-1) @ value_BHTK).transpose(1, 2).reshape(B, T, W))


def _places(hidden_BTW: Tensor) -> Tensor:
    T, W = hidden_BTW.shape[1:]
    place_T1 = torch.arange(T, dtype=hidden_BTW.dtype)[:, None]
    rate_W = torch.exp(-math.log(10_000.0) * torch.arange(0, W, 2, dtype=hidden_BTW.dtype) / W)
    return torch.stack([torch.sin(place_T1 * rate_W), torch.cos(place_T1 * rate_W)], 2).view(T, -1)


ARCHITECTURES: Mapping[str, type[VectorClassifier]] = {
    "linear": Linear,
    "mlp": MLP,
    "cnn": TextCNN,
    "transformer": Encoder,
}
"""By the names that recipes use."""


def make_classifier(name: str, width: int, classes: int, *, seed: int) -> VectorClassifier:
    """A classifier with weights drawn by a seed; the same on every call, and no other draw is disturbed.

    Raises:
        RecipeError: no architecture bears that name.

    >>> make_classifier("mlp", 3, 2, seed=0)(torch.ones(5, 4, 3), torch.ones(5, 4)).shape
    torch.Size([5, 2])
    """
    if name not in ARCHITECTURES:
        raise RecipeError(f"There is no classifier named {name!r}. {did_you_mean(name, ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[name](width, classes)
