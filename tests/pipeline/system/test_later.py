import sys

from pipeline.system.later import later


def test_a_module_is_loaded_when_its_function_is_called_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "slow_to_load.py").write_text("def told(*given, **options): return given, options\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    told = later("slow_to_load.told", 1, 2, name="x")
    assert "slow_to_load" not in sys.modules
    assert told(3) == ((1, 2, 3), {"name": "x"})
    assert "slow_to_load" in sys.modules
    del sys.modules["slow_to_load"]
