"""Activations that several processes compute are those of one, plain ones and views, by torch and by ONNX Runtime."""

from pathlib import Path

import numpy as np
import torch

from pipeline.data.augment import Augmentation
from pipeline.models.activations import StoreSettings, open_activations, read_activations
from pipeline.models.checkpoint import Checkpoint, build_network
from pipeline.models.cut import Cut, cut_network
from pipeline.models.engine import stored_pass
from pipeline.models.engine.passes import frozen_below
from pipeline.models.engine.stored_pass import Variation
from pipeline.models.views import VIEWS_FILE, Views, open_views
from pipeline.ranks import watch
from pipeline.ranks.team import deal, together
from pipeline.system.errors import UserError
from tests.several_processes import environments, run_led, start_led

PIXELS = np.random.default_rng(0).integers(0, 255, (29, 32, 32, 3)).astype(np.uint8)
FACTS = Checkpoint("test_efficientnet", ["a", "b"], 8, 0.5, 32, "crop", grey=False)
SETTINGS = StoreSettings(4, "float32", torch.device("cpu"))
VIEWS = Views(np.arange(3, 24), 2, Augmentation("all", 20.0, 1.2, 0.9, 0.2, 0.9), 5)


def compute(folder: Path, name: str, cut: Cut) -> None:
    torch.manual_seed(0)
    network = build_network(FACTS).eval()
    halves = frozen_below(network, FACTS, cut_network(network, cut, 32), PIXELS, len(PIXELS))
    plain = open_activations(network, PIXELS, {"name": name}, SETTINGS, halves)
    views = open_views(network, PIXELS, VIEWS, {"name": name}, SETTINGS, halves)
    np.savez(folder / f"{name}.npz", plain=read_activations(plain), views=np.load(views / VIEWS_FILE))


def note_rows(folder: Path) -> None:
    """From now on each process notes how many pictures it computes."""
    fetch = stored_pass.prefetch

    def noted(*arguments):
        for images in fetch(*arguments):
            with (folder / f"rows {deal().number}").open("a") as file:
                file.write(f"{len(images)}\n")
            yield images

    stored_pass.prefetch = noted


def lead(folder: Path) -> None:
    with together(note_rows, folder):
        note_rows(folder)
    compute(folder, "head", "head")
    compute(folder, "late", "late")


def test_several_processes_compute_the_activations_of_one(tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "shared").mkdir()
    torch.set_num_threads(1)
    compute(tmp_path / "alone", "head", "head")
    compute(tmp_path / "alone", "late", "late")
    run_led(lead, tmp_path / "shared", processes=3, cache=tmp_path / "other cache")
    for name in ("head", "late"):
        expected, found = (np.load(tmp_path / by / f"{name}.npz") for by in ("alone", "shared"))
        for what in ("plain", "views"):
            assert found[what].shape == expected[what].shape
            np.testing.assert_allclose(found[what], expected[what], atol=1e-5)
    counts = [sum(map(int, (tmp_path / "shared" / f"rows {number}").read_text().split())) for number in range(3)]
    assert sum(counts) == 2 * (29 + 2 * 21)
    assert min(counts) >= 30


def ruin(number: int) -> None:
    """What one process computes is no number; a helper that is stuck leaves a second after its leader."""
    watch.SECONDS_TO_LEAVE = 1.0
    if deal().number == number:
        compute_whole = stored_pass.compute_activations

        def ruined(below, images, dtype):
            return compute_whole(lambda batch: below(batch) * torch.nan, images, dtype)

        stored_pass.compute_activations = ruined


def lead_to_ruin(folder: Path) -> None:
    with together(ruin, 1):
        ruin(1)
    try:
        compute(folder, "head", "head")
    except UserError as error:
        (folder / "error").write_text(str(error))


def test_no_number_in_the_part_of_a_helper_stops_all(tmp_path):
    started = start_led(lead_to_ruin, (tmp_path,), environments({"THAW_CACHE": str(tmp_path / "cache")}, 2))
    assert [one.wait(600) for one in started] == [0, 1]
    assert (tmp_path / "error").read_text().startswith("Some activations are NaN or infinite, by the body's weights;")


def test_a_stretch_that_begins_later_is_varied_as_if_all_before_had_been():
    variation, images = Variation(VIEWS.augmentation, 3), torch.rand(8, 3, 16, 16)
    from_start, later = variation.after(0, 4), variation.after(4, 4)
    from_start(images[:4])
    torch.testing.assert_close(from_start(images[4:].clone()), later(images[4:].clone()))
