from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.errors import BadInput, TrimtabError
from trimtab.search.loop.journal import Journal, read_journal

DATA = [{"policy": {"a": 1}, "accuracy": 0.1}, {}, {"text": 'ä "\n', "list": [1, None, True, -2.5e-300]}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def write(path: Path, count: int = 3) -> None:
    with Journal(path) as journal:
        for i in range(count):
            journal.append("result", DATA[i % len(DATA)])


def test_what_is_appended_is_read_back(path: Path) -> None:
    before = time.time()
    with Journal(path) as journal:
        assert [journal.append("ask", data) for data in DATA] == [0, 1, 2]
        written = journal.records()
    with Journal(path) as journal:
        assert journal.records() == written
        assert journal.cut == 0
        assert journal.append("result", {}) == 3
    records = read_journal(path)
    assert [record.data for record in records] == [*DATA, {}]
    assert [record.seq for record in records] == [0, 1, 2, 3]
    assert [record.kind for record in records] == ["ask", "ask", "ask", "result"]
    assert all(before <= record.time <= time.time() for record in records)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        ),
    ),
    kind=st.text(),
)
def test_any_json_survives(path: Path, kind: str, data: dict[str, object]) -> None:
    with Journal(path) as journal:
        seq = journal.append(kind, data)
        assert journal.records()[seq].data == data
    record = read_journal(path)[-1]
    assert (record.seq, record.kind, record.data) == (seq, kind, data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, object(), b"bytes", {1, 2}])
def test_what_is_not_json_is_refused_and_leaves_no_trace(path: Path, bad: object) -> None:
    with Journal(path) as journal:
        journal.append("ask", {})
        size = path.stat().st_size
        with pytest.raises(BadInput, match="'ask' record cannot be written"):
            journal.append("ask", {"value": bad})
        assert path.stat().st_size == size
        assert journal.append("ask", {}) == 1


def test_a_tail_torn_at_any_byte_is_cut(path: Path, tmp_path: Path) -> None:
    write(path)
    content = path.read_bytes()
    last = content.rindex(b"\n", 0, len(content) - 1) + 1
    for end in range(last, len(content)):
        torn = tmp_path / "torn"
        torn.write_bytes(content[:end])
        assert [record.data for record in read_journal(torn)] == DATA[:2]
        with Journal(torn) as journal:
            assert [record.data for record in journal.records()] == DATA[:2]
            assert journal.cut == end - last
            assert torn.read_bytes() == content[:last]
            assert journal.append("result", DATA[2]) == 2
        assert [record.data for record in read_journal(torn)] == DATA


@pytest.mark.parametrize("hole", [b"\0\0\0\0", b"zzzz"])
def test_a_tail_with_its_middle_lost_is_cut(path: Path, hole: bytes) -> None:
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[:-20] + hole + content[-16:])
    with Journal(path) as journal:
        assert [record.data for record in journal.records()] == DATA[:2]


def test_a_creation_torn_at_any_byte_starts_anew(path: Path) -> None:
    with Journal(path):
        header = path.read_bytes()
    for content in [header[:end] for end in range(len(header))] + [b"\0" * 7]:
        path.write_bytes(content)
        assert read_journal(path) == []
        with Journal(path) as journal:
            assert journal.append("ask", {}) == 0
        assert path.read_bytes().startswith(header)


