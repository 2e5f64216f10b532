"""Bundle: the immutable directory that is deployed. Written by models_export, read by the service.

    <root>/current                       {"name", "version", "manifest_sha256"}
    <root>/<name>/<version>/manifest.json and the files that it lists with their SHA-256; manifest.sig if it was signed

Nothing is parsed before its hash has been compared: read_bundle checks every file, Bundle.read returns the very bytes
that were hashed. Links, pipes, files outside the manifest and other contract versions are refused, and so is a manifest
that says what cannot be (`manifest.py`).
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from service.contract.catalogue import Catalogue
from service.contract.encoder import CONTRACT_VERSION, Encoder
from service.contract.errors import BundleError, SchemaError
from service.contract.manifest import NAME, check_manifest, is_rate, with_digest
from service.contract.pointer import MANIFEST as MANIFEST  # whoever opens bundles takes these two from here
from service.contract.pointer import MAX_POINTER_BYTES, check_kind, compare, file_content, parsed, read_manifest
from service.contract.pointer import current_path as current_path
from service.contract.strict_json import strict_json

SIGNATURE = "manifest.sig"  # beside the manifest and not in it, so that a published bundle can be signed
MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class Bundle:
    """One verified bundle. `manifest` is plain JSON: see docs/bundle.md."""

    path: Path
    manifest: Mapping[str, object]
    digest: str = ""  # SHA-256 of the manifest, and so of everything: what the pointer names beside the version

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.manifest["name"])

    @property
    def version(self) -> str:
        """The version, which is the folder's name."""
        return str(self.manifest["version"])

    @property
    def files(self) -> Mapping[str, str]:
        """SHA-256 by relative path."""
        files = self.manifest["files"]
        assert isinstance(files, dict)
        return files

    def read_prior(self) -> float:
        """The click rate of the training days. Raises BundleError for a manifest that does not say it."""
        prior = self.manifest.get("prior")
        if not is_rate(prior):
            raise BundleError(f"{self.path / MANIFEST}: prior is {prior!r}, need a click rate above 0 and below 1")
        assert isinstance(prior, int | float)
        return float(prior)

    def read(self, name: str) -> bytes:
        """The bytes of a file, hashed as they are returned. Raises BundleError when they differ from the manifest."""
        content = file_content(self.path / name)
        compare(self.path / name, hashlib.sha256(content).hexdigest(), self.files.get(name))
        return content

    def open_encoder(self) -> Encoder:
        """The encoder, bound to the bundle's catalogue. Raises BundleError when it is not the manifest's."""
        try:
            encoder = Encoder.open(self.path / "encoder", Catalogue.open(self.path / "catalogue"))
        except SchemaError as error:
            raise BundleError(f"{self.path}: {error}") from error
        if encoder.fingerprint != self.manifest["fingerprint"]:
            raise BundleError(
                f"{self.path}: the encoder's fingerprint is {encoder.fingerprint[:12]}, the graphs were made for "
                f"{str(self.manifest['fingerprint'])[:12]}: export again"
            )
        return encoder


