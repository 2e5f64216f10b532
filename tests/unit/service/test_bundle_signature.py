"""Only what a pinned key signed is served; without a pinned key nothing is asked."""

import asyncio
import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as other_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service import bundle_signature as module
from service.bundle_signature import sign_bundle, signed_check
from service.bundle_swap import BundleSwap
from service.bundle_trial import Trial, TrialPlan
from service.cli import run
from service.contract.bundle import SIGNATURE, point_to, read_bundle
from service.contract.errors import BundleError
from service.contract.manifest import with_digest
from service.errors import BundleRefused
from service.runtime import RuntimeSwitch, Shared
from service.settings import Settings, SettingsError, read_settings
from tests.small_bundle import write_small_bundle

# Appendix of RFC 8032, 7.1, test 3: a key, a message and its signature that are not ours.
RFC_PUBLIC = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
RFC_MESSAGE = bytes.fromhex("af82")
RFC_SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


class Untried(Trial):
    """No child: what a signature refuses must not get to one."""

    def __init__(self) -> None:
        super().__init__(TrialPlan(256, 1, 60))
        self.n_tried = 0

    def run(self, path: Path) -> None:  # noqa: ARG002
        self.n_tried += 1


def pem(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_file(folder: Path, key: object) -> Path:
    path = folder / "bundle.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))  # type: ignore[attr-defined]
    return path


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def root(tmp_path: Path, key: Ed25519PrivateKey) -> Path:
    """v1 is signed and current, v2 lies beside it, unsigned."""
    root = tmp_path / "bundles"
    first = write_small_bundle(root, version="v1")
    write_small_bundle(root, version="v2")
    sign_bundle(first.path, key_file(tmp_path, key))
    point_to(root, first)
    return root


@pytest.fixture
def swap(root: Path, shared: Shared, key: Ed25519PrivateKey) -> Iterator[BundleSwap]:
    settings = Settings(bundle_root=root, bundle_public_key=pem(key))
    made = BundleSwap(settings, shared, RuntimeSwitch(shared.metrics), Untried())
    made.open_first()
    yield made
    made.close()


def promoted(swap: BundleSwap, version: str = "v2") -> str:
    """The version that answers after the promotion."""
    asyncio.run(swap.promote(version))
    return swap._switch.live.bundle.version


# --- what is refused, and that the old one goes on --------------------------------------------------------------------


def unsigned(path: Path, key: Path) -> None:
    pass


def another_key(path: Path, key: Path) -> None:
    sign_bundle(path, key_file(key.parent, Ed25519PrivateKey.generate()))


def signature_of_another_bundle(path: Path, key: Path) -> None:  # noqa: ARG001
    shutil.copy(path.parent / "v1" / SIGNATURE, path)


def another_manifest(path: Path, key: Path) -> None:
    """Every hash in it is right: the signature alone can tell."""
    sign_bundle(path, key)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(with_digest(manifest | {"prior": 0.9})))


def another_file_with_its_hash(path: Path, key: Path) -> None:
    sign_bundle(path, key)
    golden = path / "golden.jsonl"
    golden.write_bytes(golden.read_bytes().splitlines(keepends=True)[0])
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["golden.jsonl"] = hashlib.sha256(golden.read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(with_digest(manifest)))


def flipped(path: Path, key: Path) -> None:
    sign_bundle(path, key)
    content = bytearray(base64.b64decode((path / SIGNATURE).read_bytes()))
    content[10] ^= 1
    (path / SIGNATURE).write_bytes(base64.b64encode(content))


def cut(path: Path, key: Path) -> None:
    sign_bundle(path, key)
    (path / SIGNATURE).write_bytes(base64.b64encode(base64.b64decode((path / SIGNATURE).read_bytes())[:40]))


def noise(path: Path, key: Path) -> None:  # noqa: ARG001
    (path / SIGNATURE).write_bytes(b"\xff\x00 no base64")


def huge(path: Path, key: Path) -> None:  # noqa: ARG001
    (path / SIGNATURE).write_bytes(b"A" * 100_000)


def link(path: Path, key: Path) -> None:
    sign_bundle(path, key)
    outside = (path / SIGNATURE).rename(path.parents[1] / "signature")
    (path / SIGNATURE).symlink_to(outside)


REFUSED = {
    unsigned: r"manifest\.sig is missing",
    another_key: r"manifest\.sig is no signature of manifest\.json",
    signature_of_another_bundle: r"manifest\.sig is no signature of manifest\.json",
    another_manifest: r"manifest\.sig is no signature of manifest\.json",
    another_file_with_its_hash: r"manifest\.sig is no signature of manifest\.json",
    flipped: r"manifest\.sig is no signature of manifest\.json",
    cut: r"manifest\.sig holds 40 bytes, an Ed25519 signature has 64",
    noise: r"manifest\.sig is not base64",
    huge: r"manifest\.sig has 100000 bytes",
    link: r"manifest\.sig is a link",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda one: one.__name__)
def test_c2_what_no_pinned_key_signed_is_refused_before_anything_parses_it(
    swap: BundleSwap, root: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    spoil(root / "daian/v2", tmp_path / "bundle.key")
    with pytest.raises(BundleRefused, match=REFUSED[spoil]) as refused:
        promoted(swap)
    assert str(root / "daian/v2") in str(refused.value)
    assert swap._switch.live.bundle.version == "v1"
    assert json.loads((root / "current").read_text())["version"] == "v1"
    assert swap._trial.n_tried == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda one: one.__name__)
