import pytest
import yaml

from pipeline.recipe.fields import Section
from pipeline.recipe.mistakes import (
    check_held_out,
    check_positive_class,
    field_of,
    steps_without_growth,
    wrong_together,
)
from pipeline.recipe.recipe_file import build_recipe
from pipeline.recipe.schema import Recipe, flatten
from pipeline.system.errors import UserError


def complaint(content, **overrides):
    """The error for a recipe, as YAML text or as it is read, with these overrides typed over it."""
    if isinstance(content, str):
        content = yaml.safe_load(content)
    typed = {key.replace("__", "."): value for key, value in overrides.items()}
    with pytest.raises(UserError) as caught:
        build_recipe(content, typed, "mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "value", "takes"),
    [
        ("seed: -1", "seed", "-1", "a whole number from 0 up"),
        ("seed: '3'", "seed", "'3'", "a whole number from 0 up"),
        ("seed: true", "seed", "True", "a whole number from 0 up"),
        ("seed:", "seed", "None", "a whole number from 0 up"),
        ("device: tpu", "device", "'tpu'", "auto, cpu or cuda"),
        ("data: {range: [4095]}", "data.range", "[4095]", "auto (deep pictures"),
        ("data: {range: full}", "data.range", "'full'", "auto (deep pictures"),
        ("data: {valid_fraction: 1.5}", "data.valid_fraction", "1.5", "a share of the pictures from 0 to below 0.9"),
        ("data: {max_bad: .nan}", "data.max_bad", "nan", "a share from 0 to 1"),
        ("data: {extensions: .jpg}", "data.extensions", "'.jpg'", "a list of file endings"),
        ("data: {extensions: [.jpg, 3]}", "data.extensions", "3", "a list of file endings"),
        ("fine_tune: {cycle_len: 0}", "fine_tune.cycle_len", "0", "a whole number from 1 up"),
        ("fine_tune: {cycle_len: 2.5}", "fine_tune.cycle_len", "2.5", "a whole number from 1 up"),
        ("fine_tune: {cycle_len: true}", "fine_tune.cycle_len", "True", "a whole number from 1 up"),
        ("fine_tune: {lr: true}", "fine_tune.lr", "True", "a list of three rates"),
        ("fine_tune: {lr: quick}", "fine_tune.lr", "'quick'", "a list of three rates"),
        ("fine_tune: {lr: [0.1, -1, x]}", "fine_tune.lr", "-1", "a list of three rates"),
        ("train_head: {lr: yes}", "train_head.lr", "True", "a rate above 0"),
        ("augment: {flip: up}", "augment.flip", "'up'", "none, sideways (left and right may be swapped), or all"),
        ("sweep: {objective: [valid/accuracy, speed]}", "sweep.objective", "'speed'", "a list of two of them"),
        ("fine_tune: 3", "fine_tune", "3", "a section with keys of its own"),
        ("fine_tune:", "fine_tune", "None", "a section with keys of its own"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_its_place_and_what_would_do(text, key, value, takes):
    message = complaint(text)
    assert message.startswith(f"In mine.yaml: {key} is ")
    assert value in message
    assert takes in message.split("; it takes ")[1]
    assert len(message.splitlines()) == 1
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("sed: 1", "sed", "seed"),
        ("finetune: {cycles: 1}", "finetune", "fine_tune"),
        ("fine_tune: {cycle_length: 2}", "fine_tune.cycle_length", "fine_tune.cycle_len"),
        ("data: {backbone: resnet18}", "data.backbone", "model.backbone"),
        ("fine_tune: {image_px: 64}", "fine_tune.image_px", "resize.image_px"),
        ("fine_tune: {hidden: 64}", "fine_tune.hidden", "head.hidden"),
        ("head: {flip: all}", "head.flip", "augment.flip"),
        ("image_px: 64", "image_px", "resize.image_px"),
        ("backbone: resnet18", "backbone", "model.backbone"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(text, key, nearest):
    assert complaint(text) == f"In mine.yaml: {key} is not a key of a recipe; the nearest is {nearest}."


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("fine_tune.cycle_length", "2", "fine_tune.cycle_length is not a key of a recipe; the nearest is"),
        ("fine_tune.cycle_len", "two", "fine_tune.cycle_len is 'two'; it takes a whole number from 1 up"),
        ("fine_tune.lr", "[1,2", "fine_tune.lr is '[1,2'; it takes auto"),
        ("fine_tune.lr", "", "fine_tune.lr is ''; it takes auto"),
        ("fine_tune", "3", "fine_tune is 3; it takes a section"),
        ("data", "", "data.source is ''; it takes elpv"),
        ("nothing.like.it", "3", "nothing is not a key of a recipe"),
        ("seed", "2024-13-01", "seed is '2024-13-01'; it takes a whole number"),
        ("seed", "1" * 5000, "seed is '1111"),
    ],
    ids=lambda text: text[:25],
)
def test_a_mistake_on_the_command_line_is_reported_to_be_there(key, value, sentence):
    message = complaint("seed: 1", **{key: value})
    assert message.startswith(f"On the command line: {sentence}")
    assert len(message.splitlines()) == 1


def test_each_mistake_has_a_sentence_with_its_own_place():
    message = complaint("seed: -1\nhead: {hiden: 3}", fine_tune__cycles="-1").splitlines()
    assert len(message) == 3
    assert any(line.startswith("In ") and "seed is -1" in line for line in message)
    assert any(line.startswith("In ") and "the nearest is head.hidden" in line for line in message)
    assert any(line.startswith("On the command line: fine_tune.cycles is -1") for line in message)


@pytest.mark.parametrize("key", [1, True, None])
def test_a_key_that_is_no_word_is_named_as_it_stands_and_not_as_its_section(key):
    message = f"In mine.yaml: {key!r} is not a key of a recipe; keys are words, such as seed."
    assert complaint({key: 2}) == complaint({"fine_tune": {key: 2}}) == message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (3, "is 3"),
        ({"type": "int", "low": 1}, "lacks high"),
        ({"low": 1, "high": 2}, "lacks type"),
        ({"type": "log", "low": 1, "high": 2}, "has the type 'log'"),
        ({"type": "log_uniform", "low": "a", "high": 2}, "has 'a' as low"),
        ({"type": "int", "low": 1, "high": 2.5}, "has 2.5 as high"),
        ({"type": "int", "low": 1, "high": 2, "step": 3}, "has step, which a range of type int does not take"),
        ({"type": "choice", "of": []}, "has [] as of"),
        ({"type": "choice", "of": [None]}, "has None as of"),
    ],
)
def test_a_wrong_range_is_named_with_its_key_and_what_of_it_is_wrong(given, words):
    good = {"type": "int", "low": 1, "high": 2}
    message = complaint({"sweep": {"space": {"fine_tune.cycles": good, "fine_tune.lr": given}}})
    assert message.startswith(f"In mine.yaml: fine_tune.lr in sweep.space {words}; it takes a range ")
    assert len(message.splitlines()) == 1
    of_head = complaint({"sweep_head": {"lr": given}})
    assert of_head.startswith(f"In mine.yaml: sweep_head.lr {words}; it takes a range of rates")


