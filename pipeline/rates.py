"""The layer groups' names, and a rate for each."""

from collections.abc import Sequence

GROUPS = ("early", "late", "head")
# What stays frozen, as a recipe says it.
FROZEN_GROUPS = {"none": (), "early": ("early",), "body": ("early", "late")}


def group_rates(lr: float | Sequence[float], lr_ratio: float) -> dict[str, float]:
    """The rate of each layer group: given one by one, early to head, or the head's, with each group before it
    `lr_ratio` times lower; fast.ai advises 3 to 10."""
    if isinstance(lr, int | float):
        return {group: lr / lr_ratio**above for above, group in reversed(list(enumerate(reversed(GROUPS))))}
    return dict(zip(GROUPS, lr, strict=True))


def thawed_rates(lr: float | Sequence[float], lr_ratio: float, frozen: str) -> dict[str, float]:
    """The same for the groups that are not `frozen`."""
    rates = group_rates(lr, lr_ratio)
    return {group: rate for group, rate in rates.items() if group not in FROZEN_GROUPS[frozen]}
