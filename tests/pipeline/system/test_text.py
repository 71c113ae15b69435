from pipeline.system.text import plain_name


def test_names_equal_to_the_eye_are_equal():
    assert plain_name("cafe\u0301") == plain_name("caf\u00e9") == "caf\u00e9"
    assert plain_name("\ufeff \u00a0a b\u200b\n") == "a b"


def test_other_names_are_kept():
    for name in ("C++", "犬", "\U0001f468\u200d\U0001f469", "Cat", "a\u200bb"):
        assert plain_name(name) == name
