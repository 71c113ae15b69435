import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data import inspection
from pipeline.data.inspection import inspect_picture
from pipeline.data.manifest import build_manifest, save_manifest
from pipeline.data.readers.sources import list_source
from pipeline.ranks.exchange import ask_all
from pipeline.ranks.team import deal, together
from pipeline.recipe.fields import PICTURE_ENDINGS
from tests.drawn_pictures import draw_pictures
from tests.several_processes import run_led


def inspect_all(paths):
    """The results for these files, by their paths below the root folder."""
    return list(inspection.inspect_all(Path("/"), [str(path.relative_to("/")) for path in paths]))


def save_picture(path, size=(12, 10), mode="RGB", seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).convert(mode).save(path)
    return path


@pytest.fixture
def opened_files(monkeypatch):
    """The files that are opened from now on."""
    opened = []

    def look(path):
        opened.append(path)
        return inspect_picture(path)

    monkeypatch.setattr(inspection, "inspect_picture", look)
    return opened


@pytest.mark.parametrize(("name", "mode"), [("a.png", "RGB"), ("b.jpg", "L"), ("c.png", "P"), ("d.png", "1")])
def test_a_good_picture_has_its_hash_size_and_mode(tmp_path, name, mode):
    path = save_picture(tmp_path / name, (12, 10), mode)
    found = inspect_picture(path)
    assert found.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found.width_px, found.height_px, found.mode, found.error) == (12, 10, mode, "")


