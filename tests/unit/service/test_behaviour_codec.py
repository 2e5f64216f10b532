"""The bytes of the store, fixed: what is written today must be readable by every later version."""

import struct
import zlib

import pytest
import xxhash

from service.behaviour_codec import (
    BehaviourEvent,
    CorruptBytesError,
    StoredBehaviour,
    canonical_id,
    decode_member,
    decode_members,
    decode_profile,
    encode_member,
    encode_profile,
    read_keys,
    surface_code,
    time_to_live_s,
    tombstone_key,
    user_key,
)

EVENT = BehaviourEvent("u_42", "i_9", "cart", 1_764_000_000_123, "item_detail")


def test_member_layout_is_the_documented_one() -> None:
    rest = struct.pack(">BIH", 3, 1_764_000_000, xxhash.xxh32_intdigest(b"item_detail") & 0xFFFF) + b"i_9"
    check = xxhash.xxh32_intdigest(b"u_42" + b"\x01" + rest) & 0xFFFF
    assert encode_member(EVENT) == b"\x01" + struct.pack(">H", check) + rest
    assert decode_member("u_42", encode_member(EVENT)) == StoredBehaviour("i_9", 1_764_000_000_000, "cart")


def test_an_item_id_of_54_bytes_still_fits_a_compact_member() -> None:
    assert len(encode_member(BehaviourEvent("u", "i" * 54, "click", 10**12))) == 64


@pytest.mark.parametrize(
    ("user", "key"),
    [
        ("u_42", "daian:1:main:{u_42}:b"),
        ("a}b{c%d:e", "daian:1:main:{a%7Db%7Bc%25d:e}:b"),
        ("e\u0301", "daian:1:main:{é}:b"),
    ],
)
def test_keys(user: str, key: str) -> None:
    assert user_key("main", user, "b") == key


@pytest.mark.parametrize("tenant", ["", "Main", "a" * 33, "a:b", "a\n"])
def test_bad_tenants_are_refused(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        user_key(tenant, "u", "b")


@pytest.mark.parametrize("text", ["", "a" * 129, "é" * 65, "a\x00", "a\nb", "\x7f", "\x85", "\ud800"])
def test_bad_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an id"):
        canonical_id(text)


@pytest.mark.parametrize(
    "event",
    [
        BehaviourEvent("u", "i", "impression", 10**12),
        BehaviourEvent("u", "i", "click", -1),
        BehaviourEvent("u", "i", "click", 10**18),
        BehaviourEvent("u", "", "click", 10**12),
    ],
)
def test_what_cannot_be_a_member_is_refused(event: BehaviourEvent) -> None:
    with pytest.raises(ValueError, match=r"stored|milliseconds|an id"):
        encode_member(event)


@pytest.mark.parametrize("member", [b"", b"\x01" * 10, "text", 7, None, encode_member(EVENT)[:-1]])
def test_whatever_else_a_server_may_send_is_left_out(member: object) -> None:
    assert decode_members("u_42", [encode_member(EVENT), member]) == ([decode_member("u_42", encode_member(EVENT))], 1)


def test_a_later_version_is_not_guessed_at() -> None:
    rest = encode_member(EVENT)[3:]
    check = xxhash.xxh32_intdigest(b"u_42" + b"\x02" + rest) & 0xFFFF
    with pytest.raises(CorruptBytesError):
        decode_member("u_42", b"\x02" + struct.pack(">H", check) + rest)


def test_profile_round_trip_and_its_check() -> None:
    value = encode_profile("u_42", {"city": "杭州", "age": 31})
    assert decode_profile("u_42", value) == {"city": "杭州", "age": 31}
    for other in ("u_43", "u_4"):
        with pytest.raises(CorruptBytesError):
            decode_profile(other, value)


@pytest.mark.parametrize("body", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_a_profile_that_is_no_object_is_corrupt(body: bytes) -> None:
    value = struct.pack(">BI", 1, zlib.crc32(b"u" + body)) + body
    with pytest.raises(CorruptBytesError):
        decode_profile("u", value)


@pytest.mark.parametrize("attributes", [{"a": float("nan")}, {"a": {1, 2}}])
def test_a_profile_that_json_cannot_hold_is_refused(attributes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"JSON|profile"):
        encode_profile("u", attributes)


def test_the_time_to_live_is_spread_and_steady() -> None:
    seconds = [time_to_live_s(f"u_{number}", 14) for number in range(2_000)]
    assert min(seconds) >= 15 * 86_400
    assert max(seconds) <= 15 * 86_400 * 1.1
    assert max(seconds) - min(seconds) > 15 * 86_400 * 0.09
    assert seconds == [time_to_live_s(f"u_{number}", 14) for number in range(2_000)]


def test_surfaces() -> None:
    assert surface_code(None) == surface_code("") == 0
    assert surface_code("item_detail") != surface_code("cart_page")


@pytest.mark.parametrize("user", ["u_42", "{u}:%", "ü", "u" * 128])
def test_the_keys_of_a_page_are_those_that_are_written(user: str) -> None:
    assert read_keys("main", user) == (
        user_key("main", user, "b"),
        user_key("main", user, "p"),
        tombstone_key("main", user),
    )
