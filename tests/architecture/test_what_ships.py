"""What ships is pinned by hash, licensed as we allow, and runs with as few rights as it can."""

import importlib.util
import re
import subprocess
import tomllib
from email.message import Message
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from tests.architecture.tree import ROOT

LOCK = ROOT / "deploy" / "serving.lock"
BUILD_LOCK = ROOT / "deploy" / "build.lock"
TRAINER_LOCK = ROOT / "deploy" / "trainer.lock"
LOAD_LOCK = ROOT / "deploy" / "load.lock"
TRAINING_ONLY = {"torch", "triton", "pyarrow", "pandas", "onnx", "onnxscript", "tensorboard", "optuna"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


# --- the lock ---------------------------------------------------------------------------------------------------------


def pins(text: str) -> dict[str, list[tuple[Requirement, int]]]:
    """By name: every pin with the number of its hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    for block in body.replace("\\\n", " ").splitlines():
        requirement = Requirement(block.partition("--hash")[0].strip())
        n_hashes = len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block))
        found.setdefault(requirement.name, []).append((requirement, n_hashes))
    return found


def faults(text: str, wanted: list[str], *, trains: bool = False) -> list[str]:
    """What is wrong with a lock file for these requirements."""
    found = pins(text)
    said = [f"{name} is for training" for name in sorted(TRAINING_ONLY & set(found)) if not trains]
    said += [f"{name} is for training" for name in found if name.startswith("nvidia-") and not trains]
    for pin, n_hashes in (one for several in found.values() for one in several):
        if not re.fullmatch(r"==[^,*]+", str(pin.specifier)):
            said.append(f"{pin} is no exact version")
        if not n_hashes:
            said.append(f"{pin} has no hash")
    for requirement in map(Requirement, wanted):
        if requirement.name not in found:
            said.append(f"{requirement.name} is missing")
        for pin, _ in found.get(requirement.name, []):
            if not requirement.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True):
                said.append(f"{pin} does not fit {requirement}")
    return said


def wanted_by_trainer() -> list[str]:
    """What the training image needs: the base set, the extras that train and export, and the Makefile's torch."""
    extras = PROJECT["project"]["optional-dependencies"]
    torch = re.findall(r"^TORCH \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = [*PROJECT["project"]["dependencies"], *extras["training"], *extras["export"], *torch]
    return [one for one in named if Requirement(one).name != "daian"]


def test_the_locks_fit_pyproject() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert faults(LOCK.read_text(), PROJECT["project"]["dependencies"]) == [], "make lock"
    assert faults(BUILD_LOCK.read_text(), PROJECT["build-system"]["requires"]) == [], "make lock"
    assert faults(TRAINER_LOCK.read_text(), wanted_by_trainer(), trains=True) == [], "make lock"
    assert faults(LOAD_LOCK.read_text(), extras["load"]) == [], "make lock"


def strangers(text: str, serving: str) -> list[str]:
    """Packages of a lock that the serving lock has in another version: the trainer proves bundles with what serves."""
    theirs, ours = pins(text), pins(serving)
    return [
        str(pin)
        for name in sorted(set(theirs) & set(ours))
        for pin, _ in theirs[name]
        if pin.specifier not in [one.specifier for one, _ in ours[name]]
    ]


def test_the_trainer_exports_with_what_serves() -> None:
    assert strangers(TRAINER_LOCK.read_text(), LOCK.read_text()) == [], "make lock"
    changed, n_changed = re.subn(r"^onnxruntime==[^ ]+", "onnxruntime==1.0.0", LOCK.read_text(), flags=re.MULTILINE)
    assert n_changed == 1
    assert strangers(TRAINER_LOCK.read_text(), changed) != []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (r"^numpy==", "torch==", "torch is for training"),
        (r"^orjson==[^ ]+", "orjson>=3", "is no exact version"),
        (r"^uvicorn==[^ ]+", "uvicorn==0.1.0", r"uvicorn==0\.1\.0 does not fit uvicorn>="),
        (r"^faiss-cpu==", "faiss==", "faiss-cpu is missing"),
        (r"^(click==[^ ]+) \\\n(    --hash=[^\n]+\n)+", r"\1\n", "has no hash"),
    ],
)
def test_a_lock_that_does_not_fit_is_found(old: str, new: str, said: str) -> None:
    text, n_changed = re.subn(old, new, LOCK.read_text(), flags=re.MULTILINE)
    assert n_changed
    assert any(re.search(said, one) for one in faults(text, PROJECT["project"]["dependencies"]))


