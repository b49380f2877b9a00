"""Untrusted TLS certificates: an error or a failed row with that reason, never the data, for every kind of connection."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from pipeline.scheduling import webhook
from pipeline.scheduling.webhook import post_json
from pipeline.sources import SourceOptions
from pipeline.sources.web.download import fetch
from pipeline.sources.web.retries import Patience
from pipeline.storage import Storage
from tests.builds import picture, quiet_build
from tests.server import serve
from tests.urls import HOST
from tests.urls import manifest_of as list_manifest

pytestmark = pytest.mark.process

KINDS = ("self-signed", "expired", "not yet valid", "another host", "plain http")


def certificate(path: Path, kind: str) -> Path:
    """A self-signed certificate for HOST, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    first, last = {"expired": (now - 9 * day, now - day), "not yet valid": (now + day, now + 9 * day)}.get(
        kind, (now - day, now + day)
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    host = ipaddress.ip_address("127.0.0.9" if kind == "another host" else HOST)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(first).not_valid_after(last)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(host)]), False)
        .add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    path.write_bytes(
        made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def trusted(monkeypatch: pytest.MonkeyPatch, path: Path, kind: str) -> None:
    """Trust the certificate's signature, so that only its other fault remains."""
    if kind not in ("self-signed", "plain http"):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_no_connection_is_made_with_a_certificate_that_cannot_be_trusted(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = certificate(tmp_path / "cert.pem", kind)
    trusted(monkeypatch, file, kind)
    monkeypatch.setattr(webhook, "ATTEMPTS", 1)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.png").write_bytes(picture(1))
    with serve(tmp_path / "served", host=HOST, tls=None if kind == "plain http" else file) as server:
        url = server.url.replace("http://", "https://")
        said = post_json(f"{url}/hook", {}, timeout_s=10.0)
        assert said.startswith("not sent: ") and ("SSL" in said or "certificate" in said), said
        with pytest.raises(SourceError, match=r"(?i)ssl|certificate|tls"):
            fetch(f"{url}/a.png", patience=Patience(1, 0.0, 10.0))
        assert [path for method, path, _ in server.requests if path.endswith((".png", "/hook"))] == []


@pytest.mark.long  # a list of addresses waits and tries again
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_behind_a_certificate_that_cannot_be_trusted_is_a_failed_row(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = certificate(tmp_path / "cert.pem", kind)
    trusted(monkeypatch, file, kind)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "good.png").write_bytes(picture(2))
    with (
        serve(tmp_path / "served", host=HOST, tls=None if kind == "plain http" else file) as server,
        serve(tmp_path / "served", host=HOST) as plain,
    ):
        links = [f"{server.url.replace('http://', 'https://')}/good.png", f"{plain.url}/good.png"]
        pq.write_table(pa.table({"link": links, "text": ["a", "b"], "punsafe": [0.0, 0.0]}), tmp_path / "l.parquet")
        made = quiet_build(
            list_manifest(tmp_path / "listed.toml", tmp_path / "l.parquet"),
            source=SourceOptions(allow_private=(f"{HOST}/32",)),
        )
        assert (made.ok, made.failed, made.reasons) == (1, 1, {"tls": 1})
        assert "/good.png" not in {path for _, path, _ in server.requests}


def test_a_certificate_that_is_trusted_is_taken(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = certificate(tmp_path / "cert.pem", "sound")
    trusted(monkeypatch, file, "sound")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.png").write_bytes(picture(1))
    with serve(tmp_path / "served", host=HOST, tls=file) as server:
        found = fetch(f"{server.url}/a.png", patience=Patience(1, 0.0, 10.0))
        assert found.path.read_bytes() == picture(1)
        assert post_json(f"{server.url}/hook", {}, timeout_s=10.0) in ("sent", "not sent: HTTP 404")
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


def test_a_store_whose_certificate_cannot_be_trusted_is_an_error(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    with serve(tmp_path, host=HOST, tls=certificate(tmp_path / "cert.pem", "self-signed")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        with pytest.raises(OSError, match=r"(?i)ssl|certificate|connect"):
            Storage("s3://homes/x").read_text("current")
        assert server.requests == []
