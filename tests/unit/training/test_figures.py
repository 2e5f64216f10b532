"""Charts are well-formed SVG, say every value, and keep what cannot be drawn out."""

import math
import xml.etree.ElementTree as ET

from training.figures import bars, lines

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_high_as_their_values_and_none_is_drawn_for_nan() -> None:
    text = bars("a < b", ["1", "2", "3"], {"x & y": [1.0, 2.0, math.nan]}, {"x & y": [0.1, math.nan, math.nan]})
    root = ET.fromstring(text)
    drawn = [rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None]
    heights = [float(rect.attrib["height"]) for rect in drawn]
    assert len(heights) == 2
    assert abs(heights[1] / heights[0] - 2) < 0.01
    assert "nan" not in text


def whiskers(text: str) -> list[tuple[float, float]]:
    """Heights of the ends, lower end first; larger is lower in an SVG."""
    found = [line.attrib for line in ET.fromstring(text).iter(f"{SVG}line") if line.attrib["stroke"] == "#222"]
    return [(float(line["y1"]), float(line["y2"])) for line in found]


def test_a_spread_is_drawn_both_ways_and_an_interval_from_end_to_end() -> None:
    series = {"x": [1.0, 2.0, 3.0]}
    ((low, high),) = whiskers(bars("t", ["a", "b", "c"], series, {"x": [math.nan, 0.5, math.nan]}))
    ends = {"x": [(math.nan, math.nan), (1.5, 2.5), (math.nan, math.nan)]}
    assert whiskers(bars("t", ["a", "b", "c"], series, intervals=ends)) == [(low, high)]
    skewed = {"x": [(math.nan, math.nan), (1.5, 2.25), (math.nan, math.nan)]}
    ((same, less),) = whiskers(bars("t", ["a", "b", "c"], series, intervals=skewed))
    assert same == low
    assert abs((same - less) / (low - high) - 0.75) < 0.01


def test_negative_bars_hang_below_zero() -> None:
    root = ET.fromstring(bars("gain", ["a", "b"], {"x": [0.5, -0.5]}))
    up, down = (rect for rect in root.iter(f"{SVG}rect") if rect.find(f"{SVG}title") is not None)
    assert abs(float(up.attrib["y"]) + float(up.attrib["height"]) - float(down.attrib["y"])) < 0.2


def test_lines_leave_out_points_that_are_not_there() -> None:
    text = lines("curve", {"one": [(1.0, 0.1), (2.0, math.nan), (3.0, 0.3)], "none": []}, "x", diagonal=True)
    root = ET.fromstring(text)
    assert len(list(root.iter(f"{SVG}circle"))) == 2
    assert "nan" not in text


def test_labels_that_would_be_cut_to_equal_texts_are_numbered() -> None:
    titles = ["DAIAN", *(f"DAIAN w/o {part}" for part in ("UIM", "DIE", "SEIN", "three stages"))]
    root = ET.fromstring(bars("t", titles, {"x": [1.0] * 5}))
    shown = [text.text for text in root.iter(f"{SVG}text") if text.find(f"{SVG}title") is not None]
    assert len(set(shown)) == len(titles)
