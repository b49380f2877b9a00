"""Fetch a shard of addresses in a separate process, and return each address's picture or reason of failure.

Reads: the network, through web/worker.py, in which img2dataset writes what web/hosts.py fetches. Writes into a scratch folder
that the caller removes; hosts.json there has the figures of every host. The process has a deadline: addresses that are then
left fail as `deadline`. If the process does not end, it is killed, and the caller may retry the shard. Results are joined
by img2dataset's key, because img2dataset's rows are in the order in which they finished. Memory: here one picture at a time; in
the process at most 2 x threads pictures.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import SourceError
from pipeline.execution import Ended, is_stopped, raise_if_stopped, run_process
from pipeline.installation import python_path
from pipeline.schema import read_parquet
from pipeline.sources.web.opener import FetchRules
from pipeline.storage import tar_members

START_S = 120.0  # limit for starting: img2dataset's imports take ten seconds and more on a busy machine

_REASON = re.compile(r"^[a-z][a-z0-9_]*(: |$)")


class Fetched:
    """The results of a shard's URLs, by their position in the list. Holds img2dataset's tar open."""

    def __init__(self, folder: Path, urls: Sequence[str]) -> None:
        self._urls = urls
        rows = read_parquet(folder / "00000.parquet", columns=["key", "url", "status", "error_message"]).to_pylist()
        self._rows = {int(row["key"]): row for row in rows}
        with (folder / "00000.tar").open("rb") as handle:
            members = tar_members(handle, "00000.tar of img2dataset", SourceError)
            self._places = {member.name: (member.offset, member.size) for member in members}
        self._tar = (folder / "00000.tar").open("rb")

    def close(self) -> None:
        self._tar.close()

    def __getitem__(self, number: int) -> tuple[bytes | None, str | None]:
        """(the picture file's bytes, None) or (None, `reason: detail`)."""
        row = self._rows.get(number)
        if row is None or row["url"] != self._urls[number]:
            return None, "lost: img2dataset gave no result for it"
        if row["status"] != "success":
            return None, reason(row["error_message"] or "unknown")
        offset, size = self._places[f"{row['key']}.jpg"]
        self._tar.seek(offset)
        return self._tar.read(size), None


def fetch_urls(
    urls: Sequence[str], rules: FetchRules, allow_private: Sequence[str], threads: int, seconds: float, scratch: Path
) -> Fetched:
    """Fetch the URLs into `scratch`. `seconds` limits the fetching; START_S is added for starting.

    Raises SourceError, with the last lines of its output, if the process as a whole failed.
    """
    import pyarrow as pa

    folder = scratch / "fetched"
    folder.mkdir()
    listed = scratch / "urls.arrow"
    with pa.OSFile(str(listed), "wb") as sink:
        table = pa.table({"url": pa.array(urls, pa.string())})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    job = {
        "urls": str(listed),
        "folder": str(folder),
        "threads": min(threads, len(urls)),
        "seconds": seconds,
        "rules": asdict(rules),
        "allow_private": list(allow_private),
    }
    (scratch / "job.json").write_text(json.dumps(job))
    heard: deque[str] = deque(maxlen=20)
    env = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled", "PYTHONPATH": python_path()}
    command = [sys.executable, "-m", "pipeline.sources.web.worker", str(scratch / "job.json")]
    deadline = time.monotonic() + START_S + seconds + 2 * rules.total_s
    end = run_process(command, env, None, deadline, is_stopped, heard.append, grace_s=2.0)
    raise_if_stopped()
    if end.how is not Ended.BY_ITSELF or end.code:
        raise SourceError(
            f"img2dataset's process ended with code {end.code} ({end.how.value}) while it fetched {len(urls)} URLs: "
            f"{' | '.join(heard) or 'it said nothing'}"
        )
    return Fetched(folder, urls)


def reason(message: str) -> str:
    """img2dataset's message for a failed URL as `reason: detail`. Messages of our opener already have this form."""
    if _REASON.match(message):
        return message[:500]
    if "X-Robots-Tag" in message:
        return "opt_out: X-Robots-Tag"
    if message.startswith("unknown url type"):
        return f"bad_url: {message}"[:500]
    return f"not_fetched: {message}"[:500]
