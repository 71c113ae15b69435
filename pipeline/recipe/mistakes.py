"""Sentences on what is wrong with a recipe: the key, its value, the values that it takes, and where it was given."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.recipe.fields import Section
from pipeline.recipe.schema import Recipe, flatten, stages_of
from pipeline.recipe.sweep_sections import HEAD_KEYS, Choice, Range
from pipeline.recipe.training_sections import ONE_STEP, STEPS, Resize
from pipeline.system.errors import UserError

# The keys that `wrong_together` compares with one another, of those that may vary.
COMPARED = (
    "lr_find.start_lr", "lr_find.end_lr", "augment.strength", "augment.crop", "augment.lighting",
    "train_head.stored_epochs", "train_head.cycles", "train_head.freeze", "precompute.cut",
)  # fmt: skip


def field_of(path: Sequence[str]) -> FieldInfo | None:
    """The field of a key, such as ("fine_tune", "lr") or ("resize", "0", "lr"), or None if there is no such key."""
    fields: Mapping[str, FieldInfo] = Recipe.model_fields
    field: FieldInfo | None = None
    for part in path:
        if field is Recipe.model_fields["resize"] and part.isdecimal():
            continue
        field = fields.get(part)
        if field is None:
            return None
        kind = Resize if field is Recipe.model_fields["resize"] else field.annotation
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
    return field


def wrong_keys(error: ValidationError, typed: Collection[str], origin: str) -> str:
    """A sentence for each wrong key, in the order of the recipe. `typed` are the keys of the command line; the others
    come from `origin`."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        path = [str(part) for part in problem["loc"] if part not in (ONE_STEP, STEPS)]
        parts = _parts_of_range(path)
        if parts:
            key, sentence = ".".join(path[:parts]), _wrong_range_entry(path[:parts], path[parts:], problem)
        elif problem["type"] == "extra_forbidden":
            key = ".".join(path)
            sentence = f"{key} is not a key of a recipe; the nearest is {nearest_key(path)}."
        else:
            path = _known_part(path)
            key = ".".join(path)
            field = field_of(path)
            takes = (field and field.description) or "a section with keys of its own"
            sentence = f"{key} is {problem['input']!r}; it takes {takes}."
        sentences.setdefault(key, f"{_where([key], typed, origin)}: {sentence}")
    return "\n".join(sentences.values())


def _parts_of_range(path: Sequence[str]) -> int:
    """How many leading parts of a path name a range: one of sweep.space, or a key of sweep_head; 0 if none do."""
    if list(path[:2]) == ["sweep", "space"] and len(path) > 2:
        return 3
    return 2 if path[0] == "sweep_head" and len(path) > 1 and path[1] in HEAD_KEYS else 0


def _wrong_range_entry(path: Sequence[str], inner: Sequence[str], problem: ErrorDetails) -> str:
    """A sentence on the range at `path`; `inner` is its type, and what of it is wrong."""
    entry = f"{path[2]} in sweep.space" if len(path) > 2 else ".".join(path)
    field = field_of(path[:2])
    if problem["type"] == "missing":
        what = f"lacks {inner[-1]}"
    elif problem["type"] == "extra_forbidden" and inner:
        what = f"has {inner[-1]}, which a range of type {inner[0]} does not take"
    elif problem["type"] == "union_tag_invalid":
        what = f"has the type {problem['input']['type']!r}"
    elif problem["type"] == "union_tag_not_found" and isinstance(problem["input"], dict):
        what = "lacks type"
    elif len(inner) > 1:
        what = f"has {problem['input']!r} as {inner[1]}"
    else:
        what = f"is {problem['input']!r}"
    return f"{entry} {what}; it takes {field and field.description}."


