import pytest

from pipeline.data.readers.csv_file import read_csv


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", " "])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_dialect_is_known_by_the_header_with_its_quotes(tmp_path, separator, quote):
    rows = [["path", "label"], ["a, b; c|d.jpg", "x y"], ["line\nbreak.jpg", f"{quote}"]]
    table = tmp_path / "table.csv"
    lines = [separator.join(quote + cell.replace(quote, 2 * quote) + quote for cell in row) for row in rows]
    table.write_text("\n".join(lines))
    header, found = read_csv(table, ("path", "label"))
    assert [header, *found] == rows