def test_c2_with_the_question_off_each_of_them_answers(
    swap: BundleSwap, root: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    """The saboteur: nothing else refuses these, but for a link, which no bundle may hold."""
    spoil(root / "daian/v2", tmp_path / "bundle.key")
    swap._check_signed = None
    if spoil is link:
        with pytest.raises(BundleRefused, match="is a link"):
            promoted(swap)
    else:
        assert promoted(swap) == "v2"


def test_what_was_signed_takes_over(swap: BundleSwap, root: Path, tmp_path: Path) -> None:
    sign_bundle(root / "daian/v2", tmp_path / "bundle.key")
    assert promoted(swap) == "v2"
    assert swap._trial.n_tried == 1  # type: ignore[attr-defined]


def test_a_manifest_exchanged_after_the_trial_is_refused(swap: BundleSwap, root: Path, tmp_path: Path) -> None:
    """The bytes that are asked about are those that are parsed, not those of a moment ago."""
    path = root / "daian/v2"
    sign_bundle(path, tmp_path / "bundle.key")

    def exchange(_: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(with_digest(manifest | {"prior": 0.9})))

    swap._trial.run = exchange  # type: ignore[method-assign]
    with pytest.raises(BundleRefused, match="no signature of"):
        promoted(swap)
    assert swap._switch.live.bundle.version == "v1"


def test_a_service_does_not_start_on_what_nobody_signed(root: Path, shared: Shared, key: Ed25519PrivateKey) -> None:
    point_to(root, read_bundle(root / "daian/v2"))
    settings = Settings(bundle_root=root, bundle_public_key=pem(key))
    swap = BundleSwap(settings, shared, RuntimeSwitch(shared.metrics), Untried())
    with pytest.raises(BundleError, match=r"manifest\.sig is missing and DAIAN_BUNDLE_PUBLIC_KEY is set"):
        swap.open_first()
    swap.close()


def test_without_a_pinned_key_nothing_is_asked(root: Path, shared: Shared) -> None:
    (root / "daian/v2" / SIGNATURE).write_bytes(b"of nobody")
    settings = Settings(bundle_root=root)
    assert signed_check(settings) is None
    swap = BundleSwap(settings, shared, RuntimeSwitch(shared.metrics), Untried())
    swap.open_first()
    assert promoted(swap) == "v2"
    swap.close()


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_signature_of_the_standard_is_accepted(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    (tmp_path / SIGNATURE).write_bytes(base64.b64encode(RFC_SIGNATURE))
    keys = [Ed25519PublicKey.from_public_bytes(RFC_PUBLIC)]
    module.check_signed(keys, tmp_path, RFC_MESSAGE)
    with pytest.raises(BundleError):
        module.check_signed(keys, tmp_path, RFC_MESSAGE + b"\n")


def test_each_of_two_keys_may_sign(root: Path, tmp_path: Path, key: Ed25519PrivateKey) -> None:
    second = Ed25519PrivateKey.generate()
    sign_bundle(root / "daian/v2", key_file(tmp_path, second))
    check = signed_check(Settings(bundle_public_key="the old one\n" + pem(key) + pem(second)))
    for version in ("v1", "v2"):
        assert read_bundle(root / "daian" / version, check).version == version


def test_the_key_comes_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Ed25519PrivateKey) -> None:
    (tmp_path / "bundle.pub").write_text(pem(key))
    monkeypatch.setenv("DAIAN_BUNDLE_PUBLIC_KEY_FILE", str(tmp_path / "bundle.pub"))
    assert read_settings().bundle_public_key == pem(key).rstrip("\n")


def strange_keys() -> dict[str, tuple[str, str]]:
    stranger = other_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    return {
        "no PEM": ("ssh-ed25519 AAAA", "no PEM block"),
        "broken": (broken, "cannot be read"),
        "another kind": (stranger.decode(), "no Ed25519 key"),
    }


@pytest.mark.parametrize("kind", strange_keys())
def test_a_key_that_is_none_stops_the_start(kind: str) -> None:
    text, reason = strange_keys()[kind]
    with pytest.raises(SettingsError, match=f"DAIAN_BUNDLE_PUBLIC_KEY .*{reason}"):
        signed_check(Settings(bundle_public_key=text))


# --- signing ----------------------------------------------------------------------------------------------------------


def test_a_damaged_bundle_is_not_signed(root: Path, tmp_path: Path) -> None:
    (root / "daian/v2/golden.jsonl").write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden\.jsonl: SHA-256"):
        sign_bundle(root / "daian/v2", tmp_path / "bundle.key")
    assert not (root / "daian/v2" / SIGNATURE).exists()


def test_signing_from_the_command_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    key: Ed25519PrivateKey,
) -> None:  # fmt: skip
    monkeypatch.setenv("DAIAN_BUNDLE_PUBLIC_KEY", pem(key))
    target = str(root / "daian/v2")
    assert run(["bundle", "verify", target]) == 1
    assert "manifest.sig is missing" in capsys.readouterr().err
    assert run(["bundle", "promote", str(root), "v2"]) != 0
    assert run(["bundle", "sign", "--key", str(tmp_path / "bundle.key"), target]) == 0
    assert run(["bundle", "verify", target]) == 0
    assert run(["bundle", "promote", str(root), "v2"]) == 0
    assert sorted(path.name for path in (root / "daian").iterdir()) == ["v1", "v2"]


def test_what_is_no_private_key_is_said_without_quoting_it(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in (b"hush-hush", other_key(SECP256R1())):
        path = tmp_path / "strange.key"
        path.write_bytes(content) if isinstance(content, bytes) else key_file(tmp_path, content).rename(path)
        assert run(["bundle", "sign", "--key", str(path), str(root / "daian/v2")]) != 0
        said = capsys.readouterr().err
        assert "strange.key" in said
        assert "openssl genpkey" in said
        assert "hush" not in said
