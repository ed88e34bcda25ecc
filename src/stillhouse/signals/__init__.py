"""What a teacher says about tokens, and how it meets what the student says."""

from stillhouse.signals.kinds import Dense, Headed, Mixture, Signal, TopK
from stillhouse.signals.support import Aligned, align

__all__ = ["Aligned", "Dense", "Headed", "Mixture", "Signal", "TopK", "align"]
