"""The chain: what one missing, moved or renumbered manifest leaves behind, in any history of commits and forks."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drkit.chain import Link, audit_chain, manifest_link, next_link, tombstone_link
from drkit.model import Compression, Coverage, Encryption, Manifest, Tombstone
from drkit.units import parse_utc


def commit(seen: list[Link], name: str) -> Link:
    """Commit as a writer does who sees ``seen``; the digest depends on everything, as that of a manifest does."""
    seq, parents = next_link(seen)
    digest = hashlib.sha256(repr((name, seq, parents)).encode()).hexdigest()
    return Link(name, digest, seq, parents, found_under=name)


def line(length: int) -> list[Link]:
    links: list[Link] = []
    for number in range(1, length + 1):
        links.append(commit(links, f"A{number}"))
    return links


@st.composite
def histories(draw: st.DrawFn, min_size: int = 1) -> list[Link]:
    """Commits in order; each writer sees all but up to two of the newest, which is how forks come to be."""
    links: list[Link] = []
    for number in range(draw(st.integers(min_size, 14))):
        unseen = draw(st.integers(0, 2))
        links.append(commit(links[: max(0, len(links) - unseen)], f"A{number:02}"))
    return links


def codes(links: list[Link], tombstones: list[Link] | None = None, remembered: list[Link] | None = None) -> set[str]:
    return {finding.code for finding in audit_chain(links, tombstones or [], remembered=remembered or [])}


def named_by_others(links: list[Link]) -> list[Link]:
    named = {parent for link in links for parent in link.parents}
    return [link for link in links if link.sha256 in named]


def bury(link: Link) -> Link:
    return replace(link, found_under=None)


def test_the_first_manifest_has_number_one_and_no_parents() -> None:
    assert next_link([]) == (1, ())


def test_a_fork_is_legal_and_joined_by_the_next() -> None:
    first, second = line(2)
    fork = commit([first], "B")
    joined = commit([first, second, fork], "C")
    assert joined.seq == 3
    assert joined.parents == tuple(sorted([second.sha256, fork.sha256]))
    assert codes([first, second, fork, joined]) == set()


def test_a_removed_head_is_still_followed() -> None:
    first, second = line(2)
    assert next_link([first, bury(second)]) == (3, (second.sha256,))


@given(histories())
def test_every_honest_history_is_clean(links: list[Link]) -> None:
    assert codes(links) == set()
    assert codes(list(reversed(links))) == set()
    assert codes(links, remembered=links) == set()


@given(histories(min_size=2), st.data())
def test_one_that_is_taken_away_is_found_and_named(links: list[Link], data: st.DataObject) -> None:
    candidates = named_by_others(links)
    if not candidates:
        return
    gone = data.draw(st.sampled_from(candidates))
    left = [link for link in links if link != gone]
    (finding,) = audit_chain(left, [])
    assert (finding.code, finding.subject) == ("chain-gap", f"sha256:{gone.sha256}")
    (finding,) = audit_chain(left, [], remembered=links)
    assert (finding.code, finding.subject) == ("chain-gap", gone.artifact_id)
    assert all(link.artifact_id in finding.message for link in left if gone.sha256 in link.parents)


@given(histories(), st.data())
def test_a_tombstone_explains_it_also_while_the_manifest_still_stands(links: list[Link], data: st.DataObject) -> None:
    buried = data.draw(st.lists(st.sampled_from(links), unique=True))
    removed = data.draw(st.sets(st.sampled_from(buried))) if buried else set()
    left = [link for link in links if link not in removed]
    assert codes(left, [bury(link) for link in buried], remembered=links) == set()


@given(histories(), st.data())
def test_a_removed_head_is_found_by_whoever_remembers_it(links: list[Link], data: st.DataObject) -> None:
    inner = named_by_others(links)
    gone = data.draw(st.sampled_from([link for link in links if link not in inner]))
    left = [link for link in links if link != gone]
    assert codes(left) == set()
    (finding,) = audit_chain(left, [], remembered=links)
    assert (finding.code, finding.subject) == ("chain-rollback", gone.artifact_id)


@given(histories(), st.data())
def test_a_manifest_in_a_second_place_is_found(links: list[Link], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(links))
    findings = audit_chain([*links, replace(again, found_under="Z")], [])
    assert {finding.code for finding in findings} == {"chain-replay", "chain-misplaced"}
    assert {finding.subject for finding in findings} == {again.artifact_id, "Z"}


@given(histories(min_size=2), st.data())
def test_two_that_are_swapped_are_found(links: list[Link], data: st.DataObject) -> None:
    one, other = data.draw(st.lists(st.sampled_from(links), min_size=2, max_size=2, unique=True))
    places = {one: other.artifact_id, other: one.artifact_id}
    findings = audit_chain([replace(link, found_under=places.get(link, link.found_under)) for link in links], [])
    assert {finding.code for finding in findings} == {"chain-misplaced"}
    assert {finding.subject for finding in findings} == {one.artifact_id, other.artifact_id}


@given(histories(), st.data())
def test_another_number_is_found(links: list[Link], data: st.DataObject) -> None:
    victim = data.draw(st.sampled_from(links))
    seq = data.draw(st.integers(1, 20).filter(lambda number: number != victim.seq))
    assert codes([replace(link, seq=seq) if link == victim else link for link in links]) & {"chain-seq", "chain-order"}


@given(histories(min_size=2), st.data())
def test_a_manifest_rewritten_in_its_place_is_found(links: list[Link], data: st.DataObject) -> None:
    candidates = named_by_others(links)
    if candidates:
        victim = data.draw(st.sampled_from(candidates))
        forged = replace(victim, sha256=hashlib.sha256(victim.sha256.encode()).hexdigest())
        assert "chain-gap" in codes([forged if link == victim else link for link in links])


def test_two_manifests_of_one_artifact_are_found() -> None:
    first, second = line(2)
    twin = replace(second, sha256="f" * 64)
    (finding,) = audit_chain([first, second, twin], [])
    assert (finding.code, finding.subject) == ("chain-replay", "A2")
    assert finding.message == "different manifests of artifact A2 exist 2 times: under A2"


def test_a_parent_that_comes_later_is_found() -> None:
    first, second = line(2)
    knot = replace(first, parents=(second.sha256,))
    assert "chain-order" in codes([knot, second])


def test_a_tombstone_for_other_bytes_explains_nothing() -> None:
    first, second, third = line(3)
    stone = replace(bury(second), sha256="f" * 64)
    assert codes([first, second, third], [stone]) == {"chain-tombstone"}
    assert codes([first, third], [stone]) == {"chain-gap"}


@pytest.mark.parametrize("stones", [False, True])
def test_a_gap_among_tombstones_is_found_as_well(stones: bool) -> None:
    first, second, third = line(3)
    tombstones = [bury(third)] if stones else [bury(second), bury(third)]
    assert codes([first], tombstones) == ({"chain-gap"} if stones else set())


def test_findings_say_where_and_what_to_do() -> None:
    first, second, third, fourth = line(4)
    gap, seq = audit_chain([first, third, replace(fourth, seq=9)], [])
    assert gap.message == (
        f"the manifest sha256:{second.sha256} is gone without a tombstone: number 2, the parent of artifact A3"
    )
    assert seq.message == "artifact A4 has number 9, its parents make it number 4"
    assert gap.hint
    assert seq.hint


def test_links_are_made_of_the_exact_bytes() -> None:
    moment = parse_utc("2026-01-01T00:00:00+00:00")
    manifest = Manifest(
        repo_id="r",
        policy="orders",
        artifact_id="A1",
        run_id="R1",
        written_to="primary",
        engine="postgres",
        method="dump",
        seq=1,
        started_at=moment,
        ended_at=moment,
        covers=Coverage(from_at=moment, to_at=moment),
        objects=(),
        compression=Compression(level=1),
        encryption=Encryption(recipients=()),
        tools={},
        details="",
    )
    data = manifest.to_bytes()
    link = manifest_link(manifest, data, found_under="A1")
    assert link == Link("A1", hashlib.sha256(data).hexdigest(), 1, (), "A1")
    tombstone = Tombstone(
        repo_id="r",
        policy="orders",
        artifact_id="A1",
        manifest_sha256=link.sha256,
        seq=1,
        reason="retention",
        removed_at=moment,
    )
    assert tombstone_link(tombstone) == bury(link)
