"""The chain of a policy's manifests: how the next one is linked, and what is wrong with those that are there.

Every manifest names the SHA-256 of all manifests that no other had named yet. So a manifest that is taken away leaves a
name that nobody bears: a gap. A tombstone bears the name on. Two hosts that commit at once make a fork, which is legal
and is joined by the next manifest (docs/format.md R5, R7).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from drkit.model import Finding, Manifest, Tombstone


@dataclass(frozen=True)
class Link:
    """One manifest, or the tombstone in its place: ``sha256`` is that of the manifest's exact bytes.

    ``found_under`` is the artifact id in the name of the object that the manifest was read from; None when that is not
    known, and then a manifest in another's place is not looked for.
    """

    artifact_id: str
    sha256: str
    seq: int
    parents: tuple[str, ...]
    found_under: str | None = None


def manifest_link(manifest: Manifest, data: bytes, *, found_under: str | None = None) -> Link:
    """Return the link of ``manifest``, whose exact bytes are ``data``."""
    digest = hashlib.sha256(data).hexdigest()
    return Link(manifest.artifact_id, digest, manifest.seq, manifest.parents, found_under)


def tombstone_link(tombstone: Tombstone) -> Link:
    """Return the link that a tombstone keeps in place."""
    return Link(tombstone.artifact_id, tombstone.manifest_sha256, tombstone.seq, tombstone.parents)


def next_link(links: Sequence[Link]) -> tuple[int, tuple[str, ...]]:
    """Return ``seq`` and ``parents`` of a new manifest: all heads, sorted.

    ``links`` are those of the manifests and of the tombstones: without the tombstones a removed head would be
    forgotten, and its place be taken twice.
    """
    named = {parent for link in links for parent in link.parents}
    heads = sorted({link.sha256 for link in links} - named)
    return max((link.seq for link in links), default=0) + 1, tuple(heads)


def audit_chain(
    manifests: Sequence[Link], tombstones: Sequence[Link], *, remembered: Sequence[Link] = ()
) -> list[Finding]:
    """Return what is wrong with one policy's chain in one store; an empty list when nothing is.

    Only verified manifests and tombstones belong in here. ``remembered`` are the links that the catalog once saw: they
    give a lost manifest its name, and show that the newest one is gone, which nothing in a store can show (rollback).
    Findings are ordered by position in the chain; their codes are ``chain-gap``, ``chain-replay``, ``chain-misplaced``,
    ``chain-order``, ``chain-seq``, ``chain-tombstone`` and ``chain-rollback``.
    """
    in_place = {link.sha256: link for link in (*tombstones, *manifests)}
    findings = [
        *_copies(manifests),
        *_misplaced(manifests),
        *_wrong_tombstones(manifests, tombstones),
        *_gaps(in_place, remembered),
        *_wrong_places(in_place),
        *_rolled_back(in_place, remembered),
    ]
    return [finding for _, finding in sorted(findings, key=lambda item: item[0])]


_Placed = tuple[int, Finding]


def _copies(manifests: Sequence[Link]) -> Iterable[_Placed]:
    by_id: dict[str, list[Link]] = defaultdict(list)
    for link in manifests:
        by_id[link.artifact_id].append(link)
    for artifact_id, links in by_id.items():
        if len(links) < 2:
            continue
        kind = "the same manifest" if len({link.sha256 for link in links}) == 1 else "different manifests"
        places = ", ".join(sorted({link.found_under for link in links if link.found_under}))
        message = f"{kind} of artifact {artifact_id} exist {len(links)} times" + (f": under {places}" if places else "")
        yield links[0].seq, Finding("chain-replay", artifact_id, message, _ASK_WHO_WROTE)


def _misplaced(manifests: Sequence[Link]) -> Iterable[_Placed]:
    for link in manifests:
        if link.found_under is not None and link.found_under != link.artifact_id:
            message = f"the manifest of artifact {link.artifact_id} lies in the place of artifact {link.found_under}"
            yield link.seq, Finding("chain-misplaced", link.found_under, message, _ASK_WHO_WROTE)


def _wrong_tombstones(manifests: Sequence[Link], tombstones: Sequence[Link]) -> Iterable[_Placed]:
    """Find tombstones of a living artifact that remember another manifest than the one that is there."""
    living = {link.artifact_id: link for link in manifests}
    for stone in tombstones:
        link = living.get(stone.artifact_id)
        if link and (link.sha256, link.seq, link.parents) != (stone.sha256, stone.seq, stone.parents):
            message = f"the tombstone of artifact {stone.artifact_id} is for another manifest than the one in its place"
            yield stone.seq, Finding("chain-tombstone", stone.artifact_id, message, _ASK_WHO_WROTE)


def _gaps(in_place: Mapping[str, Link], remembered: Sequence[Link]) -> Iterable[_Placed]:
    names = {link.sha256: link.artifact_id for link in remembered}
    children: dict[str, list[Link]] = defaultdict(list)
    for link in in_place.values():
        for parent in link.parents:
            if parent not in in_place:
                children[parent].append(link)
    for parent, links in children.items():
        successors = ", ".join(sorted({link.artifact_id for link in links}))
        subject = names.get(parent, f"sha256:{parent}")
        highest = min(link.seq for link in links) - 1
        exact = any(len(link.parents) == 1 for link in links)
        number = f"number {highest}" if exact else f"number {highest} or lower"
        message = f"the manifest {subject} is gone without a tombstone: {number}, the parent of artifact {successors}"
        yield highest, Finding("chain-gap", subject, message, _LOOK_ELSEWHERE)


def _wrong_places(in_place: Mapping[str, Link]) -> Iterable[_Placed]:
    for link in in_place.values():
        known = [in_place[parent] for parent in link.parents if parent in in_place]
        later = [parent for parent in known if parent.seq >= link.seq]
        for parent in later:
            message = (
                f"artifact {link.artifact_id} (number {link.seq}) names a parent that comes after it: "
                f"artifact {parent.artifact_id} (number {parent.seq})"
            )
            yield link.seq, Finding("chain-order", link.artifact_id, message, _ASK_WHO_WROTE)
        expected = max((parent.seq for parent in known), default=0) + 1
        complete = len(known) == len(link.parents)
        if not later and complete and link.seq != expected:
            message = f"artifact {link.artifact_id} has number {link.seq}, its parents make it number {expected}"
            yield link.seq, Finding("chain-seq", link.artifact_id, message, _ASK_WHO_WROTE)


def _rolled_back(in_place: Mapping[str, Link], remembered: Sequence[Link]) -> Iterable[_Placed]:
    """Find remembered links that are gone and that no link in place names: the gap that leaves no hole."""
    named = {parent for link in in_place.values() for parent in link.parents}
    for link in {link.sha256: link for link in remembered}.values():
        if link.sha256 not in in_place and link.sha256 not in named:
            message = f"artifact {link.artifact_id} (number {link.seq}) was here once and is gone without a tombstone"
            yield link.seq, Finding("chain-rollback", link.artifact_id, message, _LOOK_ELSEWHERE)


_ASK_WHO_WROTE = "somebody wrote to the bucket who is not drkit: compare with another store before you trust this one"
_LOOK_ELSEWHERE = "look for it in another store of the policy, and find out who deleted it"
