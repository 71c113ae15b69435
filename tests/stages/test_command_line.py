"""What a command is handed by the command line, and how it ends; in this process, by commands of the tests' own."""

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipeline.data.readers.sources import list_source
from pipeline.recipe.presets import default_recipe, read_preset
from pipeline.recipe.recipe_file import build_recipe, read_recipe
from pipeline.recipe.schema import Recipe, flatten, write_recipe
from pipeline.runs.stage import Stage
from pipeline.system.errors import UserError
from stages import __main__ as door
from stages.registry import OPTIONS, STAGES, Option

PROJECT = Path(__file__).resolve().parents[2]
FIRST = Stage("first", ("precompute",))
LATER = Stage("later", ("fine_tune", "augment"), follows=("first",))
FINDER = Stage("finder", ("lr_find",), follows=("first",))
USE = (Option("model", "a model"), Option("size", "a size", "32", int))


@pytest.fixture(autouse=True)
def usual_signals():
    """`main` takes SIGTERM for itself, and Ctrl-C may be ignored where tests run in the background."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: pytest.fail("SIGTERM was not taken"))
    yield
    for number, handler in usual.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """Commands of these tests' own, beside the project's."""
    monkeypatch.setattr(door, "STAGES", {**STAGES, **{one.name: one for one in (FIRST, LATER, FINDER)}})
    monkeypatch.setattr(door, "OPTIONS", {**OPTIONS, "use": USE})
    monkeypatch.setattr(door, "_doc", lambda name: f"{name}: does something.")
    monkeypatch.setattr(door, "_use_experiment", lambda data, upstream: None)  # which would reach a server


def start(*words, name="first", run=None):
    """The exit code of the command line, and what it handed to the command."""
    handed = []
    module = SimpleNamespace(run=run or (lambda *given, **named: handed.append(given or named)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door, "_module", lambda name: module)
        with pytest.raises(SystemExit) as ended:
            door.main([name, *words])
    return ended.value.code, handed


def test_a_stage_is_handed_the_recipe_with_what_was_typed_over_it():
    code, handed = start("--seed", "3", "--fine_tune.lr=[1e-5, 1e-4, 1e-3]", "--model.weights", "random")
    wanted = flatten(read_recipe(default_recipe("elpv")))
    wanted |= {"seed": 3, "fine_tune.lr": [1e-5, 1e-4, 1e-3], "model.weights": "random"}
    ((recipe, upstream),) = handed
    assert (code, flatten(recipe), upstream) == (0, wanted, None)


def test_a_stage_is_handed_the_recipe_that_was_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("head: {hidden: 7}")
    assert start("--recipe", str(tmp_path / "mine.yaml"))[1][0][0].head.hidden == 7


def test_data_is_short_for_its_source(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "2024" / label).mkdir(parents=True)
        (tmp_path / "2024" / label / "1.png").touch()
    assert start("--data", str(tmp_path / "2024"))[1][0][0].data.source == str(tmp_path / "2024")


def test_a_key_that_does_not_fit_the_pictures_is_reported_before_anything_is_loaded(tmp_path, capsys):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").touch()
    assert start("--data", str(tmp_path), "--evaluate.positive_class", "Cat") == (2, [])
    assert "evaluate.positive_class is Cat, which is no class" in capsys.readouterr().err
    assert start("--data", str(tmp_path), "--data.valid_fraction", "0") == (2, [])
    assert "data.valid_fraction is 0, and these pictures do not come split" in capsys.readouterr().err
    assert start("--data", str(tmp_path), "--data.corrections", "nowhere.csv") == (2, [])
    assert "data.corrections is nowhere.csv, which does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["main", "precompute", "sweep"])
def test_a_preset_is_resolved_into_the_recipe_that_a_command_is_handed_and_described(name, tmp_path, capsys):
    ((recipe, upstream),) = start("--preset", "quick", "--seed", "3", name=name)[1]
    assert recipe == read_preset("quick", "elpv", {"seed": "3"})
    assert upstream is None
    assert capsys.readouterr().out == ("preset quick: recipes/elpv.yaml, and over it recipes/presets/quick.yaml\n")
    assert start("--preset", "good", name=name) == start(name=name)


@pytest.mark.parametrize("key", ["--data", "--data.source"])
def test_pictures_of_ones_own_are_trained_on_by_the_general_recipe_and_the_packaged_ones_by_theirs(tmp_path, key):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").touch()
    ((own, _),), ((packaged, _),) = start(key, str(tmp_path))[1], start(key, "elpv")[1]
    assert own.augment == read_recipe(default_recipe("photos/")).augment
    assert packaged == read_recipe(default_recipe("elpv")) == start()[1][0][0]
    assert packaged.augment != own.augment


def test_what_mlflow_fills_in_is_as_good_as_none():
    assert start("--recipe", door.NOT_GIVEN, "--data", door.NOT_GIVEN) == start()
    entry_points = yaml.safe_load((PROJECT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    filled = [
        taken["default"] for one in entry_points.values() for taken in one["parameters"].values() if "default" in taken
    ]
    assert door.NOT_GIVEN in filled
    assert set(filled) == {door.NOT_GIVEN, "", "predictions.csv", "32", "20", "auto", "127.0.0.1", "5002", "1", "false"}
    assert all(not name for name, taken in entry_points["main"]["parameters"].items() if taken.get("default") == "")


@pytest.mark.parametrize("name", ["data", "recipe", "preset"])
def test_an_empty_word_as_an_unset_variable_gives_is_refused(name, capsys):
    assert start(f"--{name}", "")[0] == 2
    assert f"{name} is empty, as a variable is that was never set; give a value" in capsys.readouterr().err


def test_a_command_without_a_recipe_is_handed_its_options_by_name_as_they_were_parsed():
    assert start("--model", "a b", "--size=7", name="use") == (0, [{"model": "a b", "size": 7}])
    assert start("--model=m", name="use") == (0, [{"model": "m", "size": 32}])


def test_its_mistakes_end_in_a_sentence_as_those_of_a_stage_do(capsys):
    def run(model, size):
        raise UserError("There is no such model.")

    assert start("--model=m", name="use", run=run)[0] == 2
    assert start(name="use")[0] == 2
    assert start("--model=m", "stray", name="use")[0] == 2
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["There is no such model.", "use needs model; give a model: -P model=<model>."]
    assert said[2].startswith("'stray' stands alone")


def test_the_checks_of_a_stage_come_before_it_is_run(monkeypatch, capsys):
    def refuse(recipe):
        raise UserError(f"Seed {recipe.seed} is no good.")

    monkeypatch.setattr(door, "STAGES", {"first": Stage("first", checks=(refuse,))})
    assert start("--seed", "7") == (2, [])
    assert capsys.readouterr().err == "Seed 7 is no good.\n"


def test_a_mistake_that_a_stage_finds_ends_in_its_sentence(capsys):
    def run(recipe, upstream):
        raise UserError("The loss is NaN at step 3.")

    assert start(run=run)[0] == 2
    assert capsys.readouterr().err == "The loss is NaN at step 3.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_stopped_says_so(capsys, number):
    is_open = True

    def run(recipe, upstream):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt as stop:
            if is_open:
                stop.add_note("KILLED")  # as an open run does
            raise

    assert start(run=run)[0] == 130
    assert capsys.readouterr().err == (
        "first was stopped; its run is marked KILLED. The same command resumes from the last backup.\n"
    )
    is_open = False
    assert start(run=run)[0] == 130
    assert capsys.readouterr().err == "first was stopped before its run began; the same command starts anew.\n"


@pytest.mark.parametrize("words", ["first --seed 3", "predict"])
def test_on_windows_the_first_words_are_that_it_does_not_run_there(capsys, monkeypatch, words):
    monkeypatch.setattr(sys, "platform", "win32")
    name, *rest = words.split()
    assert start(*rest, name=name) == (2, [])
    assert capsys.readouterr().err.startswith("Thaw runs on Linux and macOS, but not on Windows itself; run it there")


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_run(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("THAW_CACHE", str(tmp_path / "file"))
    assert start() == (2, [])
    said = capsys.readouterr().err
    assert said.startswith(f"The cache {tmp_path / 'file'} cannot be written (")
    assert "set THAW_CACHE to a folder that you can write" in said
    assert len(said.splitlines()) == 1


def test_an_error_of_ours_is_not_hidden():
    def run(recipe, upstream):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        start(run=run)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stray"], "'stray' stands alone on the command line; write --KEY VALUE"),
        (["--=3"], "'--=3' stands alone"),
        (["--seed"], "--seed has no value; write --seed VALUE."),
        (["--model.weights", "nowhere.pth"], "model.weights is nowhere.pth, which does not exist"),
        (["--upstream", "abc"], "On the command line: upstream is not a key"),
        (["--see", "3"], "On the command line: see is not a key of a recipe; the nearest is seed."),
    ],
)
def test_what_was_typed_wrong_is_reported(capsys, words, said):
    assert start(*words) == (2, [])
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("key", ["fine_tune.lr", "augment.crop"])
def test_a_wrong_value_for_a_later_stage_is_reported_before_its_upstream_run_is_looked_for(capsys, key):
    assert start("--upstream", "abc", f"--{key}", "quick", name="later") == (2, [])
    assert f"{key} is 'quick'" in capsys.readouterr().err


def test_inputs_are_checked_without_being_opened(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.png").write_bytes(b"no picture")
    door.check_inputs(build_recipe({"data": str(tmp_path)}, {}, "here"))
    assert len(list_source(str(tmp_path), Recipe().data.extensions).paths) == 2


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """The id of a run with a recipe of its own; the tracking server, seconds to import, is left out."""
    recipe = build_recipe({"seed": 5, "precompute": {"image_px": 96}, "fine_tune": {"cycles": 4}}, {}, "here")
    (tmp_path / "abc.yaml").write_text(write_recipe(recipe))
    tracking = SimpleNamespace(
        run_of=lambda run_id: SimpleNamespace(run_id=run_id), artifact=lambda run_id, name: tmp_path / f"{run_id}.yaml",
        use_experiment=lambda name: None, use_experiment_of=lambda run_id: None, tag_reason=lambda *_: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pipeline.tracking", tracking)
    return "abc"


def test_a_later_stage_has_the_recipe_of_its_upstream_run(upstream, tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 9\nfine_tune: {cycle_len: 3}\nprecompute: {image_px: 64}")
    recipe, run_id = start("--upstream", upstream, name="later")[1][0]
    assert run_id == upstream
    assert (recipe.seed, recipe.precompute.image_px, recipe.fine_tune.cycles) == (5, 96, 4)

    words = ["--upstream", upstream, "--recipe", str(tmp_path / "mine.yaml"), "--fine_tune.lr", "1e-3"]
    recipe, _ = start(*words, "--reuse", "never", name="later")[1][0]
    assert (recipe.seed, recipe.precompute.image_px) == (5, 96)
    assert (recipe.fine_tune.cycles, recipe.fine_tune.cycle_len) == (1, 3)
    assert (recipe.fine_tune.lr, recipe.reuse) == (1e-3, "never")


def test_what_was_typed_for_a_later_stage_is_checked_together_with_the_recipe_of_its_upstream_run(upstream, capsys):
    words = ["--upstream", upstream, "--lr_find.start_lr", "20"]
    recipe, _ = start(*words, "--lr_find.end_lr", "100", name="finder")[1][0]
    assert (recipe.lr_find.start_lr, recipe.lr_find.end_lr) == (20, 100)
    assert start(*words, name="finder") == (2, [])
    assert capsys.readouterr().err.startswith("On the command line: lr_find.start_lr is 20, which is not below")
