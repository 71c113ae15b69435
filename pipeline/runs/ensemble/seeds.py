"""The networks of a recipe with several `seeds`: each is trained by its own seed, on the split of the first."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline import tracking
from pipeline.recipe.schema import Recipe, training_settings
from pipeline.runs.best_stage import ACCURACY, best_stage
from pipeline.runs.stage import seed_name
from pipeline.runs.summary import CURVES, stage_links
from pipeline.system.console import say
from pipeline.tracking import RunRef

# Trains the network of a recipe: gives the name and the run of each stage as soon as it is done.
Train = Callable[[Recipe], Iterable[tuple[str, RunRef]]]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network of an ensemble: the `seed` that it follows from, and the runs of its stages by name."""

    seed: int
    stages: Mapping[str, RunRef]


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one network by another seed, on the same split."""
    split_seed = recipe.seed if recipe.data.split_seed == "auto" else recipe.data.split_seed
    data = recipe.data.model_copy(update={"split_seed": split_seed})
    return recipe.model_copy(update={"seed": seed, "seeds": 1, "data": data})


def train_networks(recipe: Recipe, run_id: str, train: Train, done: dict[str, RunRef]) -> list[TrainedNetwork]:
    """`train` each network of the recipe, within the open run `run_id`, which gets the first one's curves. Stages of
    several networks are nested in a run for each seed. Each stage's run is added to `done` as soon as it is there; a
    further network's by a name with its seed."""
    if recipe.seeds == 1:
        return [TrainedNetwork(recipe.seed, _train(recipe, [run_id], train, done, str))]
    networks = []
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        one, is_first = with_seed(recipe, seed), seed == recipe.seed
        say(f"The network of seed {seed}")
        with tracking.open_run(f"seed {seed}", {tracking.STAGE: "seed"}, training_settings(one)) as own_run_id:
            name_of = str if is_first else partial(seed_name, seed=seed)
            stages = _train(one, [own_run_id, run_id] if is_first else [own_run_id], train, done, name_of)
            tracking.describe_run(own_run_id, stage_links(stages))
        networks.append(TrainedNetwork(seed, stages))
    return networks


def _train(
    recipe: Recipe, run_ids: Sequence[str], train: Train, done: dict[str, RunRef], name_of: Callable[[str], str]
) -> dict[str, RunRef]:
    """The runs of the stages of one network, whose curves are copied to the runs `run_ids`."""
    stages = {}
    for name, ref in train(recipe):
        stages[name] = done[name_of(name)] = ref
        for run_id in run_ids:
            tracking.copy_curves(ref.run_id, run_id, CURVES)
    return stages


def choose_stages(networks: Iterable[TrainedNetwork]) -> tuple[list[str], str]:
    """(The id of the run of each network's stage that validates best, a sentence that says which and why)."""
    chosen = [(one, *best_stage(one.stages)) for one in networks]
    run_ids = [one.stages[name].run_id for one, name, _ in chosen]
    if len(chosen) == 1:
        return run_ids, chosen[0][2]
    told = [f"seed {one.seed} {name} {one.stages[name].metrics[ACCURACY]:.4f}" for one, name, _ in chosen]
    return run_ids, (
        f"The networks of {len(chosen)} seeds are averaged, each as the stage left it that validates best: "
        f"{', '.join(told)}."
    )
