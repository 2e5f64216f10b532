"""Days that are as ever pass; days on which ids, fields or missing values changed are named, with figure and limit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.requests import RequestBatch
from service.contract.rules import HistoryRules
from service.contract.schema import FeatureSchema, Field
from tests.unit.training.data.shop import DAY_MS, N_ITEMS, SCHEMA, START_MS, prepare_small, small_items
from training import drift as module
from training.commands import note_drift
from training.data.dataset import Dataset, PreparedWriter
from training.data.fit_encoder import fit_encoder
from training.data.leakage import stability
from training.data.synthetic import World, simulate
from training.drift import DRIFT_FILE, Drift, drift_of, measure_drift, write_drift

PER_DAY = 100
WIDE = replace(SCHEMA, context=(*SCHEMA.context, Field("weekday", "context", "category")))
Row = dict[str, Any]
Change = Callable[[Row, np.random.Generator], None]
FileDamage = Callable[[dict[str, Any]], object]


def day_of_requests(day: int, change: Change | None = None) -> tuple[RequestBatch, np.ndarray]:
    """A day of a shop with 40 regulars, and new users every day; `change` is done to each request."""
    random, rows = np.random.default_rng(day), []
    for number in range(PER_DAY):
        user = f"u{random.integers(40)}" if random.random() < 0.8 else f"new{day}-{number}"
        row: Row = {
            "request_id": f"r{day}-{number}",
            "requested_at": START_MS + day * DAY_MS + number * (DAY_MS // PER_DAY),
            "user": {"user": user, "age": float(random.integers(18, 80))},
            "context": {"device": str(random.choice(["phone", "desktop"])), "weekday": f"day{day % 7}"},
            "trigger": f"i{random.integers(N_ITEMS)}",
            "behaviours": [],
            "candidates": [f"i{item}" for item in random.choice(N_ITEMS, 5, replace=False)],
        }
        if change is not None:
            change(row, random)
        rows.append(row)
    batch = RequestBatch.from_rows(rows)
    return batch, (random.random(batch.n_candidates) < 0.3).astype(np.int8)


def shop(folder: Path, change: Change | None = None, schema: FeatureSchema = WIDE) -> Path:
    """Fourteen training days, one to validate and one to test; `change` happens to the last."""
    with PreparedWriter(folder, Dataset("shifted", schema, HistoryRules()), small_items()) as writer:
        for day in range(14):
            writer.write("train", *day_of_requests(day))
        writer.write("validation", *day_of_requests(14))
        writer.write("test", *day_of_requests(15, change))
    return folder


def measured(folder: Path) -> Drift:
    return measure_drift(folder, fit_encoder(folder))


def respelt_users(row: Row, _: np.random.Generator) -> None:
    row["user"]["user"] = f"U-{row['user']['user']}"


def respelt_triggers(row: Row, _: np.random.Generator) -> None:
    row["trigger"] = f"sku-{row['trigger']}"


def all_on_phones(row: Row, random: np.random.Generator) -> None:
    row["context"]["device"] = "phone" if random.random() < 0.97 else "desktop"


def no_device(row: Row, _: np.random.Generator) -> None:
    del row["context"]["device"]


def age_in_months(row: Row, _: np.random.Generator) -> None:
    row["user"]["age"] *= 12


def new_devices(row: Row, _: np.random.Generator) -> None:
    row["context"]["device"] = "toaster"


SHIFTS = [
    (respelt_users, "user.user: 100.0% unknown"),
    (respelt_triggers, "trigger.item: 100.0% unknown"),
    (new_devices, "context.device: 100.0% unknown"),
    (all_on_phones, "context.device: PSI"),
    (no_device, "context.device: PSI"),
    (age_in_months, "user.age: PSI"),
]


def test_days_as_ever_are_below_every_limit(tmp_path: Path) -> None:
    found = measured(shop(tmp_path / "shop"))
    assert (found.split, found.n_train, found.n_later, found.above) == ("test", 1_400, 100, [])
    assert set(found.fields) == {
        "user.user", "user.age", "context.device", "context.weekday",
        *(f"{part}.{name}" for part in ("trigger", "candidate") for name in ("item", "leaf", "price")),
    }  # fmt: skip
    assert found.fields["user.user"].unknown == pytest.approx(found.fields["user.user"].usual_unknown, abs=0.1)


def test_tiny_and_simulated_shops_are_below_every_limit(tmp_path: Path) -> None:
    prepare_small(tmp_path / "small")
    prepare_small(tmp_path / "smaller", n_train=20)
    simulate(tmp_path / "world", World(n_requests=500, n_users=80, n_items=100, seed=5))
    assert [measured(tmp_path / name).above for name in ("small", "smaller", "world")] == [[], [], []]


@pytest.mark.parametrize(("change", "said"), SHIFTS)
def test_a_shift_is_named_with_its_limit_and_without_limits_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, said: str
) -> None:
    folder = shop(tmp_path / "shop", change)
    above = measured(folder).above
    assert [sentence for sentence in above if sentence.startswith(said) and ", limit " in sentence]
    field = said.partition(":")[0]
    assert {sentence.partition(":")[0] for sentence in above} <= {field, *same_side(field)}
    for limit in ("UNKNOWN_LIMIT", "PSI_LIMIT"):
        monkeypatch.setattr(module, limit, np.inf)
    assert measured(folder).above == []  # the saboteur


def same_side(field: str) -> set[str]:
    """An item that nobody knows has no known category either."""
    return {"trigger.leaf", "trigger.price"} if field == "trigger.item" else set()


def test_what_is_usual_is_no_shift_and_would_be_one_without_the_step_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One day has one weekday, the training days have seven."""
    folder = shop(tmp_path / "shop")
    weekday = measured(folder).fields["context.weekday"]
    assert 1 < weekday.psi < weekday.psi_limit
    monkeypatch.setattr(module, "USUAL_TIMES", 0.0)
    assert "context.weekday: PSI" in "\n".join(measured(folder).above)


