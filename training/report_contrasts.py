"""What DAIAN's norm ratio and gates do, seed by seed: between cold and warm items, specific and broad visitors.

Called by `training.report_numbers` with what `training.compare_inside.look_inside` measured of each seed. A difference
is taken within a seed, where both sides come from the same weights, and only then spread over seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from training.report_cells import spread

NORM_RATIO, GATES = "norm_ratio", "gates"
_SHARE, _EXPLICIT, _IMPLICIT = "semantic_share", "gate_explicit", "gate_implicit"

Inside = Mapping[str, Mapping[str, float | None]]  # by extra, then by group of candidates


def contrasts(runs: Sequence[Inside]) -> dict[str, dict[str, float]]:
    """Spreads over seeds; a contrast whose parts some seed lacks is left out.

    norm_ratio: the semantic share (eq. 13) of cold candidates minus that of warm ones. gate_explicit, gate_implicit:
    of specific visitors minus that of broad ones. gates: the first of these minus the second, which is what specific
    visitors get more of explicit, against implicit, interest.
    """
    found: dict[str, Any] = {}
    if _all_have(runs, _SHARE):
        found[NORM_RATIO] = spread([_between(run[_SHARE], "cold", "warm") for run in runs])
    moved = {}
    for gate in (_EXPLICIT, _IMPLICIT):
        if _all_have(runs, gate):
            moved[gate] = [_between(run[gate], "specific", "broad") for run in runs]
            found[gate] = spread(moved[gate])
    if len(moved) == 2:
        pairs = zip(moved[_EXPLICIT], moved[_IMPLICIT], strict=True)
        found[GATES] = spread([explicit - implicit for explicit, implicit in pairs])
    return found


def _all_have(runs: Sequence[Inside], extra: str) -> bool:
    return bool(runs) and all(extra in run for run in runs)


def _between(means: Mapping[str, float | None], left: str, right: str) -> float:
    """NaN where nobody is in one of the two groups; NaN is null on disk."""
    one, two = means.get(left), means.get(right)
    return float("nan") if one is None or two is None else one - two