def test_a_corrupt_file_has_an_error_and_its_hash(tmp_path):
    whole = save_picture(tmp_path / "whole.jpg", (64, 64)).read_bytes()
    contents = {
        "truncated.jpg": whole[: len(whole) // 2],
        "headless.jpg": whole[20:],
        "text.png": b"this is no picture",
        "half.png": save_picture(tmp_path / "whole.png", (64, 64)).read_bytes()[:3000],
        "page.jpg": b"<html><body>404 Not Found</body></html>",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found = inspect_picture(tmp_path / name)
        assert found.error.startswith("cannot be decoded: "), name
        assert found.hash == hashlib.sha256(content).hexdigest()
        assert len(found.error.splitlines()) == 1
        assert str(tmp_path) not in found.error


def test_an_empty_file_is_reported_as_empty(tmp_path):
    (tmp_path / "empty.png").touch()
    assert inspect_picture(tmp_path / "empty.png").error == "is empty"


def test_a_file_that_is_not_there_has_an_error(tmp_path):
    assert inspect_picture(tmp_path / "gone.png").error == "cannot be read: No such file or directory"
    assert inspect_picture(tmp_path).error.startswith("cannot be read: ")


def test_a_file_is_decoded_by_its_content_and_not_by_its_ending(tmp_path):
    save_picture(tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert inspect_picture(tmp_path / "a.jpg").error == ""


def test_pictures_come_in_the_order_asked_for(tmp_path):
    paths = [save_picture(tmp_path / f"{seed % 3}" / f"{seed}.png", (8 + seed, 8), seed=seed) for seed in range(20)]
    order = np.random.default_rng(0).permutation(20)
    for _ in range(2):
        assert [one.width_px for one in inspect_all([paths[row] for row in order])] == [8 + row for row in order]


def test_the_second_time_nothing_is_opened(tmp_path, opened_files):
    paths = [save_picture(tmp_path / "a" / f"{seed}.png", seed=seed) for seed in range(5)]
    first = inspect_all(paths)
    assert sorted(opened_files) == sorted(paths)
    opened_files.clear()
    assert inspect_all(paths) == first
    assert opened_files == []


def test_what_could_not_be_decoded_is_tried_again(tmp_path, opened_files):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert inspect_all([tmp_path / "bad.png"]) == inspect_all([tmp_path / "bad.png"])
    assert opened_files == [tmp_path / "bad.png"] * 2


def test_what_was_found_before_a_stop_is_remembered(tmp_path, opened_files, monkeypatch):
    monkeypatch.setattr(inspection, "PICTURES_AT_ONCE", 2)
    paths = [save_picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(6)]
    found = inspection.inspect_all(tmp_path, [path.name for path in paths])
    assert [next(found).error for _ in range(3)] == [""] * 3
    found.close()
    assert len(opened_files) == 4
    inspect_all(paths)
    assert len(opened_files) == 6


def test_a_picture_that_the_camera_turned_has_its_upright_size(tmp_path):
    for orientation, wanted in ((1, (12, 10)), (3, (12, 10)), (5, (10, 12)), (6, (10, 12)), (8, (10, 12))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for ending in (".jpg", ".png", ".webp", ".tif"):
            path = tmp_path / f"{orientation}{ending}"
            Image.new("RGB", (12, 10)).save(path, exif=exif)
            found = inspect_picture(path)
            assert (found.width_px, found.height_px) == wanted, path.name


def test_only_a_new_picture_is_opened(tmp_path, opened_files):
    old = save_picture(tmp_path / "a" / "old.png")
    inspect_all([old])
    opened_files.clear()
    new = save_picture(tmp_path / "a" / "new.png", seed=1)
    assert [one.error for one in inspect_all([old, new])] == ["", ""]
    assert opened_files == [new]


def test_a_picture_with_another_time_is_opened_again(tmp_path, opened_files):
    path = save_picture(tmp_path / "a.bmp", seed=1)
    first, status = inspect_all([path]), path.stat()
    save_picture(path, seed=2)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    second = inspect_all([path])
    assert opened_files == [path, path]
    assert second[0].hash == hashlib.sha256(path.read_bytes()).hexdigest() != first[0].hash


def test_a_picture_of_another_length_is_opened_again_though_its_time_is_the_same(tmp_path, opened_files):
    path = save_picture(tmp_path / "a.bmp", (8, 8))
    inspect_all([path])
    status = path.stat()
    save_picture(path, (16, 8))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert inspect_all([path])[0].width_px == 16
    assert opened_files == [path, path]


def test_a_file_that_appears_later_is_not_remembered_as_missing(tmp_path):
    path = tmp_path / "late.png"
    assert inspect_all([path])[0].error.startswith("cannot be read")
    save_picture(path)
    assert inspect_all([path])[0].error == ""


def test_a_file_that_cannot_be_read_is_not_remembered(tmp_path, monkeypatch):
    path = save_picture(tmp_path / "a.png")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert inspect_all([path])[0].error == "cannot be read: Permission denied"
    assert inspect_all([path])[0].error == ""


def test_folders_with_like_names_are_kept_apart(tmp_path):
    paths = [save_picture(tmp_path / name / "1.png", (8 + number, 8)) for number, name in enumerate(["a", "a b", "a%"])]
    for _ in range(2):
        assert [one.width_px for one in inspect_all(paths)] == [8, 9, 10]


def test_names_outside_ascii_are_remembered(tmp_path, opened_files):
    path = save_picture(tmp_path / "кошка 犬" / "ü'\".png")
    assert inspect_all([path]) == inspect_all([path])
    assert opened_files == [path]


def test_no_paths_give_no_results():
    assert inspect_all([]) == []


INSPECTED: list[Path] = []


def count_inspected(sees_other_files: bool) -> None:
    """In each process, note what it opens from now on; helpers may see other files at the same place."""
    inspect, state = inspection.inspect_picture, inspection._file_state

    def noted(path):
        INSPECTED.append(path)
        return inspect(path)

    inspection.inspect_picture = noted
    if sees_other_files and deal().number:
        inspection._file_state = lambda path: (state(path)[0], 1)


def counts() -> list[int]:
    return ask_all(len(INSPECTED))


def lead_to_a_manifest(folder, sees_other_files):
    inspection.PICTURES_AT_ONCE = 9
    with together(count_inspected, sees_other_files):
        count_inspected(sees_other_files)
    make_manifest(folder, folder / "shared")
    with together(counts):
        (folder / "counts").write_text(" ".join(map(str, counts())))


def make_manifest(folder, place):
    listing = list_source(str(folder / "pictures"), list(PICTURE_ENDINGS))
    save_manifest(build_manifest(listing, 0.2, 0.2, 0.1, 0), place)


@pytest.mark.parametrize("sees_other_files", [False, True])
def test_several_processes_make_the_manifest_of_one_to_the_byte(tmp_path, cache, sees_other_files):
    draw_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "dot" / "bad.png").write_bytes(b"no picture")
    make_manifest(tmp_path, tmp_path / "alone")
    run_led(lead_to_a_manifest, tmp_path, sees_other_files, cache=tmp_path / "other cache")
    alone, shared = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("alone", "shared")
    )
    assert alone == shared
    assert b'bad.png","cannot be decoded' in shared["set_aside.csv"]
    leader, helper = map(int, (tmp_path / "counts").read_text().split())
    assert leader + helper == 73
    assert helper == (0 if sees_other_files else 36)
