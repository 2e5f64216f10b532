"""What the stages and the growth count is what they say: the encoder's own search, numpy's own memory."""

import numpy as np

from benchmarks.growth import peak_bytes
from benchmarks.scene import Scene
from benchmarks.stages import encoding_table, related_search

NOW_MS = 1_790_000_000_000
SCENE = Scene(n_items=800, n_users=20)


def test_the_search_that_is_timed_is_the_encoders() -> None:
    page = SCENE.batch([3], 9, NOW_MS)
    inputs = SCENE.encoder.encode_request(page)
    n_related = int((inputs.related_age[0] > 0).sum())
    positions, similarity = related_search(SCENE, page)()
    assert len(positions) == n_related > 5
    np.testing.assert_array_equal(similarity, inputs.related_similarity[0, :n_related])


def test_encoding_has_a_line_for_each_part() -> None:
    table, found = encoding_table(SCENE, [5, 9], n_rounds=2)
    assert [len(seconds) for seconds in found.values()] == [2] * 4
    assert [row[0] for row in table.rows] == list(found)
    assert all(min(seconds) > 0 for seconds in found.values())


def test_the_most_that_was_held_at_once_is_counted() -> None:
    def call() -> int:
        large = np.zeros(1_000_000, np.int8)
        small = len(large)
        del large
        return small

    most, given = peak_bytes(call)
    assert given == 1_000_000
    assert 1_000_000 <= most < 1_100_000
    assert peak_bytes(lambda: None)[0] < 10_000, "what was held before does not count"
