"""The line with which main begins: the network, the device, and each stage with the time that it will take."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipeline.data.manifest import Manifest
from pipeline.data.splits import SPLITS
from pipeline.recipe.presets import advise_on_few
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan.work import StageWork, work_of
from pipeline.runs.runner import before_first_work
from pipeline.system.console import held, roughly, say
from pipeline.system.later import later
from pipeline.tracking import RunRef

# The sizes of pictures are shown where a stage begins with another.
SIZED = ("precompute", "resize")


@contextmanager
def announced(recipe: Recipe, manifest: Manifest, done: Mapping[str, RunRef]) -> Iterator[dict[str, float]]:
    """Says, once within the block, what main will do: when the first stage works that is not reused, or at the end, and
    before all that was said since the beginning. `done` are the stages that have a run by then. A recipe that suits so
    few pictures better is named first.

    Gives the seconds that each further stage is expected to take, by its name, once they are known.
    """
    expected: dict[str, float] = {}
    if advice := advise_on_few(recipe, len(manifest.rows("train")), len(manifest.classes)):
        say(advice)
    works = work_of(recipe, {split: len(manifest.rows(split)) for split in SPLITS})
    with held() as release:

        def announce() -> None:
            open_stages = {name: work for name, work in works.items() if name not in done}
            expected.update(later("pipeline.runs.plan.estimate.expected_seconds")(recipe, manifest, open_stages))
            computed_by = later("pipeline.runs.plan.estimate.computed_by")(recipe)
            release(describe_plan(recipe, works, done, expected, computed_by))

        with before_first_work(announce):
            yield expected
        release(describe_plan(recipe, works, done, expected))


def describe_plan(
    recipe: Recipe,
    works: Mapping[str, StageWork],
    done: Mapping[str, RunRef],
    expected: Mapping[str, float],
    computed_by: str = "",
) -> str:
    """What main will do, in one line: the network, what it is `computed_by` if anything is, how long it will take, and
    the stages."""
    parts = []
    further = [name for name in works if " seed " in name]
    for name, work in works.items():
        if further and name == "evaluate":
            seconds = [expected[one] for one in further if one in expected]
            time = roughly(sum(seconds)) if seconds else "reused" if all(one in done for one in further) else ""
            parts.append(f"{recipe.seeds - 1} more networks {time}".strip())
        if name in further:
            continue
        size = f" ({work.image_px} px)" if name.split()[0] in SIZED else ""
        time = f" {roughly(expected[name])}" if name in expected else " reused" if name in done else ""
        parts.append(f"{name}{size}{time}")
    total = f", about {roughly(sum(expected.values()))}" if expected else ""
    computed = f" on {computed_by}" if computed_by else ""
    return f"{recipe.model.backbone}{computed}{total}: {', '.join(parts)}"
