"""Whatever bytes come back, they are this user's own behaviours or nothing; no two users share a key."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import behaviour_codec
from service.behaviour_codec import (
    TYPE_CODES,
    BehaviourEvent,
    CorruptBytesError,
    StoredBehaviour,
    canonical_id,
    decode_member,
    decode_members,
    decode_profile,
    encode_member,
    encode_profile,
    user_key,
)

IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda text: len(text.encode()) <= 128
)
HOSTILE_IDS = st.text("{}:%ab7BD", min_size=1, max_size=12)
TENANTS = st.from_regex(r"[a-z0-9-]{1,32}", fullmatch=True)
EVENTS = st.builds(
    BehaviourEvent,
    user=IDS,
    item=IDS,
    type=st.sampled_from(sorted(TYPE_CODES)),
    at=st.integers(0, (2**32 - 1) * 1000),
    surface=st.none() | IDS,
)


@given(EVENTS)
def test_members_round_trip(event: BehaviourEvent) -> None:
    expected = StoredBehaviour(canonical_id(event.item), event.at // 1000 * 1000, event.type)
    assert decode_member(event.user, encode_member(event)) == expected


@given(EVENTS, EVENTS)
def test_equal_members_are_the_same_behaviour(one: BehaviourEvent, other: BehaviourEvent) -> None:
    def identity(event: BehaviourEvent) -> tuple[object, ...]:
        surface = behaviour_codec.surface_code(event.surface)
        return canonical_id(event.user), canonical_id(event.item), event.type, event.at // 1000, surface

    other = BehaviourEvent(one.user, other.item, other.type, other.at, other.surface)
    assert (encode_member(one) == encode_member(other)) == (identity(one) == identity(other))


@given(EVENTS, st.data())
def test_a_flipped_bit_is_found_or_harmless(event: BehaviourEvent, data: st.DataObject) -> None:
    """One bit anywhere: xxh32 is not a code with a guarantee, so a flip may survive, but only once in some 65,000."""
    member = bytearray(encode_member(event))
    place = data.draw(st.integers(0, len(member) * 8 - 1))
    member[place // 8] ^= 1 << place % 8
    behaviours, n_corrupt = decode_members(event.user, [bytes(member)])
    assert len(behaviours) + n_corrupt == 1


@given(st.binary(max_size=80), IDS)
def test_no_bytes_make_the_decoders_raise_anything_else(noise: bytes, user: str) -> None:
    assert len(decode_members(user, [noise])[0]) <= 1
    try:
        decode_profile(user, noise)
    except CorruptBytesError:
        return


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.text("aé{}\"'") | st.none())
)
def test_profiles_round_trip(attributes: dict[str, object]) -> None:
    assert decode_profile("u_1", encode_profile("u_1", attributes)) == attributes


@given(TENANTS, HOSTILE_IDS | IDS, TENANTS, HOSTILE_IDS | IDS)
def test_no_two_users_share_a_key(tenant: str, user: str, other_tenant: str, other: str) -> None:
    is_same = (tenant, canonical_id(user)) == (other_tenant, canonical_id(other))
    assert (user_key(tenant, user, "b") == user_key(other_tenant, other, "b")) == is_same


@given(TENANTS, HOSTILE_IDS | IDS)
def test_all_keys_of_a_user_share_a_slot(tenant: str, user: str) -> None:
    """The slot is made from what stands between the first brace and the next closing one."""
    tags = set()
    for suffix in "bpx":
        key = user_key(tenant, user, suffix)
        opening = key.index("{")
        tags.add(key[opening + 1 : key.index("}", opening)])
        assert key.index("}", opening) == key.rindex("}")
    assert len(tags) == 1
    assert tags != {""}


def test_saboteur_without_escaping_two_users_share_a_slot_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour_codec, "_ESCAPES", {})
    with pytest.raises(AssertionError):
        test_all_keys_of_a_user_share_a_slot.hypothesis.inner_test("main", "}a")  # type: ignore[attr-defined]


def damage(rng: random.Random) -> tuple[str, bytes]:
    """A user, and a member that is not this user's: another's, or their own with one to three bits flipped."""
    user = f"u_{rng.randrange(10**6)}"
    event = BehaviourEvent(user, f"i_{rng.randrange(10**6)}", "click", rng.randrange(10**12, 2 * 10**12))
    if rng.random() < 0.5:
        return user + "x", encode_member(event)
    member = bytearray(encode_member(event))
    for place in rng.sample(range(len(member) * 8), rng.randint(1, 3)):
        member[place // 8] ^= 1 << place % 8
    return user, bytes(member)


def n_believed(make: Callable[[random.Random], tuple[str, bytes]], n: int) -> int:
    rng = random.Random(7)
    return sum(len(decode_members(user, [member])[0]) for user, member in (make(rng) for _ in range(n)))


def test_damaged_and_foreign_members_are_left_out() -> None:
    """16 bits let one in 65,536 through: of 20,000 at most 4 (the chance of more is below one in ten million)."""
    assert n_believed(damage, 20_000) <= 4


def test_saboteur_without_the_check_they_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour_codec, "_check", lambda _, member: int.from_bytes(member[1:3], "big"))
    assert n_believed(damage, 2_000) > 1_000