def test_every_wrong_range_has_a_sentence():
    message = complaint({"sweep": {"space": {"fine_tune.lr": 3, "fine_tune.cycles": 4}}})
    assert [line.split()[2] for line in message.splitlines()] == ["fine_tune.lr", "fine_tune.cycles"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("Cat", "the nearest is cat, choose from cat, dog."),
        ("kat", "the nearest is cat, choose from cat, dog."),
        ("zebra", "pictures; choose from cat, dog."),
    ],
)
def test_a_positive_class_that_is_none_is_reported_with_the_nearest(given, words):
    with pytest.raises(UserError, match=f"^evaluate.positive_class is {given}, which is no class .*{words}$"):
        check_positive_class(given, {"dog", "cat"})
    check_positive_class("cat", {"dog", "cat"})
    check_positive_class("", {"dog", "cat"})


def test_pictures_that_do_not_come_split_need_a_part_to_validate_with():
    recipe = build_recipe({"data": {"valid_fraction": 0.0}}, {}, "mine.yaml")
    check_held_out(recipe, is_split=True)
    with pytest.raises(UserError, match=r"^data\.valid_fraction is 0, .* give a share above 0\.$"):
        check_held_out(recipe, is_split=False)


WRONG_TOGETHER = [
    ("data: {extensions: [.png, jpg]}", ["data.extensions has 'jpg', which is no ending"]),
    ("data: {extensions: []}", ["data.extensions is empty"]),
    ("evaluate: {register_as: ' '}", ["evaluate.register_as is ' '"]),
    ("evaluate: {register_as: ..}", ["evaluate.register_as is '..'"]),
    ("lr_find: {start_lr: 1, end_lr: 0.1}", ["lr_find.start_lr is 1,", "lr_find.end_lr, 0.1"]),
    ("lr_find: {start_lr: 0.1, end_lr: 0.1}", ["lr_find.start_lr is 0.1"]),
    ("data: {range: [4095, 0]}", ["data.range", "[4095.0, 0.0]", "no range"]),
    ("data: {valid_fraction: 0.5, test_fraction: 0.5}", ["data.valid_fraction", "data.test_fraction", "1,"]),
    ("fine_tune: {lr: [0.1, 0.2]}", ["fine_tune.lr has 2 rates", "three"]),
    ("resize: {lr: [0.1, 0.2, 0.3, 0.4]}", ["resize.lr has 4 rates", "three"]),
    ("train_head: {stored_epochs: 0, cycles: 0}", ["train_head.stored_epochs", "train_head.cycles"]),
    (
        "train_head: {stored_epochs: 2, freeze: early}",
        ["train_head.freeze is early", "set precompute.cut to late, or train_head.stored_epochs to 0"],
    ),
    ("sweep_head: {lr: {type: log_uniform, low: 0.1, high: 0.01}}", ["sweep_head.lr goes from 0.1 to 0.01"]),
    ("sweep_head: {lr: {type: choice, of: [auto]}}", ["sweep_head.lr has 'auto' in it", "train_head.lr takes"]),
    ("sweep_head: {dropout: {type: uniform, low: 0, high: 1}}", ["sweep_head.dropout has 1", "head.dropout takes"]),
    ("sweep_head: {stored_epochs: {type: uniform, low: 1.5, high: 3}}", ["has 1.5", "a whole number from 1 up"]),
    ("sweep_head: {stored_epochs: {type: choice, of: [0, 3]}}", ["has 0 in it", "a whole number from 1 up"]),
]


