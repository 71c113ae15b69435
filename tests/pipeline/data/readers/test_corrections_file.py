import pytest

from pipeline.data.readers.corrections_file import Correction, read_corrections
from pipeline.data.readers.sources import list_source
from pipeline.system.errors import UserError

CLASSES = {"cat", "dog", "Größe"}


def read(tmp_path, text, classes=CLASSES):
    (tmp_path / "corrections.csv").write_text(text, encoding="utf-8")
    return read_corrections(str(tmp_path / "corrections.csv"), classes)


def complaint(tmp_path, text):
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    return str(caught.value)


def test_each_row_says_what_becomes_of_the_pictures_of_a_hash(tmp_path):
    text = (
        'hash,path,was,action,label\nAA,"a,b.png",dog,relabel,cat\nbb,c.png,dog,drop,\n\ncc,d.png,cat,relabel, Größe \n'
        "dd,e.png,cow,KEEP,cow\n"
    )
    assert read(tmp_path, text) == {
        "aa": Correction("relabel", "cat", "a,b.png"),
        "bb": Correction("drop", "", "c.png"),
        "cc": Correction("relabel", "Größe", "d.png"),
        "dd": Correction("keep", "cow", "e.png"),
    }


def test_without_a_file_there_are_no_corrections():
    assert read_corrections("", CLASSES) == {}


def test_the_same_row_twice_is_one_correction_and_two_that_differ_are_refused(tmp_path):
    header = "hash,action,label\naa,relabel,cat\n"
    assert read(tmp_path, f"{header}aa,relabel,cat\n") == {"aa": Correction("relabel", "cat")}
    assert "row 2 says something else of aa" in complaint(tmp_path, f"{header}aa,keep,cat\n")
    assert "row 2 says something else of aa" in complaint(tmp_path, f"{header}aa,drop,\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\na.png,cat\n", "has no column hash and no column action (its columns are: path, label)"),
        ("", "has no column hash"),
        ("hash,action,label\naa,delete,\n", "row 1 has the action 'delete'; it takes relabel, drop or keep."),
        ("hash,action,label\naa,relabel,doge\n", "row 1 has the label 'doge', which is no class of these pictures; "
         "the nearest is dog."),
        ("hash,action,label\naa,relabel,\n", "row 1 has the label '', which is no class"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_names_it(tmp_path, text, sentence):
    message = complaint(tmp_path, text)
    assert sentence in message
    assert len(message.splitlines()) == 1


def test_a_file_that_is_missing_or_names_no_class_is_reported_when_pictures_are_listed(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(b"is not opened")
    with pytest.raises(UserError, match=r"^data\.corrections is nowhere\.csv, which does not exist \(looked for in"):
        list_source(str(tmp_path), [".png"], "nowhere.csv")
    (tmp_path / "mine.csv").write_text("hash,action,label\naa,relabel,cow\n")
    with pytest.raises(UserError, match="'cow', which is no class"):
        list_source(str(tmp_path), [".png"], str(tmp_path / "mine.csv"))
