"""The end of a run that is a job: an exit code, by the run's journal first, and by what the job left beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from trimtab.errors import BadInput, InfeasibleBudget, TrimtabError, in_one_line
from trimtab.files import write_text
from trimtab.search.loop.journal import read_journal

__all__ = ["RECORD", "STOP", "STOPPED", "WORDS", "JobRecord", "code_of", "is_here", "journal_code", "read_record"]

#: The exit code of a run that was stopped, and has a network that was measured within the budgets.
STOPPED = 4

#: What exit codes say.
WORDS = {
    0: "done",
    TrimtabError.exit_code: "failed",
    BadInput.exit_code: "bad input",
    InfeasibleBudget.exit_code: "nothing within the budgets",
    STOPPED: "stopped, with a network within the budgets",
}

#: The files in a run's folder in which its job says who it is, and by which it is asked to stop.
RECORD, STOP = "job.json", "stop"


@dataclass(frozen=True)
class JobRecord:
    """The job that a run is, or was: its submission, Ray's name of the attempt, and how that ended, in words and as an
    exit code."""

    submission: str
    job: str
    code: int | None = None
    said: str = ""

    def write(self, folder: Path) -> None:
        """Write it into the run's folder."""
        write_text(folder / RECORD, json.dumps(asdict(self), indent=1) + "\n")


def is_here(folder: Path, submission: str | None = None) -> bool:
    """Return whether this machine sees the folder of a run that is a job, of a submission where one is given."""
    if not (folder / RECORD).is_file():
        return False
    return submission is None or read_record(folder).submission == submission


def read_record(folder: Path) -> JobRecord:
    """Return the record in a run's folder; one that is damaged is a `BadInput`."""
    try:
        return JobRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"{folder / RECORD} is not what a job leaves there: {in_one_line(error)}") from error


def code_of(folder: Path) -> int | None:
    """Return the exit code of the run in a folder; None: it goes on, or died.

    The journal decides where it says that the run is finished; of what never began to search, it says nothing.
    """
    code = journal_code(folder)
    return read_record(folder).code if code is None else code


def journal_code(folder: Path) -> int | None:
    """Return the exit code of a run whose journal says that it is finished."""
    records = read_journal(folder / "journal") if (folder / "journal").is_file() else []
    if not records or records[-1].kind != "finished":
        return None
    won, stopped = records[-1].data["winner"] is not None, records[-1].data.get("interrupted", False)
    if stopped:
        return STOPPED if won else TrimtabError.exit_code
    return 0 if won else InfeasibleBudget.exit_code
