"""What a manifest may say: bounds for every field that somebody uses, and a digest that finds an edit by hand.

Called by `bundle.py`, before anything of a bundle is opened. The digest finds accidents: whoever changes a manifest on
purpose can make it anew, or leave it out as bundles of older exporters do. Only a signature tells who wrote a manifest.
Never here: whether what it says is true. Hashes, fingerprint, graphs and golden requests are compared where they are.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.contract.errors import BundleError

SELF_DIGEST = "self_sha256"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MAX_DEPTH = 32
MAX_NUMBER = 2**63  # what a reader that knows no larger whole numbers can still take
LAST_MS = 253_402_300_799_999  # the end of the year 9999

_Faults = Iterator[tuple[str, object, str]]


def with_digest(manifest: Mapping[str, object]) -> dict[str, object]:
    """The manifest with the digest of all else that it says."""
    return {**manifest, SELF_DIGEST: _digest(manifest)}


def check_manifest(file: Path, manifest: Mapping[str, object]) -> None:
    """Raises BundleError, naming file and field, for an edit that was not meant and for a value that cannot be."""
    for field, found, needed in _plain(manifest, ""):
        raise BundleError(f"{file}: {field} is {_shown(found)}, need {needed}: export again")
    if SELF_DIGEST in manifest and manifest[SELF_DIGEST] != _digest(manifest):
        raise BundleError(
            f"{file}: {SELF_DIGEST} is not that of the rest, so it was edited after it was written: copy the bundle "
            "again, or export again"
        )
    for field, found, needed in _faults(manifest):
        raise BundleError(f"{file}: {field} is {_shown(found)}, need {needed}: export again")


def _digest(manifest: Mapping[str, object]) -> str:
    rest = {key: value for key, value in manifest.items() if key != SELF_DIGEST}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _plain(value: object, field: str, depth: int = 0) -> _Faults:
    """What could be read here and not be passed on: to whoever asks for the manifest it is sent as it is."""
    if depth > MAX_DEPTH:
        yield field[:200], "...", f"at most {MAX_DEPTH} levels"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _plain(key, f"a name in {field or 'it'}")
            yield from _plain(part, f"{field}.{ascii(key)[1:-1]}" if field else ascii(key)[1:-1], depth + 1)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _plain(part, f"{field}[{place}]", depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            yield field, value, "text without halves of characters"
    elif isinstance(value, float) and not math.isfinite(value):
        yield field, value, "a finite number"
    elif isinstance(value, int) and not abs(value) < MAX_NUMBER:
        yield field, value, "a whole number of at most 63 bits"


def _faults(manifest: Mapping[str, object]) -> _Faults:
    for field in ("name", "version"):
        value = manifest.get(field)
        if not (isinstance(value, str) and NAME.fullmatch(value)):
            yield field, value, "letters, digits, '.', '_' and '-', at most 128"
    if "prior" in manifest and not is_rate(manifest["prior"]):
        yield "prior", manifest["prior"], "a click rate above 0 and below 1"
    yield from _index_faults(manifest.get("index"))
    yield from _graph_faults(manifest.get("graphs"), "graphs")
    yield from _data_faults(manifest.get("data"))
    prerank = manifest.get("prerank")
    if isinstance(prerank, Mapping):
        if not isinstance(prerank.get("model"), Mapping):
            yield "prerank.model", prerank.get("model"), "an object"
        yield from _graph_faults(prerank.get("graphs"), "prerank.graphs")
    elif prerank is not None:
        yield "prerank", prerank, "an object"


def is_rate(value: object) -> bool:
    """Whether this may be the click rate of training days: at none and at all clicks there is nothing to learn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1


def _index_faults(index: object) -> _Faults:
    if index is None:
        return
    if not isinstance(index, Mapping):
        yield "index", index, "an object or null"
        return
    recall, allowed = index.get("recall", 1.0), index.get("low_recall_allowed", False)
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 <= recall <= 1:
        yield "index.recall", recall, "a share from 0 to 1"
    if not isinstance(allowed, bool):
        yield "index.low_recall_allowed", allowed, "true or false"


def _graph_faults(graphs: object, field: str) -> _Faults:
    """Inputs and outputs are compared with the graphs' own; what is not there is of another exporter."""
    if graphs is None:
        return
    if not isinstance(graphs, Mapping):
        yield field, graphs, "an object"
        return
    for side in ("request", "candidates"):
        graph = graphs.get(side)
        if graph is not None and not isinstance(graph, Mapping):
            yield f"{field}.{side}", graph, "an object"
        elif graph is not None:
            yield from _tensor_faults(graph, f"{field}.{side}")


def _tensor_faults(graph: Mapping[str, object], field: str) -> _Faults:
    for end in ("inputs", "outputs"):
        tensors = graph.get(end, [])
        if not isinstance(tensors, list):
            yield f"{field}.{end}", tensors, "a list"
            continue
        for place, one in enumerate(tensors):
            named = isinstance(one, Mapping) and isinstance(one.get("name"), str)
            if not (named and isinstance(one.get("shape"), list)):
                yield f"{field}.{end}[{place}]", one, "an object with a name and a shape"


def _data_faults(data: object) -> _Faults:
    if data is None:
        return
    if not isinstance(data, Mapping):
        yield "data", data, "an object"
        return
    windows = data.get("windows", {})
    if not isinstance(windows, Mapping):
        yield "data.windows", windows, "an object"
        return
    for split, window in windows.items():
        times = window if isinstance(window, list) else []
        is_time = [isinstance(at, int) and not isinstance(at, bool) and 0 <= at <= LAST_MS for at in times]
        if len(times) != 2 or not all(is_time) or times[0] > times[1]:
            yield f"data.windows.{split}", window, "the first and the last time, in epoch milliseconds"
