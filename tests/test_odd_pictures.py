"""Odd files in users' folders: each is trained on correctly, or set aside by its name with the reason."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.manifest import build_manifest
from pipeline.data.readers.sources import list_source
from pipeline.data.stored_pixels import open_pixels
from pipeline.recipe.schema import Recipe
from pipeline.system.errors import UserError

ORANGE, WHITE = (240, 130, 20), (255, 255, 255)
SIZE_PX = 16
TURNED = Image.Exif()
TURNED[0x0112] = 6


def file_of(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode="RGB", size=(40, 40), colour=ORANGE):
    return Image.new("RGB", size, colour).convert(mode)


def noise():
    return Image.effect_noise((64, 64), 50)


def deep(value, dtype):
    return Image.fromarray(np.full((40, 40), value, dtype=dtype))


def frames(kind, **options):
    blues = [flat(colour=(0, 0, shade)) for shade in (100, 250)]
    return file_of(flat(), kind, save_all=True, append_images=blues, **options)


def half_transparent():
    picture = flat("RGBA")
    picture.putalpha(128)
    return picture


def turned():
    """Orange at the left as it is stored, which is the top by its EXIF orientation."""
    picture = Image.new("RGB", (80, 40), WHITE)
    picture.paste(ORANGE, (0, 0, 40, 40))
    return file_of(picture, "JPEG", exif=TURNED, quality=95)


def bomb():
    """A PNG of 100 KB that holds 900 million pixels."""

    def chunk(name, content):
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (30_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    pixels = zlib.compress(bytes(3751) * 30_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# By name: how it is made, and the colour near its top.
TRAINS = {
    "plain.png": (lambda: file_of(flat(), "PNG"), ORANGE),
    "grey.jpg": (lambda: file_of(flat("L"), "JPEG"), (150, 150, 150)),
    "black and white.png": (lambda: file_of(flat("1", colour=WHITE), "PNG"), WHITE),
    "sixteen bits.png": (lambda: file_of(deep(0x8000, np.uint16), "PNG"), (128, 128, 128)),
    "dark sixteen bits.tif": (lambda: file_of(deep(255, np.uint16), "TIFF"), (1, 1, 1)),
    "sixteen bits.pgm": (lambda: file_of(deep(0x8000, np.uint16), "PPM"), (128, 128, 128)),
    "float.tif": (lambda: file_of(deep(0.5, np.float32), "TIFF"), (128, 128, 128)),
    "palette.png": (lambda: file_of(flat().quantize(4), "PNG"), ORANGE),
    "transparent palette.png": (lambda: file_of(flat().quantize(4), "PNG", transparency=0), WHITE),
    "palette.gif": (lambda: file_of(flat(), "GIF"), ORANGE),
    "transparent.png": (lambda: file_of(Image.new("RGBA", (40, 40), (*ORANGE, 0)), "PNG"), WHITE),
    "half transparent.png": (lambda: file_of(half_transparent(), "PNG"), (247, 192, 137)),
    "half transparent.webp": (lambda: file_of(half_transparent(), "WEBP", lossless=True), (247, 192, 137)),
    "grey and transparent.png": (lambda: file_of(Image.new("LA", (40, 40), (9, 0)), "PNG"), WHITE),
    "inks.jpg": (lambda: file_of(flat("CMYK"), "JPEG"), ORANGE),
    "inks.tif": (lambda: file_of(flat("CMYK"), "TIFF"), ORANGE),
    "turned.jpg": (turned, ORANGE),
    "animated.gif": (lambda: frames("GIF"), ORANGE),
    "animated.webp": (lambda: frames("WEBP", lossless=True), ORANGE),
    "animated.apng": (lambda: frames("PNG"), ORANGE),
    "pages.tif": (lambda: frames("TIFF"), ORANGE),
    "modern.avif": (lambda: file_of(flat(), "AVIF"), ORANGE),
    "waves.jp2": (lambda: file_of(flat(), "JPEG2000"), ORANGE),
    "one pixel.png": (lambda: file_of(flat(size=(1, 1)), "PNG"), ORANGE),
    "one pixel.jpg": (lambda: file_of(flat(size=(1, 1)), "JPEG"), ORANGE),
    "one line.png": (lambda: file_of(flat(size=(20_000, 1)), "PNG"), ORANGE),
    "twenty thousand.png": (lambda: file_of(flat(size=(20_000, 300)), "PNG"), ORANGE),
    "twenty thousand.jpg": (lambda: file_of(flat(size=(300, 20_000)), "JPEG"), ORANGE),
    "really a jpeg.png": (lambda: file_of(flat(), "JPEG"), ORANGE),
    "CAPITALS.JPG": (lambda: file_of(flat(), "JPEG"), ORANGE),
    "кошка 猫 🐈 ü'\".png": (lambda: file_of(flat(), "PNG"), ORANGE),
    "line\nbreak.png": (lambda: file_of(flat(), "PNG"), ORANGE),
    "/".join(["deep"] * 100) + "/in a tree.png": (lambda: file_of(flat(), "PNG"), ORANGE),
}
UNKNOWN = "cannot be decoded: it is in no format that is known"
# By name: how it is made, and the reason.
SET_ASIDE = {
    "empty.jpg": (lambda: b"", "is empty"),
    "truncated.jpg": (lambda: file_of(noise(), "JPEG")[:-500], "cannot be decoded: "),
    "truncated.png": (lambda: file_of(noise(), "PNG")[:-500], "cannot be decoded: "),
    "truncated.webp": (lambda: file_of(noise(), "WEBP")[:-500], "cannot be decoded: "),
    "truncated.gif": (lambda: file_of(noise(), "GIF")[:-500], "cannot be decoded: "),
    "text.png": (lambda: b"no picture", UNKNOWN),
    "page.jpg": (lambda: b"<html>404</html>", UNKNOWN),
    "program.png": (lambda: file_of(flat(), "EPS"), UNKNOWN),
    "bomb.png": (bomb, "cannot be decoded: it has too many pixels"),
    "phone.heic": (
        lambda: b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(99),
        "cannot be decoded: it is HEIC, which needs a package: run 'pip install pillow-heif'",
    ),
}


@pytest.fixture
def photos(tmp_path):
    """Two classes of plain pictures, to one of which something odd is added."""
    for index, label in enumerate(("cat", "dog")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(5):
            flat(colour=(0, 40 * number, 200 * index)).save(tmp_path / "photos" / label / f"{number}.bmp")
    return tmp_path / "photos"


def add(photos, name, content):
    path = photos / "cat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def manifest_of(photos, max_bad=0.0):
    return build_manifest(list_source(str(photos), Recipe().data.extensions), 0.2, 0.2, max_bad, 0)


@pytest.mark.parametrize("name", TRAINS)
@pytest.mark.parametrize("max_store_gib", [20, 0], ids=["stored", "streamed"])
def test_an_odd_picture_is_trained_on_correctly(photos, name, max_store_gib):
    make, colour = TRAINS[name]
    add(photos, name, make())
    manifest = manifest_of(photos)
    assert manifest.set_aside.empty
    row = list(manifest.table["path"]).index(f"cat/{name}")
    square = open_pixels(manifest, SIZE_PX, "squish", max_store_gib)[row]
    assert square.shape == (SIZE_PX, SIZE_PX, 3)
    assert np.abs(square[2, SIZE_PX // 2].astype(int) - colour).max() <= 8


@pytest.mark.parametrize("name", SET_ASIDE)
def test_a_bad_file_is_set_aside_by_name_and_past_the_limit_stops_the_run(photos, name, without_heic):
    make, reason = SET_ASIDE[name]
    add(photos, name, make())
    manifest = manifest_of(photos, max_bad=0.1)
    (path, given), *others = manifest.set_aside.itertuples(index=False, name=None)
    assert (path, others) == (f"cat/{name}", [])
    assert given.startswith(reason)
    assert open_pixels(manifest, SIZE_PX, "crop").shape == (10, SIZE_PX, SIZE_PX, 3)
    with pytest.raises(
        UserError, match=r"1 of 11 pictures .* more than data\.max_bad = 0\.05 allows; the first is cat/"
    ):
        manifest_of(photos, max_bad=0.05)


def test_a_turned_picture_has_its_upright_size(photos):
    add(photos, "turned.jpg", turned())
    table = manifest_of(photos).table.set_index("path")
    assert table.loc["cat/turned.jpg", ["width_px", "height_px"]].tolist() == [40, 80]


def test_links_to_pictures_and_to_folders_train_and_loops_end(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for number in range(2):
        flat(colour=(250, number, 0)).save(tmp_path / "elsewhere" / f"{number}.png")
    (photos / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (photos / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (photos / "cat" / "loop").symlink_to(photos / "cat")
    manifest = manifest_of(photos)
    assert {"cat/linked.png", "cat/more/0.png", "cat/more/1.png"} <= set(manifest.table["path"])
    assert manifest.set_aside.to_numpy().tolist() == [["cat/loop", "is a link to a folder of the same class"]]
    (photos / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    set_aside = manifest_of(photos, max_bad=0.1).set_aside.to_numpy().tolist()
    assert ["cat/gone.png", "cannot be read: No such file or directory"] in set_aside
