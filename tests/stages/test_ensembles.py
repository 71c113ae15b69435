"""Several networks by seeds, and snapshots of their cycles, averaged in evaluate and in the served model."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline import tracking
from pipeline.data.augment import view_matrices
from pipeline.data.decode import decode_square
from pipeline.evaluation.calibration import apply_temperature
from pipeline.evaluation.predict import predict
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.classifier import load_classifier
from pipeline.runs.evaluated_runs import read_evaluated_run
from pipeline.system.errors import UserError
from pipeline.tracking import RunRef
from pipeline.training.history import kept_name
from stages import evaluate, fine_tune, main, precompute, train_head
from stages.__main__ import _read
from stages.registry import STAGES
from tests.drawn_pictures import CLASSES, draw_pictures
from tests.stages.chains import recipe_on
from tests.stages.watching import watched

CPU = torch.device("cpu")
SHORT = {
    "train_head__cycles": 0, "train_head__stored_epochs": 2, "fine_tune__cycles": 1, "fine_tune__cycle_len": 1,
    "fine_tune__cycle_mult": 1, "fine_tune__lr": 0.01, "resize__cycles": 1, "resize__image_px": 40,
    "resize__cycle_len": 1, "resize__fraction": 0.4, "training__optimizer": "adamw", "training__keep": "last",
    "evaluate__positive_class": "", "evaluate__onnx": True, "evaluate__register_as": "pets", "train_head__lr": 0.03,
}  # fmt: skip
TRAINING = ("lr_find", "train_head", "lr_find_unfrozen", "fine_tune", "resize")


@dataclass(frozen=True)
class Trained:
    """A run of main with one seed, then one with two, the runs nested in the latter, and what main said of it."""

    folder: Path
    one: mlflow.entities.Run
    two: mlflow.entities.Run
    stages: list[dict[str, RunRef]]
    nested: list[mlflow.entities.Run]
    said: list[str]

    def stage(self, name: str) -> mlflow.entities.Run:
        """The run of a stage of the ensemble, by its name on the run of main."""
        return mlflow.get_run(self.stages[1][name].run_id)

    @property
    def evaluated(self) -> mlflow.entities.Run:
        return self.stage("evaluate")

    @property
    def predictions(self) -> pd.DataFrame:
        """Those of the pictures of the test split."""
        table = pd.read_csv(f"{self.evaluated.info.artifact_uri}/predictions.csv")
        return table[table["split"] == "test"]


@pytest.fixture(scope="module")
def trained(fresh_workplace) -> Iterator[Trained]:
    with fresh_workplace().entered() as folder, watched(), pytest.MonkeyPatch.context() as patch:
        pictures = draw_pictures(folder / "pictures")
        stages: list[dict[str, RunRef]] = []
        log_summary = main.log_summary

        def note(run_id: str, data: str, done: dict[str, RunRef], *more: object) -> None:
            stages.append(dict(done))
            log_summary(run_id, data, done, *more)

        patch.setattr(main, "log_summary", note)
        one = main.run(recipe_on(pictures, **SHORT))
        said: list[str] = []
        patch.setattr(main, "say", said.append)
        patch.setattr(evaluate, "say", said.append)
        two = main.run(recipe_on(pictures, seeds=2, **SHORT))
        runs = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
        parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
        nested = [
            run for run in runs if two.run_id in (parents[run.info.run_id], parents.get(parents[run.info.run_id]))
        ]
        yield Trained(folder, mlflow.get_run(one.run_id), mlflow.get_run(two.run_id), stages, nested, said)


def predicted_by(run: mlflow.entities.Run, table: pd.DataFrame, pictures: Path, views: torch.Tensor | None = None):
    """The probabilities of the network that a run left."""
    network, facts = load_checkpoint(Path(run.info.artifact_uri) / "checkpoint")
    squares = [
        decode_square((pictures / path).read_bytes(), facts.image_px, facts.fit, facts.grey, facts.ranges)
        for path in table["path"]
    ]
    return predict(network, np.stack(squares), np.arange(len(squares)), 8, CPU, views)


def member_runs(trained: Trained) -> list[mlflow.entities.Run]:
    return [mlflow.get_run(one) for one in trained.evaluated.data.tags["thaw.members"].split(", ")]


def probabilities(table: pd.DataFrame, prefix: str = "") -> np.ndarray:
    return table[[f"{prefix}probability/{label}" for label in CLASSES]].to_numpy(float)


def test_the_first_networks_stages_are_those_of_a_run_without_an_ensemble(trained):
    for name in ("precompute", *TRAINING):
        assert trained.stage(name).info.run_id == trained.stages[0][name].run_id
    assert trained.evaluated.info.run_id != trained.stages[0]["evaluate"].run_id
    assert trained.evaluated.info.run_id == trained.two.data.tags["thaw.stage.evaluate"]


def test_each_network_has_its_own_runs_in_one_of_its_seed_on_the_same_activations_and_split(trained):
    by_id = {run.info.run_id: run.info.run_name for run in trained.nested}
    below = [(by_id.get(run.data.tags["mlflow.parentRunId"], "main"), run.info.run_name) for run in trained.nested]
    of_second = [("seed 4", name) for name in ("lr_find", "train_head", "lr_find (unfrozen)", "fine_tune", "resize")]
    assert below == [("main", "seed 3"), ("main", "seed 4"), *of_second, ("main", "evaluate")]
    for name in TRAINING:
        assert trained.stage(f"{name} seed 4").data.params["seed"] == "4"
    assert trained.stage("train_head seed 4").data.tags["thaw.upstream"] == trained.stage("precompute").info.run_id
    assert trained.stage("resize seed 4").info.run_id in trained.nested[1].data.tags["mlflow.note.content"]
    assert "valid/accuracy" in trained.nested[1].data.metrics


def test_the_networks_that_are_averaged_are_each_of_the_stage_that_validates_best(trained):
    for seed, member in zip(("", " seed 4"), member_runs(trained), strict=True):
        runs = [trained.stage(f"{name}{seed}") for name in ("train_head", "fine_tune", "resize")]
        assert member.info.run_id in [run.info.run_id for run in runs]
        assert member.data.metrics[kept_name("valid/accuracy")] == max(
            run.data.metrics[kept_name("valid/accuracy")] for run in runs
        )
    assert trained.said[0].startswith("The networks of 2 seeds are averaged, each as the stage left it that validates")
    assert trained.two.data.tags["thaw.evaluated_stage"] == trained.said[0]


def test_predictions_are_the_mean_of_the_networks_probabilities_plain_and_with_tta(trained):
    table, pictures = trained.predictions, trained.folder / "pictures"
    views = view_matrices("all", 0.8, 3)
    plain = [predicted_by(run, table, pictures) for run in member_runs(trained)]
    tta = [predicted_by(run, table, pictures, views) for run in member_runs(trained)]
    np.testing.assert_allclose(probabilities(table), np.mean(plain, axis=0), atol=1e-4)
    np.testing.assert_allclose(probabilities(table, "tta_"), np.mean(tta, axis=0), atol=1e-4)
    assert np.abs(plain[0] - plain[1]).max() > 0.01, "the networks have to differ for this to mean anything"


def test_the_run_says_how_each_network_validates_and_whether_the_mean_is_better(trained):
    metrics, runs = trained.evaluated.data.metrics, member_runs(trained)
    own = [metrics["ensemble_valid_accuracy_1"], metrics["ensemble_valid_accuracy_2"]]
    assert own == pytest.approx([run.data.metrics[kept_name("valid/accuracy")] for run in runs])
    assert metrics["ensemble_networks"] == 2
    assert metrics["ensemble_valid_gain"] == pytest.approx(metrics["valid/accuracy"] - np.mean(own))
    sentence = next(one for one in trained.said if "probabilities of 2 networks are averaged" in one).strip()
    for place in ("report.html", "model_card.md"):
        assert sentence in Path(trained.evaluated.info.artifact_uri, place).read_text()
    assert sentence in trained.evaluated.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("with_onnx", [True, False])
@pytest.mark.parametrize("tta", [False, True])
def test_the_served_model_answers_with_the_mean_as_evaluate_does(trained, monkeypatch, with_onnx, tta):
    if not with_onnx:
        monkeypatch.setattr("pipeline.models.classifier.ONNX", "none")
    classifier = load_classifier(tracking.find_model(trained.evaluated.data.tags["thaw.model"]).checkpoint, CPU)
    assert len(classifier.members) == 2
    assert any(isinstance(one.network, torch.nn.Module) for one in classifier.members) != with_onnx
    table = trained.predictions
    decoded = [classifier.decode((trained.folder / "pictures" / path).read_bytes()) for path in table["path"]]
    temperature = trained.evaluated.data.metrics["temperature"]
    wanted = apply_temperature(probabilities(table, "tta_" if tta else ""), temperature)
    np.testing.assert_allclose(classifier.probabilities(decoded, 8, tta), wanted, atol=1e-4)


def test_each_network_is_exported_and_a_file_says_how_they_make_one_answer(trained):
    folder = Path(trained.evaluated.info.artifact_uri) / "onnx"
    assert {path.name for path in folder.iterdir()} == {"member_001", "member_002", "ensemble.json"}
    assert (folder / "member_002" / "model.onnx").is_file()
    assert trained.evaluated.data.metrics["onnx_max_difference"] < 1e-3
    assert trained.evaluated.data.metrics["served_milliseconds_per_picture"] > 0


def test_runs_with_commas_between_them_are_evaluated_together_and_a_finished_evaluation_is_reused(trained):
    ids = trained.evaluated.data.tags["thaw.members"]
    recipe, _, upstream = _read(STAGES["evaluate"], ["--upstream", ids])
    assert (recipe.seed, upstream) == (3, ids)
    again = evaluate.run(recipe_on(trained.folder / "pictures" / "pictures.csv", seeds=2, **SHORT), ids)
    assert (again.run_id, again.reused) == (trained.evaluated.info.run_id, True)


def test_an_ensemble_is_compared_like_any_other_run(trained):
    evaluated = read_evaluated_run(trained.two.info.run_id)
    assert len(evaluated.evaluated) == len(trained.predictions)
    assert evaluated.metrics["test/accuracy"] == trained.two.data.metrics["test/accuracy"]


@pytest.mark.parametrize("also", ["itself", "another split"])
def test_runs_that_cannot_be_averaged_are_refused_in_a_sentence(trained, also):
    first = trained.stage("train_head").info.run_id
    words, second = "twice; give each run once", first
    if also == "another split":
        recipe = recipe_on(trained.folder / "pictures" / "pictures.csv", data__split_seed=9, **SHORT)
        words, second = "for other pictures", train_head.run(recipe, precompute.run(recipe).run_id).run_id
    with pytest.raises(UserError, match=words):
        evaluate.run(recipe_on(trained.folder / "pictures" / "pictures.csv", **SHORT), f"{first}, {second}")


@dataclass(frozen=True)
class Cycles:
    """A run of fine_tune with three cycles whose networks are kept, and evaluations of it."""

    tuned: RunRef
    better: mlflow.entities.Run
    worse: mlflow.entities.Run
    said: list[str]


@pytest.fixture(scope="module")
def cycles(fresh_workplace) -> Iterator[Cycles]:
    with fresh_workplace().entered() as folder, watched(), pytest.MonkeyPatch.context() as patch:
        settings = SHORT | {"training__snapshots": True, "fine_tune__cycles": 3, "fine_tune__fraction": 0.5}
        recipe = recipe_on(draw_pictures(folder / "pictures"), **settings)
        tuned = fine_tune.run(recipe, train_head.run(recipe, precompute.run(recipe).run_id).run_id)
        said: list[str] = []
        patch.setattr("pipeline.runs.ensemble.snapshots.say", said.append)
        found = []
        for accuracies in ((0.9, 0.8), (0.8, 0.9)):  # of the snapshots, and of what was kept
            answers = iter([(accuracies[0], 0.5), (accuracies[1], 0.5)])
            patch.setattr("pipeline.runs.ensemble.snapshots._validate", lambda *_, answers=answers: next(answers))
            again = recipe.model_copy(update={"reuse": "never"})
            found.append(mlflow.get_run(evaluate.run(again, tuned.run_id).run_id))
        yield Cycles(tuned, *found, said)


def test_the_networks_that_cycles_ended_with_stay_with_the_stage(cycles):
    run = mlflow.get_run(cycles.tuned.run_id)
    folders = sorted((Path(run.info.artifact_uri) / "snapshots").iterdir())
    epochs = pd.read_csv(f"{run.info.artifact_uri}/epochs.csv")
    ends = epochs.groupby("cycle")["epoch"].max().tolist()
    loaded = [load_checkpoint(folder) for folder in folders]
    assert [facts.kept_epochs for _, facts in loaded] == [[epoch] for epoch in ends]
    last = load_checkpoint(Path(run.info.artifact_uri) / "checkpoint")[0].state_dict()
    same = [all(torch.equal(tensor, last[name]) for name, tensor in one.state_dict().items()) for one, _ in loaded]
    assert same == [False, False, True]


def test_they_are_averaged_where_that_validates_better_and_not_elsewhere_and_a_sentence_says_so(cycles):
    assert cycles.better.data.metrics["ensemble_networks"] == 3
    assert "ensemble_networks" not in cycles.worse.data.metrics
    assert "The mean of the 3 snapshots of fine_tune, seed 3" in cycles.said[0]
    assert [said.strip().endswith("the snapshots are averaged.") for said in cycles.said] == [True, False]
    for run, said in zip((cycles.better, cycles.worse), cycles.said, strict=True):
        assert run.data.tags["thaw.snapshots"] == said.strip()
    file = io.BytesIO()
    Image.new("RGB", (50, 50), "red").save(file, "PNG")
    for run, networks in ((cycles.better, 3), (cycles.worse, 1)):
        (model,) = run.outputs.model_outputs
        classifier = load_classifier(tracking.find_model(f"models:/{model.model_id}").checkpoint, CPU)
        assert len(classifier.members) == networks
        assert classifier.probabilities([classifier.decode(file.getvalue())], 1).shape == (1, 3)
