"""The page and its requests, without a socket; tests/stages/commands/test_try_command.py looks at it in a browser."""

import asyncio
import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.applications import Starlette

from pipeline.tryout import page_server
from pipeline.tryout.page_server import PICTURE_TYPE, build_app
from tests.pipeline.tryout.tried import CLASSES, pictures, png, small_model

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> dict:
        return json.loads(self.body)


def ask(app: Starlette, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
    """What the server answers to a request, whose body comes in two pieces."""
    given = {"host": "127.0.0.1:5002"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "scheme": "http", "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    half = len(body) // 2
    pieces = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:], "more_body": False},
    ]
    sent = []

    async def receive():
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answered(sent[0]["status"], headers, b"".join(one.get("body", b"") for one in sent[1:]))


def post(app: Starlette, body: bytes, **headers: str) -> Answered:
    return ask(app, "POST", "/answer", body, **({"content_type": PICTURE_TYPE} | headers))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def app(model):
    return build_app(model, "pets@champion", LOOPBACK)


def pixels_at(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_picture_is_answered_with_all_that_the_page_shows(app, model):
    answered = post(app, png(pictures()[6]))
    wanted = model.answer((pictures()[6],))
    found = answered.content
    assert answered.status == 200
    assert (found["label"], found["doubts"]) == (wanted.label, wanted.doubts)
    assert [(one["label"], one["probability"]) for one in found["probabilities"]] == wanted.probabilities
    assert np.abs(pixels_at(found["square"]).astype(int) - pictures()[6]).mean() < 12
    assert pixels_at(found["heat"]).shape == (32, 32, 3)
    assert (found["neighbours"][0]["label"], found["neighbours"][0]["path"]) == ("dog", "6.png")
    assert pixels_at(found["neighbours"][0]["picture"]).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no picture", "It cannot be opened as a picture: it is in no format that is known."),
        (b"", "It cannot be opened as a picture: it is in no format that is known."),
        (png(pictures()[0])[:60], "It cannot be opened as a picture: "),
    ],
)
def test_what_is_no_picture_is_told_and_the_next_one_answered(app, body, said):
    answered = post(app, body)
    assert answered.status == 422
    assert answered.content["error"].startswith(said)
    assert post(app, png(pictures()[0])).status == 200


def test_more_than_it_takes_is_refused_before_it_is_all_read(app, monkeypatch):
    monkeypatch.setattr(page_server, "MOST_BYTES", 2**20)
    answered = post(app, bytes(2**20 + 1))
    assert (answered.status, answered.content) == (413, {"error": "It has more than 1 MiB."})


def test_a_picture_that_takes_too_much_memory_is_told(monkeypatch, tmp_path):
    model = small_model(tmp_path)

    def fail(self, content):
        raise MemoryError

    monkeypatch.setattr(type(model.classifier), "decode", fail)
    assert post(build_app(model, "pets"), b"x").status == 413


def test_an_error_of_the_networks_is_not_said_to_be_one_of_the_picture(monkeypatch, tmp_path):
    model = small_model(tmp_path)

    def fail(self, squares):
        raise RuntimeError("out of order")

    monkeypatch.setattr(type(model), "answer", fail)
    with pytest.raises(RuntimeError, match="out of order"):
        post(build_app(model, "pets"), png(pictures()[0]))


def test_pages_of_other_sites_can_neither_send_pictures_nor_reach_the_page_by_a_name_of_theirs(app):
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert post(app, png(pictures()[0]), content_type=kind).status == 415
    assert ask(app, "OPTIONS", "/answer", origin="https://other.example").status == 405
    assert not [name for name in post(app, png(pictures()[0])).headers if name.startswith("access-control")]
    assert ask(app, "GET", "/", host="other.example:5002").status == 400
    assert post(app, png(pictures()[0]), host="other.example").status == 400
    assert [ask(app, "GET", "/", host=f"{one}:5002").status for one in LOOPBACK] == [200] * 3


def test_a_page_for_others_answers_by_any_name(model):
    open_to_all = build_app(model, "pets")
    assert ask(open_to_all, "GET", "/", host="machine.example:80").status == 200
    assert "go to the machine that shows this page" in " ".join(ask(open_to_all, "GET", "/").body.decode().split())


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_but_its_own(app):
    answered = ask(app, "GET", "/")
    page, policy = answered.body.decode(), answered.headers["content-security-policy"]
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:)\w", page)
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", policy).group(1)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.count(f'<script nonce="{nonce}"') == page.count("<script") == 2
    assert nonce not in ask(build_app(small_model(), "x"), "GET", "/").body.decode()


def test_names_of_classes_are_text(app):
    page = ask(app, "GET", "/").body.decode()
    assert CLASSES[2] not in page
    assert "&lt;b id=" in page


def test_a_model_without_training_pictures_says_why_none_are_shown():
    page = " ".join(ask(build_app(small_model(), "pets"), "GET", "/").body.decode().split())
    assert "No training pictures were kept with this model (evaluate.neighbours)" in page


def test_nothing_is_written_in_html_from_what_the_server_says():
    script = (Path(page_server.__file__).parents[1] / "reports" / "templates" / "try.js").read_text()
    assert "innerHTML" not in script
    assert "insertAdjacentHTML" not in script
