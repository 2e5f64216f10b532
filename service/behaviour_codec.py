"""The bytes of the behaviour store: keys, sorted-set members, profiles.

What lives here: how a user becomes a key (one hash slot per user), how a behaviour becomes a member and back, how a
profile becomes a value and back, where it says that a user was erased. Every value carries a check over the user it
belongs to, so that neither a flipped bit nor the reply to somebody else's request is ever taken for this user's data.
Called by `user_store.py` and `store_tools.py`. Never talks to a store, reads no clock, and never logs.

Member, big-endian: `ver u8, check u16, type u8, time_s u32, surface u16, item id (UTF-8)`
Profile, big-endian: `ver u8, crc32 u32, JSON object (UTF-8)`
"""

import binascii
import functools
import hashlib
import json
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

KEY_PREFIX = "daian:1"
MAIN_TENANT = "main"
USER_SUFFIXES = "bp"  # behaviours, profile: every key with a user's id in it
N_SLOTS = 16_384
MEMBER_VERSION = 1
PROFILE_VERSION = 1
MAX_ID_BYTES = 128

TYPE_CODES: Mapping[str, int] = {"click": 1, "favourite": 2, "cart": 3, "purchase": 4, "dislike": 5}
_TYPE_NAMES = {code: name for name, code in TYPE_CODES.items()}

