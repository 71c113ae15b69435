import pytest

from pipeline.errors import UserError
from pipeline.run_ids import parse_run_ids


def test_ids_stand_between_commas():
    assert parse_run_ids("a, b,c,") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "words"), [("", "names 0 run"), ("a", "names 1 run; give two or more"), ("a,b,a", "runs names a twice")]
)
def test_fewer_than_two_or_the_same_twice_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_run_ids(text)
