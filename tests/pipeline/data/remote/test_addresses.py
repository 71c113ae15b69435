import pytest

from pipeline.data.remote.addresses import (
    check_address,
    common_address,
    is_address,
    places_of,
    split_address,
    without_secrets,
)
from pipeline.system.errors import UserError

ROOT = "https://pictures.example.org/2024"


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("https://a.example/1.jpg", True), ("S3://bucket/1.jpg", True), ("gs://bucket/a/1.jpg", True),
        ("file:///a/1.jpg", False), ("FILE://a/1.jpg", False), ("a/1.jpg", False), ("c://x", False), ("/a://b", False),
    ],
)  # fmt: skip
def test_an_address_is_told_from_a_path(text, is_one):
    assert is_address(text) == is_one


def test_pictures_are_named_as_at_their_server_below_the_folder_that_they_have_in_common():
    addresses = [f"{ROOT}/cats/1.jpg", f"{ROOT}/cats/caf%C3%A9%20noir.jpg", f"{ROOT}/dogs/2.jpg#top"]
    assert places_of(addresses) == (
        "https+pictures.example.org/2024",
        ["cats/1.jpg", "cats/caf\u00e9 noir.jpg", "dogs/2.jpg"],
    )
    assert common_address(addresses) == ROOT
    assert places_of(["s3://one/a/1.jpg", "s3://two/a/1.jpg"]) == ("", ["s3+one/a/1.jpg", "s3+two/a/1.jpg"])
    assert common_address(["s3://one/a/1.jpg", "s3://two/a/1.jpg"]) == ""
    assert places_of(["s3://bucket/1.jpg"]) == ("s3+bucket", ["1.jpg"])
    assert common_address(["s3://bucket/1.jpg"]) == "s3://bucket/"


def test_no_two_addresses_have_one_place_on_any_disk():
    addresses = [
        f"{ROOT}/a.jpg", f"{ROOT}/A.jpg", f"{ROOT}/view?id=1", f"{ROOT}/view?id=2", f"{ROOT}/view",
        f"{ROOT}/view/1.jpg", f"{ROOT}//a.jpg",
        f"{ROOT}/b%2Fc.jpg", f"{ROOT}/b/c.jpg", f"{ROOT}/%2E%2E/d.jpg", f"{ROOT}/.hidden/d.jpg",
        f"{ROOT}/{'x' * 300}1.jpg", f"{ROOT}/{'x' * 300}2.jpg",
    ]  # fmt: skip
    _, paths = places_of(addresses)
    assert len({path.lower() for path in paths}) == len(addresses)
    folders = {"/".join(path.lower().split("/")[:count]) for path in paths for count in range(1, path.count("/") + 1)}
    assert not folders & {path.lower() for path in paths}, "a file where another has its folder"
    for path in paths:
        assert not any(name in ("", ".", "..") or name.startswith(".") for name in path.split("/"))
        assert all(len(name.encode()) <= 120 for name in path.split("/"))
    assert paths == places_of(addresses)[1], "and each has the same one next time"


def test_what_says_who_asks_is_no_part_of_a_place_and_is_never_shown():
    signed = "https://me:secret@Pictures.example.org/1.jpg?id=3&X-Amz-Signature=abc&x-amz-date=20261126"
    assert without_secrets(signed) == "https://pictures.example.org/1.jpg?id=3"
    assert places_of([signed]) == places_of(["https://pictures.example.org/1.jpg?id=3"])
    assert split_address("s3://bucket/is it?#1.jpg").path == "is it?#1.jpg", "only the web has questions"


def test_an_address_that_cannot_be_opened_is_named_with_what_to_do(monkeypatch):
    for address in ("https://", "https://host", "s3:///key.jpg"):
        with pytest.raises(UserError, match=r"row 3 names .*no whole address"):
            check_address(address, "row 3")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"row 3 names s3://b/1\.jpg.* s3fs.* pip install -r requirements-s3\.txt"):
        check_address("s3://b/1.jpg", "row 3")
    check_address("https://host/1.jpg", "row 3")
