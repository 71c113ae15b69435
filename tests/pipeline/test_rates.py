import pytest

from pipeline.rates import GROUPS, group_rates, thawed_rates


def test_the_groups_run_from_early_to_head() -> None:
    assert GROUPS == ("early", "late", "head")


def test_a_single_rate_is_the_heads_and_each_group_before_it_has_less() -> None:
    rates = group_rates(0.09, 3)
    assert rates == pytest.approx({"early": 0.01, "late": 0.03, "head": 0.09})
    assert rates["head"] == 0.09


@pytest.mark.parametrize("lr", [1, 0.5])
def test_a_ratio_of_1_gives_every_group_the_same_rate(lr: float) -> None:
    assert group_rates(lr, 1) == {"early": lr, "late": lr, "head": lr}


def test_a_list_gives_the_rates_one_by_one_early_to_head() -> None:
    assert group_rates([1e-4, 1e-3, 1e-2], 10) == {"early": 1e-4, "late": 1e-3, "head": 1e-2}


@pytest.mark.parametrize("lr", [0.1, (1e-4, 1e-3, 1e-2)])
def test_the_rates_come_early_to_head(lr: float | tuple[float, ...]) -> None:
    assert tuple(group_rates(lr, 5)) == GROUPS


@pytest.mark.parametrize("lr", [[1e-3], [1e-4, 1e-3], [1e-5, 1e-4, 1e-3, 1e-2]])
def test_a_list_of_another_length_is_an_error(lr: list[float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        group_rates(lr, 3)


@pytest.mark.parametrize(("frozen", "groups"), [("none", GROUPS), ("early", ("late", "head")), ("body", ("head",))])
def test_what_is_frozen_has_no_rate_and_the_others_have_theirs(frozen: str, groups: tuple[str, ...]) -> None:
    assert thawed_rates(0.09, 3, frozen) == {group: group_rates(0.09, 3)[group] for group in groups}
