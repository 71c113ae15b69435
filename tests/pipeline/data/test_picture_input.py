import base64
import io
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from pipeline.data.picture_input import MOST_PIXELS, READ_PATHS, picture_bytes
from pipeline.data.readers.sources import list_source


@pytest.fixture(scope="module")
def content():
    listing = list_source("elpv", [])
    return (listing.root / listing.paths[0]).read_bytes()


def pixels_of(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.fixture(autouse=True)
def no_paths(monkeypatch):
    monkeypatch.delenv(READ_PATHS, raising=False)


def test_bytes_are_taken_as_they_are(content):
    assert picture_bytes(content) == content
    assert picture_bytes(bytearray(content)) == content


def spellings(content):
    """All ways in which programs write base64, as text."""
    text, lines = base64.b64encode(content).decode(), base64.encodebytes(content).decode()
    assert lines.count("\n") > 1
    url_safe = base64.urlsafe_b64encode(content).decode()
    written = [text, lines, lines.replace("\n", "\r\n"), url_safe, text.rstrip("="), url_safe.rstrip("=")]
    heads = "data:image/png;base64,", "data:;base64,", "DATA:image/png;charset=utf-8;BASE64,"
    urls = [head + one for head in heads for one in (*written, quote(text, safe=""))]
    return [*written, *urls, f"  {text}\n", f" {urls[0]}"]


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_base64_is_decoded_however_it_is_written(content, cut):
    content += bytes(cut)  # with no, one or two signs of padding
    for one in spellings(content):
        assert picture_bytes(one) == picture_bytes(one.encode()) == content, one[:30]


def test_bytes_of_a_picture_that_is_text_are_no_base64():
    grey = b"P2 2 2 255 0 100 200 255"
    assert picture_bytes(grey) == grey


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_an_array_keeps_its_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(pixels_of(picture_bytes(pixels)), pixels.squeeze())
    upside_down = pixels[::-1]
    np.testing.assert_array_equal(pixels_of(picture_bytes(upside_down)), upside_down.squeeze())


def test_a_path_object_is_read(content, tmp_path):
    (tmp_path / "one.png").write_bytes(content)
    assert picture_bytes(tmp_path / "one.png") == content


def test_text_is_never_read_as_a_path_unless_that_is_allowed(content, tmp_path, monkeypatch):
    path = tmp_path / "with a space.png"
    path.write_bytes(content)
    for text in (str(path), path.as_uri(), str(path).encode()):
        with pytest.raises(ValueError, match=r"a path is read if|no format that is known"):
            picture_bytes(text)
    monkeypatch.setenv(READ_PATHS, "true")
    assert picture_bytes(str(path)) == picture_bytes(path.as_uri()) == content


def test_a_path_that_may_not_be_read_is_answered_alike_whether_it_is_there_or_not(content, tmp_path):
    (tmp_path / "there.png").write_bytes(content)
    messages = []
    for name in ("there.png", "nowhere.png"):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            picture_bytes(str(tmp_path / name))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"no picture", "in no format that is known"),
        (b"", "in no format that is known"),
        ("", "in no format that is known"),
        (base64.b64encode(b"no picture").decode(), "in no format that is known"),
        ("no picture!", "text that is no base64"),
        (None, "of type NoneType; give bytes"),
        (float("nan"), "of type float"),
        (np.zeros((4, 4, 3)), "an array of float64; give uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"an array of shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"an array of shape \(0, 4, 3\)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "in no format that is known"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else None,
)
def test_input_that_is_no_picture_is_an_error(given, words):
    with pytest.raises(ValueError, match=words):
        picture_bytes(given)


def test_a_small_file_of_a_huge_picture_is_refused_by_its_head_alone():
    file = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    assert MOST_PIXELS < 10_000 * 10_000
    with pytest.raises(ValueError, match="it has 100 million pixels, and 89 million are taken"):
        picture_bytes(file.getvalue())
