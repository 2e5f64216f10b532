"""The reports of a preparation and of a check as lines for people. Called by `commands`; it counts nothing itself."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.data.check_requests import Check
from training.data.dataset import SPLITS, Dataset

_BAR = 40  # characters of the longest bar
_PSI_LARGE = 0.25
_TOLD_AUCS = 5


def dataset_lines(dataset: Dataset, folder: Path) -> Iterator[str]:
    """A prepared data set: its fields, and each split's counts, similarities and histories."""
    schema = dataset.schema
    yield f"{dataset.name} in {folder}: {dataset.report.get('items', 0):,} items"
    for side in ("user", "context", "item"):
        yield f"  {side} fields: " + (", ".join(f"{f.name} ({f.kind})" for f in schema.of(side)) or "none")
    for split in SPLITS:
        if split in dataset.report:
            yield from _split_lines(split, dataset.report[split], dataset.windows[split])
    for name, value in dataset.report.items():
        if name not in (*SPLITS, "items"):
            yield f"{name}: {_plain(value)}"


def check_lines(check: Check) -> Iterator[str]:
    """A check: what is wrong, or that nothing is; then what tells most, what is unknown, what has shifted."""
    for problem in check.problems:
        yield f"PROBLEM {problem}"
    counted = ", ".join(f"{split} {n:,}" for split, n in check.n_requests.items())
    yield f"{check.n_problems} problems in {counted or 'nothing'} requests"
    telling = sorted(check.aucs.items(), key=lambda pair: -pair[1])[:_TOLD_AUCS]
    if telling:
        yield "AUC of single fields on later days: " + ", ".join(f"{name} {auc:.3f}" for name, auc in telling)
    for split, shares in check.unknown.items():
        known_shares = {name: share for name, share in shares.items() if share}
        yield f"unknown values in {split}: " + (_shares(known_shares) or "none")
    for split, shifts in check.shift.items():
        large = {name: value for name, value in shifts.items() if value > _PSI_LARGE}
        yield f"large shifts in {split} (PSI > {_PSI_LARGE}): " + (
            ", ".join(f"{name} {value:.2f}" for name, value in large.items()) or "none"
        )


def _split_lines(split: str, report: Mapping[str, Any], window: tuple[int, int]) -> Iterator[str]:
    yield f"{split}: {_date(window[0])} to {_date(window[1])}"
    yield (
        f"  {report['requests']:,} requests, {report['candidates']:,} candidates, {report['clicks']:,} clicks "
        f"(click rate {report['click_rate']:.2%}, requests with a click {report['requests_with_click']:.1%})"
    )
    yield f"  not in the catalogue: {_shares(report['not_in_catalogue'])}; missing: {_shares(report['missing'])}"
    yield f"  without similarity to the trigger: {report['candidates_without_similarity']:.2%} of the candidates"
    yield f"  behaviours a request: {report['behaviours_per_request']:.1f}; {_shares(report['history_lengths'])}"
    yield "  similarity  candidates  click rate"
    most = max((bar["candidates"] for bar in report["similarity_histogram"]), default=1)
    for bar in report["similarity_histogram"]:
        length = round(_BAR * bar["candidates"] / most)
        yield f"  {bar['from']:>10.2f}  {bar['candidates']:>10,}  {bar['click_rate']:>10.2%}  {'#' * length}"
    yield "  levels (1 % to 99 %): " + ", ".join(
        f"{level['from']:.2f}+ {level['share']:.0%} at {level['click_rate']:.1%}"
        for level in report["levels_over_1_to_99_percent"]
    )


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _date(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
