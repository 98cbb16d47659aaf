"""In which order a server's files are copied, and that each is copied once."""

from __future__ import annotations

import random
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from drkit.engines.postgres_base_files import FoundFile
from drkit.engines.postgres_base_order import FileQueue, slowest_first, tried
from drkit.units import MIB


def usual(file: FoundFile) -> float:
    return 1


@given(st.lists(st.integers(0, 1 << 40)))
def test_the_order_has_every_file_and_the_largest_first(sizes: list[int]) -> None:
    files = [FoundFile(str(number), size) for number, size in enumerate(sizes)]
    ordered = slowest_first(files, usual)
    assert sorted(ordered, key=lambda file: int(file.name)) == files
    assert [file.size_bytes for file in ordered] == sorted(sizes, reverse=True)


def test_what_is_slow_comes_before_what_is_larger() -> None:
    table, index, small = (FoundFile(*item) for item in [("table", 1024 * MIB), ("index", 343 * MIB), ("small", MIB)])
    assert slowest_first([small, table, index], lambda file: 3 if file is index else 1) == [index, table, small]


def test_only_large_files_are_tried_and_not_too_many_of_them() -> None:
    asked: list[FoundFile] = []

    def slowness(file: FoundFile) -> float:
        asked.append(file)
        return 1

    slowest_first([FoundFile(str(number), 63 * MIB) for number in range(1000)], slowness)
    assert not asked
    slowest_first([FoundFile(str(number), 1024 * MIB) for number in range(10_000)], slowness)
    assert not asked
    large = [FoundFile(str(number), 1024 * MIB) for number in range(256)]
    slowest_first([*large, FoundFile("small", 63 * MIB)], slowness)
    assert len(asked) <= 256


def test_what_compresses_slowly_is_found_by_trying(tmp_path: Path) -> None:
    words = [f"{number:x}," for number in random.Random(1).sample(range(1 << 20), 4000)]
    hard = "".join(random.Random(2).choices(words, k=2 * MIB // 4)).encode()
    (tmp_path / "easy").write_bytes(bytes(2 * MIB))
    (tmp_path / "hard").write_bytes(hard[: 2 * MIB])
    slowness = tried(tmp_path)
    assert slowness(FoundFile("hard", 2 * MIB)) > slowness(FoundFile("easy", 2 * MIB)) >= 1


def test_what_cannot_be_tried_counts_as_usual(tmp_path: Path) -> None:
    (tmp_path / "cut").touch()
    (tmp_path / "folder").mkdir()
    assert tried(tmp_path)(FoundFile("gone", 1 << 30)) == 1
    assert tried(tmp_path)(FoundFile("folder", 1 << 30)) == 1
    assert tried(tmp_path)(FoundFile("cut", 1 << 30)) >= 1


def test_each_file_is_taken_once_by_however_many_take() -> None:
    files = [FoundFile(str(number), 0) for number in range(20_000)]
    queue, taken = FileQueue(files), [list[FoundFile]() for _ in range(4)]
    threads = [threading.Thread(target=heap.extend, args=(queue,)) for heap in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((file for heap in taken for file in heap), key=lambda file: int(file.name)) == files
    assert list(queue) == []
