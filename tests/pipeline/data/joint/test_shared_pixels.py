import numpy as np
import pytest

from pipeline.data.decoded_pixels import DecodedPixels
from pipeline.data.joint.shared_pixels import Stored, source_of
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import StoredPixels, open_pixels
from pipeline.system.errors import UserError
from tests.drawn_pictures import draw_pictures


@pytest.fixture
def manifest(tmp_path):
    return build_manifest(list_source(str(draw_pictures(tmp_path / "pictures")), []), 0.2, 0.2, 0.0, 0)


def test_a_store_is_known_by_its_folder(manifest):
    pixels = open_pixels(manifest, 16, "crop")
    assert isinstance(pixels, StoredPixels)
    assert source_of(pixels) == Stored(pixels.folder)


def test_pictures_that_are_decoded_are_decoded_alike_elsewhere(manifest):
    own = DecodedPixels(manifest, 16, "squish")
    other = source_of(own).open()
    rows = np.array([3, 0])
    assert isinstance(other, DecodedPixels)
    assert (other[rows] == own[rows]).all()


def test_pictures_that_are_not_on_a_machine_are_told_so(manifest, tmp_path):
    source = source_of(DecodedPixels(manifest, 16, "squish"))
    (tmp_path / "pictures").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"which is not on .*; have them at the same place on every machine, or raise"):
        source.open()


def test_an_array_is_sent_as_it_is():
    array = np.arange(4)
    assert source_of(array).open() is array
