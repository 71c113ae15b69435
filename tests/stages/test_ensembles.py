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
from pipeline.training.records import kept_name
from stages import evaluate, fine_tune, main, precompute, train_head
from stages.__main__ import _read
from stages.registry import STAGES
from stages.work import evaluate as evaluate_work
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
class Ensemble:
    """A run of main with two seeds, on top of one with the first seed `alone`: the `parent` run, the `stages` by their
    names on it, the runs `nested` in it, and what was `said`."""

    pictures: Path
    alone: dict[str, RunRef]
    parent: mlflow.entities.Run
    stages: dict[str, RunRef]
    nested: list[mlflow.entities.Run]
    said: list[str]

    def stage(self, name: str) -> mlflow.entities.Run:
        return mlflow.get_run(self.stages[name].run_id)

    @property
    def evaluated(self) -> mlflow.entities.Run:
        return self.stage("evaluate")

    @property
    def members(self) -> list[mlflow.entities.Run]:
        """The runs whose networks are averaged."""
        return [mlflow.get_run(one) for one in self.evaluated.data.tags["thaw.members"].split(", ")]

    @property
    def predictions(self) -> pd.DataFrame:
        """Those of the pictures of the test split."""
        table = pd.read_csv(f"{self.evaluated.info.artifact_uri}/predictions.csv")
        return table[table["split"] == "test"]


@pytest.fixture(scope="module")
def ensemble(fresh_workplace) -> Iterator[Ensemble]:
    """Its workplace stays entered for the tests of this file."""
    with fresh_workplace().entered() as folder, watched(), pytest.MonkeyPatch.context() as patch:
        pictures = draw_pictures(folder / "pictures")
        stages: list[dict[str, RunRef]] = []
        log_summary = main.log_summary

        def note(run_id: str, data: str, done: dict[str, RunRef], *more: object) -> None:
            stages.append(dict(done))
            log_summary(run_id, data, done, *more)

        patch.setattr(main, "log_summary", note)
        main.run(recipe_on(pictures, **SHORT))
        said: list[str] = []
        patch.setattr(main, "say", said.append)
        patch.setattr(evaluate_work, "say", said.append)
        parent = mlflow.get_run(main.run(recipe_on(pictures, seeds=2, **SHORT)).run_id)
        yield Ensemble(pictures.parent, stages[0], parent, stages[1], runs_below(parent.info.run_id), said)


def runs_below(parent: str) -> list[mlflow.entities.Run]:
    """The runs nested in a run, and those nested in these, oldest first."""
    runs = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    parents = {run.info.run_id: run.data.tags.get("mlflow.parentRunId") for run in runs}
    return [run for run in runs if parent in (own := parents[run.info.run_id], parents.get(own))]


def predicted_by(run: mlflow.entities.Run, table: pd.DataFrame, pictures: Path, views: torch.Tensor | None = None):
    """The probabilities of the network that a run left."""
    network, facts = load_checkpoint(Path(run.info.artifact_uri) / "checkpoint")
    squares = [
        decode_square((pictures / path).read_bytes(), facts.image_px, facts.fit, facts.grey, facts.ranges)
        for path in table["path"]
    ]
    return predict(network, np.stack(squares), np.arange(len(squares)), 8, CPU, views)


def probabilities(table: pd.DataFrame, prefix: str = "") -> np.ndarray:
    return table[[f"{prefix}probability/{label}" for label in CLASSES]].to_numpy(float)


def test_the_first_networks_stages_are_those_of_a_run_without_an_ensemble(ensemble):
    for name in ("precompute", *TRAINING):
        assert ensemble.stage(name).info.run_id == ensemble.alone[name].run_id
    assert ensemble.evaluated.info.run_id != ensemble.alone["evaluate"].run_id
    assert ensemble.evaluated.info.run_id == ensemble.parent.data.tags["thaw.stage.evaluate"]


def test_each_network_has_its_own_runs_in_one_of_its_seed_on_the_same_activations_and_split(ensemble):
    by_id = {run.info.run_id: run.info.run_name for run in ensemble.nested}
    below = [(by_id.get(run.data.tags["mlflow.parentRunId"], "main"), run.info.run_name) for run in ensemble.nested]
    of_second = [("seed 4", name) for name in ("lr_find", "train_head", "lr_find (unfrozen)", "fine_tune", "resize")]
    assert below == [("main", "seed 3"), ("main", "seed 4"), *of_second, ("main", "evaluate")]
    for name in TRAINING:
        assert ensemble.stage(f"{name} seed 4").data.params["seed"] == "4"
    assert ensemble.stage("train_head seed 4").data.tags["thaw.upstream"] == ensemble.stage("precompute").info.run_id
    assert ensemble.stage("resize seed 4").info.run_id in ensemble.nested[1].data.tags["mlflow.note.content"]
    assert "valid/accuracy" in ensemble.nested[1].data.metrics


