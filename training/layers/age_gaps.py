"""How long after the one before it a behaviour came, from the age bins that models are given. Used by AMEN and NIF.

Unlike an age, which counts back from the request, a gap is the same for whoever looks at the history at another time.
"""

import torch
from jaxtyping import Int64
from torch import Tensor


def age_gaps(age: Int64[Tensor, "R L"]) -> Int64[Tensor, "R L"]:
    """Age bins between a behaviour and the one before it, plus 1; 0 for the first, and where there is none.

    Never more than the largest age bin: a table of ages has a row for every gap.
    """
    place = torch.arange(age.shape[1], device=age.device)
    before = age.index_select(1, (place - 1).clamp_min(0)) * (place > 0).to(age.dtype)
    both = ((before > 0) & (age > 0)).to(age.dtype)
    return ((before - age).clamp_min(0) + 1) * both
