import json

import fsspec
import pytest
import requests

from pipeline.data.remote import transfer
from pipeline.data.remote.transfer import Absent, Hindered, check_system, fetch, has_changed, stamp_of
from pipeline.system.errors import UserError
from tests.picture_server import picture_server
from tests.s3_server import BUCKET, KEYS, s3_server


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "1.jpg").write_bytes(b"x" * 1000)
    with picture_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def target(tmp_path):
    return tmp_path / "target"


def allow(count):
    pass


def test_a_file_comes_whole_with_its_state(server, target):
    came = []
    stamp = fetch(f"{server.uri}/1.jpg", target, came.append)
    assert target.read_bytes() == b"x" * 1000
    assert sum(came) == 1000
    assert not has_changed(stamp, stamp_of(f"{server.uri}/1.jpg"))
    (server.folder / "1.jpg").write_bytes(b"y" * 1000)
    assert has_changed(stamp, stamp_of(f"{server.uri}/1.jpg"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_what_a_server_refuses_is_absent(server, target, status):
    server.statuses["1.jpg"] = status
    for ask in (lambda: fetch(f"{server.uri}/1.jpg", target, allow), lambda: stamp_of(f"{server.uri}/1.jpg")):
        with pytest.raises(Absent, match=f"cannot be fetched: {status} "):
            ask()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_a_server_cannot_do_now_may_succeed_later(server, target, status):
    server.statuses["1.jpg"] = status
    with pytest.raises(Hindered, match=f"^{status} "):
        fetch(f"{server.uri}/1.jpg", target, allow)


def test_a_server_says_how_long_to_wait():
    answer = requests.Response()
    answer.status_code, answer.headers["Retry-After"] = 429, "7"
    with pytest.raises(Hindered) as caught:
        transfer._check_status(answer)
    assert caught.value.pause_seconds == 7


def test_half_a_file_is_none(server, target):
    server.cut.add("1.jpg")
    with pytest.raises(Hindered):
        fetch(f"{server.uri}/1.jpg", target, allow)


def test_a_server_that_is_away_or_slow_is_waited_for(server, target, monkeypatch):
    server.seconds = 1.0
    monkeypatch.setattr(transfer, "SECONDS_TO_ANSWER", 0.1)
    with pytest.raises(Hindered, match="does not answer in time"):
        fetch(f"{server.uri}/1.jpg", target, allow)
    server.shut()
    with pytest.raises(Hindered, match="refused"):
        fetch(f"{server.uri}/1.jpg", target, allow)


def test_a_page_that_asks_to_log_in_is_no_picture(server, target):
    server.pages.add("1.jpg")
    with pytest.raises(Absent, match="is a web page"):
        fetch(f"{server.uri}/1.jpg", target, allow)


def test_states_are_compared_by_what_both_tell():
    def stamp(**told):
        return json.dumps(told)

    assert has_changed(stamp(content="a", size="1"), stamp(content="b", size="1"))
    assert not has_changed(stamp(content="a", time="1"), stamp(content="a", time="2"))
    assert has_changed(stamp(time="1", size="1"), stamp(content="a", time="2", size="1"))
    assert has_changed(stamp(size="1"), stamp(size="2"))
    assert not has_changed(stamp(time="1"), stamp(size="2"))
    assert not has_changed("", stamp(content="b"))


def test_other_addresses_are_opened_by_fsspec(target):
    fsspec.filesystem("memory").pipe("/pets/1.jpg", b"picture")
    came = []
    fetch("memory://pets/1.jpg", target, came.append)
    assert (target.read_bytes(), came) == (b"picture", [7])
    with pytest.raises(Absent, match="no such file"):
        fetch("memory://pets/2.jpg", target, allow)
    with pytest.raises(UserError, match="Nothing here opens addresses that begin with xyz://"):
        check_system("xyz://pets/1.jpg")


@pytest.fixture
def s3(monkeypatch):
    def forget():
        transfer._shared_system.cache_clear()
        transfer._is_anonymous.cache_clear()
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    with s3_server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        forget()
        yield server
        forget()


def test_a_public_bucket_needs_no_keys_and_a_closed_one_says_what_to_set(s3, target, monkeypatch):
    s3.client.put_object(Bucket=BUCKET, Key="open.jpg", Body=b"picture", ACL="public-read")
    s3.client.put_object(Bucket=BUCKET, Key="closed.jpg", Body=b"picture")
    for name in KEYS:
        monkeypatch.delenv(name)
    fetch(f"s3://{BUCKET}/open.jpg", target, allow)
    assert target.read_bytes() == b"picture"
    with pytest.raises(Absent, match=r"cannot be fetched: Forbidden \(there are no keys for it: set AWS_ACCESS_KEY_ID"):
        fetch(f"s3://{BUCKET}/closed.jpg", target, allow)


def test_a_bucket_of_s3(s3, target):
    s3.client.put_object(Bucket=BUCKET, Key="pets/1 ?#.jpg", Body=b"picture")
    address = f"s3://{BUCKET}/pets/1 ?#.jpg"
    stamp = fetch(address, target, allow)
    assert target.read_bytes() == b"picture"
    assert not has_changed(stamp, stamp_of(address))
    s3.client.put_object(Bucket=BUCKET, Key="pets/1 ?#.jpg", Body=b"another")
    assert has_changed(stamp, stamp_of(address))
    with pytest.raises(Absent, match="no such file"):
        fetch(f"s3://{BUCKET}/pets/2.jpg", target, allow)
    with pytest.raises(Absent, match="no such file"):
        fetch("s3://another/pets/2.jpg", target, allow)
    s3.shut()
    with pytest.raises(Hindered):
        stamp_of(address)
