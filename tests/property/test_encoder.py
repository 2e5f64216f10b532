"""What Encoder.encode promises whatever it is given: alone = in a batch, order never matters, no future."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.behaviour_codec import StoredBehaviour
from service.contract import encoder as encoder_module
from service.contract.encoder import CANDIDATE_SIDE, ModelInputs
from service.contract.requests import RequestBatch
from service.contract.rules import MISSING
from service.contract.vocabulary import Vocabulary
from service.question import Question, batch_of, row_of
from tests.property.worlds import ITEMS, NOW, RULES, batch, catalogue, encoder, item_ids, rows

# what a profile or a caller may hold: known or not, of any kind, lone surrogates and infinities included
values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | item_ids
    | st.sampled_from(["u3", "20", "40.0", 20.0, "", " 7 "])
)
PADDED = ("history_fields", "history_similarity", "history_age", "related_fields", "related_similarity", "related_age")


def assert_same(left: ModelInputs, right: ModelInputs) -> None:
    """Equal bit for bit, whatever the padding."""
    for name, a, b in zip(ModelInputs._fields, left, right, strict=True):
        if name in PADDED:
            width = min(a.shape[1], b.shape[1])
            fill = MISSING if name.endswith("similarity") else 0
            assert (a[:, width:] == fill).all(), name
            assert (b[:, width:] == fill).all(), name
            a, b = a[:, :width], b[:, :width]
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert a.tobytes() == b.tobytes(), name


def part(inputs: ModelInputs, r: int) -> ModelInputs:
    """Request r alone, cut out of an encoded batch."""
    own = inputs.candidate_request == r
    cut = {name: getattr(inputs, name)[own] for name in CANDIDATE_SIDE}
    cut["candidate_request"] = np.zeros(own.sum(), np.int64)
    return ModelInputs(*(cut.get(name, array[r : r + 1]) for name, array in inputs._asdict().items()))


@given(st.lists(rows, min_size=1, max_size=4))
def test_alone_is_in_a_batch_bit_for_bit(given_rows: list[dict[str, object]]) -> None:
    together = encoder().encode(batch(*given_rows))
    for r, row in enumerate(given_rows):
        assert_same(encoder().encode(batch(row)), part(together, r))


@given(rows)
def test_the_short_way_of_one_request_gives_the_arrays_of_the_general_one(row: dict[str, object]) -> None:
    """A batch of one has no padding to make and no owners to follow; twice the same row goes the general way."""
    alone, general = encoder().encode(batch(row)), part(encoder().encode(batch(row, row)), 0)
    for name, one, other in zip(ModelInputs._fields, alone, general, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes()), name
        assert one.flags.c_contiguous, name


def long_row() -> dict[str, object]:
    """More behaviours than any rule keeps, the like ones not the newest."""
    catalogued = encoder().catalogue
    like = catalogued.similarity(catalogued.rows(["item-1"] * 40), catalogued.rows(ITEMS))
    by_likeness = [ITEMS[place] for place in np.argsort(like, kind="stable")[::-1]]
    clicks = [{"item": item, "at": NOW - 9_000_000 - k * 1_000, "type": "click"} for k, item in enumerate(by_likeness)]
    return {"request_id": "r", "requested_at": NOW, "trigger": "item-1", "behaviours": clicks[::-1][-20:]}


@pytest.mark.parametrize("saboteur", [None, "first_of_newest", "most_similar"])
def test_a_cut_that_only_one_of_the_ways_makes_is_noticed(
    saboteur: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = long_row()
    general = part(encoder().encode(batch(row, row)), 0)
    assert general.history_age.shape[1] == RULES.max_length
    assert general.related_age.shape[1] == RULES.related_max
    if saboteur is None:
        assert_same(encoder().encode(batch(row)), general)
        return
    uncut: dict[str, object] = {
        "first_of_newest": lambda *_: 0,
        "most_similar": lambda similarity, _, at_most: np.arange(min(at_most, len(similarity))),
    }
    monkeypatch.setattr(encoder_module, saboteur, uncut[saboteur])
    with pytest.raises(AssertionError):
        assert_same(encoder().encode(batch(row)), general)


@given(values)
def test_one_value_is_encoded_as_among_others(value: object) -> None:
    for known in (
        encoder()._vocabularies["user.user"],
        encoder()._vocabularies["user.age"],
        Vocabulary.from_values([]),
    ):
        assert [known.encode_one(value)] * 2 == known.encode([value, value]).tolist()
    if value is None or isinstance(value, str):
        assert [catalogue().row(value)] * 2 == catalogue().rows([value, value]).tolist()


@given(rows, st.randoms(use_true_random=False))
def test_order_of_behaviours_never_matters(row: dict[str, object], random: object) -> None:
    shuffled = list(row["behaviours"])
    random.shuffle(shuffled)
    assert_same(encoder().encode(batch(row)), encoder().encode(batch({**row, "behaviours": shuffled})))


@given(rows, st.randoms(use_true_random=False))
def test_order_of_candidates_only_permutes_them(row: dict[str, object], random: object) -> None:
    order = list(range(len(row["candidates"])))
    random.shuffle(order)
    straight = encoder().encode(batch(row))
    permuted = encoder().encode(batch({**row, "candidates": [row["candidates"][place] for place in order]}))
    picked = {name: getattr(straight, name)[np.array(order, np.int64)] for name in CANDIDATE_SIDE}
    assert_same(permuted, straight._replace(**picked))


@given(rows, st.lists(st.integers(0, 3_600_000), max_size=4))
def test_nothing_from_the_future(row: dict[str, object], ahead: list[int]) -> None:
    later = [{"item": "item-1", "at": row["requested_at"] + ms, "type": "click"} for ms in ahead]
    seen = encoder().encode(batch({**row, "behaviours": [*row["behaviours"], *later]}))
    assert_same(seen, encoder().encode(batch(row)))


@given(rows)
def test_milliseconds_of_the_past_never_matter(row: dict[str, object]) -> None:
    """The store keeps whole seconds, files may have milliseconds."""
    past = [behaviour for behaviour in row["behaviours"] if behaviour["at"] < row["requested_at"]]
    stored = [{**behaviour, "at": behaviour["at"] // 1_000 * 1_000} for behaviour in past]
    assert_same(encoder().encode(batch(row)), encoder().encode(batch({**row, "behaviours": stored})))


def test_nothing_from_the_future_notices_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The saboteur: with the cut off, the property above fails."""
    monkeypatch.setattr(encoder_module, "is_visible", lambda _rules, before, *_: np.ones(len(before), np.bool_))
    row = {"request_id": "r", "requested_at": NOW, "trigger": "item-1", "behaviours": []}
    leaking = encoder().encode(batch({**row, "behaviours": [{"item": "item-2", "at": NOW, "type": "click"}]}))
    with pytest.raises(AssertionError):
        assert_same(leaking, encoder().encode(batch(row)))


