"""Key files: identities that open backups, signing keys that vouch for them, and who can open what.

Identity files are age's (comment lines, then the secret; locked ones are age files of their own), signing keys are
OpenSSH's, so `age` and `ssh-keygen` read both. A private key is written once, for its owner alone, and is not read
when others could have read it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_private_key

from drkit import age
from drkit.errors import ConfigError, IntegrityError, KeyUnavailable, shell_line
from drkit.key_files import UNLOCK_FILE_VARIABLE, file_errors, public_file, read_secret_file, write_key_pair
from drkit.signing import Signer, Trust, parse_allowed_signers, public_key_text

_CANARY = b"drkit canary: who can read this line can open what was sealed with it\n"
_ARMOR_BEGIN = "-----BEGIN AGE ENCRYPTED FILE-----"

Passphrase = Callable[[Path], str]
"""Returns the passphrase of a locked key file; raises KeyUnavailable when there is no way to learn it."""


@dataclass(frozen=True)
class KeyFile:
    """An identity in reach and the file that it came from."""

    name: str
    path: Path
    identity: age.Identity = field(repr=False)
    fingerprint: str

    @property
    def recipient(self) -> str:
        """Return the public half, ``age1…``."""
        return str(self.identity.recipient)


@dataclass(frozen=True)
class Proof:
    """Whether a recipient's backups can be opened here: ``opened_by`` are the identities that opened its canary."""

    recipient: str
    fingerprint: str
    opened_by: tuple[KeyFile, ...]


def load_identities(paths: Sequence[Path], passphrase: Passphrase | None) -> list[KeyFile]:
    """Read identity files in order; one file may hold several identities.

    ``passphrase`` is asked for each locked file. Raise KeyUnavailable for a file that is missing or stays locked,
    ConfigError for one that others can read or that holds no identity.
    """
    return [key for path in paths for key in _load_identity_file(path, passphrase)]


def new_identity_file(
    path: Path, *, post_quantum: bool = False, passphrase: str | None = None, created_at: datetime | None = None
) -> KeyFile:
    """Make an identity, write it to the new file ``path``, and its recipient to ``path`` + ``.pub``.

    Raise ConfigError when either file exists: drkit never writes over a key.
    """
    try:
        identity = age.generate_identity(post_quantum=post_quantum)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    recipient = str(identity.recipient)
    created = f"# created: {(created_at or datetime.now(UTC)).isoformat(timespec='seconds')}\n"
    text = f"{created}# public key: {recipient}\n{identity.reveal()}\n"
    if passphrase is not None:
        text = age.armor(b"".join(age.encrypt([text.encode()], [age.ScryptRecipient(passphrase)])))
    write_key_pair(path, text, f"{created}{recipient}\n")
    return KeyFile(path.stem, path, identity, recipient_fingerprint(recipient))


