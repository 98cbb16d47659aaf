"""S3 over TLS with an authority of one's own, as most servers in a company's own network have it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from drkit.errors import StoreError, StoreUnavailable
from drkit.stores import read_object
from tests.fixtures.s3 import running_versitygw


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a key and a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "drkit test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


def test_a_private_authority_is_trusted_when_it_is_named(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path)
    with running_versitygw(tmp_path, "--cert", str(certificate), "--key", str(key)) as server:
        bucket = "private-bucket"
        (tmp_path / "objects" / bucket).mkdir()
        store = server.store(bucket, ca_bundle=certificate)
        store.put("a", [b"sealed"])
        store.put("large", iter([b"x" * (6 << 20)]))
        assert read_object(store, "a") == b"sealed"
        assert len(read_object(store, "large")) == 6 << 20

        with pytest.raises(StoreError, match="certificate is not trusted") as caught:
            server.store(bucket, attempts=1).head("a")
        assert not isinstance(caught.value, StoreUnavailable)
        assert caught.value.hints == ("set ca_bundle to its authority's file",)
