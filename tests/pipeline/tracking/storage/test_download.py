import pytest
from mlflow.entities import FileInfo

from pipeline import tracking
from pipeline.tracking.storage import download as module
from pipeline.tracking.storage.download import download


@pytest.fixture
def run(tracking_server, tmp_path):
    """A run with files in folders of folders."""
    (tmp_path / "pixels" / "128").mkdir(parents=True)
    (tmp_path / "pixels" / "128" / "pixels.npy").write_bytes(b"pixels")
    (tmp_path / "pixels" / "64").mkdir()
    (tmp_path / "pixels" / "64" / "pixels.npy").write_bytes(b"few")
    with tracking.open_run("precompute", {}, {}) as run_id:
        tracking.log_folder(run_id, tmp_path / "pixels", "pixels")
        tracking.log_text(run_id, "seed: 0", "recipe.yaml")
    return run_id


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("pixels", ["pixels/128/pixels.npy", "pixels/64/pixels.npy"]),
        ("pixels/128", ["pixels/128/pixels.npy"]),
        ("pixels/64/pixels.npy", ["pixels/64/pixels.npy"]),
        ("recipe.yaml", ["recipe.yaml"]),
    ],
)
def test_what_is_asked_for_comes_into_its_folders_and_nothing_else(run, tmp_path, name, files):
    target = tmp_path / "here"
    target.mkdir()
    download(run, name, target)
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == files


@pytest.mark.parametrize("name", ["views", "pixels/256", "pixels/128/other.npy"])
def test_what_is_not_there_is_an_error(run, tmp_path, name):
    with pytest.raises(FileNotFoundError):
        download(run, name, tmp_path)


def test_no_file_comes_outside_the_folder(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    listed = [FileInfo("pixels/../../escaped.npy", False, 6)]
    monkeypatch.setattr(module, "files_of", lambda *_: ((item.path, item.file_size) for item in listed))
    with pytest.raises(FileNotFoundError, match="outside its folder"):
        download(run, "pixels", tmp_path / "here")
    assert not (tmp_path / "escaped.npy").exists()


def test_a_file_that_comes_short_is_asked_for_again(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    found = list(module.files_of(run, ["pixels/128"], "pixels"))
    whole, tries = module._bring_whole, []

    def short_at_first(repository, path, target, size_bytes):
        tries.append(path)
        whole(repository, path, target, size_bytes + (len(tries) == 1))

    monkeypatch.setattr(module, "_bring_whole", short_at_first)
    download(run, "pixels/128", tmp_path / "here")
    assert tries == [path for path, _ in found] * 2