# ages go by whole seconds: in the window's last second a click may count as older than the window
@given(rows, st.integers(1, RULES.opening_window_s * 1_000 - 999))
def test_the_click_that_opened_the_page_may_have_arrived_or_not(row: dict[str, object], ms: int) -> None:
    opening = {"item": row["trigger"], "at": row["requested_at"] - ms, "type": "click"}
    arrived = encoder().encode(batch({**row, "behaviours": [*row["behaviours"], opening]}))
    assert_same(arrived, encoder().encode(batch(row)))


@given(rows)
def test_rows_are_columns(row: dict[str, object]) -> None:
    there = batch(row, row)
    back = RequestBatch.from_rows(there.to_rows())
    assert_same(encoder().encode(there), encoder().encode(back))


@given(rows)
def test_a_question_in_columns_is_its_row_in_columns(row: dict[str, object]) -> None:
    """What is encoded now is what training makes of the row that is logged."""
    behaviours = [StoredBehaviour(**behaviour) for behaviour in row["behaviours"]]
    question = Question("r", row["requested_at"], row["user"]["user"], row["trigger"], context=row["context"])
    asked = question, encoder().schema, row["user"], behaviours
    there, logged = batch_of(*asked), RequestBatch.from_rows([row_of(*asked, [])])
    assert there.to_rows() == logged.to_rows()
    assert_same(encoder().encode(there), encoder().encode(logged))
    for name in there.__dataclass_fields__:
        one, other = getattr(there, name), getattr(logged, name)
        if name in ("user", "context"):
            assert {key: column.tolist() for key, column in one.items()} == {
                key: column.tolist() for key, column in other.items()
            }
        else:
            assert (one.dtype, one.tolist()) == (other.dtype, other.tolist()), name