@pytest.mark.parametrize(("text", "names"), WRONG_TOGETHER)
def test_keys_that_do_not_go_together_are_reported(text, names):
    message = complaint(text)
    assert message.startswith("In mine.yaml: ")
    assert all(name in message for name in names)
    assert complaint(text, seed="3") == message


@pytest.mark.parametrize(("text", "names"), WRONG_TOGETHER)
def test_keys_that_do_not_go_together_are_reported_to_stand_where_one_of_them_was_typed(text, names):
    ((section, keys),) = yaml.safe_load(text).items()
    *in_the_file, typed = keys
    content = {section: {key: keys[key] for key in in_the_file}}
    message = complaint(content, **{f"{section}.{typed}": str(keys[typed])})
    assert message.startswith("On the command line: ")
    assert all(name in message for name in names)


def test_compiling_does_not_go_with_the_same_result_each_time():
    told = "compile is true and so is deterministic, but "
    assert complaint("compile: true\ndeterministic: true").startswith(f"In mine.yaml: {told}")
    assert complaint("compile: true", deterministic="true").startswith(f"On the command line: {told}")


def test_keys_that_go_together_are_not_complained_of():
    assert wrong_together(Recipe(), set(), "mine.yaml") is None
    assert wrong_together(Recipe(), set(flatten(Recipe())), "mine.yaml") is None