def wrong_together(recipe: Recipe, typed: Collection[str], origin: str) -> str | None:
    """A sentence on keys that are right one by one and wrong together, or None if there are none."""
    find, data, head = recipe.lr_find, recipe.data, recipe.train_head
    if find.start_lr >= find.end_lr:
        where = _where(["lr_find.start_lr", "lr_find.end_lr"], typed, origin)
        return (
            f"{where}: lr_find.start_lr is {find.start_lr:g}, which is not below lr_find.end_lr, {find.end_lr:g}; "
            "lower the one or raise the other."
        )
    if recipe.compile and recipe.deterministic:
        where = _where(["compile", "deterministic"], typed, origin)
        return (
            f"{where}: compile is true and so is deterministic, but which kernels are compiled hangs on how fast each "
            "is in a try; set one of them to false."
        )
    held_out = data.valid_fraction + data.test_fraction
    if held_out >= 1:
        where = _where(["data.valid_fraction", "data.test_fraction"], typed, origin)
        return (
            f"{where}: data.valid_fraction and data.test_fraction add up to {held_out:g}, which leaves nothing to "
            "train on; lower one of them."
        )
    without_dot = next((one for one in data.extensions if not one.startswith(".") or len(one) < 2), None)
    if without_dot is not None or not data.extensions:
        where = _where(["data.extensions"], typed, origin)
        what = f"has {without_dot!r}, which is no ending" if data.extensions else "is empty"
        return f"{where}: data.extensions {what}; give endings such as .jpg and .png."
    name = recipe.evaluate.register_as
    if name and (not name.strip() or name in (".", "..")):
        where = _where(["evaluate.register_as"], typed, origin)
        return f"{where}: evaluate.register_as is {name!r}, which no registry takes; give a name, or an empty one."
    if isinstance(data.range, list) and data.range[0] >= data.range[1]:
        where = _where(["data.range"], typed, origin)
        return f"{where}: data.range is {data.range}, which is no range; give a low number and a higher one."
    for key, lr in ((key, lr) for key, lr in flatten(recipe).items() if key.endswith(".lr")):
        if isinstance(lr, list) and len(lr) != 3:
            where = _where([key], typed, origin)
            return f"{where}: {key} has {len(lr)} rates; give three, for the groups early, late and head."
    augment = recipe.augment
    for key, too_far in (
        ("crop", 1 - (1 - augment.crop) * augment.strength < 0.1),
        ("lighting", augment.lighting * augment.strength >= 1),
    ):
        if too_far:
            where = _where(["augment.strength", f"augment.{key}"], typed, origin)
            return (
                f"{where}: augment.strength {augment.strength:g} takes augment.{key}, {getattr(augment, key):g}, "
                "beyond what it may be; lower the strength."
            )
    if head.stored_epochs == 0 and head.cycles == 0:
        where = _where(["train_head.stored_epochs", "train_head.cycles"], typed, origin)
        return f"{where}: train_head.stored_epochs and train_head.cycles are both 0; set one of them to 1 or more."
    if head.freeze == "early" and head.stored_epochs and recipe.precompute.cut == "head":
        where = _where(["train_head.freeze", "train_head.stored_epochs", "precompute.cut"], typed, origin)
        return (
            f"{where}: train_head.freeze is early, but with precompute.cut at head the late layer group cannot be "
            "trained on what is stored; set precompute.cut to late, or train_head.stored_epochs to 0."
        )
    return _wrong_stages(recipe, typed, origin) or _wrong_range(recipe, typed, origin)


def _wrong_stages(recipe: Recipe, typed: Collection[str], origin: str) -> str | None:
    """A sentence on stages that the recipe runs without what they follow."""
    given = stages_of(recipe)
    on_head = [name for name in given if name in ("fine_tune", "resize", "evaluate")]
    for name, followers in (("precompute", given), ("train_head", on_head)):
        if followers and name not in given:
            where = _where(["stages"], typed, origin)
            return f"{where}: stages leaves {name} out, which {followers[-1]} follows; name it too."
    if "lr_find" not in given:
        rates = [f"{name}.lr" for name in given if name in ("train_head", "fine_tune")]
        for key in (key for key in rates if flatten(recipe)[key] == "auto"):
            where = _where(["stages", key], typed, origin)
            return f"{where}: stages leaves lr_find out, and {key} is auto; set {key} to a rate, or name lr_find too."
    return None


