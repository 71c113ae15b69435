"""The trials that come first: the recipe itself, so that no sweep ends worse than it, and what the finder suggests."""

from collections.abc import Mapping

import optuna

from pipeline.recipe import Recipe
from pipeline.sweep.queue import put_first
from pipeline.sweep.space import RATES, Space, Value, grid, values_of, widened
from pipeline.sweep.trials import THE_RECIPE

THE_FINDER = "the LR finder's suggestion"


def first_values(recipe: Recipe, space: Space, suggestions: Mapping[str, float]) -> dict[str, dict[str, Value]]:
    """The values of the first trials, by where they come from; `suggestions` has the finder's rate by key."""
    own = values_of(recipe, list(space), suggestions)
    content = recipe.model_dump()
    for key in RATES:
        section, name = key.split(".")
        content[section][name] = "auto"
    found = values_of(Recipe.model_validate(content), list(space), suggestions)
    return {THE_RECIPE: own} | ({} if found == own else {THE_FINDER: found})


def searched(space: Space, first: Mapping[str, Mapping[str, Value]]) -> Space:
    """The space, as wide as it has to be for the first trials to lie in it."""
    for values in first.values():
        space = widened(space, values)
    return space


def queue_first(
    study: optuna.Study, first: Mapping[str, Mapping[str, Value]], on_grid: Space | None, trials: int
) -> None:
    """Queue the first trials, and, where the space is searched `on_grid`, its points, up to so many `trials` in all."""
    for origin, values in first.items():
        put_first(study, values, origin)
    if on_grid is not None:
        for values, _ in zip(grid(on_grid), range(trials - len(first)), strict=False):
            put_first(study, values)
