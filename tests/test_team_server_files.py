"""The files of a team's server fit the project and the programs that they start."""

import re
from pathlib import Path

import click
import pytest
import yaml
from mlflow.cli import server

PROJECT = Path(__file__).resolve().parent.parent
DEPLOY = PROJECT / "deploy" / "team_server"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
EXAMPLE = (DEPLOY / "env.example").read_text(encoding="utf-8")


def test_the_server_is_started_with_options_that_it_has():
    program, name, *words = COMPOSE["services"]["tracking"]["command"]
    assert (program, name) == ("mlflow", "server")
    given = [re.sub(r"\$\{(\w+)[^}]*\}", r"\1", word) for word in words]
    assert isinstance(server, click.Command)
    options = server.make_context("server", given).params
    assert options["backend_store_uri"] == "postgresql+psycopg://mlflow:DATABASE_PASSWORD@database/mlflow"
    assert options["artifacts_destination"] == "s3://BUCKET/artifacts"
    assert options["allowed_hosts"] == "SERVER_NAMES"
    with pytest.raises(click.NoSuchOption):
        server.make_context("server", [*given, "--hosts-allowed=a"])


def test_its_versions_are_those_of_the_project():
    pinned = {
        line for file in ("requirements.txt", "requirements-s3.txt") for line in (PROJECT / file).read_text().split()
    }
    installed = re.findall(r"\S+==\S+", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert {"mlflow", "boto3", "psycopg"} <= {one.partition("==")[0] for one in installed}
    assert set(installed) <= pinned


def test_every_variable_is_in_the_example():
    used = set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8")))
    assert used <= set(re.findall(r"(?m)^(\w+)=", EXAMPLE))


def test_services_name_only_what_there_is():
    services = COMPOSE["services"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert named <= set(COMPOSE["volumes"])
    assert "@database/" in " ".join(services["tracking"]["command"])
    assert "http://storage:9000" in EXAMPLE
