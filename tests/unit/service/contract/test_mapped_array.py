"""Whatever is wrong with a file of an array, the error names it."""

from pathlib import Path

import numpy as np
import pytest

from service.contract.errors import SchemaError
from service.contract.mapped_array import open_array


def changed(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_an_array_is_mapped_and_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(3))
    found = open_array(tmp_path / "a.npy")
    assert type(found) is np.ndarray
    assert found.tolist() == [0, 1, 2]
    assert not found.flags.writeable


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"NUMPY", b"NUMPI"), (b"(3,)", b"(3,{"), (b"(3,)", b"(-3)"), (b"{'descr'", b"['descr'"), (b"<i8", b"|O8")],
)
def test_a_broken_header_is_named_by_its_file(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3))
    changed(path, old, new)
    with pytest.raises(SchemaError, match=r"a\.npy holds no readable array"):
        open_array(path)


def test_so_are_missing_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("empty.npy", "none.npy"):
        with pytest.raises(SchemaError, match=name):
            open_array(tmp_path / name)
