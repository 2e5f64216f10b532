"""Runs the load test against the service on this machine, and starts one when none answers.

Called by `make load`. Options it does not know go to locust. The report is artifacts/load.html. Ends with locust's exit
code; a service that was started here is stopped again.
"""

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
REPORT = Path("artifacts/load.html")
READY_WITHIN_S = 60.0


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def service_at(address: str, port: int, bundles: Path) -> Iterator[None]:
    """The service that answers at `address`, or one of our own for as long as the block lasts."""
    if is_ready(address):
        print(f"{address} is ready: loading that one", flush=True)
        yield
        return
    environment = {
        **os.environ,
        "DAIAN_BUNDLE_ROOT": str(bundles),
        "DAIAN_PORT": str(port),
        "DAIAN_LOG_LEVEL": "warning",
    }
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("daian")), "serve", str(bundles), "--port", str(port)], env=environment
    )
    try:
        wait_until_ready(process, address)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_until_ready(process: subprocess.Popen[bytes], address: str) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while not is_ready(address):
        if process.poll() is not None:
            raise SystemExit(
                f"daian serve ended with {process.returncode} before it was ready: see its last lines above"
            )
        if time.monotonic() > deadline_s:
            raise SystemExit(f"daian serve was not ready within {READY_WITHIN_S:.0f} s")
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description="bounded load on the service of this machine")
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000)
    options, locust_options = parser.parse_known_args()
    address = f"http://127.0.0.1:{options.port}"
    with service_at(address, options.port, options.bundles):
        command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--host", address,
                   "--bundles", str(options.bundles), "--html", str(REPORT),
                   *locust_options]  # fmt: skip
        code = subprocess.run(command, check=False).returncode
    print(f"report: {REPORT}")
    return code


if __name__ == "__main__":
    sys.exit(main())
