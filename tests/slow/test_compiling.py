"""torch.compile itself, which takes some ten seconds for the smallest network."""

import pytest
import torch

from pipeline.system.machine import missing_compiler
from tests.pipeline.training.test_compiled import small_network, train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_compiler("cpu")), reason="needs a C++ compiler"),
]


def test_a_compiled_network_has_the_losses_of_the_eager_one_and_is_compiled_once(capsys):
    losses = train(small_network(), is_compiled=True)
    assert "compiled" not in capsys.readouterr().out, "it has been compiled"
    assert losses == pytest.approx(train(small_network(), is_compiled=False), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert train(small_network(), is_compiled=True) == losses, "the same again, bit for bit"