def test_the_networks_that_are_averaged_are_each_of_the_stage_that_validates_best(ensemble):
    for seed, member in zip(("", " seed 4"), ensemble.members, strict=True):
        runs = [ensemble.stage(f"{name}{seed}") for name in ("train_head", "fine_tune", "resize")]
        assert member.info.run_id in [run.info.run_id for run in runs]
        assert member.data.metrics[kept_name("valid/accuracy")] == max(
            run.data.metrics[kept_name("valid/accuracy")] for run in runs
        )
    assert ensemble.said[0].startswith("The networks of 2 seeds are averaged, each as the stage left it that validates")
    assert ensemble.parent.data.tags["thaw.evaluated_stage"] == ensemble.said[0]


def test_predictions_are_the_mean_of_the_networks_probabilities_plain_and_with_tta(ensemble):
    table, pictures = ensemble.predictions, ensemble.pictures
    views = view_matrices("all", 0.8, 3)
    plain = [predicted_by(run, table, pictures) for run in ensemble.members]
    tta = [predicted_by(run, table, pictures, views) for run in ensemble.members]
    np.testing.assert_allclose(probabilities(table), np.mean(plain, axis=0), atol=1e-4)
    np.testing.assert_allclose(probabilities(table, "tta_"), np.mean(tta, axis=0), atol=1e-4)
    assert np.abs(plain[0] - plain[1]).max() > 0.01, "the networks have to differ for this to mean anything"


def test_the_run_says_how_each_network_validates_and_whether_the_mean_is_better(ensemble):
    metrics, runs = ensemble.evaluated.data.metrics, ensemble.members
    own = [metrics["ensemble_valid_accuracy_1"], metrics["ensemble_valid_accuracy_2"]]
    assert own == pytest.approx([run.data.metrics[kept_name("valid/accuracy")] for run in runs])
    assert metrics["ensemble_networks"] == 2
    assert metrics["ensemble_valid_gain"] == pytest.approx(metrics["valid/accuracy"] - np.mean(own))
    sentence = next(one for one in ensemble.said if "probabilities of 2 networks are averaged" in one).strip()
    for place in ("report.html", "model_card.md"):
        assert sentence in Path(ensemble.evaluated.info.artifact_uri, place).read_text()
    assert sentence in ensemble.evaluated.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("with_onnx", [True, False])
@pytest.mark.parametrize("tta", [False, True])
def test_the_served_model_answers_with_the_mean_as_evaluate_does(ensemble, monkeypatch, with_onnx, tta):
    if not with_onnx:
        monkeypatch.setattr("pipeline.models.classifier.ONNX", "none")
    classifier = load_classifier(tracking.find_model(ensemble.evaluated.data.tags["thaw.model"]).checkpoint, CPU)
    assert len(classifier.members) == 2
    assert any(isinstance(one.network, torch.nn.Module) for one in classifier.members) != with_onnx
    table = ensemble.predictions
    decoded = [classifier.decode((ensemble.pictures / path).read_bytes()) for path in table["path"]]
    temperature = ensemble.evaluated.data.metrics["temperature"]
    wanted = apply_temperature(probabilities(table, "tta_" if tta else ""), temperature)
    np.testing.assert_allclose(classifier.probabilities(decoded, 8, tta), wanted, atol=1e-4)


def test_each_network_is_exported_and_a_file_says_how_they_make_one_answer(ensemble):
    folder = Path(ensemble.evaluated.info.artifact_uri) / "onnx"
    assert {path.name for path in folder.iterdir()} == {"member_001", "member_002", "ensemble.json"}
    assert (folder / "member_002" / "model.onnx").is_file()
    assert ensemble.evaluated.data.metrics["onnx_max_difference"] < 1e-3
    assert ensemble.evaluated.data.metrics["served_milliseconds_per_picture"] > 0


def test_runs_with_commas_between_them_are_evaluated_together_and_a_finished_evaluation_is_reused(ensemble):
    ids = ensemble.evaluated.data.tags["thaw.members"]
    recipe, _, upstream = _read(STAGES["evaluate"], ["--upstream", ids])
    assert (recipe.seed, upstream) == (3, ids)
    again = evaluate.run(recipe_on(ensemble.pictures / "pictures.csv", seeds=2, **SHORT), ids)
    assert (again.run_id, again.reused) == (ensemble.evaluated.info.run_id, True)


def test_an_ensemble_is_compared_like_any_other_run(ensemble):
    evaluated = read_evaluated_run(ensemble.parent.info.run_id)
    assert len(evaluated.evaluated) == len(ensemble.predictions)
    assert evaluated.metrics["test/accuracy"] == ensemble.parent.data.metrics["test/accuracy"]


@pytest.mark.parametrize("also", ["itself", "another split"])
def test_runs_that_cannot_be_averaged_are_refused_in_a_sentence(ensemble, also):
    first = ensemble.stage("train_head").info.run_id
    words, second = "twice; give each run once", first
    if also == "another split":
        recipe = recipe_on(ensemble.pictures / "pictures.csv", data__split_seed=9, **SHORT)
        words, second = "for other pictures", train_head.run(recipe, precompute.run(recipe).run_id).run_id
    with pytest.raises(UserError, match=words):
        evaluate.run(recipe_on(ensemble.pictures / "pictures.csv", **SHORT), f"{first}, {second}")


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
        settings = SHORT | {
            "training__snapshots": True, "fine_tune__cycles": 3, "fine_tune__fraction": 0.5, "evaluate__onnx": False,
        }  # fmt: skip
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
