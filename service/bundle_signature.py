"""Signatures of bundles: whoever holds the private key vouches for a manifest, and so for every file that it hashes.

`daian bundle sign` writes `manifest.sig` beside the manifest: the Ed25519 signature of its bytes, in base64, as
`openssl pkeyutl -sign -rawin` makes it. With `DAIAN_BUNDLE_PUBLIC_KEY` set, service, doctor and command line take only
what one of the named keys signed; that is asked before a byte of the manifest is parsed. Without it nothing is asked.

Never here: the private key's place, and how young a bundle is; an old one that was signed stays signed.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.contract.bundle import MANIFEST, SIGNATURE, read_bundle, read_signature, write_signature
from service.contract.errors import BundleError
from service.contract.pointer import read_manifest
from service.settings import Settings, SettingsError, variable

if TYPE_CHECKING:  # loaded where a key is named, and nowhere else
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64  # of Ed25519 (RFC 8032, 5.1.6)
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)

SignedCheck = Callable[[Path, bytes], None]


def signed_check(settings: Settings) -> SignedCheck | None:
    """What `read_bundle` asks of every bundle; None when no key is named. Raises SettingsError for a bad key."""
    if settings.bundle_public_key is None:
        return None
    keys = _public_keys(settings.bundle_public_key)
    return lambda path, manifest: check_signed(keys, path, manifest)


def check_signed(keys: "Sequence[Ed25519PublicKey]", path: Path, manifest: bytes) -> None:
    """Raises BundleError unless one of the keys signed these bytes, the manifest of the bundle in `path`."""
    from cryptography.exceptions import InvalidSignature

    if not (path / SIGNATURE).exists():
        raise BundleError(f"{path / SIGNATURE} is missing and {variable('bundle_public_key')} is set: {_advice(path)}")
    signature = _decoded(path)
    for key in keys:
        try:
            key.verify(signature, manifest)
            return
        except InvalidSignature:
            continue
    raise BundleError(
        f"{path / SIGNATURE} is no signature of {MANIFEST} by a key of {variable('bundle_public_key')} "
        f"({len(keys)} named): the manifest was altered, or another key signed it"
    )


def check_folder(check: SignedCheck | None, path: Path) -> None:
    """The same for a bundle that nobody has read yet. Raises BundleError; no key, no question."""
    if check is not None:
        check(path, read_manifest(path))


def sign_bundle(path: Path, key_file: Path) -> None:
    """Signs the bundle in `path` after checking its hashes; a signature that is there is replaced.

    Raises BundleError for a bundle that is not whole, ValueError for a file that holds no Ed25519 key.
    """
    key, checked = _private_key(key_file), list[bytes]()
    read_bundle(path, lambda _, manifest: checked.append(manifest))
    write_signature(path, base64.b64encode(key.sign(checked[0])) + b"\n")  # the very bytes whose hashes held


def _decoded(path: Path) -> bytes:
    try:
        signature = base64.b64decode(read_signature(path).strip(), validate=True)
    except binascii.Error as error:
        raise BundleError(f"{path / SIGNATURE} is not base64 ({error}): {_advice(path)}") from error
    if len(signature) != SIGNATURE_BYTES:
        raise BundleError(
            f"{path / SIGNATURE} holds {len(signature)} bytes, an Ed25519 signature has {SIGNATURE_BYTES}: "
            f"{_advice(path)}"
        )
    return signature


def _advice(path: Path) -> str:
    return f"`daian bundle sign --key FILE {path}` where the key is"


def _public_keys(text: str) -> "list[Ed25519PublicKey]":
    """The keys of one or more PEM blocks; two while one takes the other's place."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    blocks = _PEM.findall(text)
    if not blocks:
        raise SettingsError(f"{variable('bundle_public_key')} holds no PEM block: {_KEY_ADVICE}")
    try:
        keys = [load_pem_public_key(block.encode()) for block in blocks]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"{variable('bundle_public_key')} cannot be read ({error}): {_KEY_ADVICE}") from error
    strangers = [type(key).__name__ for key in keys if not isinstance(key, Ed25519PublicKey)]
    if strangers:
        raise SettingsError(f"{variable('bundle_public_key')} holds {strangers[0]}, no Ed25519 key: {_KEY_ADVICE}")
    return [key for key in keys if isinstance(key, Ed25519PublicKey)]


_KEY_ADVICE = "`openssl pkey -in KEY -pubout` writes the public part of a key"


def _private_key(file: Path) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    make = f"`openssl genpkey -algorithm ed25519 -out {file}` makes one"
    try:
        key = load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # the library's words may quote the file
        raise ValueError(f"{file} is no private key without a passphrase in PEM: {make}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"{file} holds a {type(key).__name__}, no Ed25519 key: {make}")
    return key
