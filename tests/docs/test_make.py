"""What `make docs` does without running a stage: blocks of pages, transcripts, the notebook's cells, and that every
made part of a page has a maker."""

import ast
import importlib.util
import json
import re

import pytest

from docs.make import method, tour
from docs.make.notebook import run_cell, run_notebook
from docs.make.pages import PROJECT, blocks, fenced, fill_pages, filled, markdown_table, pages
from docs.make.photos import some_cells
from docs.make.project import Copy, copy_project, transcript

PAGE = "# A\n\n<!-- output: one -->\nold\n<!-- end -->\n\nkept\n\n<!-- output: two -->\n<!-- end -->\n"
PRINTED = """\
2026/11/26 09:48:54 INFO mlflow.projects: === Running command
pictures of 2 classes
  epoch 1: train loss 0.7
  epoch 2: train loss 0.5
something else

  epoch 1: train loss 0.4
done
"""


def test_blocks_are_filled_by_name_and_all_else_is_kept(tmp_path):
    assert blocks(PAGE) == {"one": "old\n", "two": ""}
    new = filled(PAGE, {"one": "new\\1\n", "three": "nowhere"})
    assert blocks(new) == {"one": "new\\1\n", "two": ""}
    assert new.replace("new\\1", "old") == PAGE
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert fill_pages({"two": "2"}, [page]) == [page]
    assert fill_pages({"two": "2"}, [page]) == [], "nothing changes the second time"
    assert blocks(page.read_text())["two"] == "2\n"


def shown() -> list[tuple[str, str]]:
    """(name, content) of all made parts of all pages."""
    return [found for page in pages() for found in blocks(page.read_text(encoding="utf-8")).items()]


def test_every_made_part_of_a_page_has_a_maker_and_content_and_every_maker_a_page():
    assert {name for name, _ in shown()} == {*tour.BLOCKS, *method.BLOCKS}
    assert not [name for name, content in shown() if not content.strip()]


def test_a_page_shows_the_commands_that_the_tour_runs():
    commands = {"head": tour.HEAD, "main": tour.ALL, "sweep": tour.SWEEP}
    for name, content in shown():
        command = commands.get(name.removesuffix("-short"))
        assert command is None or f"$ {command}\n" in content, "make docs renews it"
    assert tour.RECIPE in dict(shown())["recipe"]


def test_a_transcript_has_the_last_epoch_of_each_stage_and_a_mark_for_what_is_left_out():
    assert transcript("run", PRINTED, ("pictures", "epoch", "done")).splitlines() == [
        "$ run", "pictures of 2 classes", "  …", "  epoch 2: train loss 0.5", "  …", "  epoch 1: train loss 0.4",
        "done",
    ]  # fmt: skip
    assert "something else" in transcript("run", PRINTED)
    assert "INFO" not in transcript("run", PRINTED)


def test_a_table_and_code_in_markdown():
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert fenced("a\n\n") == "```\na\n```"


def test_the_project_is_copied_with_a_link_to_pictures_and_commands_run_in_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "of another run")
    (tmp_path / "pictures").mkdir()
    copy = copy_project(tmp_path / "thaw", tmp_path / "pictures")
    assert (copy.folder / "MLproject").read_bytes() == (PROJECT / "MLproject").read_bytes()
    assert (copy.folder / "photos").resolve() == tmp_path / "pictures"
    assert copy.run("pwd; echo $MLFLOW_RUN_ID") == "~/thaw\n\n"
    with pytest.raises(RuntimeError, match="no such command"):
        copy.run("echo no such command; false | cat")


def test_a_server_is_stopped_at_the_end_of_its_block(tmp_path):
    copy = Copy(tmp_path)
    port = tour.free_port()
    with copy.serving(f"python -m http.server {port}", f"http://127.0.0.1:{port}/"):
        assert "Directory" in copy.run(
            f"python -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:{port}\").read())'"
        )
    with pytest.raises(RuntimeError):
        copy.run(f"python -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:{port}\")'")


def test_some_of_the_packaged_cells_of_each_class(tmp_path, monkeypatch):
    monkeypatch.setattr("docs.make.photos.PICTURES_PER_CLASS", 3)
    folder = some_cells(tmp_path / "cells")
    assert sorted((path.name, len(list(path.iterdir()))) for path in folder.iterdir()) == [
        ("defective", 3), ("functional", 3),
    ]  # fmt: skip
    assert some_cells(folder) == folder


def test_a_cell_gives_what_it_printed_its_last_expression_and_its_figures():
    names: dict[str, object] = {}
    printed, value = run_cell("print('a')\nb = 2\nb + 1", names, 1)
    assert (printed["text"], value["data"]["text/plain"], names["b"]) == ("a\n", "3", 2)
    (figure,) = run_cell("import matplotlib.pyplot as plt\nplt.plot([1, b]);", names, 2)
    assert figure["data"]["image/png"].startswith("iVBOR")
    assert run_cell("b = 3", names, 3) == []
    (long,) = run_cell("for number in range(99): print(number)", names, 4)
    assert long["text"].splitlines()[11:13] == ["11", "…"]


def test_a_notebook_is_written_with_its_outputs_and_stops_at_an_error(tmp_path):
    path = tmp_path / "notebook.ipynb"
    cells = [{"cell_type": "markdown", "source": ["# a"]}, {"cell_type": "code", "source": ["1 +\\\n", " 1"]}]
    path.write_text(json.dumps({"cells": cells}))
    run_notebook(path)
    (_, cell) = json.loads(path.read_text())["cells"]
    assert (cell["execution_count"], cell["outputs"][0]["data"]["text/plain"]) == (1, "2")
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}))
    with pytest.raises(ZeroDivisionError):
        run_notebook(path)


def test_all_that_the_notebook_imports_exists():
    """It is run by a slow test."""
    notebook = json.loads((PROJECT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    source = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code")
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    for node in (node for node in statements if str(node.module).startswith(("pipeline", "stages"))):
        module = importlib.import_module(str(node.module))
        assert all(
            hasattr(module, one.name) or importlib.util.find_spec(f"{node.module}.{one.name}") for one in node.names
        )
    assert len(statements) > 4


def test_the_notebook_was_run_in_order_and_ended():
    notebook = json.loads((PROJECT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "make docs renews it"
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"]) == 2


def test_what_the_makefile_calls_exists():
    called = re.findall(r"python -m (docs\.\w+)", (PROJECT / "Makefile").read_text())
    assert called == ["docs.make"]
    assert importlib.util.find_spec("docs.make.__main__")
