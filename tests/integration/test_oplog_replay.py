"""Replaying an oplog to a moment, against a model that never saw it: on a compatible server, SecantusDB."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.mongodb import ROOT, MongoServer, running_mongodb
from tests.fixtures.replaying import History, Moment, held, modelled, read_oplog, replay

WRITES, MOMENTS, SEED = 2000, 20, 20261122
SOURCE, TARGET = "history", "replayed"


@pytest.fixture(scope="module")
def server(mongodb_programs: None) -> Iterator[MongoServer]:
    """Lend a server whose oplog nobody else fills."""
    with running_mongodb("--storage-path=:memory:") as server:
        yield server


@pytest.fixture(scope="module")
def history(server: MongoServer) -> Iterator[tuple[list[Moment], list[bytes]]]:
    """Two thousand writes, the states at twenty random moments among them, and the oplog that they left."""
    newest = server.client["local"]["oplog.rs"].find().sort("$natural", -1).limit(1).next()["ts"]
    written = History(server.client, server.client[SOURCE], random.Random(SEED))
    written.write(WRITES, set(random.Random(SEED).sample(range(WRITES), MOMENTS)))
    entries = read_oplog(server.client, newest)
    assert held(server.client[SOURCE]) == modelled(written.model), "the model itself is wrong"
    yield written.moments, entries
    server.client.drop_database(SOURCE)


@pytest.fixture
def target(server: MongoServer) -> Iterator[Any]:
    server.client.drop_database(TARGET)
    yield server.client[TARGET]
    server.client.drop_database(TARGET)


def test_a_replay_that_stops_at_twenty_moments_equals_the_model_at_each(
    history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    assert len(moments) == MOMENTS
    for moment in moments:
        done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moment.at)
        assert held(target) == modelled(moment.documents)
        assert done.last_at is not None
        assert done.last_at <= moment.at


@pytest.mark.parametrize("number", [3, 11, 19])
def test_a_replay_from_the_beginning_equals_the_model(
    number: int, history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moments[number].at)
    assert held(target) == modelled(moments[number].documents)


def test_a_replay_that_is_killed_again_and_again_equals_the_model(
    history: tuple[list[Moment], list[bytes]], server: MongoServer, target: Any, tmp_path: Path
) -> None:
    moments, entries = history
    moment = moments[MOMENTS // 2]
    file = tmp_path / "entries"
    file.write_bytes(b"".join(entries))
    chance = random.Random(SEED)
    argv = [sys.executable, "-m", "tests.fixtures.replaying", server.url.reveal(), str(file), str(tmp_path)]
    for _ in range(3):
        child = subprocess.Popen([*argv, SOURCE, TARGET, moment.at.isoformat()], stdout=subprocess.PIPE, cwd=ROOT)
        assert child.stdout is not None
        with child.stdout:
            for _ in range(chance.randrange(len(entries) // 4)):
                child.stdout.readline()
            os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    done = replay(server.client, iter(entries), tmp_path, (SOURCE, TARGET), moment.at)
    assert done.resumed_after > 0
    assert held(target) == modelled(moment.documents)
