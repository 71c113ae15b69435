"""The first second of a command: help, and a sentence for a mistake, before anything heavy is imported; each in a
process of its own, whose imports are looked at; most are forked once the door itself is loaded."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.__main__ import COMMANDS as COMMAND_NAMES
from stages.registry import STAGES

PROJECT = Path(__file__).resolve().parents[2]
NOT_INHERITED = ("MLFLOW_RUN_ID", "PYTHONPROFILEIMPORTTIME")
NOT_COMMANDS = ("__init__", "__main__", "registry")
FILES = [*(PROJECT / "stages").glob("*.py"), *(PROJECT / "stages" / "tools").glob("*.py")]
COMMANDS = sorted({"try" if path.stem == "try_model" else path.stem for path in FILES}.difference(NOT_COMMANDS))
SECONDS_AT_MOST = 1.5
HEAVY = ("torch", "torchvision", "timm", "mlflow", "optuna", "sklearn", "scipy", "matplotlib", "pandas")


def processor_seconds():
    """Those of all processes that were started here and have ended: on a busy machine a clock would tell little."""
    times = os.times()
    return times.children_user + times.children_system


@dataclass(frozen=True)
class Outcome:
    """What `python -m stages NAME` did: its exit code, words, seconds of the processor, the modules that it imported,
    and what it left in the folder of its tracking database."""

    code: int
    shown: str
    said: str
    seconds: float
    modules: set[str]
    left_behind: list[Path]


def variables(folder):
    return {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'x.db'}"}


def call_once(words, folder):
    before = processor_seconds()
    command = [sys.executable, "-X", "importtime", "-m", "stages", *words]
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    done = subprocess.run(command, cwd=PROJECT, env=environment | variables(folder), capture_output=True, text=True)
    seconds = processor_seconds() - before
    lines = done.stderr.splitlines()
    said = "\n".join(line for line in lines if not line.startswith("import time:"))
    modules = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
    return Outcome(done.returncode, done.stdout, said, seconds, modules, list(folder.glob("x.db*")))


def call(*words, folder):
    """The outcome of a command that Python was started for, of the better of two tries where the first was slow."""
    first = call_once(words, folder)
    if first.seconds < SECONDS_AT_MOST:
        return first
    return min(first, call_once(words, folder), key=lambda one: one.seconds)


# Runs commands one after the other, each forked from a Python that has loaded no more than the door.
FORKS = """
import json, os, runpy, sys
import stages.__main__
del sys.modules["stages.__main__"]  # it is run anew; what it loads is there
for line in sys.stdin:
    words, files, variables = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(variables)
        for number, file in enumerate(files[:2], 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv[1:] = words
        try:
            runpy.run_module("stages", run_name="__main__", alter_sys=True)
        finally:
            with open(files[2], "w") as file:
                file.write("\\n".join(sys.modules))
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    command, pipe = [sys.executable, "-c", FORKS], subprocess.PIPE
    with subprocess.Popen(command, cwd=PROJECT, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def call_forked(forks, tmp_path):
    """Gives the outcome of a command that was forked, without the seconds in which the door itself is loaded."""

    def call_forked(*words, folder):
        files = [tmp_path / name for name in ("shown", "said", "modules")]
        forks.stdin.write(json.dumps([words, [str(file) for file in files], variables(folder)]) + "\n")
        forks.stdin.flush()
        code, seconds = json.loads(forks.stdout.readline())
        shown, said, modules = (file.read_text() for file in files)
        return Outcome(code, shown, said.rstrip("\n"), seconds, set(modules.split()), list(folder.glob("x.db*")))

    return call_forked


@pytest.fixture
def folders(tmp_path):
    """Folders that nobody can train on."""
    (tmp_path / "empty").mkdir()
    for picture in ("no picture/cat/1.png", "alone/cat/1.png"):
        (tmp_path / picture).parent.mkdir(parents=True)
        (tmp_path / picture).touch()
    (tmp_path / "no picture" / "dog").mkdir()
    (tmp_path / "steps.yaml").write_text("resize: [{image_px: 64}, {image_px: 96}]")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("main --fine_tune.cycle_length 2", ["On the command line: fine_tune.cycle_length", "fine_tune.cycle_len."]),
        ("main --fine_tune.cycle_len=2.5", ["On the command line: fine_tune.cycle_len is 2.5", "a whole number"]),
        ("main --recipe {folder}/nowhere.yaml", ["nowhere.yaml does not exist"]),
        ("main --data {folder}/nowhere", ["data.source is {folder}/nowhere, which does not exist"]),
        ("main --data {folder}/empty", ["{folder}/empty, where there is no class folder"]),
        ("precompute --data.source={folder}/no?picture", ["The class dog has no picture", "{folder}/no picture/dog"]),
        ("main --data {folder}/alone", ["one class alone, cat"]),
        ("main --model.backbone resnet19", ["model.backbone is resnet19", "resnet18"]),
        ("fine_tune", ["fine_tune needs an upstream run", "train_head", "-P upstream="]),
        ("resize --upstream abc --precompute.image_px 64", ["precompute.image_px is fixed by the upstream run abc"]),
        ("fine_tune --upstream abc --recipe {folder}/nowhere.yaml", ["nowhere.yaml does not exist"]),
        ("predict --data {folder}", ["predict needs model; give models:/thaw-elpv@champion, ", "-P model=<model>"]),
        ("predict --model m --data {folder}/empty", ["data is {folder}/empty, where no file, at any depth"]),
        ("predict --model m --data {folder}/alone --output a.xlsx", ["output is a.xlsx", ".parquet"]),
        ("predict --model m --data {folder}/alone --batch_size 0", ["batch_size is 0"]),
        ("predict --model m --data {folder}/alone --device tpu", ["device is tpu"]),
        ("predict --modell m --data x", ["predict takes no modell; the nearest is model."]),
        ("finetune", ["finetune is not a command; the nearest is fine_tune"]),
        ("sweep --sweep.space {{seed:?{{type:?int,low:?1,high:?2}}}}", ["seed cannot vary"]),
        ("main --preset fast", ["preset is fast, which does not exist; give quick, good or best."]),
        ("sweep --preset quick --recipe {folder}/mine.yaml", ["preset is quick and recipe is {folder}/mine.yaml, but"]),
        (
            "main --recipe {folder}/steps.yaml --resize.image_px 64",
            ["resize is a list of 2 steps; name one, such as resize.0.image_px"],
        ),
        ("fine_tune --preset quick --upstream abc", ["fine_tune takes no preset", "leave preset out"]),
        ("compare", ["compare needs runs; give the ids of two or more runs"]),
        ("compare --runs abc", ["names 1 run; give two or more"]),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2_before_anything_heavy_is_imported(
    folders, call_forked, words, named
):
    def fill(text):
        return text.format(folder=folders).replace("?", " ")

    outcome = call_forked(*(fill(word) for word in words.split()), folder=folders)
    assert outcome.code == 2, outcome.said
    assert all(fill(name) in outcome.said for name in named), outcome.said
    assert len(outcome.said.splitlines()) == 1
    assert outcome.shown == ""
    assert {"stages.registry", "argparse"} < outcome.modules
    assert not outcome.modules.intersection(HEAVY)
    assert outcome.left_behind == []
    assert outcome.seconds < SECONDS_AT_MOST


def test_help_lists_the_keys(tmp_path):
    outcome = call("main", "--help", folder=tmp_path)
    assert "--data FOLDER" in outcome.shown
    assert "  fine_tune.cycle_len = 4\n" in outcome.shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_comes_at_once(name, tmp_path):
    outcome = call(name, "--help", folder=tmp_path)
    assert outcome.code == 0
    assert f"usage: python -m stages {name} " in outcome.shown
    assert f"\n{name}: " in outcome.shown
    assert not outcome.modules.intersection(HEAVY)
    assert outcome.seconds < SECONDS_AT_MOST


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_key_of_any_command_is_reported_at_once(name, tmp_path, call_forked):
    words = ["--upstream", "abc"] if name in STAGES and STAGES[name].follows else []
    outcome = call_forked(name, *words, "--fine_tuna.lr", "1", folder=tmp_path)
    assert outcome.code == 2
    assert "fine_tuna" in outcome.said
    assert len(outcome.said.splitlines()) == 1
    assert not outcome.modules.intersection(HEAVY)
    assert outcome.seconds < SECONDS_AT_MOST


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_the_door_lists_all_commands_with_a_line_each(words, tmp_path):
    outcome = call(*words, folder=tmp_path)
    assert outcome.code == 0
    assert sorted(COMMAND_NAMES) == COMMANDS
    for name in COMMANDS:
        assert any(line.split()[0] == name and len(line.split()) > 5 for line in outcome.shown.splitlines() if line)
    assert not outcome.modules.intersection(HEAVY)


@pytest.mark.parametrize("words", ["main --device cuda", "predict --model m --data {folder}/alone --device cuda"])
def test_a_gpu_that_is_not_there_is_told_before_anything_heavy_is_imported(folders, words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    outcome = call(*words.format(folder=folders).split(), folder=folders)
    assert (outcome.code, outcome.said.split(";")[0]) == (2, "device is cuda, but CUDA_VISIBLE_DEVICES hides all GPUs")
    assert not outcome.modules.intersection(HEAVY)
