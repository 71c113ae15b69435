import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from PIL import Image

from pipeline import tracking
from pipeline.models.checkpoint import Checkpoint, build_network, save_checkpoint
from pipeline.models.classifier import save_classifier
from pipeline.runs import served_code
from pipeline.runs.fingerprint import PROJECT
from pipeline.runs.publish import SERVED_MODEL
from pipeline.runs.served_code import copy_served_code, pinned

LABELLED = "np.array(classes)[probabilities.argmax(1)]"


def files_of(package: Path) -> set[str]:
    return {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}


@pytest.fixture
def other_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The served model's file in a project whose classifier shouts its labels."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "pipeline", project / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "requirements.txt", project)
    classifier = project / "pipeline" / "models" / "classifier.py"
    source = classifier.read_text()
    assert LABELLED in source
    classifier.write_text(source.replace(LABELLED, f"np.char.upper({LABELLED})"))
    monkeypatch.setattr(served_code, "PROJECT", project)
    return project / "pipeline" / "serving.py"


def test_only_what_the_model_imports_is_copied(tmp_path):
    loader = copy_served_code(SERVED_MODEL, tmp_path)
    files = files_of(loader.parent)
    assert {"__init__.py", "serving.py", "data/decode.py", "data/__init__.py", "models/classifier.py"} <= files
    elsewhere = ("tracking", "sweep", "reports", "runs", "training", "evaluation", "data/readers", "__main__")
    assert not [name for name in files if name.startswith(elsewhere)]
    assert not [path for path in loader.parent.rglob("*.py") if "from pipeline" in path.read_text()]


def test_the_package_is_named_after_the_code(tmp_path, other_version, monkeypatch):
    other = copy_served_code(other_version, tmp_path / "other").parent.name
    monkeypatch.setattr(served_code, "PROJECT", PROJECT)
    ours, again = (copy_served_code(SERVED_MODEL, tmp_path / name).parent.name for name in ("ours", "again"))
    assert ours == again != other
    assert re.fullmatch("thaw_model_[0-9a-f]{12}", ours)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("from pipeline.data.decode import Pixels\n", "from mine.data.decode import Pixels\n"),
        ("from pipeline import tracking", "from mine import tracking"),
        ("def f():\n    from pipeline.a import (\n  b,\n)\n", "def f():\n    from mine.a import (\n  b,\n)\n"),
        ("from pipeline_tools import pipeline\n", "from pipeline_tools import pipeline\n"),
        ('text = "from pipeline.data import x"\n', 'text = "from pipeline.data import x"\n'),
    ],
)
def test_imports_of_this_project_are_renamed_and_nothing_else(line, wanted):
    assert served_code._import_from("mine", line) == wanted


def test_an_import_that_cannot_be_renamed_is_refused():
    with pytest.raises(ValueError, match=r"import pipeline.data.decode .* write from"):
        served_code._import_from("mine", "import pipeline.data.decode\n")


PROGRAM = """
import json, sys
import mlflow, pandas as pd, pipeline
image = pd.DataFrame({"image": [open("picture.png", "rb").read()]})
models = [mlflow.pyfunc.load_model(uri) for uri in sys.argv[1:]]
print(json.dumps([model.predict(image)["label"][0] for model in models] + [pipeline.mine()]))
"""


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def two_versions(tracking_server, tmp_path, other_version, monkeypatch, picture) -> list[str]:
    """The addresses of a model whose code writes labels in capitals, and of one of this code."""
    facts = Checkpoint("test_resnet", ["cat", "dog"], 0, 0.0, 32, "crop", False)
    save_checkpoint(build_network(facts), facts, tmp_path / "checkpoint")
    save_classifier([tmp_path / "checkpoint"], 1.0, tmp_path / "served")
    (tmp_path / "card.md").write_text("# Pets")
    uris = []
    with tracking.open_run("evaluate", {}, {}):
        dataset = tracking.log_dataset("pets", tmp_path, "d" * 64, "test")
        for version, loader in (("new", other_version), ("old", SERVED_MODEL)):
            monkeypatch.setattr(served_code, "PROJECT", loader.parents[1])
            copied = copy_served_code(loader, tmp_path / version)
            files = tracking.ModelFiles(copied, tmp_path / "served", tmp_path / "card.md", pinned())
            uris.append(tracking.log_classifier(files, ["cat", "dog"], 2, picture, {}, 1, dataset))
            shutil.rmtree(tmp_path / version)
    return uris


def test_models_of_two_versions_answer_each_by_its_own_code(two_versions, picture, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())  # loading a model puts its own code on the path
    new, old = (mlflow.pyfunc.load_model(uri) for uri in two_versions)
    image = pd.DataFrame({"image": [picture]})
    label = old.predict(image)["label"][0]
    assert label in ("cat", "dog")
    assert new.predict(image)["label"][0] == label.upper()


@pytest.mark.slow
def test_they_do_so_in_a_program_with_a_pipeline_of_its_own(two_versions, picture, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "pipeline.py").write_text("def mine():\n    return 'mine'\n")
    (tmp_path / "own" / "picture.png").write_bytes(picture)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *two_versions], cwd=tmp_path / "own", capture_output=True, text=True, check=True
    )
    new, old, mine = json.loads(done.stdout.splitlines()[-1])
    assert (new, mine) == (old.upper(), "mine")
    assert old in ("cat", "dog")