_MEMBER_HEAD = struct.Struct(">BHBIH")
_HEAD_BYTES, _unpack_head = _MEMBER_HEAD.size, _MEMBER_HEAD.unpack_from  # looked up for every behaviour of every page
_PROFILE_HEAD = struct.Struct(">BI")
_TENANT = re.compile(r"[a-z0-9-]{1,32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_MAX_TIME_S = 2**32 - 1


class StoredBehaviour(NamedTuple):
    """One behaviour out of the store; `at` in epoch milliseconds, on a whole second: the store keeps seconds."""

    item: str
    at: int
    type: str


@dataclass(frozen=True, slots=True)
class BehaviourEvent:
    """One behaviour as it is sent; `at` in epoch milliseconds. Its identity is (user, item, type, second, surface)."""

    user: str
    item: str
    type: str
    at: int
    surface: str | None = None


class CorruptBytesError(ValueError):
    """Bytes in the store that this user's data cannot be: flipped, cut, of another version, or of another user."""


def canonical_id(text: str) -> str:
    """The spelling under which an id is stored and looked up (NFC).

    Raises:
        ValueError: empty, over 128 bytes of UTF-8, with control characters or lone surrogates.
    """
    if not text or len(text.encode("utf-8", "replace")) > MAX_ID_BYTES:
        raise ValueError(f"an id has 1 to {MAX_ID_BYTES} bytes of UTF-8: send another id")
    if _CONTROL.search(text):
        raise ValueError("an id has no control characters: send it without them")
    if text.isascii():
        return text
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("an id is valid Unicode without lone surrogates: send it without them")
    return unicodedata.normalize("NFC", text)


def user_key(tenant: str, user_id: str, suffix: str) -> str:
    """The key of one user's value, e.g. `daian:1:main:{u_42}:b`. All keys of a user fall into one hash slot."""
    if not _TENANT.fullmatch(tenant):
        raise ValueError("a tenant is 1 to 32 characters of a-z, 0-9 and '-': rename it")
    return f"{KEY_PREFIX}:{tenant}:{{{canonical_id(user_id).translate(_ESCAPES)}}}:{suffix}"


def tombstone_key(tenant: str, user_id: str) -> str:
    """The key that says when a user was erased, e.g. `daian:1:main:{2848}:x:0a19...`.

    It outlives the user, so it holds a hash in place of the id. It lies in the hash slot of the user's other keys all
    the same: four characters that fall into the slot take the id's place between the braces.
    """
    return _tombstone_of(tenant, user_key(tenant, user_id, ""))


def read_keys(tenant: str, user_id: str) -> tuple[str, str, str]:
    """What is read for a page: the keys of behaviours, profile and tombstone, as the functions above make them."""
    bare = user_key(tenant, user_id, "")
    behaviours, profile = (bare + suffix for suffix in USER_SUFFIXES)
    return behaviours, profile, _tombstone_of(tenant, bare)


def _tombstone_of(tenant: str, bare: str) -> str:
    tag = bare[bare.index("{") + 1 : bare.index("}")]
    digest = hashlib.sha256(bare.encode()).hexdigest()[:32]
    return f"{KEY_PREFIX}:{tenant}:{{{_tag_in(hash_slot(tag))}}}:x:{digest}"


def hash_slot(tag: str) -> int:
    """The hash slot of all keys with `{tag}` in them: the CRC16 (XMODEM) of Redis' cluster specification."""
    return binascii.crc_hqx(tag.encode(), 0) % N_SLOTS


@functools.cache  # of 16,384 slots, which tell nothing of a user
def _tag_in(slot: int) -> str:
    """Four characters of `0` to `?` that fall into a slot. A CRC is linear: each bit flipped adds its own part."""
    wanted, flipped = slot ^ hash_slot("0000"), 0
    for part, bits in _slot_parts():
        if wanted ^ part < wanted:
            wanted, flipped = wanted ^ part, flipped ^ bits
    return _tag_of(flipped)


@functools.cache
def _slot_parts() -> tuple[tuple[int, int], ...]:
    """(what it adds to the slot, bits flipped) for each of a slot's 14 bits, highest first."""
    parts: dict[int, tuple[int, int]] = {}
    for bit in range(16):
        part, bits = hash_slot(_tag_of(1 << bit)) ^ hash_slot("0000"), 1 << bit
        while part and part.bit_length() in parts:
            more, flipped = parts[part.bit_length()]
            part, bits = part ^ more, bits ^ flipped
        if part:
            parts[part.bit_length()] = part, bits
    return tuple(parts[top] for top in sorted(parts, reverse=True))


def _tag_of(bits: int) -> str:
    return "".join(chr(ord("0") + (bits >> 4 * place & 15)) for place in range(4))


def end_of_second(at: int) -> int:
    """The last millisecond of a time's second: a behaviour's time is kept in whole seconds."""
    return at // 1000 * 1000 + 999


def surface_code(surface: str | None) -> int:
    """Sixteen bits that tell surfaces apart; no network reads them. 0 for no surface."""
    return xxhash.xxh32_intdigest(surface.encode()) & 0xFFFF if surface else 0


def encode_member(event: BehaviourEvent) -> bytes:
    """The sorted-set member of an event: two events with the same identity give the same bytes.

    Raises:
        ValueError: an unknown type, a time outside 1970..2106, a bad id.
    """
    type_code = TYPE_CODES.get(event.type)
    if type_code is None:
        raise ValueError(f"only {', '.join(TYPE_CODES)} are stored as behaviours: drop other types before")
    time_s = event.at // 1000
    if not 0 <= time_s <= _MAX_TIME_S:
        raise ValueError("a behaviour's time is epoch milliseconds between 1970 and 2106: check its unit")
    item, surface = canonical_id(event.item).encode(), surface_code(event.surface)
    bare = _MEMBER_HEAD.pack(MEMBER_VERSION, 0, type_code, time_s, surface) + item
    check = _check(_checked_prefix(event.user), bare)
    return _MEMBER_HEAD.pack(MEMBER_VERSION, check, type_code, time_s, surface) + item


def decode_member(user_id: str, member: bytes) -> StoredBehaviour:
    """The behaviour in a member of `user_id`'s sorted set.

    Raises:
        CorruptBytesError: whatever cannot be one of this user's members.
    """
    return _decode(_checked_prefix(user_id), member)


def decode_members(user_id: str, members: Iterable[object]) -> tuple[list[StoredBehaviour], int]:
    """The behaviours in a reply, in its order, and how many members were left out as corrupt."""
    prefix, behaviours, n_corrupt = _checked_prefix(user_id), [], 0
    for member in members:
        try:
            behaviours.append(_decode(prefix, member))
        except CorruptBytesError:
            n_corrupt += 1
    return behaviours, n_corrupt


def encode_profile(user_id: str, attributes: Mapping[str, object]) -> bytes:
    """The value of a user's profile key.

    Raises:
        ValueError: an attribute that JSON cannot hold, NaN and infinity among them.
    """
    try:
        body = json.dumps(attributes, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except TypeError as error:
        raise ValueError("a profile holds strings, numbers, booleans, null, lists and objects only") from error
    return _PROFILE_HEAD.pack(PROFILE_VERSION, _crc(user_id, body)) + body


def decode_profile(user_id: str, value: bytes) -> dict[str, object]:
    """The attributes in a profile value of `user_id`.

    Raises:
        CorruptBytesError: whatever cannot be this user's profile.
    """
    if len(value) <= _PROFILE_HEAD.size:
        raise CorruptBytesError("a profile is too short")
    version, crc = _PROFILE_HEAD.unpack_from(value)
    body = value[_PROFILE_HEAD.size :]
    if version != PROFILE_VERSION or crc != _crc(user_id, body):
        raise CorruptBytesError("a profile has an unknown version or fails its check")
    try:
        attributes = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptBytesError("a profile is not JSON") from error
    if not isinstance(attributes, dict):
        raise CorruptBytesError("a profile is not a JSON object")
    return attributes


def time_to_live_s(user_id: str, window_days: int) -> int:
    """Seconds until an untouched history expires: the window and a day, plus 0 to 10 %, always the same for one user.

    The spread keeps users who were loaded together from expiring together.
    """
    share = xxhash.xxh32_intdigest(canonical_id(user_id).encode()) % 1001 / 10_000
    return int((window_days + 1) * 86_400 * (1 + share))


def _decode(prefix: bytes, member: object) -> StoredBehaviour:
    if not isinstance(member, bytes) or len(member) <= _HEAD_BYTES:
        raise CorruptBytesError("a member is too short")
    version, check, type_code, time_s, _ = _unpack_head(member)
    name = _TYPE_NAMES.get(type_code)
    if version != MEMBER_VERSION or name is None or check != _check(prefix, member):
        raise CorruptBytesError("a member has an unknown version or type, or fails its check")
    try:
        return StoredBehaviour(member[_HEAD_BYTES:].decode(), time_s * 1000, name)
    except UnicodeDecodeError as error:
        raise CorruptBytesError("a member's item is not UTF-8") from error


def _checked_prefix(user_id: str) -> bytes:
    """What a member's check covers in front of the member: its user, and the version of every member of ours.

    No user id holds a control character and the version is one, so user and member cannot run into each other.
    """
    return canonical_id(user_id).encode() + bytes([MEMBER_VERSION])


def _check(prefix: bytes, member: bytes) -> int:
    """Low 16 bits of xxh32 over the user and all of the member but the check itself."""
    return xxhash.xxh32_intdigest(prefix + member[3:]) & 0xFFFF


def _crc(user_id: str, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(canonical_id(user_id).encode()))
