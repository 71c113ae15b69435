import hashlib

import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.data.manifest import Manifest
from pipeline.models.engine.frozen_part import TrainedAbove
from pipeline.models.engine.passes import LEAST_PIXELS
from pipeline.models.engine.session import Session
from pipeline.models.network import MANY_PIXELS
from pipeline.recipe.picture_sections import Model
from pipeline.recipe.schema import Recipe
from pipeline.runs.plan import probe as probes
from pipeline.runs.plan.probe import SMALL_PX, Probe
from pipeline.runs.plan.work import Training
from pipeline.system.errors import UserError

PX = 48
# So many pictures that ONNX Runtime computes what is frozen.
MANY = LEAST_PIXELS // PX**2 + 1


@pytest.fixture
def probe(monkeypatch, tmp_path):
    """Of a small network."""
    monkeypatch.setenv("THAW_CACHE", str(tmp_path))
    monkeypatch.setattr(probes, "SECONDS_OF_A_TRY", 0.0)
    table = pd.DataFrame({"path": ["a.png"], "hash": [""], "mode": ["RGB"]})
    manifest = Manifest("cells", None, ["a", "b"], table, table)
    return Probe(Recipe(device="cpu", model=Model(backbone="test_resnet")), manifest)


@pytest.fixture
def run_by_engine(monkeypatch):
    """How many pictures of which size ONNX Runtime computes, call by call."""
    shapes = []
    run = Session.run
    monkeypatch.setattr(Session, "run", lambda self, images: shapes.append(tuple(images.shape)) or run(self, images))
    return shapes


def test_what_is_tried_takes_time_and_is_tried_once(probe, monkeypatch):
    tried = Training("none", PX, 4, 1)
    first = probe.step(tried), probe.validating(tried), probe.head_step(8), probe.passing(PX, 1), probe.core
    assert min(first) > 0
    monkeypatch.setattr(probes, "_least_seconds", None)
    assert (probe.step(tried), probe.validating(tried), probe.head_step(8), probe.passing(PX, 1), probe.core) == first


def test_a_step_takes_once_what_every_step_takes_and_for_each_picture_what_a_picture_takes(probe, monkeypatch):
    tried = []

    def seconds(frozen, image_px, by_engine, is_long, count):
        tried.append((frozen, image_px, by_engine, is_long, count))
        return 5.0 if image_px == SMALL_PX else 5.0 + count * (image_px / 128) ** 2

    monkeypatch.setattr(probe, "_step", seconds)
    assert probe.step(Training("none", 256, 32, 1)) == pytest.approx(5 + 32 * 4)
    assert probe.step(Training("none", 256, 8, 1)) == pytest.approx(5 + 8 * 4)
    assert tried == [("none", 256, False, False, 4), ("none", SMALL_PX, False, False, 1)]
    assert probe.step(Training("none", 256, 3, 1)) == pytest.approx(5 + 3 * 4)
    assert tried[-1] == ("none", 256, False, False, 3), "a batch that is small enough is tried as it is"


def test_a_step_takes_no_less_than_what_is_tried_of_it(probe, monkeypatch):
    monkeypatch.setattr(probe, "_step", lambda frozen, image_px, *others: 9.0 if image_px == SMALL_PX else 2.0)
    assert probe.step(Training("none", 256, 32, 1)) == 2.0


def test_where_the_network_takes_no_small_pictures_a_step_is_in_proportion_to_its_pictures(probe, monkeypatch):
    def seconds(frozen, image_px, by_engine, is_long, count):
        if image_px == SMALL_PX:
            raise UserError("it takes no other size")
        return float(count)

    monkeypatch.setattr(probe, "_step", seconds)
    assert probe.step(Training("none", 256, 32, 1)) == pytest.approx(32)


def test_many_passes_on_a_cpu_are_tried_by_onnx_runtime_at_their_own_size(probe, run_by_engine):
    assert probe.passing(PX, MANY - 1) > 0
    assert run_by_engine == []
    assert probe.passing(PX, MANY) > 0
    assert set(run_by_engine) == {(probe._pictures(PX), 3, PX, PX)}


@pytest.mark.parametrize("frozen", ["early", "body"])
def test_so_is_the_frozen_part_of_a_long_training(probe, run_by_engine, frozen):
    short, long = Training(frozen, PX, 4, 1), Training(frozen, PX, 4, MANY // 4 + 1)
    assert min(probe.step(short), probe.validating(short)) > 0
    assert run_by_engine == []
    assert probe.step(long) > 0
    assert set(run_by_engine) == {(4, 3, PX, PX)}
    run_by_engine.clear()
    assert probe.validating(long) > 0
    assert set(run_by_engine) == {(probe._pictures(PX), 3, PX, PX)}


def test_nothing_is_frozen_in_a_training_of_all_layers(probe, run_by_engine):
    assert probe.step(Training("none", PX, 4, MANY)) > 0
    assert run_by_engine == []


def test_what_onnx_runtime_cannot_compute_is_tried_by_the_network(probe, monkeypatch):
    def fail(*given):
        raise ValueError("no such operator")

    monkeypatch.setattr(probes, "open_session", fail)
    assert probe._whole(PX, True, False) is probe._network(PX, False)
    assert not isinstance(probe._trained("early", PX, True, False), TrainedAbove)
    assert probe.passing(PX, MANY) > 0


def test_so_many_pictures_are_tried_that_each_thread_has_one(probe, monkeypatch):
    monkeypatch.setattr(probes.torch, "get_num_threads", lambda: 2)
    assert [probe._pictures(px) for px in (64, 128, 384)] == [64, 16, 2]
    monkeypatch.setattr(probes.torch, "get_num_threads", lambda: 96)
    assert [probe._pictures(px) for px in (64, 128, 384)] == [96, 96, 96]


def test_pictures_are_opened_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "SECONDS_OF_A_TRY", 0.0)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    table = pd.DataFrame({"path": ["a.png"], "hash": [digest], "mode": ["RGB"]})
    probe = Probe(Recipe(device="cpu"), Manifest("cells", tmp_path, ["a", "b"], table, table))
    assert probe.opening(32) > 0


def test_the_first_try_is_left_out_and_the_shortest_of_the_others_counts(monkeypatch):
    times = iter([0.0, 0.0, 5.0, 5.0, 9.0, 0.02, 9.0, 11.0, 0.2])
    monkeypatch.setattr(probes.time, "perf_counter", lambda: next(times))
    assert probes._least_seconds(lambda: None) == pytest.approx(2.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_is_tried_at_the_size_and_the_batch_that_it_will_have(probe, monkeypatch):
    probe = Probe(Recipe(model=Model(backbone="test_resnet")), probe._manifest)
    seen = []
    monkeypatch.setattr(probe, "_step", lambda *given: seen.append(given) or 1.0)
    assert probe.step(Training("early", 96, 8, 5)) == probe.step(Training("early", 96, 8, 7)) == 1.0
    assert seen == [("early", 96, False, False, 8)]


@pytest.mark.parametrize(("device", "is_long"), [("cuda", [False, True]), ("cpu", [False, False])])
def test_a_gpu_is_tried_in_long_work_as_in_short_with_the_network_as_it_lies_there(probe, monkeypatch, device, is_long):
    monkeypatch.setattr(probe, "_device", torch.device(device))
    trainings = [Training("none", 224, 64, steps) for steps in (10, MANY_PIXELS // (64 * 224**2) + 1)]
    assert [probe._tried(one)[-1] for one in trainings] == is_long
