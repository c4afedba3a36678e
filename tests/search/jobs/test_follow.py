"""Following a job's log from a server whose streams break off, and whose word on the job alone ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import BadInput, TrimtabError
from trimtab.search.jobs import cluster
from trimtab.search.jobs.cluster import Cluster, Gone, Job, follow


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "EVERY", 0.0)


@dataclass
class Server:
    """A server whose log grows by a line at every look, and whose streams break off after so many characters."""

    log_text: str
    breaks: list[int]
    lines: int
    code: int | None = 0
    silent: int = 0
    looks: int = 0
    written: list[str] = field(default_factory=list)

    def job(self, name: str) -> Job:
        self.looks += 1
        if self.looks <= self.silent:
            raise BadInput("no job server answers")
        return Job(name, "s", "SUCCEEDED" if self._there() == self.log_text else "RUNNING", self.code, "")

    async def log(self, name: str) -> AsyncIterator[str]:
        text, last = self._there(), self._there() == self.log_text
        end = len(text) if last or not self.breaks else self.breaks.pop(0)
        for start in range(0, min(end, len(text)), 3):
            yield text[start : min(start + 3, end)]
        if not last and end % 2:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def _there(self) -> str:
        return "".join(self.log_text.splitlines(keepends=True)[: self.looks * self.lines])


@given(
    st.lists(st.text("abc", max_size=9), min_size=1, max_size=12),
    st.lists(st.integers(0, 60), max_size=12),
    st.integers(1, 3),
    st.integers(0, 3),
)
def test_a_log_is_written_once_and_whole(lines: list[str], breaks: list[int], pace: int, silent: int) -> None:
    server = Server("".join(f"{line}\n" for line in lines), breaks, pace, silent=silent)
    ended = follow(server, "job", server.written.append)
    assert "".join(server.written) == server.log_text
    assert (ended.goes_on, ended.code) == (False, 0)


def test_a_server_that_answers_no_more_is_given_up() -> None:
    server = Server("a\n", [], 1, silent=10**9)
    with pytest.raises(TrimtabError, match=r"no job server answers; it has been waited for 0 s"):
        follow(server, "job", server.written.append, patience=0.05)


def test_a_job_that_its_server_has_forgotten_is_not_waited_for() -> None:
    class Again(Server):
        def job(self, name: str) -> Job:
            raise Gone("unknown")

    with pytest.raises(Gone):
        follow(Again("a\n", [], 1), "job", print)


def test_an_address_that_is_none_of_a_job_server_is_refused() -> None:
    for address in ("auto", "ray://127.0.0.1:10001", "os.path://x", "127.0.0.1:8265"):
        with pytest.raises(BadInput, match="is like http://"):
            Cluster(address)


def test_the_environment_does_not_take_the_place_of_the_address(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://192.0.2.1:8265")
    port = free_port()
    with pytest.raises(BadInput, match=rf"no job server answers at http://127.0.0.1:{port}:"):
        Cluster(f"http://127.0.0.1:{port}")
