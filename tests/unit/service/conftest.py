"""A bundle written once per run, opened once per module, and the parts of a service around it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.admission import Admission
from service.contract.bundle import Bundle
from service.metrics import Metrics
from service.request_log import RequestLog
from service.retriever import use_one_thread
from service.runtime import Runtime, Shared, open_runtime
from service.user_store import MemoryUserStore
from tests.small_bundle import write_small_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A good bundle; read only."""
    return write_small_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def shared() -> Iterator[Shared]:
    """Parts with an empty store in memory."""
    metrics = Metrics()
    admission = Admission(1, metrics, use_one_thread)
    yield Shared(MemoryUserStore(), admission, RequestLog(None, metrics), metrics)
    admission.close()


@pytest.fixture
def open_bundle(shared: Shared) -> Callable[[Path], Runtime]:
    """Opens a bundle with the defaults of the service."""
    return lambda path: open_runtime(path, shared, chunk=256, ort_threads=1, loaded_at=0.0)


@pytest.fixture
def runtime(open_bundle: Callable[[Path], Runtime], bundle: Bundle) -> Runtime:
    """The good bundle, open."""
    return open_bundle(bundle.path)
