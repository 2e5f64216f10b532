"""One bundle for all tests of this folder; read only."""

import pytest

from service.contract.bundle import Bundle
from tests.small_bundle import write_small_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_small_bundle(tmp_path_factory.mktemp("bundles"))
