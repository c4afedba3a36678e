"""The process that a job runs on the cluster: it proves the folder, and begins the search in it or goes on with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import trimtab
from trimtab.errors import BadInput, InfeasibleBudget, TrimtabError, in_one_line
from trimtab.files import write_bytes, write_text
from trimtab.search.jobs.package import CONFIG, HASH, file_hash
from trimtab.search.jobs.record import STOP, WORDS, JobRecord, is_here, journal_code
from trimtab.search.jobs.shared import prove_shared
from trimtab.search.loop.pool import start_ray
from trimtab.search.progress import ConsoleProgress
from trimtab.search.run import open_run, run_search
from trimtab.search.setup.config import Config, load_config
from trimtab.search.setup.problem import load_problem


def main(folder: Path, submission: str, job: str) -> int:
    """Run, or go on with, the packaged search in a folder, and return its exit code, which `job.json` keeps."""
    # Ray blocks SIGINT in what it starts.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    record = JobRecord(submission, job)
    try:
        code, said = _searched(folder, record)
    except TrimtabError as error:
        code, said = error.exit_code, in_one_line(error)
    except KeyboardInterrupt:
        code, said = TrimtabError.exit_code, "stopped before there was anything to export; the same command goes on"
    print(f"trimtab: {said}", file=sys.stderr)
    if is_here(folder, submission):
        (folder / STOP).unlink(missing_ok=True)
        replace(record, code=code, said=said).write(folder)
    return code


def _searched(folder: Path, record: JobRecord) -> tuple[int, str]:
    package, progress = Path.cwd(), ConsoleProgress()
    progress.line(f"trimtab {trimtab.__version__} from {trimtab.__path__[0]}, on {os.uname().nodename}")
    config = load_config(package / CONFIG)
    _check_ours(folder)
    start_ray(config.workers, "auto")
    progress.line(f"{folder} is shared by {prove_shared(folder)} node(s)")
    code = journal_code(folder)
    if code in (0, InfeasibleBudget.exit_code) and is_here(folder, record.submission):
        return code, "this run was finished before"
    record.write(folder)
    (folder / STOP).unlink(missing_ok=True)
    _unpack(config, package, folder)
    # Relative paths of the configuration are in the run's folder: the package's is removed.
    os.chdir(folder)
    threading.Thread(target=_heed, args=(folder / STOP,), daemon=True).start()
    run_search(load_problem(open_run(folder), progress), folder, progress, resume=True)
    code = journal_code(folder) or 0
    return code, WORDS[code]


def _check_ours(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (is_here(folder) or (folder / "journal").is_file()):
        raise BadInput(f"{folder} has files that are of no run: choose another --out")


def _unpack(config: Config, package: Path, folder: Path) -> None:
    """Put checkpoint and configuration into the run's folder."""
    if config.network.checkpoint is not None:
        path = package / config.network.checkpoint
        if (package / HASH).is_file():
            if file_hash(path) != (package / HASH).read_text():
                raise BadInput(f"the checkpoint {path} is another one here than where the job was submitted")
        else:
            path = folder / f"{path.stem}-{file_hash(path)[:12]}{path.suffix}"
            write_bytes(path, (package / config.network.checkpoint).read_bytes())
        network = config.network.model_copy(update={"checkpoint": str(path)})
        config = config.model_copy(update={"network": network})
    write_text(folder / "config.yaml", config.to_yaml())


def _heed(stop: Path) -> None:
    """Interrupt this process, as Ctrl-C does, when it is asked to stop."""
    while not stop.exists():
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
