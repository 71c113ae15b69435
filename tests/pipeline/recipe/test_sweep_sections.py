"""The sections of a recipe that say how it is tuned."""

from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe, flatten, training_settings
from pipeline.recipe.sweep_sections import HEAD_KEYS, Choice, IntRange, LogUniformRange, UniformRange


def test_each_kind_of_range_is_read_by_its_type():
    space = {
        "fine_tune.cycle_len": {"type": "int", "low": 1, "high": 3},
        "augment.strength": {"type": "uniform", "low": 0, "high": 2},
        "fine_tune.lr": {"type": "log_uniform", "low": 1e-5, "high": 1e-2, "points": 4},
        "augment.flip": {"type": "choice", "of": ["none", "all"]},
    }
    ranges = build_recipe({"sweep": {"space": space}}, {}, "mine.yaml").sweep.space
    assert [type(values) for values in ranges.values()] == [IntRange, UniformRange, LogUniformRange, Choice]
    assert ranges["fine_tune.lr"] == LogUniformRange(type="log_uniform", low=1e-5, high=1e-2, points=4)


def test_a_space_can_be_typed_on_the_command_line():
    typed = {"sweep.space": "{fine_tune.lr: {type: log_uniform, low: 1e-4, high: 1e-2}}", "sweep.trials": "3"}
    sweep = build_recipe({}, typed, "mine.yaml").sweep
    assert list(sweep.space) == ["fine_tune.lr"]
    assert sweep.trials == 3


def test_a_range_of_the_head_can_be_typed_on_the_command_line():
    typed = {"sweep_head.lr": "{type: log_uniform, low: 1e-4, high: 1e-2}", "sweep_head.seeds": "2"}
    swept = build_recipe({}, typed, "mine.yaml").sweep_head
    assert swept.lr == LogUniformRange(type="log_uniform", low=1e-4, high=1e-2)
    assert (swept.seeds, swept.settings) == (2, Recipe().sweep_head.settings)


def test_every_range_of_the_head_is_for_a_key_that_a_recipe_has():
    ranges = {name for name, value in Recipe().sweep_head if not isinstance(value, int)}
    assert HEAD_KEYS.keys() == ranges
    assert set(HEAD_KEYS.values()) <= flatten(Recipe()).keys()


def test_the_settings_of_a_training_leave_out_what_only_a_sweep_reads():
    flat = flatten(Recipe())
    assert flat.keys() - training_settings(Recipe()).keys() == {key for key in flat if key.startswith("sweep")}
