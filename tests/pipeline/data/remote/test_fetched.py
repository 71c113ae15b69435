from pipeline.data.remote.fetched import NAME, ROWS_AT_ONCE, Fetched, open_fetched


def test_what_was_noted_is_found_again_as_long_as_the_file_is_as_it_came(tmp_path):
    with open_fetched(tmp_path / "pictures") as fetched:
        places = [f"{number}.jpg" for number in range(ROWS_AT_ONCE + 3)]
        files = [Fetched(place, f"https://a/{place}", 4, "{}", 1.5) for place in places]
        for place in places:
            (fetched.folder / place).write_bytes(b"four")
        fetched.note(files)
    with open_fetched(tmp_path / "pictures") as fetched:
        assert fetched.find([*places, "another.jpg"]) == dict(zip(places, files, strict=True))
        (fetched.folder / "0.jpg").write_bytes(b"half"[:2])
        (fetched.folder / "1.jpg").unlink()
        assert set(fetched.find(places)) == set(places[2:])
        fetched.note([files[2]._replace(asked_seconds=9.0)])
        assert fetched.find(["2.jpg"])["2.jpg"].asked_seconds == 9.0


def test_who_removes_the_files_removes_what_is_remembered_of_them(tmp_path):
    with open_fetched(tmp_path) as fetched:
        fetched.note([Fetched("1.jpg", "https://a/1.jpg", 0, "", 0.0)])
    (tmp_path / NAME).unlink()
    (tmp_path / "1.jpg").touch()
    with open_fetched(tmp_path) as fetched:
        assert fetched.find(["1.jpg"]) == {}
