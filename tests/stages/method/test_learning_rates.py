"""Which rate each layer group has at each step: grown by the finder, whose suggestion lies before the lowest point of
its curve; annealed along a cosine and restarted by the stages that train."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from pipeline.system.errors import UserError
from pipeline.training import step
from pipeline.training.joint.helpers import find_together
from pipeline.training.lr_finder import KNOWN_RATE
from stages import lr_find
from stages.work import lr_find as lr_find_work
from tests.drawn_pictures import draw_pictures
from tests.stages.chains import COMMANDS, recipe_on, run_stage_on

GROUPS = ("early", "late", "head")
FINDERS = ("lr_find", "lr_find_unfrozen")


class Stopped(Exception):
    """Ends a stage at its first step."""


def cosine(top: float, cycle_epochs: Sequence[int], batches: int, warm_up_steps: int = 0) -> list[float]:
    """The rates of all steps: half a cosine for each cycle, from its top; the first climbs there from a 25th."""
    climb = [
        top * (0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / warm_up_steps))) for step in range(warm_up_steps)
    ]
    lengths = [epochs * batches for epochs in cycle_epochs]
    lengths[0] -= warm_up_steps
    return climb + [top * 0.5 * (1 + math.cos(math.pi * step / length)) for length in lengths for step in range(length)]


@pytest.mark.parametrize("name", FINDERS)
def test_the_finder_raises_the_rate_from_its_start_in_equal_ratios(chain, name):
    rates = chain[name].did.rates("head")
    growth = (2.0 / 1e-5) ** (1 / 29)
    assert rates[0] == pytest.approx(1e-5)
    assert len(rates) <= 30
    assert [later / rate for rate, later in pairwise(rates)] == pytest.approx([growth] * (len(rates) - 1))


def test_the_unfrozen_finder_gives_each_group_its_ratio_of_the_rate(chain):
    for taken in chain["lr_find_unfrozen"].did.steps:
        assert taken.rates["head"] == pytest.approx(6 * taken.rates["late"]) == pytest.approx(36 * taken.rates["early"])


@pytest.mark.parametrize(("finder", "name"), zip(FINDERS, ("train_head", "fine_tune"), strict=True))
def test_the_finder_tests_what_the_next_stage_trains(chain, finder, name):
    def trained(did):
        first = did.steps[0]
        return (
            did.training[0].batch_size, did.training[0].rows, did.training[0].augmentation, first.label_smoothing,
            first.decays, first.dropouts, first.body_learns_statistics, first.optimizer[0],
        )  # fmt: skip

    assert trained(chain[finder].did) == trained(chain[name].did)


def test_after_fine_tune_the_finder_tests_the_layers_the_size_and_the_keys_of_resize(chain, on_chain):
    found = run_stage_on("lr_find", chain.recipe, chain["fine_tune"])
    first = found.did.steps[0]
    assert first.shape == (4, 3, 40, 40)
    assert first.rates.keys() == {"late", "head"}, "resize freezes the early group"
    assert first.rates["head"] == pytest.approx(2 * first.rates["late"])
    assert (found.did.training[0].batch_size, first.label_smoothing) == (4, 0.2)


def test_the_finder_skips_blocks_as_the_next_stage_does(chain, on_chain, monkeypatch):
    told_to_helpers = []

    def find(network, phase, settings):
        told_to_helpers.append(phase.origin.phase.drop_path)
        return find_together(network, phase, settings)

    monkeypatch.setattr(lr_find_work, "find_together", find)
    recipe = chain.other_recipe(model__backbone="test_efficientnet", fine_tune__drop_path=0.3)
    head = run_stage_on("train_head", recipe, run_stage_on("precompute", recipe))
    found = run_stage_on("lr_find", recipe, head).did.steps[0].drop_paths
    assert max(found) > 0
    assert told_to_helpers == [0.3]
    assert found == run_stage_on("fine_tune", recipe, run_stage_on("lr_find", recipe, head)).did.steps[0].drop_paths


def test_other_keys_of_the_next_stage_run_the_finder_again_and_the_length_of_its_cycles_does_not(chain, on_chain):
    upstream = chain["train_head"].id
    same = chain.other_recipe(fine_tune__cycle_len=1, train_head__batch_size=7, resize__batch_size=7)
    assert lr_find.run(same, upstream).run_id == chain["lr_find_unfrozen"].id
    for change in ({"fine_tune__batch_size": 7}, {"fine_tune__label_smoothing": 0.0}):
        assert lr_find.run(chain.other_recipe(**change), upstream).run_id != chain["lr_find_unfrozen"].id


@pytest.mark.parametrize(("name", "rule"), zip(FINDERS, ("steep", "minimum"), strict=True))
def test_the_finder_suggests_by_the_rule_of_the_recipe_and_below_the_lowest_point_of_the_curve(chain, name, rule):
    metrics, curve = chain[name].metrics, pd.read_csv(chain[name].files / "curve.csv")
    lowest = curve["lr"][curve["smoothed_loss"].idxmin()]
    assert metrics["suggestion/lr"] == metrics[f"suggestion/{rule}"]
    assert metrics["suggestion/lr"] < lowest


def test_the_finder_suggests_where_the_smoothed_loss_falls_fastest(chain):
    curve = pd.read_csv(chain["lr_find"].files / "curve.csv")
    usable = curve.iloc[len(curve) // 10 : len(curve) - 5].reset_index()
    falling = usable[: usable["smoothed_loss"].idxmin() + 1]
    slopes = np.diff(falling["smoothed_loss"]) / np.diff(np.log(falling["lr"]))
    assert chain["lr_find"].metrics["suggestion/lr"] == pytest.approx(falling["lr"][slopes.argmin()])
    assert curve["lr"].tolist() == pytest.approx(chain["lr_find"].did.rates()[: len(curve)])


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_curve_that_says_nothing_gives_a_known_rate_for_adamw_alone(
    tracking_server, tmp_path, monkeypatch, capsys, optimizer
):
    monkeypatch.setattr(lr_find_work, "suggest", lambda curve, is_trained: {"steep": None})
    recipe = recipe_on(draw_pictures(tmp_path / "pictures"), training={"optimizer": optimizer})
    first = run_stage_on("precompute", recipe)
    if optimizer == "sgd":
        with pytest.raises(UserError, match="steep suggests nothing; look at figures"):
            lr_find.run(recipe, first.id)
    else:
        assert run_stage_on("lr_find", recipe, first).metrics["suggestion/lr"] == KNOWN_RATE
        assert "steep suggests nothing on this curve" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "finder"),
    [("train_head", "lr_find"), ("fine_tune", "lr_find_unfrozen"), ("resize", "lr_find_unfrozen")],
)
def test_an_automatic_rate_is_the_suggestion_of_the_finder_just_before(chain, on_chain, monkeypatch, name, finder):
    def stop(module, optimizer, *batch):
        raise Stopped({group["lr"] for group in optimizer.param_groups if group["layer_group"] == "head"})

    monkeypatch.setattr(step, "train_step", stop)
    changes = {f"{name}__lr": "auto", f"{name}__warm_up": 0.0}
    with pytest.raises(Stopped) as first_step:
        COMMANDS[name](chain.other_recipe(**changes), chain[finder].id)
    assert first_step.value.args == ({chain[finder].metrics["suggestion/lr"]},)


def test_the_heads_rates_fall_along_a_cosine_in_each_phase_and_cycle(chain):
    assert chain["train_head"].did.rates() == pytest.approx(cosine(0.004, [2], 5, 2) + cosine(0.004, [2, 4], 5, 2))


@pytest.mark.parametrize("place", range(3))
def test_fine_tuning_restarts_each_groups_rate_at_every_cycle(chain, place):
    top = 0.002 / 6 ** (2 - place)
    rates = chain["fine_tune"].did.rates(GROUPS[place])
    assert rates == pytest.approx(cosine(top, [2, 6, 18], 2, 2))  # 12 pictures, in batches of 5


def test_resizing_starts_from_the_upstream_rate_and_gives_each_group_its_ratio_of_it(chain):
    assert chain["resize"].did.rates() == pytest.approx(cosine(0.002, [1, 3], 8, 2))  # 33 pictures, in batches of 4
    assert chain["resize"].did.rates("late") == pytest.approx(cosine(0.001, [1, 3], 8, 2))


def test_rates_that_are_listed_are_those_of_the_groups(late_chain):
    top = {group: max(late_chain["resize"].did.rates(group)) for group in GROUPS}
    assert top == pytest.approx({"early": 1e-4, "late": 2e-4, "head": 4e-4})


def test_the_late_group_trains_on_stored_feature_maps_at_its_ratio_of_the_heads_rate(late_chain):
    for taken in late_chain["train_head"].did.steps:
        assert taken.rates["head"] == pytest.approx(5 * taken.rates["late"])


@pytest.mark.parametrize(
    ("name", "groups"), [("train_head", ["head"]), ("fine_tune", [*GROUPS]), ("resize", ["late", "head"])]
)
def test_the_table_of_steps_has_the_rate_of_every_group_that_is_trained(chain, name, groups):
    table = pd.read_csv(chain[name].files / "steps.csv")
    assert table.columns.tolist() == ["step", "loss", *groups]
    for group in groups:
        assert table[group].tolist() == pytest.approx(chain[name].did.rates(group))
