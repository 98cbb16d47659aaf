"""What ``drkit keys`` shows: the documents of ``list`` and ``prove``, and their text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from drkit.age import parse_recipient
from drkit.cli.output import table
from drkit.errors import ConfigError, IntegrityError, KeyUnavailable
from drkit.keys import (
    KeyFile,
    Proof,
    load_identities,
    load_signers,
    load_signing_key,
    public_half,
    recipient_fingerprint,
    short,
)
from drkit.policy import Policy
from drkit.signing import fingerprint, key_id
from drkit.site import Site
from drkit.units import format_count, format_moment, format_utc


def keys_document(site: Site, policies: Mapping[str, Policy]) -> dict[str, Any]:
    """Return the identities of this host, the recipients whose identities are elsewhere, and who may sign."""
    used_by = policies_by_recipient(policies)
    identities = _identity_rows(site, used_by)
    here = {row["recipient"] for row in identities}
    return {
        "identities": identities,
        "recipients": [_recipient_row(text, names) for text, names in used_by.items() if text not in here],
        "signing": _signing_row(site),
        "signers": _signer_rows(site),
    }


def keys_text(document: Mapping[str, Any]) -> str:
    """Return the document as a table."""
    return table(("KIND", "NAME", "ID", "STATE", "FOR"), _table_rows(document))


def policies_by_recipient(policies: Mapping[str, Policy]) -> dict[str, list[str]]:
    """Return every recipient, in the spelling that identities have too, with the names of the policies that use it."""
    used_by: dict[str, list[str]] = {}
    for name, policy in sorted(policies.items()):
        for text in _recipients(policy):
            used_by.setdefault(text, []).append(name)
    return used_by


def _recipients(policy: Policy) -> list[str]:
    return list(dict.fromkeys(str(parse_recipient(text)) for text in policy.encryption.recipients))


def _identity_rows(site: Site, used_by: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "path": str(path),
            "recipient": recipient,
            "fingerprint": recipient_fingerprint(recipient) if recipient else None,
            "state": state,
            "policies": used_by.get(recipient or "", []),
        }
        for path in site.keys.identities
        for name, recipient, state in _look_at(path)
    ]


def _look_at(path: Path) -> list[tuple[str, str | None, str]]:
    """Return name, recipient and state of what an identity file holds, without asking for a passphrase."""
    try:
        return [(key.name, key.recipient, "in reach") for key in load_identities([path], None)]
    except KeyUnavailable:
        return [(path.stem, public_half(path), "locked" if path.exists() else "not on this host")]
    except (ConfigError, IntegrityError) as error:
        return [(path.stem, public_half(path), error.message)]


def _recipient_row(recipient: str, policies: list[str]) -> dict[str, Any]:
    return {"recipient": recipient, "fingerprint": recipient_fingerprint(recipient), "policies": policies}


def _signing_row(site: Site) -> dict[str, Any] | None:
    path = site.keys.signing
    if path is None:
        return None
    row: dict[str, Any] = {"name": path.name, "path": str(path), "key_id": None, "fingerprint": None}
    try:
        key = load_signing_key(path).public_key()
    except ConfigError as error:
        return {**row, "state": error.message if path.exists() else "not on this host"}
    return {**row, "key_id": key_id(key), "fingerprint": fingerprint(key), "state": "in reach"}


def _signer_rows(site: Site) -> list[dict[str, Any]]:
    if not site.keys.signers.exists():
        return []
    return [
        {
            "principal": signer.principal,
            "key_id": signer.key_id,
            "fingerprint": fingerprint(signer.public_key),
            "namespaces": signer.namespaces,
            "valid_after": signer.valid_after and format_utc(signer.valid_after),
            "valid_before": signer.valid_before and format_utc(signer.valid_before),
        }
        for signer in load_signers(site.keys.signers)
    ]


def _table_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    rows = [
        ("identity", row["name"], row["fingerprint"] or "?", row["state"], ", ".join(row["policies"]) or "no policy")
        for row in document["identities"]
    ]
    rows += [
        ("recipient", short(row["recipient"]), row["fingerprint"], "not in reach", ", ".join(row["policies"]))
        for row in document["recipients"]
    ]
    signing = document["signing"]
    if signing:
        trusted = any(row["key_id"] == signing["key_id"] for row in document["signers"])
        purpose = "signing here" if trusted else "signing here, but no allowed signer: nobody would trust it"
        rows.append(("signing", signing["name"], signing["key_id"] or "?", signing["state"], purpose))
    for row in document["signers"]:
        namespaces = ", ".join(row["namespaces"]) if row["namespaces"] else "any namespace"
        until = f"until {row['valid_before']}" if row["valid_before"] else "trusted"
        rows.append(("signer", row["principal"], row["key_id"], until, namespaces))
    return rows


def proof_document(
    policies: Mapping[str, Policy], proofs: Sequence[Proof], found: Sequence[KeyFile], problems: Sequence[str]
) -> dict[str, Any]:
    """Return who opened what; ``problems`` are those of the identity files, and get the policies' own beside them."""
    opened = {proof.recipient: sorted({key.name for key in proof.opened_by}) for proof in proofs}
    used_by = policies_by_recipient(policies)
    openers = {
        name: sorted({key for text in _recipients(policy) for key in opened[text]}) for name, policy in policies.items()
    }
    useful = {key.fingerprint for proof in proofs for key in proof.opened_by}
    shut = [f"nobody in reach can open the backups of policy {name}" for name in sorted(openers) if not openers[name]]
    return {
        "proven_at": format_utc(datetime.now(UTC)),
        "recipients": [
            {
                "recipient": proof.recipient,
                "fingerprint": proof.fingerprint,
                "opened_by": opened[proof.recipient],
                "policies": used_by[proof.recipient],
            }
            for proof in proofs
        ],
        "policies": openers,
        "unused_identities": [key.name for key in found if key.fingerprint not in useful],
        "problems": [*problems, *shut],
    }


def proof_text(document: Mapping[str, Any]) -> str:
    """Return the document as lines, one a recipient, then the count and the problems."""
    lines = []
    for row in document["recipients"]:
        verdict = f"opened by {', '.join(row['opened_by'])}" if row["opened_by"] else "NOT PROVEN, nobody here opens it"
        lines.append(
            f"  {short(row['recipient']):<14}  {row['fingerprint']}  {verdict}  ({', '.join(row['policies'])})"
        )
    lines += [
        f"  {name} opens nothing that is sealed today; older backups may still need it"
        for name in document["unused_identities"]
    ]
    count = len(document["recipients"])
    proven = sum(bool(row["opened_by"]) for row in document["recipients"])
    at = format_moment(datetime.fromisoformat(document["proven_at"]))
    lines.append(f"{proven} of {format_count(count, 'recipient')} proven at {at}")
    if document["problems"]:
        lines += [f"problems: {len(document['problems'])}", *(f"  {problem}" for problem in document["problems"])]
    elif proven < count:
        lines.append("prove the others where their identities are kept: drkit keys prove --identity FILE")
    return "\n".join(lines)
