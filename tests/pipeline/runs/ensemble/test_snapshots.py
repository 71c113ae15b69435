from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.evaluation.predict import predict
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.recipe.schema import Evaluate, Recipe
from pipeline.runs.ensemble import snapshots
from pipeline.runs.ensemble.networks import EvaluatedNetwork
from pipeline.runs.ensemble.snapshots import _validate, with_snapshots
from tests.pipeline.evaluation.ensembles.test_members import CLASSES, CPU, SPLITS

PIXELS = np.random.default_rng(0).integers(0, 256, (len(SPLITS), 32, 32, 3), dtype=np.uint8)
KEPT = EvaluatedNetwork("resize", None, PIXELS)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """`with_snapshots` of one run with as many snapshots, which validate so; gives the names, and what was tagged."""

    def choose(count: int, of_snapshots: tuple[float, float], of_kept: tuple[float, float]):
        for number in range(1, count + 1):
            (tmp_path / f"cycle_{number:03d}").mkdir()
        tags: dict[str, str] = {}
        monkeypatch.setattr(snapshots.tracking, "has_artifact", lambda run_id, name: count > 0)
        monkeypatch.setattr(snapshots.tracking, "artifact", lambda run_id, name: tmp_path)
        monkeypatch.setattr(snapshots.tracking, "set_tags", lambda run_id, found: tags.update(found))
        monkeypatch.setattr(
            snapshots, "_validate", lambda networks, up: of_snapshots if networks != [KEPT] else of_kept
        )
        up = SimpleNamespace(chain=[SimpleNamespace(run_id="run")])
        return [one.name for one in with_snapshots([up], [KEPT], "open")], tags.get("thaw.snapshots", "")

    return choose


ALL = ["resize, cycle 1", "resize, cycle 2"]


@pytest.mark.parametrize(
    ("of_snapshots", "of_kept", "chosen"),
    [
        ((0.9, 0.5), (0.8, 0.2), ALL),
        ((0.8, 0.4), (0.8, 0.5), ALL),
        ((0.8, 0.5), (0.8, 0.5), ["resize"]),
        ((0.8, 0.2), (0.9, 0.5), ["resize"]),
    ],
)
def test_snapshots_are_averaged_only_where_they_validate_better(choose, of_snapshots, of_kept, chosen):
    names, told = choose(2, of_snapshots, of_kept)
    assert names == chosen
    assert f"The mean of the 2 snapshots of resize has a valid accuracy of {of_snapshots[0]:.4f}" in told
    assert ("the snapshots are averaged" in told) == (chosen == ALL)


def test_a_run_without_snapshots_is_evaluated_as_it_is(choose):
    assert choose(0, (0.9, 0.1), (0.1, 0.9)) == (["resize"], "")


def test_the_mean_of_the_probabilities_on_the_validation_pictures_decides(tmp_path, monkeypatch):
    torch.manual_seed(0)
    facts = Checkpoint("test_resnet", CLASSES, 0, 0.0, 32, "crop", False)
    networks, seen = [], []
    rows = np.array([2, 4, 7])
    for number in range(2):
        network = build_network(facts)
        torch.nn.init.normal_(network.head[-1].weight, std=3)
        save_checkpoint(network, facts, tmp_path / str(number))
        networks.append(EvaluatedNetwork(str(number), tmp_path / str(number), PIXELS))
        seen.append(predict(network, PIXELS, rows, 4, CPU))
    manifest = SimpleNamespace(rows={"valid": rows}.get, targets=np.arange(8) % 3)
    up = SimpleNamespace(manifest=manifest, recipe=Recipe(evaluate=Evaluate(batch_size=4)), device=CPU)
    accuracy, loss = _validate(networks, up)
    mean = np.mean(seen, axis=0)
    assert accuracy == (mean.argmax(1) == rows % 3).mean()
    assert loss == pytest.approx(-np.log(mean[np.arange(3), rows % 3]).mean(), rel=1e-5)
