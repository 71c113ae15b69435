import pytest

from pipeline.errors import UserError
from pipeline.picture_folder import check_output, list_pictures

ENDINGS = [".jpg", ".png"]


def test_pictures_are_found_at_any_depth_in_order_and_hidden_ones_are_not(tmp_path):
    for name in ("b.PNG", "a/b/c.jpg", "a/notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, found = list_pictures(str(tmp_path), ENDINGS)
    assert root == tmp_path
    assert [str(path.relative_to(root)) for path in found] == ["a/b/c.jpg", "b.PNG"]


def test_a_folder_without_a_picture_is_told(tmp_path):
    with pytest.raises(UserError, match=r"where no file, at any depth, ends in .jpg, .png; name a folder"):
        list_pictures(str(tmp_path), ENDINGS)


def test_what_is_no_folder_is_told(tmp_path):
    (tmp_path / "one.png").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        list_pictures(str(tmp_path / "one.png"), ENDINGS)
    with pytest.raises(UserError, match="does not exist"):
        list_pictures(str(tmp_path / "nowhere"), ENDINGS)


def test_the_table_goes_into_a_csv_or_parquet_file_in_a_folder_that_is_there(tmp_path):
    assert check_output(str(tmp_path / "out.Parquet")) == tmp_path / "out.Parquet"
    with pytest.raises(UserError, match=r"ends neither in .csv nor in .parquet"):
        check_output("out.xlsx")
    with pytest.raises(UserError, match="there is no folder"):
        check_output(str(tmp_path / "nowhere" / "out.csv"))