DOCKERFILES = [ROOT / "service/Dockerfile", *sorted((ROOT / "deploy").glob("*.Dockerfile"))]


def loose_installs(dockerfile: str) -> list[str]:
    """What an image installs neither by hash nor as our own code without dependencies."""
    installs = re.findall(r"pip install ([^&\n]*)", dockerfile.replace("\\\n", " "))
    assert installs
    ways = (("--require-hashes", "--only-binary :all:", ".lock"), ("--no-deps", "--no-build-isolation"))
    return [one for one in installs if not any(all(flag in one for flag in way) for way in ways)]


def locks_of(dockerfile: str) -> set[str]:
    """The locks that an image copies, which must be those that it installs."""
    copied = set(re.findall(r"deploy/(\w+\.lock)", dockerfile))
    assert copied == set(re.findall(r"--requirement (\w+\.lock)", dockerfile))
    return copied


def test_the_images_install_the_locks_and_nothing_else() -> None:
    service, load, trainer = (path.read_text() for path in DOCKERFILES)
    assert locks_of(service) == {"serving.lock", "build.lock"}
    assert locks_of(load) == {"load.lock"}
    assert locks_of(trainer) == {"trainer.lock", "build.lock"}
    assert loose_installs(service) == loose_installs(load) == []
    # A torch that the caller chose has no hash of ours; unless one is chosen, nothing is installed there.
    assert [one.strip() for one in loose_installs(trainer)] == ['--quiet "$TORCH"; fi']
    assert re.findall(r'^RUN if \[ -n "\$TORCH" \]; then /opt/daian/bin/pip install', trainer, re.MULTILINE)
    assert re.findall(r"^ARG TORCH=(.*)$", trainer, re.MULTILINE) == [""]
    pinned = re.findall(r"^TORCH \?= (torch==\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [COMPOSE["services"]["bundle"]["build"]["args"]["TORCH"]] == [f"${{TORCH-{one}}}" for one in pinned]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name + "/" + path.name)
@pytest.mark.parametrize(("old", "new"), [(" --require-hashes", ""), (" --only-binary :all:", "")])
def test_an_install_without_hashes_is_found(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert len(loose_installs(text.replace(old, new))) == len(loose_installs(text)) + 1


def test_with_a_torch_of_ones_own_its_pins_are_cut_out_and_no_others(tmp_path: Path) -> None:
    (command,) = re.findall(r"; then sed -E -i ('[^']+') trainer\.lock; fi", (DOCKERFILES[2]).read_text())
    lock = tmp_path / "trainer.lock"
    lock.write_text(TRAINER_LOCK.read_text())
    subprocess.run(["sh", "-euc", f"sed -E -i {command} trainer.lock"], cwd=tmp_path, check=True)
    before, after = set(pins(TRAINER_LOCK.read_text())), set(pins(lock.read_text()))
    assert {name.split("-")[0] for name in before - after} == {"torch", "triton", "nvidia", "cuda"}
    wanted = [one for one in wanted_by_trainer() if Requirement(one).name != "torch"]
    assert after < before
    assert faults(lock.read_text(), wanted, trains=True) == []


# --- licences ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def licences() -> ModuleType:
    """deploy/licences.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("daian_licences", ROOT / "deploy" / "licences.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_pinned_package_has_a_licence_that_is_allowed(licences: ModuleType) -> None:
    found = licences.licences(licences.pinned(LOCK))
    assert {"numpy", "onnxruntime", "faiss-cpu", "cryptography"} <= {one.package for one in found}
    strange = [one for one in found if not licences.is_allowed(one.expression)]
    assert not strange, f"read these licences, then allow them in deploy/licences.py or do without: {strange}"


@pytest.mark.parametrize(
    ("fields", "is_fine"),
    [
        ([("License-Expression", "MIT")], True),
        ([("License-Expression", "Apache-2.0 OR GPL-3.0-only")], True),
        ([("License-Expression", "MIT AND LGPL-3.0-or-later")], False),
        ([("License-Expression", "MPL-2.0 AND (Apache-2.0 OR MIT)")], True),
        ([("License-Expression", "AGPL-3.0-only")], False),
        ([("Classifier", "License :: OSI Approved :: MIT License")], True),
        ([("Classifier", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)")], False),
        (
            [
                ("Classifier", "License :: OSI Approved :: MIT License"),
                ("Classifier", "License :: OSI Approved :: GNU Affero General Public License v3"),
            ],
            False,
        ),
        ([("License", "BSD-3-Clause")], True),
        ([("License", "Proprietary")], False),
        ([], False),
    ],
)
def test_a_licence_that_nobody_looked_at_is_found(
    licences: ModuleType, fields: list[tuple[str, str]], is_fine: bool
) -> None:
    about = Message()
    for name, value in fields:
        about[name] = value
    assert licences.is_allowed(licences.licence_of(about)) is is_fine


def test_the_list_ends_with_a_failure_when_something_is_not_allowed(
    licences: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert licences.main(LOCK) == 0
    monkeypatch.setattr(licences, "ALLOWED", licences.ALLOWED - {"MPL-2.0"})
    assert licences.main(LOCK) == 1
    assert "certifi" in capsys.readouterr().err


# --- compose ----------------------------------------------------------------------------------------------------------

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
ONE_SHOT = {"bundle", "load"}  # they end by themselves, and what waits for them waits for their end
TOP_KEYS = {"services", "networks", "volumes"}
KEYS = {
    "image": str, "build": dict, "command": list, "entrypoint": list, "user": str, "networks": list, "volumes": list,
    "read_only": bool, "cap_drop": list, "security_opt": list, "mem_limit": str, "pids_limit": int, "restart": str,
    "healthcheck": dict, "depends_on": dict, "environment": dict, "ports": list, "tmpfs": list, "profiles": list,
    "stop_grace_period": str, "network_mode": str,
}  # fmt: skip


def dockerfile(service: dict[str, Any]) -> str:
    name = service.get("build", {}).get("dockerfile")
    return "" if name is None else (ROOT / name).read_text()


def rights(name: str, service: dict[str, Any]) -> list[str]:
    """What a container of this service may do and should not."""
    built = dockerfile(service)
    last_user = (re.findall(r"^USER (\S+)", built, re.MULTILINE) or [""])[-1]
    holds = {
        "runs as somebody else than root": service.get("user", last_user).partition(":")[0] not in ("", "0", "root"),
        "has a read-only root": service.get("read_only") is True,
        "has no capability": service.get("cap_drop") == ["ALL"] and "cap_add" not in service,
        "gains no rights": "no-new-privileges:true" in service.get("security_opt", []),
        "has a limit on memory": bool(re.fullmatch(r"[1-9]\d*[mg]", str(service.get("mem_limit", "")))),
        "has a limit on processes": 0 < int(service.get("pids_limit", 0)) <= 1024,
        "is asked for its health": name in ONE_SHOT or "healthcheck" in service or "\nHEALTHCHECK " in built,
        "is not privileged": not service.get("privileged") and "pid" not in service and "ipc" not in service,
        "listens on this machine alone": all(str(one).startswith("127.0.0.1:") for one in service.get("ports", [])),
        "mounts nothing of the machine's": all(str(one)[0] not in "./~" for one in service.get("volumes", [])),
    }  # fmt: skip
    return [what for what, is_so in holds.items() if not is_so]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_has_as_few_rights_as_it_can(name: str) -> None:
    assert rights(name, COMPOSE["services"][name]) == []


@pytest.mark.parametrize("name", COMPOSE["services"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"user": "root"}, "runs as somebody else than root"),
        ({"user": "0:0"}, "runs as somebody else than root"),
        ({"read_only": False}, "has a read-only root"),
        ({"cap_drop": ["NET_RAW"]}, "has no capability"),
        ({"cap_add": ["SYS_ADMIN"]}, "has no capability"),
        ({"security_opt": []}, "gains no rights"),
        ({"mem_limit": None}, "has a limit on memory"),
        ({"pids_limit": 0}, "has a limit on processes"),
        ({"privileged": True}, "is not privileged"),
        ({"ports": ["8000:8000"]}, "listens on this machine alone"),
        ({"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]}, "mounts nothing of the machine's"),
    ],
)
def test_a_right_too_many_is_found(name: str, change: dict[str, Any], said: str) -> None:
    assert rights(name, COMPOSE["services"][name] | change) == [said]


def test_a_service_that_nobody_asks_for_its_health_is_found() -> None:
    redis = {key: value for key, value in COMPOSE["services"]["redis"].items() if key != "healthcheck"}
    assert rights("redis", redis) == ["is asked for its health"]


def misfits(compose: dict[str, Any]) -> list[str]:
    """Keys that compose would not know or take another way, and names that lead nowhere."""
    said = [f"{key} at the top" for key in set(compose) - TOP_KEYS]
    for name, service in compose["services"].items():
        for key, value in service.items():
            if not isinstance(value, KEYS.get(key, ())):
                said.append(f"{name}: {key} is {type(value).__name__}")
        said += [f"{name}: no image" for _ in "x" if ("image" in service) == ("build" in service)]
        said += [f"{name}: waits for {one}" for one in set(service.get("depends_on", {})) - set(compose["services"])]
        said += [f"{name}: network {one}" for one in set(service.get("networks", [])) - set(compose["networks"])]
        mounted = {str(one).partition(":")[0] for one in service.get("volumes", [])}
        said += [f"{name}: volume {one}" for one in mounted - set(compose["volumes"])]
        said += [f"{name}: no {one}" for one in _files_of(service) if not (ROOT / one).is_file()]
    return said


def _files_of(service: dict[str, Any]) -> list[str]:
    return [service["build"]["dockerfile"]] if "build" in service else []


def test_the_compose_file_is_what_compose_reads() -> None:
    assert misfits(COMPOSE) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mem_limits": "1g"}, "service: mem_limits is str"),
        ({"read_only": "yes"}, "service: read_only is str"),
        ({"networks": ["sore"]}, "service: network sore"),
        ({"depends_on": {"reddis": {}}}, "service: waits for reddis"),
        ({"volumes": ["bundle:/bundles"]}, "service: volume bundle"),
        ({"build": {"dockerfile": "service/Dockrfile"}}, "service: no service/Dockrfile"),
    ],
)
def test_a_misspelt_compose_file_is_found(change: dict[str, Any], said: str) -> None:
    services = COMPOSE["services"] | {"service": COMPOSE["services"]["service"] | change}
    assert misfits(COMPOSE | {"services": services}) == [said]


def test_the_store_has_no_way_out_and_the_grace_is_long_enough() -> None:
    from service.settings import Settings

    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert COMPOSE["services"]["redis"]["networks"] == ["store"]
    grace_s = int(COMPOSE["services"]["service"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= Settings().drain_s + Settings().grace_s + 2


def base_images(dockerfile: str) -> list[str]:
    """What an image is built on, with the default of the argument that names it."""
    default = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.MULTILINE))
    found = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    return [default.get(one.strip("${}"), one) if one.startswith("$") else f"{one} unnamed" for one in found]


def is_of_one_release(image: str) -> bool:
    """Whether a tag names the version of what is in it and the release of the system below."""
    return re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?(-slim)?-bookworm|[a-z/]+@sha256:[0-9a-f]{64}", image) is not None


def test_base_images_are_named_once_and_may_be_named_otherwise() -> None:
    (python,) = {image for path in DOCKERFILES for image in base_images(path.read_text())}
    given = {one["build"]["args"]["PYTHON_IMAGE"] for one in COMPOSE["services"].values() if "build" in one}
    assert given == {f"${{PYTHON_IMAGE:-{python}}}"}
    (redis,) = re.findall(r"^\$\{REDIS_IMAGE:-(\S+)\}$", COMPOSE["services"]["redis"]["image"])
    assert is_of_one_release(python)
    assert is_of_one_release(redis)


@pytest.mark.parametrize("image", ["python", "python:3", "python:latest", "redis:7", "python:3.11-slim", "x@sha256:1"])
def test_a_base_image_that_drifts_is_found(image: str) -> None:
    assert not is_of_one_release(image)
    assert base_images(f"FROM {image} AS build\n") == [f"{image} unnamed"]


def test_no_dockerfile_ends_as_root_or_trains_to_serve() -> None:
    for path in DOCKERFILES:
        assert re.findall(r"^USER (\S+)", path.read_text(), re.MULTILINE)[-1] == "10001:10001", path
    assert "torch" not in Path(ROOT / "service/Dockerfile").read_text().replace("no torch", "")
