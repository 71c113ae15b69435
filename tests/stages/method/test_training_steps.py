"""How each step is taken: batch size, decay, smoothing, dropout, weights, optimizer, compiling."""

import pytest

from tests.stages.chains import run_stage_on

TRAINED = ("lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize")


@pytest.mark.parametrize(
    ("name", "batch_size", "decay", "smoothing"),
    [
        ("lr_find", 6, 0.04, 0.12), ("train_head", 6, 0.04, 0.12), ("lr_find_unfrozen", 5, 0.06, 0.15),
        ("fine_tune", 5, 0.06, 0.15), ("resize", 4, 0.07, 0.2),
    ],
)  # fmt: skip
def test_a_stage_trains_by_its_own_batch_size_decay_and_smoothing(chain, name, batch_size, decay, smoothing):
    did = chain[name].did
    assert {read.batch_size for read in did.training} == {batch_size}
    assert {step.label_smoothing for step in did.steps} == {smoothing}
    assert {value for step in did.steps for value in step.decays.values()} == {decay}


@pytest.mark.parametrize("name", TRAINED)
def test_what_all_training_stages_share_arrives_in_each_step_of_each(chain, name):
    assert all(step.options == chain.recipe.training for step in chain[name].did.steps)


@pytest.mark.parametrize(("name", "before"), [("lr_find", "fine_tune"), ("resize", "fine_tune")])
def test_a_body_is_trained_in_the_precision_of_the_recipe_and_the_run_says_in_which(chain, on_chain, name, before):
    done = run_stage_on(name, chain.other_recipe(training__precision="bfloat16"), chain[before])
    assert {step.options.precision for step in done.did.steps} == {"bfloat16"}
    assert done.run.data.tags["thaw.resolved.precision"] == "bfloat16"
    assert chain[before].run.data.tags["thaw.resolved.precision"] == "float32"


def test_a_head_on_stored_activations_is_trained_in_float32_on_a_cpu(chain, on_chain):
    recipe = chain.other_recipe(training__precision="bfloat16", train_head__cycles=0)
    done = run_stage_on("train_head", recipe, chain["precompute"])
    assert {step.options.precision for step in done.did.steps} == {"float32"}
    assert done.run.data.tags["thaw.resolved.precision"] == "float32"


@pytest.mark.parametrize("name", TRAINED)
def test_the_optimizer_of_the_recipe_takes_each_step(chain, name):
    assert {step.optimizer for step in chain[name].did.steps} == {("SGD", True)}


@pytest.mark.parametrize("name", TRAINED)
def test_the_head_drops_the_share_of_the_recipe_and_half_of_it_before_its_hidden_layer(chain, name):
    assert {step.dropouts for step in chain[name].did.steps} == {(0.15, 0.3)}


@pytest.mark.parametrize("name", ["train_head", "lr_find_unfrozen", "fine_tune", "resize"])
def test_the_weights_of_a_table_count_in_every_training_step(late_chain, name):
    assert {weight for step in late_chain[name].did.steps for weight in step.weights} == {1.0, 2.0, 3.0}


def test_a_network_is_compiled_once_for_each_size_that_it_trains_on_pictures_of_if_the_recipe_says_so(
    late_chain, chain
):
    counts = {name: len(run.did.compiled) for name, run in late_chain.runs.items()}
    assert counts == {"precompute": 0, "train_head": 1, "lr_find_unfrozen": 0, "fine_tune": 1, "resize": 1}
    assert not chain["fine_tune"].did.compiled