def test_every_damaged_byte_before_the_last_line_is_found(path: Path) -> None:
    write(path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    first = len(lines[0])
    for at in range(first, first + len(lines[1])):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(BadInput, match=rf"{path}, line 2: "):
            Journal(path)
        with pytest.raises(BadInput, match=rf"{path}, line 2: "):
            read_journal(path)


@pytest.mark.parametrize("order", [(0, 2, 3), (0, 1, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3)])
def test_a_missing_repeated_or_moved_line_is_found(path: Path, order: tuple[int, ...]) -> None:
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(BadInput, match=r"line \d: record \d where \d is due"):
        Journal(path)


def test_a_file_that_is_no_journal_is_left_alone(path: Path) -> None:
    path.write_text("my notes")
    with pytest.raises(BadInput, match="not a trimtab journal"):
        Journal(path)
    assert path.read_text() == "my notes"


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "journal"
    with pytest.raises(BadInput, match=r"cannot open the journal .*nowhere"):
        Journal(missing)
    with pytest.raises(BadInput, match=r"cannot read the journal .*nowhere"):
        read_journal(missing)


def test_a_closed_journal_takes_nothing(path: Path) -> None:
    with Journal(path) as journal:
        pass
    with pytest.raises(TrimtabError, match="is closed"):
        journal.append("ask", {})


def test_one_writer_at_a_time(path: Path) -> None:
    with Journal(path) as journal:
        journal.append("ask", {"n": 1})
        with pytest.raises(BadInput, match="in use by another run"):
            Journal(path)
        assert [record.data for record in read_journal(path)] == [{"n": 1}]
        other = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, check=False)
        assert "BadInput" in other.stderr
        assert "in use by another run" in other.stderr
    write(path)


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    journal = Journal(path)
    (started, child_started), (finished, finish) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(finish)
        os.write(child_started, b"!")
        os.read(finished, 1)  # until the parent has closed its end
        os._exit(0)
    try:
        assert os.read(started, 1) == b"!"
        assert journal.append("ask", {}) == 0  # the child's copy did not take the lock away from its parent
        with pytest.raises(BadInput, match="in use"):
            Journal(path)
        journal.close()
        write(path)
    finally:
        os.close(finish)
        os.waitpid(child, 0)
        for fd in (started, child_started, finished):
            os.close(fd)


def test_a_full_disk_leaves_nothing_half_written(path: Path) -> None:
    with Journal(path) as journal:
        journal.append("ask", {"n": 0})
        size = path.stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 40, hard))  # the next line begins to fit
        try:
            with pytest.raises(TrimtabError, match="cannot write to the journal"):
                journal.append("ask", {"n": 1})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == size
        assert len(journal.records()) == 1
        assert journal.append("ask", {"n": 2}) == 1
    assert [record.data["n"] for record in read_journal(path)] == [0, 2]


def test_an_interrupt_before_the_sync_is_undone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(path) as journal:
        journal.append("ask", {"n": 0})
        sync, calls = os.fsync, iter([KeyboardInterrupt])

        def interrupted(fd: int) -> None:
            for error in calls:
                raise error
            sync(fd)

        monkeypatch.setattr("trimtab.search.loop.journal.os.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append("ask", {"n": 1})
        assert journal.append("ask", {"n": 2}) == 1
    assert [record.data["n"] for record in read_journal(path)] == [0, 2]


OPEN = "import sys; from trimtab.search.loop.journal import Journal; Journal(sys.argv[1])"

WRITER = """
import sys
from trimtab.search.loop.journal import Journal
with Journal(sys.argv[1]) as journal:
    n = len(journal.records())
    while True:
        seq = journal.append("result", {"n": n, "filler": "x" * (n * 37 % 9000)})
        assert seq == n
        n += 1
        print(seq, flush=True)
"""


def test_killed_writers_lose_and_repeat_nothing(path: Path) -> None:
    acknowledged = -1
    for attempt in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
        assert writer.stdout is not None
        line = writer.stdout.readline()  # it has started; the rest piles up in the pipe
        time.sleep(0.01 + 0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        out, err = writer.communicate()
        assert err == b""
        seen = [int(seq) for seq in (line + out).split(b"\n") if seq]
        # At most one record was written and killed before it was acknowledged.
        assert seen[0] in (acknowledged + 1, acknowledged + 2)
        assert seen == list(range(seen[0], seen[-1] + 1))
        acknowledged = seen[-1]
    with Journal(path) as journal:
        numbers = [record.data["n"] for record in journal.records()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) in (acknowledged + 1, acknowledged + 2)