@given(st.lists(rows, min_size=1, max_size=4), st.data())
def test_taking_and_joining_requests_changes_none(given_rows: list[dict[str, object]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(given_rows) - 1), min_size=1, max_size=5))
    taken = encoder().encode(batch(*given_rows).take(np.array(chosen, np.int64)))
    joined = encoder().encode(RequestBatch.concat([batch(given_rows[r]) for r in chosen]))
    assert_same(taken, joined)


@given(st.lists(rows, min_size=1, max_size=3))
def test_every_id_has_its_row_in_the_tables(given_rows: list[dict[str, object]]) -> None:
    inputs, sizes = encoder().encode(batch(*given_rows)), encoder().sizes
    for name, heights in (("user", sizes.user), ("context", sizes.context), ("trigger", sizes.item)):
        fields = getattr(inputs, f"{name}_fields")
        assert ((fields >= 0) & (fields < np.array(heights))).all()
    for name in ("history_fields", "related_fields", "candidate_fields"):
        fields = getattr(inputs, name)
        assert ((fields >= 0) & (fields < np.array(sizes.item))).all()
    assert ((inputs.history_age >= 0) & (inputs.history_age < sizes.n_age_bins)).all()


@given(rows)
def test_related_history_is_what_its_definition_says(row: dict[str, object]) -> None:
    """Checked against a search without FAISS, written from the definition."""
    inputs = encoder().encode(batch(row))
    found = inputs.related_similarity[0][inputs.related_age[0] > 0]
    catalogue, rules = encoder().catalogue, encoder().rules
    trigger = catalogue.rows([row["trigger"]])
    visible = []
    for behaviour in sorted(row["behaviours"], key=lambda b: (b["at"], catalogue.rows([b["item"]])[0])):
        age = row["requested_at"] - behaviour["at"]
        opening = behaviour["item"] == row["trigger"] and age <= rules.opening_window_s * 1_000
        if behaviour["type"] in rules.types and 0 < age <= rules.related_window_s * 1_000 and not opening:
            visible.append(float(catalogue.similarity(trigger, catalogue.rows([behaviour["item"]]))[0]))
    searched = visible[-rules.related_searched :]
    places = [place for place, value in enumerate(searched) if value >= np.float32(rules.related_threshold)]
    best = sorted(sorted(places, key=lambda place: (-searched[place], -place))[: rules.related_max])
    assert found.tolist() == [searched[place] for place in best]


@given(rows)
def test_history_is_what_its_definition_says(row: dict[str, object]) -> None:
    """The newest behaviours that count, within the window, without the click that opened the page; in whole seconds."""
    catalogue, rules = encoder().catalogue, encoder().rules
    visible = []
    for behaviour in row["behaviours"]:
        at = behaviour["at"] // 1_000 * 1_000
        age = row["requested_at"] - at
        opening = behaviour["item"] == row["trigger"] and age <= rules.opening_window_s * 1_000
        in_time = behaviour["at"] < row["requested_at"] and age <= rules.window_s * 1_000
        if behaviour["type"] in rules.types and in_time and not opening:
            visible.append((at, int(catalogue.rows([behaviour["item"]])[0])))
    expected = [place for _, place in sorted(visible)[-rules.max_length :]]
    inputs = encoder().encode(batch(row))
    found = inputs.history_fields[0][inputs.history_age[0] > 0]
    assert found.tolist() == encoder()._fields_of(np.array(expected, np.int64)).tolist()