def write_bundle(
    root: Path, name: str, version: str, manifest: Mapping[str, object], fill: Callable[[Path], None]
) -> Bundle:
    """Publishes a bundle: files, fsync, manifest last, rename. Nothing is visible under its name before it is whole.

    `fill` writes the files into the folder it is given. The manifest gets name, version, contract_version, schema
    and the hashes added, and a digest of itself; NaN in it becomes null. The pointer `current` is not moved. Raises
    BundleError when the version exists or the manifest says what cannot be, ValueError when it holds an infinity.
    """
    for part in (name, version):
        if not NAME.fullmatch(part):
            raise BundleError(f"bundle name or version {part!r}: use letters, digits, '.', '_' and '-'")
    target = root / name / version
    if target.exists():
        raise BundleError(f"{target} exists and bundles are immutable: choose another version")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{version}.", dir=target.parent))
    try:
        fill(work)
        head = {
            "manifest_schema": MANIFEST_SCHEMA,
            "contract_version": CONTRACT_VERSION,
            "name": name,
            "version": version,
        }
        hashes = {path.relative_to(work).as_posix(): _hash(path) for path in list_files(work)}
        said = json.loads(strict_json({**head, **manifest, "files": hashes}, indent=0))
        check_manifest(target / MANIFEST, said)
        _write_synced(work / MANIFEST, json.dumps(with_digest(said), indent=2).encode())
        for path in [*list_files(work), *_folders(work), work]:
            _sync(path)
        # mkdtemp keeps strangers out, but the service runs as another user and must be able to read
        for path in [*_folders(work), work]:
            path.chmod(0o755)
        work.rename(target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return read_bundle(target)


def read_bundle(path: Path, check_signed: Callable[[Path, bytes], None] | None = None) -> Bundle:
    """Opens and verifies a bundle. Raises BundleError naming the file and the reason.

    `check_signed` is given the folder and the manifest's bytes before anything of them is parsed; it raises BundleError
    when nobody whom it trusts signed them.
    """
    content = read_manifest(path)
    if check_signed is not None:
        check_signed(path, content)
    manifest = parsed(path / MANIFEST, content)
    _check_versions(path, manifest)
    check_manifest(path / MANIFEST, manifest)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise BundleError(f"{path / MANIFEST} lists no files: it was not written by write_bundle")
    found = {file.relative_to(path).as_posix() for file in list_files(path)} - {MANIFEST, SIGNATURE}
    for name in sorted(found ^ set(files)):
        problem = "is not in the manifest" if name in found else "is missing"
        raise BundleError(f"{path / name} {problem}: copy the bundle again, whole")
    for name, expected in files.items():
        compare(path / name, _hash(path / name), expected)
    return Bundle(path, manifest, hashlib.sha256(content).hexdigest())


def write_signature(path: Path, content: bytes) -> None:
    """Puts a signature beside the manifest of the bundle in `path`, whole or not at all."""
    work = path.parent / f".{path.name}.sig.{os.getpid()}"
    _write_synced(work, content)
    work.rename(path / SIGNATURE)
    _sync(path)


def read_signature(path: Path) -> bytes:
    """What lies beside the manifest. Raises BundleError when there is none."""
    return file_content(path / SIGNATURE, MAX_POINTER_BYTES)


def point_to(root: Path, bundle: Bundle) -> None:
    """Makes a bundle the current one: temp file, fsync, rename."""
    pointer = {
        "name": bundle.name,
        "version": bundle.version,
        "manifest_sha256": _hash(bundle.path / MANIFEST),
    }
    work = root / f".current.{os.getpid()}"
    _write_synced(work, json.dumps(pointer).encode())
    work.rename(root / "current")
    _sync(root)


def list_bundles(root: Path) -> list[Path]:
    """All bundle folders under a root, oldest version name first. They are not verified."""
    return sorted(path.parent for path in root.glob(f"*/*/{MANIFEST}") if not path.parent.name.startswith("."))


def _check_versions(path: Path, manifest: Mapping[str, object]) -> None:
    for key, supported in (("manifest_schema", MANIFEST_SCHEMA), ("contract_version", CONTRACT_VERSION)):
        if manifest.get(key) != supported:
            raise BundleError(f"{path}: {key} is {manifest.get(key)!r}, this version reads {supported}: export again")
    for key in ("name", "version", "fingerprint"):
        if not isinstance(manifest.get(key), str):
            raise BundleError(f"{path / MANIFEST} has no {key}: it was not written by write_bundle")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Regular files below a folder. Raises BundleError for a link, a pipe or a device."""
    paths = sorted(folder.rglob("*"))
    files = [path for path in paths if not stat.S_ISDIR(path.lstat().st_mode)]
    for path in files:
        check_kind(path, path.lstat().st_mode)
    return files


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_dir()]


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
