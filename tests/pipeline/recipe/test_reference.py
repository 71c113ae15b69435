from pathlib import Path

from pipeline.recipe.recipe_file import help_text
from pipeline.recipe.reference import reference
from pipeline.recipe.schema import Recipe, flatten

PAGE = Path(__file__).resolve().parents[3] / "docs" / "recipe.md"


def test_the_page_of_all_keys_is_that_of_the_code():
    assert PAGE.read_text(encoding="utf-8") == reference(), "make recipe renews it"


def test_the_page_has_a_row_for_every_key_with_its_type_default_and_effect():
    page = reference()
    assert [key for key in flatten(Recipe()) if page.count(f"| `{key}` |") != 1] == []
    assert "| `data.fit` | `crop`, `pad` or `squish` | `crop` |" in page
    assert "| `fine_tune.weight_decay` | number ≥ 0, < 10 | `0.01` |" in page
    assert "| `data.range` | `auto` or `container`, or list of number | `auto` |" in page
    assert "| `sweep_head.stored_epochs` | range | `{type: choice, of: [3, 5, 10]}` |" in page
    assert all(line.strip() in page for line in help_text().splitlines() if line.startswith("      "))
