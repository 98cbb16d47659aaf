"""Secrets: fetched by reference, shown by nothing; URLs are shown without their passwords."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from moto import mock_aws

from drkit.credentials import Secret, check_reference, has_password, is_reference, mask_url, resolve, scheme_of
from drkit.errors import ConfigError

VALUE = "s3cr3t-value"


def test_a_secret_shows_itself_to_reveal_only() -> None:
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r}",
        str([secret]),
        str({"a": secret}),
    ]
    assert not [text for text in shown if VALUE in text]
    assert copy.deepcopy(secret).reveal() == VALUE
    assert not hasattr(secret, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert VALUE not in json.dumps(secret, default=str)


# references


def test_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DRKIT_TEST_SECRET", VALUE)
    assert resolve("env:DRKIT_TEST_SECRET", folder=tmp_path).reveal() == VALUE
    monkeypatch.setenv("DRKIT_TEST_SECRET", "")
    with pytest.raises(ConfigError, match="the secret env:DRKIT_TEST_SECRET is empty"):
        resolve("env:DRKIT_TEST_SECRET", folder=tmp_path)
    monkeypatch.delenv("DRKIT_TEST_SECRET")
    with pytest.raises(ConfigError, match="the secret env:DRKIT_TEST_SECRET is not set") as caught:
        resolve("env:DRKIT_TEST_SECRET", folder=tmp_path)
    assert caught.value.hints == ("export DRKIT_TEST_SECRET=…",)


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"value", "value"),
        (b"value\n", "value"),
        (b"value\r\n", "value"),
        (b"value\n\n", "value\n"),
        (b" value ", " value "),
        ("schlüssel\n".encode(), "schlüssel"),
    ],
)
def test_one_line_end_of_a_file_is_not_part_of_the_secret(tmp_path: Path, content: bytes, value: str) -> None:
    secret_file(tmp_path, content)
    assert resolve("file:secret", folder=tmp_path).reveal() == value
    assert resolve(f"file:{tmp_path}/secret", folder=Path("/")).reveal() == value
    assert resolve(f"file://{tmp_path}/secret", folder=Path("/")).reveal() == value


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640])
def test_files_that_the_owner_or_a_group_can_read_are_accepted(tmp_path: Path, mode: int) -> None:
    secret_file(tmp_path, b"value", mode)
    assert resolve("file:secret", folder=tmp_path).reveal() == "value"


@pytest.mark.parametrize(("mode", "verb"), [(0o644, "read"), (0o604, "read"), (0o660, "changed"), (0o602, "changed")])
def test_files_that_others_can_read_or_change_are_refused_with_the_command(
    tmp_path: Path, mode: int, verb: str
) -> None:
    folder = tmp_path / "a site"
    folder.mkdir()
    path = secret_file(folder, VALUE.encode(), mode)
    with pytest.raises(ConfigError, match=f"the secret file:secret can be {verb} by other users") as caught:
        resolve("file:secret", folder=folder)
    assert caught.value.hints == (f"chmod 0600 '{path}'",)
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"x" * 70_000, "larger than 65,536 bytes"),
    ],
)
def test_file_contents_that_are_no_secret_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    secret_file(tmp_path, content)
    with pytest.raises(ConfigError, match=f"the secret file:secret .*{words}"):
        resolve("file:secret", folder=tmp_path)


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the secret file:nothing is missing: there is no file"):
        resolve("file:nothing", folder=tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="the secret file:pipe is not a file"):
        resolve("file:pipe", folder=tmp_path)
    with pytest.raises(ConfigError, match="the secret file:/ cannot be read: is a directory"):
        resolve("file:/", folder=tmp_path)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "eu-west-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield


@pytest.mark.usefixtures("aws")
def test_aws_secrets_whole_and_by_key(tmp_path: Path) -> None:
    client = boto3.client("secretsmanager", region_name="eu-west-1")
    client.create_secret(Name="plain", SecretString=VALUE)
    document = {"url": VALUE, "port": 5432, "list": [1]}
    arn = client.create_secret(Name="prod/db", SecretString=json.dumps(document))["ARN"]
    client.create_secret(Name="binary", SecretBinary=b"x")
    assert resolve("aws-secret:plain", folder=tmp_path).reveal() == VALUE
    assert resolve("aws-secret:prod/db#url", folder=tmp_path).reveal() == VALUE
    assert resolve("aws-secret:prod/db#port", folder=tmp_path).reveal() == "5432"
    assert resolve(f"aws-secret:{arn}#url", folder=tmp_path).reveal() == VALUE
    refused = {
        "aws-secret:nothing": "the secret aws-secret:nothing cannot be fetched: AWS answered ResourceNotFoundException",
        "aws-secret:prod/db#user": "the secret aws-secret:prod/db#user has no key user",
        "aws-secret:prod/db#list": "the secret aws-secret:prod/db#list is not text",
        "aws-secret:plain#url": "the secret aws-secret:plain#url is not a JSON object, so it has no key url",
        "aws-secret:binary": "the secret aws-secret:binary holds no text",
    }
    for reference, message in refused.items():
        with pytest.raises(ConfigError) as caught:
            resolve(reference, folder=tmp_path)
        assert caught.value.message == message
        assert VALUE not in str(caught.value)


@pytest.mark.usefixtures("aws")
def test_an_arn_says_its_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("secretsmanager", region_name="us-east-2")
    arn = client.create_secret(Name="far", SecretString=VALUE)["ARN"]
    assert resolve(f"aws-secret:{arn}", folder=tmp_path).reveal() == VALUE


def test_a_url_stands_for_itself_and_a_bare_secret_is_refused_unseen(tmp_path: Path) -> None:
    assert resolve("postgresql://db1/orders", folder=tmp_path).reveal() == "postgresql://db1/orders"
    assert resolve("host=db1 dbname=orders", folder=tmp_path).reveal() == "host=db1 dbname=orders"
    for text in (VALUE, f"evn:{VALUE}", f"vault:{VALUE}"):
        with pytest.raises(ConfigError, match="is no reference") as caught:
            resolve(text, folder=tmp_path)
        assert VALUE not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["env:A", "env:_a9", "file:x", "file:/a b", "file:///a", "aws-secret:prod/db", "aws-secret:prod/db#url"]
)
def test_references_are_recognised(text: str) -> None:
    assert is_reference(text)
    assert check_reference(text) == text


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("env:", "env: takes the name of a variable"),
        ("env:A-B", "env: takes the name of a variable"),
        ("file: ", "file: names nothing"),
        ("aws-secret:#key", "aws-secret: names nothing"),
        ("evn:A", '"evn:" is no kind of reference; did you mean "env"?'),
        ("hunter2", "a plain value is no reference; secrets are kept elsewhere"),
        ("hunter:2", "a plain value is no reference; secrets are kept elsewhere"),
    ],
)
def test_malformed_references_are_explained_without_the_value(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^" + sentence.replace("?", r"\?")) as caught:
        check_reference(text)
    assert "hunter" not in str(caught.value)


# masking


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://db1/orders",
        "postgresql://bob@db1:5432/orders",
        "postgresql://bob@db1:5432,db2:5433/orders?sslmode=verify-full&application_name=a@b",
        "postgresql:///orders?host=/var/run/postgresql&user=bob",
        "postgresql://[::1]:5432/orders",
        "postgresql://bob@[fe80::1]:5432/orders",
        "postgresql://db1:5432/orders?application_name=a@b",
        "postgresql://db1/orders?passfile=/etc/pgpass&sslkey=/etc/key&sslrootcert=/ca",
        "mongodb://db1,db2,db3/admin?replicaSet=rs0",
        "s3://acme-dr/prod",
        "file:///srv/backups",
        "host=db1 port=5432 dbname=orders user=bob",
        "host = 'db 1' user=bob",
        "pg_dump: error: connection to server at db1 failed",
        "",
    ],
)
def test_what_has_no_password_is_left_as_it_is(url: str) -> None:
    assert mask_url(url) == url.replace("passfile=/etc/pgpass", "passfile=/etc/pgpass")
    assert not has_password(url)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://bob:hunter2@db1/orders", "postgresql://bob:***@db1/orders"),
        ("postgres://bob:hunter2@db1:5432,db2/orders?sslmode=require", "postgres://bob:***@db1:5432,db2/orders?sslmode=require"),
        ("postgresql://:hunter2@db1", "postgresql://:***@db1"),
        ("postgresql://bob:hunter2@/orders", "postgresql://bob:***@/orders"),
        ("postgresql://bob:hun%40ter2@[::1]/o", "postgresql://bob:***@[::1]/o"),
        ("postgresql://bob:hun@ter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://bob:hun:ter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://bob:hun/ter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://bob:hun?ter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://bob:hun#ter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://bob:12/hunter2@db1/o", "postgresql://bob:***@db1/o"),
        ("postgresql://db1/o?user=bob&password=hunter2&sslmode=require", "postgresql://db1/o?user=bob&password=***&sslmode=require"),
        ("postgresql://db1/o?%70assword=hunter2", "postgresql://db1/o?%70assword=***"),
        ("postgresql://db1/o?PASSWORD=hunter2", "postgresql://db1/o?PASSWORD=***"),
        ("postgresql://db1/o?sslpassword=hunter2", "postgresql://db1/o?sslpassword=***"),
        ("postgresql://db1/o?oauth_client_secret=hunter2", "postgresql://db1/o?oauth_client_secret=***"),
        ("postgresql://db1/o?scram_client_key=hunter2", "postgresql://db1/o?scram_client_key=***"),
        ("postgresql://a:hunter2@db1/o?password=hunter2", "postgresql://a:***@db1/o?password=***"),
        ("  postgresql://a:hunter2@db1/o", "  postgresql://a:***@db1/o"),
        ("mongodb+srv://bob:hunter2@db1/?tlsCertificateKeyFilePassword=hunter2", "mongodb+srv://bob:***@db1/?tlsCertificateKeyFilePassword=***"),
        ("mongodb://db1/?authMechanismProperties=AWS_SESSION_TOKEN:hunter2", "mongodb://db1/?authMechanismProperties=***"),
        ("host=db1 password=hunter2 user=bob", "host=db1 password=*** user=bob"),
        ("host=db1 password = 'hun ter2' user=bob", "host=db1 password = *** user=bob"),
        (r"password='hun\' ter2' host=db1", "password=*** host=db1"),
        (r"password=hun\ ter2 host=db1", "password=*** host=db1"),
        ("password='hunter2", "password=***"),
        ("password=hun'ter2 host=db1", "password=*** host=db1"),
        ("PASSWORD=hunter2", "PASSWORD=***"),
        ("sslpassword=hunter2", "sslpassword=***"),
        ("pg_dump: cannot reach postgresql://bob:hunter2@db1/o", "pg_dump: cannot reach postgresql://bob:***@db1/o"),
        ("cannot use password=hunter2 here", "cannot use password=*** here"),
    ],
)  # fmt: skip
def test_passwords_are_masked_and_the_rest_stays(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert has_password(url)
    assert mask_url(masked) == masked


PASSWORDS = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=8, max_size=20)


@given(PASSWORDS)
def test_no_password_survives_in_a_url(password: str) -> None:
    marked = f"Qq{password}qQ"
    assert quote(marked, safe="") not in mask_url(f"postgresql://bob:{quote(marked, safe='')}@db1:5432/orders?a=b")
    assert quote(marked, safe="") not in mask_url(f"postgresql://db1/o?user=bob&password={quote(marked, safe='')}")


@given(PASSWORDS)
def test_no_password_survives_in_a_keyword_string(password: str) -> None:
    marked = f"Qq{password}qQ".replace("\\", "\\\\").replace("'", "\\'")
    for text in (f"host=db1 password='{marked}' user=bob", f"password='{marked}'"):
        assert mask_url(text) in {"host=db1 password=*** user=bob", "password=***"}


@given(PASSWORDS)
def test_raw_passwords_in_urls_do_not_survive_either(password: str) -> None:
    assume("@" not in password)
    # A "?" followed by something like "name=" is the one shape that cannot be told from a query.
    assume("?" not in password or "=" not in password)
    marked = f"Qq{password}qQ"
    assert "qQ" not in mask_url(f"postgresql://bob:{marked}@db1/orders")


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("postgresql://db1", "postgresql"),
        ("MongoDB+SRV://db1", "mongodb+srv"),
        ("host=db1", "libpq"),
        ("db1", ""),
        ("db1:5432", ""),
        ("postgresql:db1", ""),
    ],
)
def test_schemes(url: str, scheme: str) -> None:
    assert scheme_of(url) == scheme