def steps_without_growth(recipe: Recipe) -> list[str]:
    """A sentence on each step of resize whose pictures are no larger than those before it, as a recipe may mean it."""
    if "resize" not in stages_of(recipe):
        return []
    given = recipe.resize
    steps = {f"resize.{n}": one for n, one in enumerate(given)} if isinstance(given, list) else {"resize": given}
    sizes = [("precompute", recipe.precompute.image_px)]
    sizes += [(name, step.image_px) for name, step in steps.items() if step.cycles]
    return [
        f"{name}.image_px is {size_px}, which is not above {earlier}.image_px, {earlier_px}, so that the network goes "
        f"on at a size that is no larger; raise it, or set {name}.cycles to 0."
        for (earlier, earlier_px), (name, size_px) in pairwise(sizes)
        if size_px <= earlier_px
    ]


def check_positive_class(given: str, classes: Collection[str]) -> None:
    """UserError, with the nearest class, if the class `given` for evaluate.positive_class is none of `classes`."""
    if given in ("", *classes):
        return
    names = sorted(map(str, classes))
    by_lower_case = {name.casefold(): name for name in names}
    close = difflib.get_close_matches(given.casefold(), by_lower_case, n=1)
    some = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    nearest = f"the nearest is {by_lower_case[close[0]]}, choose from {some}" if close else f"choose from {some}"
    raise UserError(f"evaluate.positive_class is {given}, which is no class of these pictures; {nearest}.")


def check_held_out(recipe: Recipe, is_split: bool) -> None:
    """UserError if pictures that do not come split would leave none to validate with."""
    if not is_split and recipe.data.valid_fraction == 0:
        raise UserError(
            "data.valid_fraction is 0, and these pictures do not come split, which leaves none to validate with; give "
            "a share above 0."
        )


def _wrong_range(recipe: Recipe, typed: Collection[str], origin: str) -> str | None:
    """A sentence on a range of sweep_head with values that its key does not take."""
    for name, key in HEAD_KEYS.items():
        ranged = f"sweep_head.{name}"
        values: Range = getattr(recipe.sweep_head, name)
        if not isinstance(values, Choice) and values.low >= values.high:
            return (
                f"{_where([ranged], typed, origin)}: {ranged} goes from {values.low:g} to {values.high:g}, which is no "
                "range; give a low end below the high one."
            )
        for value in values.of if isinstance(values, Choice) else (values.low, values.high):
            if not _is_taken(recipe, key, value) or (name == "stored_epochs" and value == 0):
                field = field_of(key.split("."))
                takes = "a whole number from 1 up" if name == "stored_epochs" else field and field.description
                return f"{_where([ranged], typed, origin)}: {ranged} has {value!r} in it; {key} takes {takes}."
    return None


def _is_taken(recipe: Recipe, key: str, value: object) -> bool:
    """Whether a key takes this number."""
    section, name = key.split(".")
    try:
        type(getattr(recipe, section)).model_validate({name: value})
    except ValidationError:
        return False
    return not isinstance(value, str)


def _where(keys: Sequence[str], typed: Collection[str], origin: str) -> str:
    pairs = [(f"{name}.", f"{key}.") for name in typed for key in keys]
    on_command_line = any(name.startswith(key) or key.startswith(name) for name, key in pairs)
    return "On the command line" if on_command_line else f"In {origin}"


def _known_part(path: Sequence[str]) -> list[str]:
    """The leading part of a path that is a key; pydantic appends the branch of a union, or a list's index."""
    known: list[str] = []
    for part in path:
        if field_of([*known, part]) is None:
            break
        known.append(part)
    return known


def nearest_key(path: Sequence[str]) -> str:
    """The key most similar to the one at `path`: among its siblings first, then anywhere in the recipe."""
    keys = list(flatten(Recipe()))
    of_siblings = {key.split(".")[-1]: key for key in keys if key.split(".")[:-1] == list(path[:-1])}
    if len(path) == 1:
        of_siblings |= {name: name for name in Recipe.model_fields}
    of_all = {key.split(".")[-1]: key for key in keys}
    for candidates, cutoff in ((of_siblings, 0.6), (of_all, 0.0)):
        close = difflib.get_close_matches(path[-1], candidates, n=1, cutoff=cutoff)
        if close:
            return candidates[close[0]]
    return keys[0]
