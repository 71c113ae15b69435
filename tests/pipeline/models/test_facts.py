import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.facts import FACTS, read_facts
from pipeline.system.errors import UserError

PROJECT = Path(__file__).parents[3]


def test_the_facts_are_read_as_they_were_written_unless_a_file_is_damaged(tmp_path):
    facts = Checkpoint("test_resnet", ["1e3", "no"], 8, 0.5, 32, "pad", True, 3, 40, {"integer": [1.0, 2.0]})
    save_checkpoint(build_network(facts), facts, tmp_path)
    assert read_facts(tmp_path) == facts
    (tmp_path / FACTS).write_text((tmp_path / FACTS).read_text() + " ")
    with pytest.raises(UserError, match=r"The checkpoint in .* is damaged"):
        read_facts(tmp_path)


@pytest.mark.slow
def test_what_answers_by_onnx_runtime_loads_no_timm():
    program = "import sys, pipeline.models.classifier; print({'timm', 'torchvision', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
