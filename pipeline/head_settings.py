"""Settings of a head to be compared: the recipe's own, and others spread over ranges."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

from scipy.stats import qmc

from pipeline.recipe import Recipe
from pipeline.recipe_file import build_recipe
from pipeline.recipe_sweep import HEAD_KEYS, Choice, IntRange, LogUniformRange, Range

Value: TypeAlias = bool | int | float | str


@dataclass(frozen=True)
class Setting:
    """How a head is trained on stored activations, by whatever seed."""

    lr: float
    weight_decay: float
    dropout: float
    label_smoothing: float
    stored_epochs: int


def draw_settings(ranges: Mapping[str, Range], count: int, seed: int) -> list[Setting]:
    """`count` settings with a value from the range of each field, spread evenly by a scrambled Sobol sequence.

    Sobol 1967; Owen 1995, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", for the scrambling. With fewer settings
    the first of these are had, up to the next power of two.
    """
    names = [field.name for field in fields(Setting)]
    if count == 0:
        return []
    points = qmc.Sobol(len(names), scramble=True, rng=seed).random_base2((count - 1).bit_length())[:count]
    return [
        Setting(**{name: value_at(ranges[name], share) for name, share in zip(names, point, strict=True)})  # type: ignore[arg-type]
        for point in points.tolist()
    ]


def with_setting(recipe: Recipe, setting: Setting) -> Recipe:
    """The recipe that trains its head with this setting."""
    content = recipe.model_dump()
    for name, value in asdict(setting).items():
        section, key = HEAD_KEYS[name].split(".")
        content[section][key] = value
    return build_recipe(content, {}, "the best setting")


def value_at(values: Range, share: float) -> Value:
    """The value that lies at this share, from 0 to below 1, of a range."""
    if isinstance(values, Choice):
        return values.of[int(share * len(values.of))]
    if isinstance(values, IntRange):
        return values.low + int(share * (values.high - values.low + 1))
    if isinstance(values, LogUniformRange):
        return float(values.low * (values.high / values.low) ** share)
    return float(values.low + (values.high - values.low) * share)
