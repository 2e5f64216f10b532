"""Small charts as SVG text, without any library: grouped bars and lines. Called by whoever makes blocks of a report.

Values are floats, NaN where there is none. Colours tell series apart; every value can be read by hovering.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 34, 64
_COLOURS = ("#1f5fa8", "#d9822b", "#4b9560", "#a23b72", "#6b6b6b", "#8a6d00")

Series = Mapping[str, Sequence[float]]
Ends = Mapping[str, Sequence[tuple[float, float]]]


def bars(
    title: str,
    labels: Sequence[str],
    series: Series,
    spreads: Series | None = None,
    zero: bool = True,
    intervals: Ends | None = None,
) -> str:
    """Bars in groups, one group a label; `zero=False` lets the axis begin above 0.

    spreads draws ± around a bar, intervals from the first to the second of its numbers; give one of them.
    """
    ends = intervals or _ends(series, spreads or {})
    low, high = _range([*_flat(series), *(end for pairs in ends.values() for pair in pairs for end in pair)], zero)
    y = _scale(low, high)
    parts, group = _frame(title, low, high, y), (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    wide = group * 0.8 / max(1, len(series))
    for place, (name, values) in enumerate(series.items()):
        for at, value in enumerate(values):
            if math.isnan(value):
                continue
            x = _LEFT + group * (at + 0.1) + wide * place
            bottom = y(max(low, min(high, 0.0)))
            parts.append(
                f'<rect x="{x:.1f}" y="{min(y(value), bottom):.1f}" width="{wide * 0.92:.1f}" '
                f'height="{abs(bottom - y(value)):.1f}" fill="{_colour(place)}">'
                f"<title>{escape(name)}, {escape(labels[at])}: {value:.4f}</title></rect>"
            )
            bottom_end, top_end = ends[name][at] if name in ends else (math.nan, math.nan)
            if not math.isnan(bottom_end + top_end):
                middle = x + wide * 0.46
                parts.append(_line(middle, y(bottom_end), middle, y(top_end), "#222"))
    shown = _labels(labels)
    parts += [
        _text(_LEFT + group * (at + 0.5), HEIGHT - _BOTTOM + 16, label, "middle", labels[at])
        for at, label in enumerate(shown)
    ]
    return _svg([*parts, *_legend(list(series))])


def lines(title: str, points: Mapping[str, Sequence[tuple[float, float]]], x_title: str, diagonal: bool = False) -> str:
    """Lines through points (x, y); `diagonal` draws y = x."""
    there = {name: [p for p in found if not math.isnan(p[0] + p[1])] for name, found in points.items()}
    flat = [p for found in there.values() for p in found]
    xs, ys = [p[0] for p in flat], [p[1] for p in flat]
    x_low, x_high = _range(xs, False)
    low, high = _range(ys + (xs if diagonal else []), False)
    y = _scale(low, high)

    def x(value: float) -> float:
        return _LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    parts = _frame(title, low, high, y)
    if diagonal:
        a, b = max(low, x_low), min(high, x_high)
        parts.append(_line(x(a), y(a), x(b), y(b), "#aaa"))
    for place, (name, found) in enumerate(there.items()):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_colour(place)}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{_colour(place)}">'
            f"<title>{escape(name)}: {a:.4g}, {b:.4f}</title></circle>"
            for a, b in found
        ]
    ends = [f"{x_low:.3g}", f"{x_high:.3g}"] if flat else ["", ""]
    parts += [
        _text(_LEFT, HEIGHT - _BOTTOM + 16, ends[0]),
        _text(WIDTH - _RIGHT, HEIGHT - _BOTTOM + 16, ends[1], "end"),
    ]
    parts.append(_text((WIDTH + _LEFT) / 2, HEIGHT - _BOTTOM + 16, x_title, "middle"))
    return _svg([*parts, *_legend(list(there))])


def _range(values: Sequence[float], zero: bool) -> tuple[float, float]:
    there = [value for value in values if not math.isnan(value)] or [0.0, 1.0]
    low, high = min(there), max(there)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    room = (high - low) * 0.06 or abs(high) * 0.06 or 0.5
    return (low if zero and low == 0 else low - room), high + room


def _flat(series: Series) -> list[float]:
    return [value for values in series.values() for value in values]


def _ends(series: Series, spreads: Series) -> Ends:
    return {
        name: [(value - error, value + error) for value, error in zip(series[name], errors, strict=True)]
        for name, errors in spreads.items()
    }


def _scale(low: float, high: float) -> Callable[[float], float]:
    return lambda value: _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _frame(title: str, low: float, high: float, y: Callable[[float], float]) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="18" font-weight="600">{escape(title)}</text>']
    for step in range(5):
        value = low + (high - low) * step / 4
        parts.append(_line(_LEFT, y(value), WIDTH - _RIGHT, y(value), "#ddd"))
        parts.append(_text(_LEFT - 6, y(value) + 4, f"{value:.3g}", "end"))
    return parts


def _labels(labels: Sequence[str]) -> list[str]:
    """Cut where there is no room; numbered where cut ones would be equal, for a label tells bars apart."""
    n = len(labels)
    cut = [text if len(text) * n < 90 else text[: max(3, 90 // n)] for text in labels]
    if len(set(cut)) == len(set(labels)):
        return cut
    room = max(1, 90 // n - 3)
    return [f"{at + 1} {text[:room]}" for at, text in enumerate(labels)]


def _legend(names: list[str]) -> list[str]:
    parts, x = [], float(_LEFT)
    for place, name in enumerate(names):
        parts.append(f'<rect x="{x:.0f}" y="{HEIGHT - 24}" width="10" height="10" fill="{_colour(place)}"/>')
        parts.append(_text(x + 14, HEIGHT - 15, name))
        x += 24 + 6.6 * len(name)
    return parts


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", hover: str = "") -> str:
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}{title}</text>'


def _svg(parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return head + "".join(parts) + "</svg>"
