import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data.readers.table import list_table
from pipeline.data.remote.addresses import pictures_folder
from pipeline.system.errors import UserError


def table(folder, content, name="pets.csv"):
    """A table file: text as UTF-8, bytes as they are, columns as Parquet."""
    path = folder / name
    if isinstance(content, dict):
        path = folder / "pets.parquet"
        parquet.write_table(pa.table(content), path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


PLAIN = "path,label\na/1.jpg,cat\nb/2.jpg,dog\n"


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.rstrip(),
        PLAIN + "\n,\n",
        "\ufeff" + PLAIN,
        ("\ufeff" + PLAIN).encode("utf-16-le"),
        ("\ufeff" + PLAIN).encode("utf-16-be"),
        "Path, Label\na/1.jpg, cat \n./b//2.jpg, dog\n",
        "id,label,path,notes\n1,cat,a/1.jpg,\n2,dog,b/2.jpg,x\n",
        '"path","label"\n"a/1.jpg","cat"\n"b/2.jpg","dog"\n',
        '"path";"label"\n"a/1.jpg";"cat"\n"b/2.jpg";"dog"\n',
        '"label"\t"path"\n"cat"\t"a/1.jpg"\n"dog"\t"b/2.jpg"\n',
        '"no, yes";"path";"label"\n"x;y";"a/1.jpg";"cat"\n"";"b/2.jpg";"dog"\n',
        "'path','label'\n'a/1.jpg','cat'\n'b/2.jpg','dog'\n",
        '"path" "label"\n"a/1.jpg" "cat"\n"b/2.jpg" "dog"\n',
        ",path,label\n0,a/1.jpg,cat\n1,b/2.jpg,dog\n",
        '"","path","label"\n"1","a/1.jpg","cat"\n"2","b/2.jpg","dog"\n',
        "sep=;\n" + PLAIN.replace(",", ";"),
        ("\ufeffsep=;\r\n" + PLAIN.replace(",", ";")).encode("utf-16-le"),
        '"sep=^"\n' + PLAIN.replace(",", "^"),
        "sep=,;;\n" + PLAIN,
        "\n,\n" + PLAIN,
        "path,label,\na/1.jpg,cat,\nb/2.jpg,dog,\n",
        "path,label\na/1.jpg,cat,\nb/2.jpg,dog,,\n",
        {"path": ["a/1.jpg", "b/2.jpg"], "label": ["cat", "dog"]},
        {"path": ["a/1.jpg", "b/2.jpg"], "label": pa.array(["cat", "dog"]).dictionary_encode(), "other": [[1], [2]]},
    ],
)
def test_the_same_table_in_any_form_gives_the_same_pictures(tmp_path, content):
    listing = list_table(table(tmp_path, content))
    assert (listing.paths, listing.labels) == (["a/1.jpg", "b/2.jpg"], ["cat", "dog"])
    assert (listing.splits, listing.groups, listing.weights, listing.set_aside) == (None, None, None, [])
    assert (listing.name, listing.root) == (f"{tmp_path.name}-pets", tmp_path)


@pytest.mark.parametrize("labels", [["1", "02"], ["1e3", "1.0"], ["NA", "null"], ["True", "犬"], ["a,b", 'say "a"']])
def test_labels_are_always_text(tmp_path, labels):
    quoted = ['"' + label.replace('"', '""') + '"' for label in labels]
    assert list_table(table(tmp_path, f"path,label\n1,{quoted[0]}\n2,{quoted[1]}\n")).labels == labels
    assert list_table(table(tmp_path, {"path": ["1", "2"], "label": labels})).labels == labels


def test_numbers_of_a_parquet_file_become_text(tmp_path):
    content = {"path": ["a", "b"], "label": [3, 10], "group": [7, None], "weight": [0.5, None]}
    listing = list_table(table(tmp_path, content))
    assert (listing.labels, listing.groups, listing.weights) == (["3", "10"], ["7", ""], [0.5, 1.0])


def test_splits_groups_and_weights_are_taken_and_may_be_empty(tmp_path):
    content = "path,label,split,group,weight\n1,a,Train,g,2\n2,b,val,,\n3,a,,h,.5\n4,b,test,h,\n"
    listing = list_table(table(tmp_path, content))
    assert listing.splits == ["train", "valid", "", "test"]
    assert listing.groups == ["g", "", "h", "h"]
    assert listing.weights == [2.0, 1.0, 0.5, 1.0]


def test_empty_columns_count_as_missing(tmp_path):
    listing = list_table(table(tmp_path, "path,label,split,group,weight\n1,a,,,\n2,b,,,\n"))
    assert (listing.splits, listing.groups, listing.weights) == (None, None, None)


