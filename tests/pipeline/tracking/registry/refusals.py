"""A registry that does not do what it is asked."""

import pytest
from mlflow import MlflowClient


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, error: Exception) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, call, refused)
