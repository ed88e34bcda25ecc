"""A sparse random projection that stores nothing: where a coordinate goes and with which sign is a hash of its number.

A count-sketch (Charikar et al. 2002) adds each coordinate, with a random sign, to one of `width` buckets, and inner
products survive on average. Here the coordinates come in blocks as long as the sketch; a hash turns each block as a
whole, and then signs it coordinate by coordinate. Two coordinates of one block never meet, two of different blocks do
with chance 1 / width, and the signs are independent: mean and variance of an inner product are those of a count-sketch
or lower, and adding is a sum of contiguous pieces in place of a scatter. On a processor that is several times as fast
as NumPy's `bincount`, and a hundred times as fast as a dense matrix (benchmarks/selection.py).

The gradient of a linear map is a sum of outer products, and a sketch of those exists that never forms them: the
convolution of two small sketches (TensorSketch, Pham and Pagh 2013). It was measured and left out. Its inner products
err 1.6 to 2.5 times as much (1,024 wide, sums of 1 to 32 products of 128 by 128), which three to six times the width
would mend. Forming the gradient a few rows at a time costs what the same gradient costs in training, and on a processor
less than the transforms up to layers of about 500 units; and Adam's direction needs every coordinate as it is.

Shapes: B vectors, N consecutive coordinates, W the sketch's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BITS = 64
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CHUNK = 2**17
"""Coordinates whose signs are made together: enough to be worth a call, few enough to stay in a cache."""


@dataclass(frozen=True)
class Sketch:
    """A linear map of vectors of any length to `width` numbers, unbiased for inner products.

    With `sparsity` s it is s independent sketches of `width / s` side by side, the block form of a sparse
    Johnson-Lindenstrauss transform (Kane and Nelson 2014, arXiv 1012.1577): s times the work, the same variance, fewer
    vectors that fare badly.

    Attributes:
        width: numbers of a sketch.
        seed: of the hash; the same on every device.
        sparsity: buckets that each coordinate goes to; a divisor of the width.

    >>> vectors = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    >>> sketch, streamed = Sketch(width=1024), torch.zeros(2, 1024)
    >>> for start in range(0, 5000, 999):
    ...     sketch.add(streamed, start, vectors[:, start : start + 999])
    >>> torch.equal(streamed, sketch.of(vectors))
    True
    """

    width: int = 2048
    seed: int = 0
    sparsity: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")
        if self.sparsity < 1 or self.width % self.sparsity:
            raise ValueError(f"sparsity is {self.sparsity}; it must divide the width, which is {self.width}")

    @cached_property
    def _keys(self) -> list[int]:
        """Two for each copy: of its signs, and of its turns."""
        return hashed(self.seed, 0, 2 * self.sparsity).tolist()

    def of(self, vectors_BN: Tensor) -> Tensor:
        """The sketches of whole vectors, [B, W]."""
        sketches_BW = vectors_BN.new_zeros(len(vectors_BN), self.width)
        self.add(sketches_BW, 0, vectors_BN)
        return sketches_BW

    def add(self, sketches_BW: Tensor, offset: int, values_BN: Tensor) -> None:
        """Add to sketches, in place, what their vectors hold from the coordinate `offset` on.

        In whichever pieces vectors come, in order, the sketch is the same to the bit.
        """
        part = self.width // self.sparsity
        for copy in range(self.sparsity):
            sums = sketches_BW[:, copy * part : (copy + 1) * part]
            scale = self.sparsity**-0.5
            signing, turning = self._keys[2 * copy : 2 * copy + 2]
            for start in range(offset, offset + values_BN.shape[1], _CHUNK):
                stop = min(start + _CHUNK, offset + values_BN.shape[1])
                signs = _signs(signing, start, stop, values_BN).mul_(scale)
                _add_turned(sums, start, values_BN[:, start - offset : stop - offset], signs, turning)


def _add_turned(sums_BW: Tensor, start: int, values_BN: Tensor, signs_N: Tensor, key: int) -> None:
    """Add signed coordinates block by block, each block turned by its hash."""
    width, stop = sums_BW.shape[1], start + values_BN.shape[1]
    first, last = start // width, (stop - 1) // width
    turns = hashed(key, first, last - first + 1).remainder(width).tolist()
    here = start
    for block, turn in enumerate(turns, start=first):
        while here < min(stop, (block + 1) * width):
            bucket = (here - block * width + turn) % width
            count = min(width - bucket, (block + 1) * width - here, stop - here)
            piece = slice(here - start, here - start + count)
            sums_BW[:, bucket : bucket + count].addcmul_(values_BN[:, piece], signs_N[piece])
            here += count


def _signs(key: int, start: int, stop: int, like: Tensor) -> Tensor:
    """1 or -1 for each coordinate: one bit of a hash that 64 neighbours share."""
    first = start // _BITS
    words = hashed(key, first, (stop - 1) // _BITS - first + 1, like.device)
    bits = (words[:, None] >> torch.arange(_BITS, device=like.device)) & 1
    return bits.flatten()[start - first * _BITS : stop - first * _BITS].mul_(-2).add_(1).to(like.dtype)


def hashed(key: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """64 well mixed bits for each of `count` numbers from `start` on: splitmix64 (Steele et al. 2014) begun at a key.

    Integers wrap around alike on every device, so that all agree to the bit.
    """
    numbers = torch.arange(start + 1, start + count + 1, device=device)
    mixed = numbers * _signed(_GOLDEN) + _signed(key % 2**_BITS)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(_FIRST)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(_SECOND)
    return mixed ^ _shifted(mixed, 31)


def _signed(number: int) -> int:
    """The signed integer of the same 64 bits."""
    return number - 2**_BITS if number >= 2 ** (_BITS - 1) else number


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """Shifted to the right, zeros coming in: torch shifts the sign in."""
    return (numbers >> places) & (2 ** (_BITS - places) - 1)