def test_a_row_that_repeats_another_is_set_aside(tmp_path):
    listing = list_table(table(tmp_path, PLAIN + "./a/1.jpg,cat\n"))
    assert listing.paths == ["a/1.jpg", "b/2.jpg"]
    assert listing.set_aside == [("a/1.jpg", "is named again in row 3, which adds nothing")]


def test_a_path_may_be_absolute_where_it_lies_below_the_tables_folder(tmp_path):
    listing = list_table(table(tmp_path, f"path,label\n{tmp_path}/a/1.jpg,cat\n2.jpg,dog\n"))
    assert listing.paths == ["a/1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "pets.csv has no column path and no column label (its columns are: none); add it."),
        ("file,label\n1,a\n", "has no column path (its columns are: file, label); add it."),
        ("path,class\n1,a\n", "has no column label (its columns are: path, class); add it."),
        ({"name": ["1"]}, "pets.parquet has no column path and no column label"),
        ("path,label,Label\n1,a,b\n", "has two columns label; keep one of them."),
        ("path,label\n1,a\n2,\n", "pets.csv, row 2 has no label; fill it in, or remove the row."),
        ("path,label\n,a\n", "row 1 has no path"),
        ("path,label\n1,a,b\n", "row 1 has 3 cells and the header 2; put quotes around a cell"),
        ("path,label,split\n1,a,held out\n", "row 1 has the split held out; it takes train, valid, test, or nothing."),
        ("path,label,weight\n1,a,0\n", "row 1 has the weight 0; it takes a number above 0, or nothing for 1."),
        ("path,label,weight\n1,a,nan\n", "row 1 has the weight nan"),
        ("path,label,weight\n1,a,heavy\n", "row 1 has the weight heavy"),
        ("path,label\n1,a\n1,b\n", "row 2 gives 1 the label b, and an earlier row gave it a; keep one of them."),
        ("path,label,split\n1,a,\n1,a,test\n", "gives 1 the split test, and an earlier row gave it an empty cell"),
        ("path,label\n../1,a\n", "row 1 names ../1, outside the table's folder"),
        ("path,label\n/etc/passwd,a\n", "row 1 names /etc/passwd, outside the table's folder"),
        ("path,label\n1,a\nhttps://a.org/1.jpg,a\n", "row 2 names https://a.org/1.jpg, at an address, and the first"),
        ("path,label\nhttps://a.org/1.jpg,a\n1,a\n", "row 2 names 1, on disk, and the first row an address; name all"),
        ("path,label\nhttps://a.org,a\n", "row 1 names https://a.org/, which is no whole address; mend it."),
        (
            "path,label\nC:\\\\me\\\\1.jpg,a\n",
            "row 1 names C:\\\\me\\\\1.jpg, on a drive of Windows; give its path relative",
        ),
        ("path,label\n1,caf\xe9\n".encode("latin-1"), "cannot be read as a table (it is not UTF-8); save it as CSV"),
    ],
)
def test_a_mistake_is_reported_with_its_row(tmp_path, content, words):
    with pytest.raises(UserError) as caught:
        list_table(table(tmp_path, content))
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"PAR1 but no more", b""])
def test_a_parquet_file_that_is_none_is_named(tmp_path, content):
    with pytest.raises(UserError, match=r"pets\.parquet cannot be read as a table \("):
        list_table(table(tmp_path, content, "pets.parquet"))


@pytest.mark.parametrize("separator", [",", ";", " ", "\t"])
def test_numbers_of_rows_that_have_no_column_name_do_no_harm(tmp_path, separator):
    for name in ("a 1.jpg", "b.jpg"):
        (tmp_path / name).touch()
    rows = '"path","label"\n"1","a 1.jpg","cat"\n"2","b.jpg","dog"\n'
    listing = list_table(table(tmp_path, rows.replace(",", separator)))
    assert (listing.paths, listing.labels) == (["a 1.jpg", "b.jpg"], ["cat", "dog"])


def test_names_equal_to_the_eye_are_one_class_and_one_group(tmp_path):
    content = "path,label,group\n1,caf\u00e9,A\u030a\n2,cafe\u0301,\u00c5\n3,\ufeffbar\u200b,\n4,\u00a0bar,\n"
    rows = [row.split(",") for row in content.splitlines()]
    columns = {name: list(cells) for name, *cells in zip(*rows, strict=True)}
    for given in (content, columns):
        listing = list_table(table(tmp_path, given))
        assert listing.labels == ["caf\u00e9", "caf\u00e9", "bar", "bar"]
        assert listing.groups == ["\u00c5", "\u00c5", "", ""]


def test_a_label_of_characters_that_nobody_sees_is_none(tmp_path):
    with pytest.raises(UserError, match="row 1 has no label"):
        list_table(table(tmp_path, "path,label\n1,\u200b\n"))


