"""Files of the leader's on machines that share no disk, which a cache of their own stands for."""

import shutil
from pathlib import Path

import numpy as np

from pipeline.cache.location import cache_folder
from pipeline.ranks.exchange import PIECE_BYTES
from pipeline.ranks.folders import KIND, provide
from pipeline.ranks.team import deal, together
from tests.several_processes import environments, start_led

CONTENT = {"a.bin": np.arange(10, dtype=np.uint8).tobytes(), "inner/b.txt": b"", "large": bytes(PIECE_BYTES + 3)}


def provide_and_note(folder: Path, notes: Path) -> None:
    found = provide(folder)
    content = {str(path.relative_to(found)): path.read_bytes() for path in found.rglob("*") if path.is_file()}
    is_same = {name: content.get(name) for name in CONTENT} == CONTENT
    stores = [path for path in (cache_folder() / KIND).glob("*") if path.is_dir() and not path.name.startswith(".")]
    (notes / str(deal().number)).write_text(f"{found == folder} {is_same} {len(stores)}")


def lead(folder: Path, notes: list[Path]) -> None:
    for one in notes:
        one.mkdir()
        with together(provide_and_note, folder, one):
            provide_and_note(folder, one)


def provided(folder: Path, caches: list[str]) -> list[list[str]]:
    """What each process of these caches noted the first time, and the second."""
    (folder / "leaders" / "inner").mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / "leaders" / name).write_bytes(content)
    own = [{"THAW_CACHE": str(folder / cache)} for cache in caches]
    notes = [folder / "first", folder / "second"]
    started = start_led(lead, (folder / "leaders", notes), environments({}, len(caches), own))
    printed = [one.communicate(600)[0] for one in started]
    assert [one.returncode for one in started] == [0] * len(caches), printed
    return [[(one / str(number)).read_text() for number in range(len(caches))] for one in notes]


def test_whoever_uses_the_leaders_cache_reads_its_folder_itself(tmp_path):
    first, second = provided(tmp_path, ["same", "same"])
    assert first == second == ["True True 0", "True True 0"]


def test_other_machines_get_one_copy_each_and_keep_it(tmp_path):
    first, second = provided(tmp_path, ["leader's", "other", "other", "third"])
    assert first == second == ["True True 0", "False True 1", "False True 1", "False True 1"]


def test_a_copy_that_is_damaged_is_sent_again(tmp_path):
    provided(tmp_path, ["leader's", "other"])
    (store,) = (path for path in (tmp_path / "other" / KIND).iterdir() if path.is_dir())
    (store / "a.bin").write_bytes(b"short")
    for name in ("leaders", "first", "second"):
        shutil.rmtree(tmp_path / name)
    assert provided(tmp_path, ["leader's", "other"])[0][1] == "False True 1"
