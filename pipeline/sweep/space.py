"""The search space: which keys of a recipe vary, in which ranges, and a recipe with chosen values put in.

The rates of the layer groups can vary as the head's rate and a ratio (`fine_tune.lr`, `fine_tune.lr_ratio`), or one by
one, as `fine_tune.lr.early`, `fine_tune.lr.late` and `fine_tune.lr.head`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pipeline.recipe.fields import ALL_STAGES, GROUPS, STAGE_NAMES, Section
from pipeline.recipe.mistakes import COMPARED, field_of, nearest_key
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe, flatten, resize_steps
from pipeline.recipe.sweep_sections import Choice, IntRange, LogUniformRange, Range
from pipeline.system.errors import UserError
from pipeline.training.schedule import cycle_lengths, group_rates

Value: TypeAlias = bool | int | float | str
Space: TypeAlias = Mapping[str, Range]
SPACE_KEY = "sweep.space"
# The same for all trials, which else would be evaluated on other pictures or in another way.
FIXED = (
    "seed", "seeds", "device", "reuse", "compile", "deterministic", "stages", "data", "evaluate", "sweep", "sweep_head",
)  # fmt: skip
TRAINED_UNFROZEN, CYCLES = ("fine_tune", "resize"), ("cycles", "cycle_len", "cycle_mult")
NETWORK_KEYS = ("model.backbone", "precompute.image_px", "precompute.cut", "resize.image_px")
RATES = ("fine_tune.lr", "resize.lr")


def check_space(recipe: Recipe) -> None:
    """UserError if the recipe's space names a key that does not exist or cannot vary, a value that the key does not
    take, or keys that contradict one another."""
    space = recipe.sweep.space
    for key in (key for key in space if key.startswith("resize.")):
        if isinstance(recipe.resize, list) or key.split(".")[1].isdecimal():
            raise UserError(
                f"In {SPACE_KEY}: {key} cannot vary where resize is a list of steps; give it one step, or leave it out."
            )
    for key, values in space.items():
        _check_key(key)
        if not isinstance(values, Choice) and values.low >= values.high:
            raise UserError(
                f"In {SPACE_KEY}: {key} goes from {values.low:g} to {values.high:g}, which is no range; give a low "
                "end below the high one."
            )
    _check_stages(recipe)
    _check_rates(space)
    for key in RATES:
        if key in space and isinstance(flatten(recipe)[key], list):
            raise UserError(f"In {SPACE_KEY}: {key} varies and is a list in the recipe; give one rate, or auto, there.")
    _check_values(recipe)
    objective = recipe.sweep.objective
    if isinstance(objective, list) and (len(objective) != 2 or objective[0] == objective[1]):
        raise UserError(f"sweep.objective is {objective}; give one objective, or a list of two that differ.")
    if isinstance(objective, list) and recipe.sweep.sampler == "cmaes":
        raise UserError("sweep.sampler is cmaes, which takes a single objective; use tpe, or give one objective.")


def _check_values(recipe: Recipe) -> None:
    """UserError if the recipe does not take a choice or the end of a range: one by one, but every combination of those
    that must fit one another."""
    ends = {key: _ends(values) for key, values in recipe.sweep.space.items()}
    for key in (key for key in ends if key not in COMPARED):
        for value in ends[key]:
            with_values(recipe, {key: value} | _other_rates(key, value))
    compared = [key for key in ends if key in COMPARED]
    for combination in itertools.product(*(ends[key] for key in compared)):
        with_values(recipe, dict(zip(compared, combination, strict=True)))


def varied_models(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every backbone with every source of weights that trials of this recipe may have, its own alone if none varies."""
    for combination in itertools.product(*(_choices(recipe, f"model.{name}") for name in ("backbone", "weights"))):
        model = with_values(recipe, dict(zip(("model.backbone", "model.weights"), combination, strict=True))).model
        yield model.backbone, model.weights


def _choices(recipe: Recipe, key: str) -> list[Value]:
    values = recipe.sweep.space.get(key)
    return [flatten(recipe)[key]] if values is None else _ends(values)  # type: ignore[list-item]


def _ends(values: Range) -> list[Value]:
    """All choices, or both ends of a range."""
    return list(values.of) if isinstance(values, Choice) else [values.low, values.high]


