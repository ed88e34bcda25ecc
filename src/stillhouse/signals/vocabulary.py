"""Do two models speak of the same tokens? Divergences compare token by token, so they must."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from stillhouse.errors import NeedsError
from stillhouse.records import fingerprint


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the mapping from tokens to ids; equal for models of one family whatever their heads are padded to."""
    return fingerprint(tokenizer.get_vocab())


def require_same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Refuse a pair of tokenizers whose ids mean different tokens.

    Raises:
        NeedsError: they differ, with how much they share and what to use instead.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    if own == other:
        return
    shared = len(own.keys() & other.keys())
    same_id = sum(1 for token, i in own.items() if other.get(token) == i)
    raise NeedsError(
        f"Teacher and student use different tokenizers: {len(other)} and {len(own)} tokens, {shared} in common, "
        f"{same_id} of them with the same id. Divergences compare distributions token by token and need one "
        "vocabulary. Either let the teacher write the training text and learn from that (data.steps: [teacher_text], "
        "objective: [cross_entropy]), or choose a student that uses the teacher's tokenizer."
    )
