"""Loading the bundle that the settings name, and no other."""

import pytest

from service.app import make_parts
from service.contract.bundle import Bundle
from service.contract.errors import BundleError
from service.settings import Settings


def test_the_named_bundle_becomes_live(bundle: Bundle) -> None:
    parts = make_parts(Settings(bundle_root=bundle.path))
    parts.swap.open_first()
    assert parts.switch.live.label == "daian@v1"


@pytest.mark.parametrize(("settings", "message"), [({}, "DAIAN_BUNDLE_ROOT"), ({"bundle_name": "din"}, "'din'")])
def test_without_it_nothing_is_live_and_the_setting_is_named(
    bundle: Bundle, settings: dict[str, str], message: str
) -> None:
    root = {"bundle_root": bundle.path} if settings else {}
    parts = make_parts(Settings(**root, **settings))
    with pytest.raises(BundleError, match=message):
        parts.swap.open_first()
    assert not parts.switch.is_loaded


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"behaviours_keep": 57}, "DAIAN_BEHAVIOURS_KEEP to 58"),
     ({"behaviours_window_days": 13}, "DAIAN_BEHAVIOURS_WINDOW_DAYS to 14")],
)  # fmt: skip
def test_a_store_that_keeps_less_than_the_history_rules_want_is_refused(
    bundle: Bundle, settings: dict[str, int], message: str
) -> None:
    parts = make_parts(Settings(bundle_root=bundle.path, **settings))  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=message):
        parts.swap.open_first()
    assert not parts.switch.is_loaded