def with_values(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """The recipe with these values at these keys; UserError if it does not take one of them."""
    content = recipe.model_dump()
    rates: dict[str, dict[str, Value]] = {}
    for key, value in values.items():
        section, name, *group = key.split(".")
        if group:
            rates.setdefault(f"{section}.{name}", {})[group[0]] = value
        else:
            content[section][name] = value
    for key, by_group in rates.items():
        section, name = key.split(".")
        content[section][name] = [by_group[group] for group in GROUPS]
    return build_recipe(content, {}, SPACE_KEY)


def values_of(recipe: Recipe, keys: Sequence[str], suggestions: Mapping[str, float]) -> dict[str, Value]:
    """The recipe's own values of these keys; `suggestions` holds the rate that replaces "auto" by key, such as
    {"fine_tune.lr": 0.002}."""
    flat = flatten(recipe)
    found: dict[str, Value] = {}
    for key in keys:
        section, name, *group = key.split(".")
        value: Any = flat[f"{section}.{name}"]
        value = suggestions[f"{section}.{name}"] if value == "auto" and name == "lr" else value
        if f"{section}.{name}" in RATES:
            value = group_rates(value, float(str(flat[f"{section}.lr_ratio"])))[group[0] if group else "head"]
        found[key] = value
    return found


def network_variants(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe, with each combination of values of the keys that say how the network is built and cut."""
    varied = {key: _ends(values) for key, values in recipe.sweep.space.items() if key in NETWORK_KEYS}
    for combination in itertools.product(*varied.values()):
        yield with_values(recipe, dict(zip(varied, combination, strict=True)))


def most_epochs(recipe: Recipe, space: Space) -> int:
    """How many epochs a trial has at most once all layers are unfrozen."""
    highest: dict[str, Value] = {}
    for key, values in space.items():
        if key.split(".")[0] in TRAINED_UNFROZEN and key.split(".")[1] in CYCLES:
            highest[key] = max(_points(values))
    longest = with_values(recipe, highest)
    stages = (longest.fine_tune, *resize_steps(longest))
    return sum(sum(cycle_lengths(stage.cycles, stage.cycle_len, stage.cycle_mult)) for stage in stages)


def widened(space: Space, values: Mapping[str, Value]) -> dict[str, Range]:
    """The space, with each range as wide as it must be to hold these values, such as those of the recipe."""
    wide = dict(space)
    for key, value in values.items():
        ends = wide[key]
        if isinstance(ends, Choice):
            wide[key] = ends if value in ends.of else ends.model_copy(update={"of": [*ends.of, value]})
        else:
            assert not isinstance(value, str)
            wide[key] = ends.model_copy(update={"low": min(ends.low, value), "high": max(ends.high, value)})
    return wide


def grid(space: Space) -> Iterator[dict[str, Value]]:
    """Every combination of the values of all keys."""
    for combination in itertools.product(*(_points(values) for values in space.values())):
        yield dict(zip(space, combination, strict=True))


def _points(values: Range) -> list[Value]:
    if isinstance(values, Choice):
        return list(values.of)
    if isinstance(values, IntRange):
        return list(range(values.low, values.high + 1))
    shares = [index / (values.points - 1) for index in range(values.points)]
    if isinstance(values, LogUniformRange):
        return [values.low * (values.high / values.low) ** share for share in shares]
    return [values.low + (values.high - values.low) * share for share in shares]


def _check_key(key: str) -> None:
    path = key.split(".")
    if path[0] in FIXED:
        raise UserError(
            f"In {SPACE_KEY}: {key} cannot vary, since all trials are compared on the same pictures and in the same "
            "way; leave it out."
        )
    is_group_rate = ".".join(path[:2]) in RATES and len(path) == 3 and path[2] in GROUPS
    field = field_of(path)
    is_section = field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    if (field is None and not is_group_rate) or is_section:
        raise UserError(f"In {SPACE_KEY}: {key} is not a key of a recipe; the nearest is {nearest_key(path)}.")


def _check_stages(recipe: Recipe) -> None:
    """UserError if a key varies of a stage that the recipe names not among its `stages`."""
    if recipe.stages == ALL_STAGES:
        return
    left_out = set(STAGE_NAMES) - set(recipe.stages.split(","))
    for key in (key for key in recipe.sweep.space if key.split(".")[0] in left_out):
        stage = key.split(".")[0]
        raise UserError(
            f"In {SPACE_KEY}: {key} cannot vary, since stages leaves {stage} out; "
            f"name {stage} in stages, or leave the key out."
        )


def _check_rates(space: Space) -> None:
    """The rates of a stage vary as one rate and a ratio, or all three one by one."""
    for key in RATES:
        one_by_one = [f"{key}.{group}" for group in GROUPS]
        given = [name for name in one_by_one if name in space]
        if given and len(given) < len(GROUPS):
            alone = " and ".join(given)
            raise UserError(f"In {SPACE_KEY}: {alone} alone cannot vary; name all of {', '.join(one_by_one)}.")
        both = [name for name in (key, f"{key}_ratio") if name in space]
        if given and both:
            raise UserError(
                f"In {SPACE_KEY}: {both[0]} and {given[0]} contradict one another; vary the rate and its ratio, or the "
                "rates one by one."
            )


def _other_rates(key: str, value: Value) -> dict[str, Value]:
    """For the rate of one layer group, the same for the others, which must be given too."""
    rate, _, group = key.rpartition(".")
    return {f"{rate}.{other}": value for other in GROUPS} if rate in RATES and group in GROUPS else {}
