import mlflow
import pytest

from pipeline import tracking
from pipeline.recipe.picture_sections import Data
from pipeline.recipe.schema import Recipe
from pipeline.runs.ensemble.seeds import TrainedNetwork, choose_stages, train_networks, with_seed
from pipeline.tracking import RunRef
from pipeline.training.records import kept_name


def stage(run_id: str, accuracy: float) -> RunRef:
    return RunRef(run_id, "stage", "", None, {kept_name("valid/accuracy"): accuracy, kept_name("valid/loss"): 0.5})


NETWORKS = [
    TrainedNetwork(7, {"train_head": stage("a", 0.7), "resize": stage("b", 0.9)}),
    TrainedNetwork(8, {"train_head": stage("c", 0.8), "resize": stage("d", 0.6)}),
]


@pytest.mark.parametrize(("split_seed", "expected"), [("auto", 7), (3, 3)])
def test_another_seed_has_the_same_split_and_is_one_network(split_seed, expected):
    recipe = Recipe(seed=7, seeds=5, data=Data(split_seed=split_seed))
    seeded = with_seed(recipe, 9)
    assert (seeded.seed, seeded.seeds, seeded.data.split_seed) == (9, 1, expected)
    assert seeded.model_copy(update={"seed": 7, "seeds": 5, "data": recipe.data}) == recipe


def test_of_each_network_the_stage_that_validates_best_is_chosen():
    run_ids, why = choose_stages(NETWORKS)
    assert run_ids == ["b", "c"]
    assert why.startswith("The networks of 2 seeds are averaged")
    assert why.endswith("seed 7 resize 0.9000, seed 8 train_head 0.8000.")


def test_of_one_network_the_sentence_is_that_of_its_best_stage():
    run_ids, why = choose_stages(NETWORKS[1:])
    assert run_ids == ["c"]
    assert why.startswith("The network of train_head is evaluated and not the last one")


@pytest.mark.parametrize("seeds", [1, 2])
def test_each_network_is_trained_by_its_seed_and_the_first_ones_curves_are_the_parents(tracking_server, seeds):
    seen, done = [], {"precompute": RunRef("p", "precompute", "", None)}

    def train(recipe: Recipe):
        seen.append((recipe.seed, recipe.seeds, mlflow.active_run().info.run_id))
        with tracking.open_run("train_head", {}, {}) as run_id:
            tracking.log_metrics(run_id, {"valid/accuracy": recipe.seed / 10}, step=1)
        yield "train_head", RunRef(run_id, "train_head", "", None)

    with tracking.open_run("main", {}, {}) as run_id:
        networks = train_networks(Recipe(seed=4, seeds=seeds), run_id, train, done)
    assert list(done) == ["precompute", "train_head", "train_head seed 5"][: seeds + 1]
    assert [done[name].run_id for name in list(done)[1:]] == [one.stages["train_head"].run_id for one in networks]
    assert [one.seed for one in networks] == [4, 5][:seeds]
    assert [one[:2] for one in seen] == [(4, 1), (5, 1)][:seeds]
    main = mlflow.get_run(run_id)
    assert main.data.metrics["valid/accuracy"] == 0.4
    for number, (seed, _, parent) in enumerate(seen):
        own = mlflow.get_run(parent)
        assert (parent == run_id) == (seeds == 1)
        assert own.data.metrics["valid/accuracy"] == seed / 10
        if seeds > 1:
            assert own.info.run_name == f"seed {seed}"
            assert networks[number].stages["train_head"].run_id in own.data.tags["mlflow.note.content"]
