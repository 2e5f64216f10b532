"""JSON that any reader can parse: a number that was never measured is null, not the word NaN.

Used by write_bundle (manifest.json) and by training (metrics.json and what is printed with --json).
"""

import json
import math
from collections.abc import Mapping


def strict_json(content: object, indent: int, sort_keys: bool = False) -> str:
    """`content` as JSON with NaN as null. Raises ValueError for an infinity: that is a fault, not a missing value."""
    return json.dumps(_without_nan(content), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
