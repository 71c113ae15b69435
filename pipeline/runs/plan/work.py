"""How much each stage of main has to do, by the recipe and the number of pictures; nothing is measured here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.recipe.fields import Frozen
from pipeline.recipe.schema import Recipe, frozen_in, resize_steps, stages_of, trained_next
from pipeline.recipe.training_sections import Resize, TrainingStage, UnfrozenStage
from pipeline.runs.stage import seed_name, step_name
from pipeline.training.schedule import cycle_lengths

LR_FIND_UNFROZEN = "lr_find_unfrozen"
# Of the batches of a range test, which ends where the loss explodes: of a fresh head they were 0.84 to 0.95 of them, of
# a whole network, which bears less, 0.52 to 0.63 (solar cells, ants and bees).
TESTED_SHARE, TESTED_SHARE_UNFROZEN = 0.9, 0.6


@dataclass(frozen=True)
class Training:
    """`steps` of training on batches of `batch_size` pictures of `image_px`, with layer groups `frozen`; `validated`
    pictures go through the same network between them."""

    frozen: Frozen
    image_px: int
    batch_size: int
    steps: int
    validated: int = 0


@dataclass(frozen=True)
class StageWork:
    """What a stage has to do: `opened` pictures are decoded for `image_px`, `passed` ones of that size go through a
    network that is not trained; a head takes `head_steps` on stored activations in batches of `head_batch_size`; and
    what is trained on pictures."""

    image_px: int
    opened: int = 0
    passed: int = 0
    head_steps: int = 0
    head_batch_size: int = 0
    trainings: tuple[Training, ...] = ()


def work_of(recipe: Recipe, counts: Mapping[str, int]) -> dict[str, StageWork]:
    """The work of each stage of main, by the name that main has for it, in their order. `counts` are the pictures of
    each split."""
    works = dict(_work(recipe, counts))
    if recipe.seeds == 1:
        return works
    evaluated = works.pop("evaluate", None)
    of_network = {name: work for name, work in works.items() if name != "precompute"}
    for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds):
        works |= {seed_name(name, seed): work for name, work in of_network.items()}
    return works | ({"evaluate": replace(evaluated, passed=recipe.seeds * evaluated.passed)} if evaluated else {})


def _work(recipe: Recipe, counts: Mapping[str, int]) -> Iterator[tuple[str, StageWork]]:
    stages, steps, pictures = stages_of(recipe), resize_steps(recipe), sum(counts.values())
    first_px, find = recipe.precompute.image_px, recipe.lr_find
    tested_px = first_px
    tests, unfrozen_tests = (round(share * find.iterations) for share in (TESTED_SHARE, TESTED_SHARE_UNFROZEN))
    if "precompute" in stages:
        yield "precompute", StageWork(first_px, pictures, pictures + recipe.precompute.views * counts["train"])
    if "lr_find" in stages:
        yield "lr_find", StageWork(first_px, head_steps=tests, head_batch_size=recipe.train_head.batch_size)
    if "train_head" in stages:
        yield "train_head", _head_work(recipe, counts)
    if "lr_find" in stages and ("fine_tune" in stages or "resize" in stages):
        next_stage = trained_next(recipe, ["train_head"])
        tested_px = next_stage.image_px if isinstance(next_stage, Resize) else first_px
        tested = Training(frozen_in(next_stage), tested_px, next_stage.batch_size, unfrozen_tests)
        opened = pictures if tested_px != first_px else 0
        yield LR_FIND_UNFROZEN, StageWork(tested_px, opened, trainings=(tested,))
    if "fine_tune" in stages:
        yield "fine_tune", StageWork(first_px, trainings=tuple(_trainings(recipe.fine_tune, "none", first_px, counts)))
    last_px = first_px
    for number, step in enumerate(steps if "resize" in stages else (), 1):
        last_px = step.image_px
        trainings = tuple(_trainings(step, step.freeze, last_px, counts))
        opened = pictures if last_px != tested_px else 0
        yield step_name("resize", number), StageWork(last_px, opened, trainings=trainings)
    if "evaluate" in stages:
        views = (recipe.evaluate.tta_views - 1) * (counts["test"] or counts["valid"])
        yield "evaluate", StageWork(last_px, passed=pictures + views)


def _head_work(recipe: Recipe, counts: Mapping[str, int]) -> StageWork:
    head, px = recipe.train_head, recipe.precompute.image_px
    stored = round(counts["train"] * head.fraction) * (1 + recipe.precompute.views)
    steps = head.stored_epochs * max(stored // head.batch_size, 1)
    augmented = _training(head, head.freeze, px, counts, sum(_cycles(head)))
    if recipe.precompute.cut == "head":
        return StageWork(px, head_steps=steps, head_batch_size=head.batch_size, trainings=augmented)
    on_maps = Training("early", px, head.batch_size, steps)  # from stored feature maps on, which is a little less
    return StageWork(px, trainings=(on_maps, *augmented))


def _trainings(stage: UnfrozenStage, frozen: Frozen, px: int, counts: Mapping[str, int]) -> Iterator[Training]:
    gradual: tuple[Frozen, ...] = ("body", "early", "none")
    for deeper in gradual[: gradual.index(frozen)] if stage.gradual_epochs else ():
        yield from _training(stage, deeper, px, counts, stage.gradual_epochs)
    yield from _training(stage, frozen, px, counts, sum(_cycles(stage)))


def _cycles(stage: TrainingStage) -> list[int]:
    return cycle_lengths(stage.cycles, stage.cycle_len, stage.cycle_mult) if stage.cycles else []


def _training(
    stage: TrainingStage, frozen: Frozen, px: int, counts: Mapping[str, int], epochs: int
) -> tuple[Training, ...]:
    if not epochs:
        return ()
    trained = round(counts["train"] * stage.fraction)
    steps = epochs * max(trained // stage.batch_size, 1)
    return (Training(frozen, px, min(stage.batch_size, trained), steps, epochs * counts["valid"]),)
