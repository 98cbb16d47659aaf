"""Every bit counts: damage to each object of a real backup is found by its level, named, and stops a restore.

The matrix of issue 2: flips, cuts and additions in data objects, manifest and signature. Each case is asked of a host
that knows the artifact and of one that has never seen it.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from drkit.catalog.sqlite import open_catalog
from drkit.operations import Workplace
from tests.faults.damage_scene import (
    OBJECTS,
    TARGET,
    Answer,
    Scene,
    check,
    drill,
    knowing_nothing,
    try_restore,
    verify,
)

FLIPS = 16
AGE_NONCE_BYTES = 16
SEALED_CHUNK_BYTES = 64 * 1024 + 16


@dataclasses.dataclass(frozen=True)
class Host:
    """The site opened once, with a catalog that knows the artifacts; drills write into a copy of it."""

    scene: Scene
    workplace: Workplace
    for_drills: Workplace


@pytest.fixture(scope="module")
def host(scene: Scene) -> Iterator[Host]:
    scene.reset()
    with ExitStack() as stack:
        workplace = stack.enter_context(scene.open())
        copy = scene.site.folder / "var" / "drills.db"
        shutil.copy2(scene.safe / "var" / "catalog.db", copy)
        catalog = open_catalog(copy)
        stack.callback(catalog.close)
        yield Host(scene, workplace, dataclasses.replace(workplace, catalog=catalog))


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    """Let a file hold something else for a while."""
    before = path.read_bytes()
    assert content != before
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def flips(content: bytes) -> dict[str, bytes]:
    """Return copies with one bit flipped, at places spread over all of it, the first and the last byte among them."""
    draw = random.Random(len(content))
    edges = [(len(content) - 1) * step // (FLIPS - 1) for step in range(FLIPS)]
    positions = [0, *(draw.randint(low, high - 1) for low, high in pairwise(edges[1:])), edges[-1]]
    assert len(set(positions)) == FLIPS
    cases = {}
    for position in positions:
        altered = bytearray(content)
        bit = draw.randrange(8)
        altered[position] ^= 1 << bit
        cases[f"bit {bit} of byte {position} flipped"] = bytes(altered)
    return cases


def cuts(name: str, content: bytes) -> dict[str, bytes]:
    """Return copies cut to nothing, one byte, the header, each chunk's boundary and all but a byte; and longer ones."""
    if name.endswith(".age"):
        payload = content.index(b"\n--- ") + 1
        payload = content.index(b"\n", payload) + 1
        ends = {payload, payload + AGE_NONCE_BYTES}
        chunk = payload + AGE_NONCE_BYTES + SEALED_CHUNK_BYTES
        while chunk < len(content):
            ends |= {chunk - 1, chunk, chunk + 1}
            chunk += SEALED_CHUNK_BYTES
    else:
        ends = {len(content) // 2, content.index(b"\n" if name.endswith(".sig") else b":") + 1}
    cases = {f"cut to {end} bytes": content[:end] for end in sorted({0, 1, *ends, len(content) - 1})}
    cases |= {f"{extra!r} appended": content + extra for extra in (b"\0", b"\n", b"\n\n", content[-64:])}
    return cases


def missed(host: Host, case: str, *, level: str, name: str, artifact_id: str) -> list[str]:
    """Ask every command about the damage that is there now; return what did not go as it must."""
    problems: list[str] = []

    def expect(what: str, answer: Answer, code: int, *names: str) -> None:
        if answer.code != code or not all(item in answer.text for item in names):
            problems.append(f"{case}: {what}: exit {answer.code} instead of {code}: {answer.text}")

    scene, known = host.scene, host.workplace
    expect("verify exists", verify(known, artifact_id, level="exists"), 8 if level == "exists" else 0, artifact_id)
    expect("verify", verify(known, artifact_id), 8, name)
    expect("verify without a key", verify(known, artifact_id, keys=False), 8, name)
    expect("restore", try_restore(known, TARGET), 8, name)
    report = check(known)
    expect("check", report, 8 if level == "exists" else 12, artifact_id if level == "exists" else "")
    drills = [host.for_drills]
    with knowing_nothing(known) as fresh:
        expect("fresh restore", try_restore(fresh, TARGET), 8, name)
        expect("fresh verify", verify(fresh, artifact_id, keys=False), 8, name)
        drills += [fresh] if name == artifact_id else []
        for workplace in drills:
            answer, outcome = drill(workplace)
            expect("drill", answer, 11, f"FAILED at level {level}", name)
            seen = (outcome.verdict, outcome.failed_level, outcome.scratch)
            if seen != ("failed", level, {}):
                problems.append(f"{case}: drill: verdict, level and scratch server are {seen}")
    shutil.rmtree(scene.bucket / "policies" / "orders" / "evidence")
    if TARGET in scene.databases():
        problems.append(f"{case}: the target was made")
        scene.server.drop_database(TARGET)
    return problems


def run_matrix(host: Host, name: str, make: Callable[[bytes], dict[str, bytes]], level: str) -> None:
    artifact_id = host.scene.orders[-1]
    path = host.scene.folder(artifact_id) / name
    names = path.relative_to(host.scene.bucket).as_posix() if name.endswith(".age") else artifact_id
    problems: list[str] = []
    cases = make(path.read_bytes())
    assert len(cases) >= 8
    for case, content in cases.items():
        with changed(path, content):
            problems += missed(host, f"{name}, {case}", level=level, name=names, artifact_id=artifact_id)
    assert not problems, f"{len(problems)} of {len(cases)} cases\n" + "\n".join(problems)
    assert verify(host.workplace, artifact_id).code == 0


@pytest.mark.parametrize("name", OBJECTS)
def test_a_flipped_bit_anywhere_is_found(host: Host, name: str) -> None:
    run_matrix(host, name, flips, "intact" if name.endswith(".age") else "exists")


@pytest.mark.parametrize("name", OBJECTS)
def test_a_cut_or_an_addition_anywhere_is_found(host: Host, name: str) -> None:
    run_matrix(host, name, lambda content: cuts(name, content), "exists")
