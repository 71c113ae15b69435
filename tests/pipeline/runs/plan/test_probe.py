import hashlib
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.data.manifest import Manifest
from pipeline.recipe.picture_sections import Model
from pipeline.recipe.schema import Precompute, Recipe
from pipeline.runs.plan import probe as probes
from pipeline.runs.plan.probe import ENGINE_SHARE, Probe
from pipeline.runs.plan.probe import MOST_TRIED_PX as TRIED_PX
from pipeline.runs.plan.work import Training
from pipeline.system.errors import UserError


@pytest.fixture
def probe(monkeypatch):
    """Of a small network, and with what it forwards and steps on noted in place of their seconds."""
    monkeypatch.setattr(probes, "SECONDS_OF_A_TRY", 0.0)
    table = pd.DataFrame({"path": ["a.png"], "hash": [""], "mode": ["RGB"]})
    manifest = Manifest("cells", None, ["a", "b"], table, table)
    return Probe(Recipe(device="cpu", model=Model(backbone="test_resnet")), manifest)


def fixed(probe, monkeypatch, forward=1.0, below=0.4, step=3.0):
    """These seconds for a picture of the tried size: of the network, of its frozen part, and of a step."""
    count = probe._tried_pictures

    def seconds(compute, image_px, pictures):
        assert (image_px, pictures) == (TRIED_PX, count)
        return pictures * (forward if compute is probe._network else below)

    monkeypatch.setattr(probe, "_forward", seconds)
    monkeypatch.setattr(probe, "_step", lambda frozen, image_px, pictures: pictures * step)


def test_what_is_tried_takes_time_and_is_tried_once(probe, monkeypatch):
    tried = Training("none", TRIED_PX, 4, 1)
    first = probe.step(tried), probe.validating(tried), probe.head_step(8), probe.core
    assert min(first) > 0
    monkeypatch.setattr(probes, "_least_seconds", None)
    assert (probe.step(tried), probe.validating(tried), probe.head_step(8), probe.core) == first


def test_what_a_picture_takes_grows_with_its_pixels_and_a_batch_with_its_pictures(probe, monkeypatch):
    fixed(probe, monkeypatch)
    assert probe.step(Training("none", TRIED_PX, 8, 1)) == pytest.approx(24)
    assert probe.step(Training("none", 2 * TRIED_PX, 8, 1)) == pytest.approx(4 * 24)
    assert probe.validating(Training("none", 2 * TRIED_PX, 8, 1)) == pytest.approx(4)
    assert probe.passing(2 * TRIED_PX, passes=1) == pytest.approx(4)


def test_many_passes_on_a_cpu_take_the_share_that_onnx_runtime_takes(probe, monkeypatch):
    fixed(probe, monkeypatch)
    assert probe.passing(TRIED_PX, passes=100_000) == pytest.approx(ENGINE_SHARE)


def test_so_does_the_frozen_part_of_a_long_training(probe, monkeypatch):
    fixed(probe, monkeypatch)
    monkeypatch.setattr(probes, "cut_network", lambda *given: SimpleNamespace(below=lambda images: images))
    saved = (1 - ENGINE_SHARE) * 0.4
    long = Training("early", TRIED_PX, 8, 10_000)
    assert probe.step(long) == pytest.approx(8 * (3 - saved))
    assert probe.validating(long) == pytest.approx(1 - saved)
    assert probe.step(Training("none", TRIED_PX, 8, 10_000)) == pytest.approx(24)
    assert probe.step(Training("early", TRIED_PX, 8, 1)) == pytest.approx(24)


def test_a_network_that_is_made_for_one_size_is_tried_at_that(probe, monkeypatch):
    build = probes.build_network

    def refuse(checkpoint):
        if checkpoint.image_px != 320:
            raise UserError("it takes no other")
        return build(checkpoint)

    monkeypatch.setattr(probes, "build_network", refuse)
    assert probe._tried_px == 320


def test_no_size_is_tried_that_is_larger_than_the_first_and_enough_pictures_for_all_threads(probe, monkeypatch):
    small = Recipe(device="cpu", model=Model(backbone="test_resnet"), precompute=Precompute(image_px=64))
    small_probe = Probe(small, probe._manifest)
    assert (small_probe._tried_px, probe._tried_px) == (64, TRIED_PX)
    monkeypatch.setattr(probes.torch, "get_num_threads", lambda: 2)
    assert (small_probe._tried_pictures, probe._tried_pictures) == (64, 10)
    monkeypatch.setattr(probes.torch, "get_num_threads", lambda: 96)
    assert (small_probe._tried_pictures, probe._tried_pictures) == (96, 96)


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
    assert seen == [("early", 96, 8)]
