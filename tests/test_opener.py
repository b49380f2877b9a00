"""Untrusted addresses: only public ones, with limits, and only what the site allows."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import ConfigError
from pipeline.sources import networks
from pipeline.sources.web.addresses import Refused, is_public, resolve_address
from pipeline.sources.web.opener import AGENTS, FetchRules, SafeOpener
from pipeline.sources.web.pictures import reason
from pipeline.sources.web.robots import opts_out, parse_robots
from tests.pictures import jpeg
from tests.server import Fault, Server, serve

HOST = "127.0.0.2"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    with serve(tmp_path, host=HOST) as running:
        yield running


def opener(**rules: object) -> SafeOpener:
    return SafeOpener(FetchRules(**{"pause_s": 0.0, **rules}), allow_private=[HOST])  # type: ignore[arg-type]


def refusal(found: SafeOpener, url: str) -> str:
    with pytest.raises(Refused) as raised:
        found.open(url)
    return str(raised.value)


# ---- addresses


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1",
     "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::7",
     "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "::127.0.0.1", "64:ff9b::10.0.0.1",
     "64:ff9b:1::1", "2002:7f00:1::", "2002:c0a8:101::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe", "not an address"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_recognised(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450:4001::", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_are_recognised(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "0", "::1", "::ffff:127.0.0.1", "10.1.2.3"]
)
def test_a_private_address_is_refused_after_resolving_in_any_spelling(host: str) -> None:
    with pytest.raises(Refused, match="private_address"):
        resolve_address(host, 80)


def test_a_name_that_resolves_to_a_private_address_is_refused() -> None:
    own = socket.gethostname()
    try:
        found = {str(answer[4][0]) for answer in socket.getaddrinfo(own, 80)}
    except OSError:
        pytest.skip("this machine's own name does not resolve")
    if any(is_public(address) for address in found):
        pytest.skip("this machine has a public address")
    with pytest.raises(Refused, match=f"private_address: {own} is "):
        resolve_address(own, 80)


def test_a_flag_opens_the_networks_it_names_and_no_others() -> None:
    assert resolve_address("10.1.2.3", 80, networks(["10.1.0.0/16", "fd00::/8"])) == ["10.1.2.3"]
    with pytest.raises(Refused):
        resolve_address("10.2.0.1", 80, networks(["10.1.0.0/16"]))
    with pytest.raises(ConfigError, match=r"10\.1\.0\.0/16"):
        networks(["the office"])


# ---- redirects and limits


def test_a_picture_is_fetched_unchanged(server: Server) -> None:
    with opener().open(f"{server.url}/a.jpg") as answer:
        assert answer.read() == jpeg(1)


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/a.jpg", "http://localhost:{port}/a.jpg", "http://[::1]:{port}/a.jpg",
               "//127.0.0.1:{port}/a.jpg", "http://[::ffff:127.0.0.1]:{port}/a.jpg", "http://169.254.169.254/latest/"]
)  # fmt: skip
def test_a_redirect_to_a_private_address_is_refused(server: Server, target: str) -> None:
    port = server.url.rsplit(":", 1)[1]
    server.fail("/a.jpg", Fault("status", 302, (("Location", target.format(port=port)),)))
    assert refusal(opener(), f"{server.url}/a.jpg").startswith("private_address: ")


def test_a_redirect_after_a_good_one_is_checked_too(server: Server) -> None:
    server.fail("/one", Fault("status", 301, (("Location", "/two"),)))
    server.fail("/two", Fault("status", 308, (("Location", server.url.replace(HOST, "127.0.0.1") + "/a.jpg"),)))
    assert refusal(opener(), f"{server.url}/one").startswith("private_address: ")
    server.fail("/one", Fault("status", 301, (("Location", "file:///etc/passwd"),)))
    assert refusal(opener(), f"{server.url}/one").startswith("bad_url: ")


def test_a_bad_answer_has_a_reason(server: Server) -> None:
    path, found = "/a.jpg", opener(max_bytes=2000, redirects=2)
    hasty = opener(total_s=0.8, silence_s=0.4, robots=False, opt_out=False)
    for asked, fault, expected in (
        (found, Fault("status", 404), "http_404"),
        (found, Fault("status", 204), "http_204"),
        (found, Fault("cut", 100), "truncated: 100 of"),
        (found, Fault("announce", 2001), "too_large: 2001 bytes"),
        (found, Fault("endless"), "too_large: more than 2000"),
        (hasty, Fault("slow", 30), "timeout: silence"),
        (hasty, Fault("drip"), "timeout: not done after 0.8 s"),
    ):
        server.fail(path, fault)
        assert refusal(asked, server.url + path).startswith(expected)
    server.fail(path, Fault("status", 302, (("Location", path),)), times=3)
    assert refusal(found, server.url + path).startswith("too_many_redirects")
    closed = socket.socket()
    closed.bind((HOST, 0))
    assert refusal(found, f"http://{HOST}:{closed.getsockname()[1]}/").startswith("connection: ")
    closed.close()
    assert refusal(found, "http://nothing.invalid/").startswith("dns: ")
    assert refusal(found, "http:///a").startswith("bad_url: ")
    assert reason("unknown url type: 'x'").startswith("bad_url: ")


def test_endless_headers_end_at_the_time_limit() -> None:
    """A server that sends a header byte now and then: no single read times out."""
    listening = socket.create_server((HOST, 0))
    stopped = threading.Event()

    def answer() -> None:
        connection, _ = listening.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        try:
            while not stopped.wait(0.1):
                connection.sendall(b"a")
        except OSError:
            pass

    thread = threading.Thread(target=answer)
    thread.start()
    url = f"http://{HOST}:{listening.getsockname()[1]}/"
    assert refusal(opener(robots=False, total_s=1.0, attempts=1), url).startswith("timeout: ")
    stopped.set()
    thread.join()
    listening.close()


def test_a_broken_answer_is_requested_once_more(server: Server) -> None:
    server.fail("/a.jpg", Fault("status", 503))
    assert opener().open(f"{server.url}/a.jpg").read() == jpeg(1)
    server.fail("/a.jpg", Fault("status", 503), times=2)
    assert refusal(opener(), f"{server.url}/a.jpg").startswith("http_503")


def test_after_the_shards_time_every_address_fails_at_once(server: Server) -> None:
    late = SafeOpener(FetchRules(), [HOST], until=time.monotonic() - 1)
    assert refusal(late, f"{server.url}/a.jpg").startswith("deadline: ")
    assert server.requests == []


# ---- a site's wishes


def test_robots_txt_is_asked_once_and_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "robots.txt").write_text("User-agent: *\nDisallow: /a\nAllow: /a.jpg$\n")
    (tmp_path / "ab.jpg").write_bytes(jpeg(2))
    found = opener()
    assert found.open(f"{server.url}/a.jpg").read() == jpeg(1)
    assert refusal(found, f"{server.url}/ab.jpg").startswith("robots: ")
    assert server.asked("GET", "/robots.txt") == [""] and server.asked("GET", "/ab.jpg") == []
    assert opener(robots=False).open(f"{server.url}/ab.jpg").read() == jpeg(2)


def test_a_redirect_does_not_lead_around_robots_txt(server: Server, tmp_path: Path) -> None:
    (tmp_path / "robots.txt").write_text("User-agent: img2dataset\nDisallow: /a.jpg\n")
    server.fail("/open", Fault("status", 302, (("Location", "/a.jpg"),)))
    assert refusal(opener(), f"{server.url}/open").startswith("robots: ")


def test_where_robots_txt_cannot_be_read_nothing_is_fetched(server: Server) -> None:
    server.fail("/robots.txt", Fault("status", 503), times=2)
    assert refusal(opener(), f"{server.url}/a.jpg").startswith("robots_unreachable: HTTP 503")
    assert server.asked("GET", "/a.jpg") == []


@pytest.mark.parametrize(
    ("lines", "path", "allowed"),
    [
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: RdmPipe/2\nUser-agent: img2dataset\nAllow: /", "/x", True),
        ("User-agent: img2dataset\nDisallow: /", "/x", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /*.png$\n", "/a/b.png", False),
        ("User-agent: *\nDisallow: /*.png$\n", "/a/b.png?size=1", True),
        ("User-agent: *\nDisallow: /a/*/c\n", "/a/b/c/d", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b\n", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a\n", "/a", True),
        ("User-agent: *\nDisallow: /caf%C3%A9\n", "/café", False),
        ("User-agent: *\nCrawl-delay: 9\nDisallow: /x # not this\nSitemap: /s\n", "/xy", False),
        ("User-agent: *\nDisallow: /a\n\nUser-agent: *\nDisallow: /b\n", "/b", False),
        ("User-agent: *\nDisallow: " + "*a" * 5000 + "\n", "/" + "a" * 4000, True),
        ("nothing that is a rule", "/x", True),
        ("User-agent: *\nDisallow: /\nAllow: /foo%2Fbar\n", "/foo/bar", False),
        ("User-agent: *\nDisallow: /\nAllow: /foo%2Fbar\n", "/foo%2fbar", True),
        ("User-agent: *\nDisallow: /a-%2A.png\n", "/a-b.png", True),
        ("User-agent: *\nDisallow: /a-%2A.png\n", "/a-*.png", False),
        ("User-agent: *\nDisallow: /%7Ejoe/\n", "/~joe/a.png", False),
    ],
)
def test_rules_of_robots_txt(lines: str, path: str, allowed: bool) -> None:
    assert parse_robots(lines, AGENTS).allows(path) is allowed


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (["noai"], "noai"),
        (["nofollow, NoImageAI"], "noimageai"),
        (["none"], "none"),
        (["max-image-preview: none, noai"], "noai"),
        (["rdmpipe: noindex"], "noindex"),
        (["img2dataset: nofollow, noai"], "noai"),
        (["otherbot: noai, noindex"], ""),
        (["nofollow", "noarchive"], ""),
        (["otherbot: noai", "noimageindex"], "noimageindex"),
    ],
)
def test_headers_that_opt_out(headers: list[str], told: str) -> None:
    assert opts_out(headers, AGENTS) == told


def test_an_opt_out_is_seen_before_the_picture_is_read(server: Server) -> None:
    server.fail("/a.jpg", Fault("headers", 0, (("X-Robots-Tag", "noai"),)), times=2)
    assert refusal(opener(), f"{server.url}/a.jpg") == "opt_out: X-Robots-Tag: noai"
    assert opener(opt_out=False).open(f"{server.url}/a.jpg").read() == jpeg(1)


# ---- TLS


def certificate(path: Path) -> Path:
    """A self-signed certificate for 127.0.0.2, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = serialization.NoEncryption()
    written = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + written)
    return path


def test_tls_works_and_an_untrusted_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    file = certificate(tmp_path / "own.pem")
    with serve(tmp_path, host=HOST, tls=file) as server:
        assert server.url.startswith("https://")
        assert refusal(opener(attempts=1), f"{server.url}/a.jpg").startswith("tls: ")
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert opener().open(f"{server.url}/a.jpg").read() == jpeg(1)
        server.fail("/a.jpg", Fault("status", 302, (("Location", server.url.replace(HOST, "127.0.0.1") + "/a.jpg"),)))
        assert refusal(opener(), f"{server.url}/a.jpg").startswith("private_address: ")
        assert refusal(opener(attempts=1), server.url.replace("https", "http") + "/a.jpg")  # plain words to a TLS port
