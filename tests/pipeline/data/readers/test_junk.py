import pytest

from pipeline.data.readers.junk import is_junk, is_left_out


@pytest.mark.parametrize(
    "name", [".git", "__MACOSX", "Thumbs.db", "DESKTOP.INI", ".ipynb_checkpoints", "@eaDir", "._1.jpg"]
)
def test_what_systems_leave_behind_is_left_out(name):
    assert is_left_out(name)


def test_hidden_files_that_a_table_names_are_wanted_unless_a_system_made_them():
    assert is_junk("cat/._1.jpg")
    assert is_junk(".ipynb_checkpoints/1.jpg")
    assert not is_junk(".data/cat/.1.jpg")
    assert not is_left_out("thumbs")
