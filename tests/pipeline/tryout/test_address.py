import socket

import pytest

from pipeline.system.errors import UserError
from pipeline.tryout.address import check_address, is_loopback, listen, page_url, parse_port


@pytest.fixture
def taken():
    """A port of this machine that is in use."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_is_a_whole_number_up_to_the_largest():
    assert [parse_port(text) for text in ("0", "5002", "65535")] == [0, 5002, 65535]


@pytest.mark.parametrize("text", ["-1", "65536", "http", "80.0", ""])
def test_other_ports_are_refused(text):
    with pytest.raises(UserError, match=f"^port is {text}; give a whole number from 1 to 65535, or 0 for any that is"):
        parse_port(text)


def test_a_port_that_is_taken_is_told_with_another_to_try(taken):
    said = f"^Port {taken} of 127.0.0.1 is taken; name another, as in -P port={taken + 1}, or 0 for any that is free.$"
    with pytest.raises(UserError, match=said):
        check_address("127.0.0.1", taken)


def test_a_port_that_is_free_stays_free_when_it_is_checked():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
    check_address("127.0.0.1", port)
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (
            "192.0.2.1",
            r"^host is 192\.0\.2\.1, which is no address of this machine; give 127\.0\.0\.1 for this machine",
        ),
        ("no host", r"^host is no host, which cannot be looked up \(.*\); give 127\.0\.0\.1 for this machine alone"),
    ],
)
def test_a_host_that_is_none_of_this_machine_is_told(host, said):
    with pytest.raises(UserError, match=said):
        check_address(host, 0)


def test_the_address_leads_to_the_socket():
    with listen("127.0.0.1", 0) as listening:
        address = page_url(listening, "127.0.0.1")
        port = listening.getsockname()[1]
        assert address == f"http://127.0.0.1:{port}/"
        assert page_url(listening, "0.0.0.0") == address
        assert page_url(listening, "::1") == f"http://[::1]:{port}/"
        socket.create_connection(("127.0.0.1", port)).close()


def test_loopback_is_told_from_what_others_reach():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "localhost", "::1"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.7", "example.org", ""))