def test_splits_go_by_all_their_common_names(tmp_path):
    listing = list_table(table(tmp_path, "path,label,split\n1,a,Training\n2,b,DEV\n3,a,test set\n4,b,validation\n"))
    assert listing.splits == ["train", "valid", "test", "valid"]


def test_what_a_system_left_behind_is_set_aside(tmp_path):
    names = ["a/Thumbs.db", "__MACOSX/a/1.jpg", "a/._1.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg"]
    listing = list_table(table(tmp_path, PLAIN + "".join(f"{name},cat\n" for name in names) + ".cache/3.jpg,cat\n"))
    assert listing.paths == ["a/1.jpg", "b/2.jpg", ".cache/3.jpg"]
    assert [path for path, _ in listing.set_aside] == names


SOFT = "path,probability/dog,probability/Cat,split\na/1.jpg,0.25,0.75,train\nb/2.jpg,1,,\n"


@pytest.mark.parametrize(
    "content",
    [
        SOFT,
        SOFT.replace("probability/", ""),
        SOFT.replace(",", ";"),
        "id,notes,path,probability/Cat,probability/dog,split\n1,x,a/1.jpg,0.75,0.25,train\n2,,b/2.jpg,0,1,\n",
        {
            "path": ["a/1.jpg", "b/2.jpg"], "probability/Cat": [0.75, None], "other": [[1], [2]],
            "probability/dog": [0.25, 1.0], "split": ["train", None],
        },
    ],
)  # fmt: skip
def test_a_table_may_have_a_probability_for_each_class_instead_of_labels(tmp_path, content):
    listing = list_table(table(tmp_path, content))
    assert (listing.paths, listing.labels) == (["a/1.jpg", "b/2.jpg"], ["Cat", "dog"])
    assert (listing.soft.classes, listing.soft.shares) == (["Cat", "dog"], [(0.75, 0.25), (0.0, 1.0)])
    assert (listing.splits, listing.weights, listing.notes) == (["train", ""], None, [])


def test_ties_are_said_and_a_row_that_says_something_else_is_named(tmp_path):
    listing = list_table(table(tmp_path, SOFT + "c/3.jpg,0.5,0.5,\n"))
    assert listing.labels == ["Cat", "dog", "Cat"]
    assert "1 of 3 pictures have several likeliest classes" in listing.notes[0]
    with pytest.raises(UserError, match=r"row 3 gives a/1\.jpg the probability of dog 0\.5, and an earlier"):
        list_table(table(tmp_path, SOFT + "a/1.jpg,0.5,0.5,train\n"))
    with pytest.raises(UserError, match=r"row 1 has probabilities of dog, Cat that add up to 0\.85"):
        list_table(table(tmp_path, SOFT.replace("0.75", "0.6")))


@pytest.mark.parametrize("start", ["path,label\n", "path,label,split\n", ",label,path\n"])
def test_pictures_at_addresses_are_listed_with_their_places_in_the_cache(tmp_path, start):
    """As R writes its rows, with their numbers in front, too."""
    rows = [("https://me:secret@a.org/pets/1.jpg", "cat"), ("https://a.org/pets/dogs/2.jpg", "dog")]
    rows.append(("https://a.org/pets/1.jpg", "cat"))  # the same picture
    columns = start.strip().split(",")
    cells = [{"": str(number), "path": path, "label": label} for number, (path, label) in enumerate(rows)]
    lines = [",".join(row.get(column, "") for column in columns) for row in cells]
    listing = list_table(table(tmp_path, start + "\n".join(lines)))
    assert listing.root == pictures_folder() / "https+a.org" / "pets"
    assert (listing.paths, listing.labels) == (["1.jpg", "dogs/2.jpg"], ["cat", "dog"])
    assert listing.addresses == {"1.jpg": rows[0][0], "dogs/2.jpg": rows[1][0]}
    assert listing.set_aside == [("https://a.org/pets/1.jpg", "is named again in row 3, which adds nothing")]


def test_rows_with_numbers_in_front_that_have_no_name_may_hold_addresses(tmp_path):
    listing = list_table(
        table(tmp_path, '"path","label"\n"1","https://a.org/1.jpg","cat"\n"2","https://a.org/2.jpg","dog"\n')
    )
    assert listing.paths == ["1.jpg", "2.jpg"]


def test_one_picture_at_an_address_has_one_label(tmp_path):
    with pytest.raises(UserError, match=r"row 2 gives https://a.org/1.jpg the label b, and an earlier row gave it a"):
        list_table(table(tmp_path, "path,label\nhttps://me:x@a.org/1.jpg,a\nhttps://a.org/1.jpg,b\n"))
