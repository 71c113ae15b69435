import itertools

import pytest
import yaml
from odd_text import NOT_UNICODE, ODD

from pipeline.recipe.yaml_rules import read_yaml, write_value, write_yaml

# Whatever begins, ends or parts a value of YAML.
PIECES = [
    "a",
    "1",
    "-",
    ":",
    "#",
    " ",
    "\t",
    "\n",
    "\r",
    "'",
    '"',
    "\\",
    ",",
    "[",
    "}",
    "&",
    "!",
    "|",
    "%",
    "=",
    "<",
    "e",
    ".",
]


@pytest.mark.parametrize("text", [*ODD, NOT_UNICODE])
def test_any_text_comes_back_as_it_was(text):
    for content in (text, {"key": text}, {text: 1}, {"list": [text, 1]}, {"inner": {"key": [text]}}):
        assert read_yaml(write_yaml(content).encode().decode()) == content
        assert read_yaml(write_value(content)) == content


def test_any_three_marks_come_back_as_they_were():
    texts = ["".join(pieces) for pieces in itertools.product(PIECES, repeat=2)]
    texts += ["".join(pieces) for pieces in itertools.product(PIECES[1:9], repeat=3)]
    assert read_yaml(write_yaml(texts)) == texts


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_the_same_text_to_other_programs(text):
    assert yaml.safe_load(write_yaml({"key": text})) == {"key": text}


@pytest.mark.parametrize("value", [0, -3, 1e-5, 1e22, 0.1, True, False, [1, 2.5], {}, [], {"low": 1e-5}])
def test_any_value_comes_back_as_it_was(value):
    assert read_yaml(write_yaml({"key": value})) == {"key": value}
    assert read_yaml(write_value(value)) == value
    assert len(write_value(value).splitlines()) == 1


def test_a_key_that_takes_text_has_it_as_it_was_typed():
    text = "a: 1e3\nb: {c: 007, d: 007}\ne: [007]"
    assert read_yaml(text, lambda path: path in (("a",), ("b", "c"))) == {
        "a": "1e3",
        "b": {"c": "007", "d": 7},
        "e": [7],
    }


def test_a_key_that_is_given_twice_is_refused():
    with pytest.raises(yaml.YAMLError, match="a is given twice"):
        read_yaml("a: 1\na: 2")
