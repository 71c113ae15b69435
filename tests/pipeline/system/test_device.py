import pytest
import torch

from pipeline.runs.work.determinism import deterministic
from pipeline.system import device as device_module
from pipeline.system.device import (
    BYTES_PER_PIXEL,
    PIXELS_PER_PASS,
    SHARE_OF_FREE_MEMORY,
    mixed_precision,
    pictures_per_pass,
    training_precision,
)

# Before a fixture replaces it.
REAL_MATRIX_UNITS = device_module.has_matrix_units
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def free_bytes(monkeypatch):
    """Lets a GPU that is not there have so much free memory."""
    return lambda count: monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (count, count))


def test_a_cpu_takes_as_many_pictures_at_a_time_as_the_recipe_says():
    assert pictures_per_pass(16, 128, torch.device("cpu")) == 16


@pytest.mark.parametrize("image_px", [64, 128, 224])
def test_a_gpu_takes_so_many_pictures_that_it_never_waits_for_launches(free_bytes, image_px):
    free_bytes(80 * 2**30)
    count = pictures_per_pass(16, image_px, GPU)
    assert count == PIXELS_PER_PASS // image_px**2 > 300
    assert pictures_per_pass(5000, image_px, GPU) == 5000


def test_where_the_result_is_to_be_the_same_each_time_a_gpu_takes_as_many_as_the_recipe_says(free_bytes):
    free_bytes(80 * 2**30)
    with deterministic(GPU):
        assert pictures_per_pass(16, 128, GPU) == 16


def test_a_gpu_takes_no_more_at_a_time_than_its_free_memory_holds(free_bytes):
    free_bytes(2 * 2**30)
    count = pictures_per_pass(16, 224, GPU)
    assert 16 < count < 100
    assert count * 224**2 * BYTES_PER_PIXEL <= SHARE_OF_FREE_MEMORY * 2 * 2**30
    free_bytes(2**20)
    assert pictures_per_pass(16, 224, GPU) == 16


@pytest.mark.parametrize(
    ("device", "has_units", "precision"),
    [(GPU, False, "bfloat16"), (CPU, True, "bfloat16"), (CPU, False, "float32")],
)
def test_networks_are_trained_in_bfloat16_where_there_are_units_for_it_unless_the_recipe_names_another(
    device, has_units, precision, monkeypatch
):
    monkeypatch.setattr(device_module, "has_matrix_units", lambda: has_units)
    assert training_precision("auto", device) == precision
    for asked in ("bfloat16", "float32"):
        assert training_precision(asked, device) == asked


@pytest.mark.parametrize(
    ("units", "has_units"), [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)]
)
def test_matrix_units_are_those_that_torch_finds(units, has_units, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert REAL_MATRIX_UNITS() is has_units


@pytest.mark.parametrize(
    ("precision", "of_product"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]
)
def test_a_block_computes_in_its_precision_on_a_cpu_by_itself_in_float32(precision, of_product):
    with mixed_precision(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, of_product)