def public_half(path: Path) -> str | None:
    """Return the recipient in the ``.pub`` file beside an identity file; None when there is none to read.

    It is how a locked file is listed without its passphrase. Nothing is proven by it.
    """
    try:
        lines = public_file(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((line for line in lines if line.startswith("age1")), None)


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key in OpenSSH form; raise ConfigError when it is missing, locked or of another kind."""
    data = read_secret_file(path, "signing key")
    if data is None:
        raise ConfigError(
            f"signing key {path} is missing", hints=[shell_line("drkit", "keys", "new", path.name, "--signing")]
        )
    try:
        key = load_ssh_private_key(data, password=None)
    except TypeError as error:
        raise ConfigError(
            f"signing key {path} is locked by a passphrase; drkit signs when nobody is there to type it",
            hints=[shell_line("ssh-keygen", "-p", "-N", "", "-f", path)],
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"signing key {path} is not a private key in OpenSSH form") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"signing key {path} is not an Ed25519 key",
            hints=[shell_line("drkit", "keys", "new", f"{path.name}-ed25519", "--signing")],
        )
    return key


def write_signing_key(path: Path, *, comment: str = "drkit") -> Ed25519PrivateKey:
    """Make an Ed25519 key, write it to the new file ``path`` in OpenSSH form, and the public half to ``path.pub``."""
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    write_key_pair(path, secret, f"{public_key_text(key.public_key())} {comment}\n")
    return key


def load_signers(path: Path) -> list[Signer]:
    """Read an allowed_signers file; raise ConfigError when it is missing, empty or wrong, with all its problems."""
    with file_errors(path):
        try:
            text = path.read_text()
        except FileNotFoundError:
            raise ConfigError(f"the list of allowed signers {path} is missing") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"the list of allowed signers {path} is not text") from error
    signers = parse_allowed_signers(text, str(path))
    if not signers:
        raise ConfigError(f"the list of allowed signers {path} is empty: no backup could be trusted")
    return signers


def recipient_fingerprint(recipient_text: str) -> str:
    """Return the name of a recipient in documents: ``age:`` and the first 16 hex digits of its text's SHA-256."""
    return "age:" + hashlib.sha256(recipient_text.encode()).hexdigest()[:16]


def recipients_of(texts: Sequence[str], *, accept_single_key: bool) -> list[age.Recipient]:
    """Parse the recipients of a policy; raise ConfigError unless they are of one class, and two or more.

    One class, because a file is only as hard to open as its weakest recipient (docs/format.md R4). Two, because the
    loss of a single key is the loss of every backup.
    """
    recipients = {str(recipient): recipient for recipient in map(_parse_recipient, texts)}
    classes = {recipient.key_class for recipient in recipients.values()}
    if len(classes) > 1:
        lines = [f"{short(text)} is {recipient.key_class}" for text, recipient in recipients.items()]
        raise ConfigError("the recipients are of different classes, classic and post-quantum", details=lines)
    if not recipients:
        raise ConfigError("there is no recipient: nobody could open the backup", hints=["drkit keys new NAME"])
    if len(recipients) == 1 and not accept_single_key:
        again = " (the same one twice)" if len(texts) > 1 else ""
        raise ConfigError(
            f"there is only one recipient{again}: if its key is lost, so is every backup",
            hints=["drkit keys new escrow, and add its recipient", "or set encryption.accept_single_key: true"],
        )
    return list(recipients.values())


def known_recipients(folder: Path) -> dict[str, str]:
    """Return the names of the recipients whose ``.pub`` files lie in ``folder``, recipient -> name."""
    found = {}
    for file in sorted(folder.glob("*.pub")):
        identity_path = file.with_suffix("")
        recipient = public_half(identity_path)
        if recipient is not None:
            found[recipient] = identity_path.stem
    return found


def trust_of_recipient(recipient: age.Recipient, *, name: str | None, valid_from: datetime) -> Trust:
    """Return the trust document of a recipient."""
    text = str(recipient)
    return Trust(
        kind="recipient", key_id=recipient_fingerprint(text), public_key=text, name=name, valid_from=valid_from
    )


def short(recipient_text: str) -> str:
    """Shorten a recipient so that a person recognises it: ``age1qk2…x7k``."""
    return recipient_text if len(recipient_text) <= 20 else f"{recipient_text[:8]}…{recipient_text[-5:]}"


def seal_canary(recipients: Sequence[age.Recipient]) -> bytes:
    """Return a tiny age file that is sealed exactly as a backup for the same recipients is."""
    return b"".join(age.encrypt([_CANARY], recipients))


def opens_canary(canary: bytes, identity: age.Identity) -> bool:
    """Tell whether ``identity`` opens ``canary``; raise IntegrityError when what comes out is not the canary."""
    try:
        plain = b"".join(age.decrypt([canary], [identity]))
    except KeyUnavailable:
        return False
    if plain != _CANARY:
        raise IntegrityError("the canary opens, but what is inside is not the canary")
    return True


def prove(recipients: Sequence[age.Recipient], keys: Sequence[KeyFile]) -> list[Proof]:
    """Seal a canary for each recipient and try every identity on it: what opens it now can open a backup."""
    proofs = []
    for recipient in recipients:
        canary = seal_canary([recipient])
        opened_by = tuple(key for key in keys if opens_canary(canary, key.identity))
        proofs.append(Proof(str(recipient), recipient_fingerprint(str(recipient)), opened_by))
    return proofs


def _parse_recipient(text: str) -> age.Recipient:
    try:
        return age.parse_recipient(text)
    except ValueError as error:
        # The text may be a secret key by mistake, and the cause would show it in a traceback.
        raise ConfigError(str(error), hints=["drkit keys list shows the recipients of the keys here"]) from None


def _load_identity_file(path: Path, passphrase: Passphrase | None) -> list[KeyFile]:
    data = read_secret_file(path, "identity file")
    if data is None:
        raise KeyUnavailable(
            f"identity file {path} is not on this host", hints=["bring it here from where it is kept, with mode 0600"]
        )
    try:
        text = data.decode()
        lines = _unlock(text, path, passphrase) if text.lstrip().startswith(_ARMOR_BEGIN) else text.splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"identity file {path} is not text") from error
    keys: list[KeyFile] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            name = path.stem if not keys else f"{path.stem}#{len(keys) + 1}"
            identity = _parse_identity(line.strip(), f"{path}:{number}")
            keys.append(KeyFile(name, path, identity, recipient_fingerprint(str(identity.recipient))))
    if not keys:
        raise ConfigError(
            f"identity file {path} holds no identity; it may have been cut off",
            hints=["drkit keys list", f"compare it with another copy: tail -n 1 {path.name} is AGE-SECRET-KEY-1…"],
        )
    return keys


def _parse_identity(line: str, where: str) -> age.Identity:
    try:
        return age.parse_identity(line)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _unlock(text: str, path: Path, passphrase: Passphrase | None) -> list[str]:
    if passphrase is None:
        raise KeyUnavailable(
            f"identity file {path} is locked by a passphrase",
            hints=[f"set {UNLOCK_FILE_VARIABLE} to a file that holds it"],
        )
    key = age.ScryptIdentity(passphrase(path))
    try:
        plain = b"".join(age.decrypt([age.dearmor(text)], [key]))
    except KeyUnavailable as error:
        raise KeyUnavailable(f"the passphrase does not open identity file {path}") from error
    except IntegrityError as error:
        raise IntegrityError(f"identity file {path} is damaged: {error}") from error
    return plain.decode().splitlines()