def test_many_values_are_compared_in_tenths_and_one_by_one_would_be_noise() -> None:
    """2,000 requests of a thousand users, drawn alike before and after."""
    random = np.random.default_rng(0)
    share = random.dirichlet(np.full(1_000, 0.5))
    before, after = (np.concatenate([[0, 0], random.multinomial(2_000, share)]) for _ in range(2))
    groups = module._groups(before, is_grouped=True)
    assert set(groups[before > 0]) == set(range(1, 11))
    assert (groups[2:][before[2:] == 0] == -1).all()
    in_group = [
        np.bincount(groups[groups >= 0], counts[groups >= 0], 11).astype(np.int64) for counts in (before, after)
    ]
    assert in_group[0][1:].max() < 2 * in_group[0][1:].min()
    assert stability(*in_group) < 0.25 < stability(before, after)


def test_the_rare_taking_the_place_of_the_frequent_is_seen_in_tenths() -> None:
    counts = np.concatenate([[0, 0], np.arange(1_000, 0, -1)])
    groups = module._groups(counts, is_grouped=True)
    turned = np.concatenate([[0, 0], np.arange(1, 1_001)])
    in_group = [np.bincount(groups[groups >= 0], of[groups >= 0], 11).astype(np.int64) for of in (counts, turned)]
    assert stability(*in_group) > 0.25


# --- what the run says ------------------------------------------------------------------------------------------------


def test_training_writes_it_into_the_run_and_says_what_is_above(tmp_path: Path) -> None:
    data, run = shop(tmp_path / "shop", respelt_users), tmp_path / "run"
    run.mkdir()
    fit_encoder(data).save(run / "encoder")
    lines = note_drift(run, data)
    assert lines[0].startswith("drift in the test days: user.user: 100.0% unknown")
    assert "--allow-drift" in lines[-1]
    written = json.loads((run / DRIFT_FILE).read_text(encoding="utf-8"))
    assert written["above"] == measured(data).above
    assert note_drift(run, data) == lines


def test_training_says_nothing_of_days_as_ever(tmp_path: Path) -> None:
    data, run = shop(tmp_path / "shop"), tmp_path / "run"
    run.mkdir()
    fit_encoder(data).save(run / "encoder")
    assert note_drift(run, data) == []
    assert (run / DRIFT_FILE).is_file()


def test_held_out_days_that_cannot_be_read_cost_no_training(tmp_path: Path) -> None:
    data, run = shop(tmp_path / "shop"), tmp_path / "run"
    run.mkdir()
    fit_encoder(data).save(run / "encoder")
    (data / "test" / "00000.parquet").write_bytes(b"no parquet")
    assert [line.partition(",")[0] for line in note_drift(run, data)] == ["drift not measured"]
    assert not (run / DRIFT_FILE).exists()


def test_what_the_run_says_holds_for_its_own_data_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, other, run = shop(tmp_path / "shop"), shop(tmp_path / "other", no_device), tmp_path / "run"
    run.mkdir()
    encoder, found = fit_encoder(data), measured(data)
    write_drift(run, data, found)
    assert drift_of(run, other, encoder).above != []
    monkeypatch.setattr(module, "measure_drift", None)
    assert drift_of(run, data, encoder) == found


@pytest.mark.parametrize("left", [None, "", "{}", "[]", "7", "[" * 100_000, '{"data_sha256": "", "fields": 3}'])
def test_a_run_that_says_nothing_readable_is_measured(tmp_path: Path, left: str | None) -> None:
    data, run = shop(tmp_path / "shop", no_device), tmp_path / "run"
    run.mkdir()
    if left is not None:
        (run / DRIFT_FILE).write_text(left, encoding="utf-8")
    assert drift_of(run, data, fit_encoder(data)) == measured(data)


def one_figure(value: object) -> FileDamage:
    def change(saved: dict[str, Any]) -> None:
        saved["fields"]["context.device"]["psi"] = value

    return change


def limits(value: float) -> FileDamage:
    def change(saved: dict[str, Any]) -> None:
        for one in saved["fields"].values():
            one.update(psi_limit=value, unknown_limit=value)

    return change


def also(**values: object) -> FileDamage:
    return lambda saved: saved.update(values)


@pytest.mark.parametrize(
    "damage",
    [also(fields=[]), also(fields=[1]), also(fields={}), also(fields="x"), also(fields={"context.device": 7}),
     also(n_train="1"), also(n_later=True), also(split=None), also(above=[]),
     one_figure(float("nan")), one_figure(float("inf")), one_figure("0.1"), one_figure(10**400),
     one_figure(None), one_figure(False),
     limits(float("nan")), limits(float("inf")), limits(9.0),
     lambda saved: saved["fields"].pop("context.device"),
     lambda saved: saved["fields"]["context.device"].pop("psi"),
     lambda saved: saved["fields"]["context.device"].update(other=1.0)],
)  # fmt: skip
def test_a_damaged_file_is_measured_anew_and_lets_nothing_through(tmp_path: Path, damage: FileDamage) -> None:
    data, run = shop(tmp_path / "shop", no_device), tmp_path / "run"
    run.mkdir()
    found = measured(data)
    write_drift(run, data, found)
    saved = json.loads((run / DRIFT_FILE).read_text(encoding="utf-8"))
    damage(saved)
    (run / DRIFT_FILE).write_text(json.dumps(saved), encoding="utf-8")
    assert found.above != []
    assert drift_of(run, data, fit_encoder(data)) == found