@pytest.mark.parametrize(
    ("cut", "head"),
    [
        ("late", {"freeze": "early"}),
        ("late", {"freeze": "body"}),
        ("head", {"freeze": "body"}),
        ("head", {"freeze": "early", "stored_epochs": 0, "cycles": 1}),
    ],
)
def test_the_late_group_can_be_trained_on_what_is_stored_in_front_of_it_or_without_a_store(
    cut: str, head: dict[str, object]
) -> None:
    content = {"precompute": {"cut": cut}, "train_head": head}
    assert build_recipe(content, {}, "mine.yaml").train_head.freeze == head["freeze"]


def test_every_key_has_its_field_and_nothing_else_has_one():
    for key, value in flatten(Recipe()).items():
        default = field_of(key.split(".")).get_default()
        if key == "sweep.space":
            default = {name: values.model_dump() for name, values in default.items()}
        default = default.model_dump() if isinstance(default, Section) else default
        assert default == value, key
    for path in ("sed", "fine_tune.cycle_length", "seed.x", "fine_tune.lr.0", "cycles"):
        assert field_of(path.split(".")) is None, path


@pytest.mark.parametrize(("key", "value"), [("crop", 0.6), ("lighting", 0.4)])
def test_an_augmentation_times_its_strength_stays_within_what_it_may_be(key: str, value: float) -> None:
    assert f"augment.strength 2.5 takes augment.{key}, {value}, beyond" in complaint(
        {"augment": {key: value, "strength": 2.5}}
    )


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("lr_find,train_head", "stages leaves precompute out, which train_head follows"),
        ("precompute,fine_tune,evaluate", "stages leaves train_head out, which evaluate follows"),
        ("precompute,train_head", "stages leaves lr_find out, and train_head.lr is auto; set train_head.lr to a rate"),
        ("precompute,learn", "stages is 'precompute,learn'; it takes all, or those of main that are run"),
    ],
)
def test_stages_that_lack_what_they_follow_are_refused(stages, words):
    assert words in complaint({}, stages=stages)


def test_parts_of_main_that_can_be_run_are_taken():
    parts = ("precompute", "precompute,lr_find", "precompute,lr_find,train_head,evaluate")
    assert [build_recipe({}, {"stages": part}, "here").stages for part in parts] == list(parts)
    rates = {"stages": "precompute,train_head", "train_head.lr": "1e-3"}
    assert build_recipe({}, rates, "here").stages == "precompute,train_head"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, []),
        ({"precompute": {"image_px": 448}}, ["resize.image_px is 384, which is not above precompute.image_px, 448"]),
        ({"resize": {"image_px": 320}}, ["resize.image_px is 320, which is not above precompute.image_px, 320"]),
        ({"resize": {"image_px": 224, "cycles": 0}}, []),
        ({"resize": {"image_px": 224}, "stages": "precompute,lr_find,train_head,evaluate"}, []),
        ({"resize": [{"image_px": 352}, {"image_px": 100, "cycles": 0}, {"image_px": 384}]}, []),
        ({"resize": [{"image_px": 400}, {"image_px": 384}, {"image_px": 390}]},
         ["resize.1.image_px is 384, which is not above resize.0.image_px, 400"]),
    ],
)  # fmt: skip
def test_a_step_on_pictures_that_are_no_larger_gets_a_sentence_and_is_taken(given, named):
    sentences = steps_without_growth(build_recipe(given, {}, "a test"))
    assert len(sentences) == len(named)
    for sentence, words in zip(sentences, named, strict=True):
        assert sentence.startswith(words)
        assert sentence.endswith(f"set {words.split('.image_px')[0]}.cycles to 0.")
