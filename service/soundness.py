"""Soundness: whether the network of one bundle gives numbers, as its own answers tell.

A runtime has one from its start. `bundle_swap.py` writes it, in the event loop alone, answer by answer, and reads it to
decide whether to go back. Golden requests say what a bundle gave for them; this says what it gives for everybody else.
"""

from dataclasses import dataclass


@dataclass
class Soundness:
    """`n_failed` answers in a row, up to the last, failed: half of the scores or more not finite. `has_scored`: one did
    not.
    """

    n_failed: int = 0
    has_scored: bool = False

    def is_proved(self, n_allowed: int) -> bool:
        """Whether it may take over from another: it has answered here, and did not fail so often in a row itself."""
        return self.has_scored and self.n_failed < n_allowed
