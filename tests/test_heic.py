"""Real HEIC files, if the package that reads and writes them is installed."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.inspection import inspect_picture
from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import open_pixels
from pipeline.recipe.schema import Recipe
from pipeline.system.errors import UserError

pillow_heif = pytest.importorskip("pillow_heif")

SIZE_PX = 16
RED, GREEN, BLUE, WHITE = QUARTERS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def quarters():
    """Red and green above blue and white, 64 × 48."""
    small = Image.new("RGB", (2, 2))
    small.putdata(QUARTERS)
    return small.resize((64, 48), Image.Resampling.NEAREST)


def heic(picture, **options):
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    picture.save(buffer, "HEIF", quality=95, **options)
    return buffer.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return heic(quarters(), exif=exif.tobytes())


def transparent():
    """Its red quarter is transparent."""
    picture = quarters().convert("RGBA")
    picture.paste((255, 0, 0, 0), (0, 0, 32, 24))
    return heic(picture)


def ten_bits():
    values = np.asarray(quarters()).astype(np.uint16) * 257
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (64, 48), values.tobytes()).save(buffer, quality=95)
    assert pillow_heif.open_heif(buffer, convert_hdr_to_8bit=False).info["bit_depth"] == 10
    return buffer.getvalue()


# By name: how it is made, and the colours of its quarters when it is upright.
TRAINS = {
    "plain.heic": (lambda: heic(quarters()), QUARTERS),
    "turned to the left.heic": (lambda: turned(6), (BLUE, RED, WHITE, GREEN)),
    "turned to the right.heic": (lambda: turned(8), (GREEN, WHITE, RED, BLUE)),
    "upside down.HEIC": (lambda: turned(3), (WHITE, BLUE, GREEN, RED)),
    "mirrored.heif": (lambda: turned(2), (GREEN, RED, WHITE, BLUE)),
    "mirrored and turned.heic": (lambda: turned(5), (RED, BLUE, GREEN, WHITE)),
    "transparent.heic": (transparent, (WHITE, GREEN, BLUE, WHITE)),
    "grey.heic": (lambda: heic(quarters().convert("L")), ((76,) * 3, (150,) * 3, (29,) * 3, WHITE)),
    "ten bits.heic": (ten_bits, QUARTERS),
    "two pictures.heic": (lambda: heic(quarters(), save_all=True, append_images=[Image.new("RGB", (9, 9))]), QUARTERS),
    "really heic.jpg": (lambda: heic(quarters()), QUARTERS),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes: these HEIC files, and as many BMP."""
    root = tmp_path_factory.mktemp("photos")
    for label in ("phone", "scanner"):
        (root / label).mkdir()
    for number, (name, (make, _)) in enumerate(TRAINS.items()):
        (root / "phone" / name).write_bytes(make())
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / "scanner" / f"{number}.bmp")
    return root


def manifest_of(photos):
    return build_manifest(list_source(str(photos), Recipe().data.extensions), 0.2, 0.2, 0.0, 0)


@pytest.mark.parametrize("max_store_gib", [20, 0], ids=["stored", "streamed"])
def test_heic_trains_upright_on_white(photos, max_store_gib):
    manifest = manifest_of(photos)
    assert manifest.set_aside.empty
    pixels = open_pixels(manifest, SIZE_PX, "squish", max_store_gib)
    for row, path in enumerate(manifest.table["path"]):
        label, name = path.split("/")
        if label == "phone":
            found = pixels[row][[4, 4, 12, 12], [4, 12, 4, 12]].astype(int)
            assert np.abs(found - TRAINS[name][1]).max() <= 8, name


def test_turned_heic_has_its_upright_size(photos):
    sizes = {path.name: inspect_picture(path)[1:3] for path in (photos / "phone").iterdir()}
    sideways = {name for name, size in sizes.items() if size == (48, 64)}
    assert sideways == {"turned to the left.heic", "turned to the right.heic", "mirrored and turned.heic"}
    assert {size for name, size in sizes.items() if name not in sideways} == {(64, 48)}


@pytest.mark.parametrize("kept", [20, 300, 600])
def test_heic_that_is_cut_off_cannot_be_decoded(tmp_path, kept):
    (tmp_path / "cut.heic").write_bytes(heic(quarters())[:kept])
    found = inspect_picture(tmp_path / "cut.heic")
    assert found.error.startswith("cannot be decoded: ")
    assert "pip install" not in found.error


def test_without_the_package_a_run_stops_and_names_it(photos, without_heic):
    with pytest.raises(UserError, match=r"11 of 22 pictures .* it is HEIC, .* run 'pip install pillow-heif'"):
        manifest_of(photos)
