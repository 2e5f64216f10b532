"""The search: the same proposals each time, none twice, the best kept, failures passed over."""

import pytest

from training.search import Search

RATES = (1e-3, 2e-3, 4e-3)


def test_the_same_seed_proposes_the_same_settings_and_none_twice() -> None:
    first, second = Search(RATES, 3), Search(RATES, 3)
    assert first.settings == second.settings
    assert sorted(setting.learning_rate for setting in first.settings) == list(RATES)


def test_a_grid_holds_no_more_trials_than_settings_and_fewer_may_be_asked() -> None:
    assert len(Search(RATES, 10).settings) == 3
    assert len(Search(RATES, 2).settings) == 2
    assert len({tuple(Search(RATES, 2, seed).settings) for seed in range(20)}) > 1  # it is chance, from the seed


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_setting_with_the_largest_number_is_kept(best: int) -> None:
    search = Search(RATES, 3)
    values = [0.6 + 0.1 * (place == best) for place in range(3)]
    assert search.best(values) == search.settings[best]


def test_failed_trials_are_passed_over_and_none_is_left_when_all_failed() -> None:
    search = Search(RATES, 3)
    assert search.best([None, 0.51, float("nan")]) == search.settings[1]
    assert Search(RATES, 2).best([None, float("nan")]) is None


def test_a_search_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="learning rate"):
        Search((), 3)
