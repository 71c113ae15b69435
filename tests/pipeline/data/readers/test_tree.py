from pipeline.data.readers.tree import Tree


def test_a_folder_is_full_if_there_is_a_picture_at_any_depth(tmp_path):
    for name in ("a/b/1.JPG", "c/notes.txt", "__MACOSX/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    tree = Tree(tmp_path, {".jpg"})
    assert list(tree.full_folders("")) == ["a"]
    assert tree.find("").pictures == ["a/b/1.JPG"]
    assert [tree.has_pictures_itself(folder) for folder in ("", "a", "a/b", "c")] == [False, False, True, False]
