"""The process that fetches a shard's addresses: `python -m pipeline.sources.web.worker JOB.json`.

Reads: a job (web/pictures.py writes it) and an Arrow file of addresses. Writes, in the job's folder, img2dataset's webdataset
shard (00000.tar, 00000.parquet, 00000_stats.json) and hosts.json, the figures of every host. web/hosts.py fetches, through an
opener that checks every address, because img2dataset's own opener checks nothing; img2dataset's `urlopen` waits for the result.
Pictures are stored unchanged and never decoded.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import sys
import time
import types
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Table
    from pipeline.sources.web.hosts import PoliteFetcher
    from pipeline.sources.web.opener import Answer


HOSTS = "hosts.json"


class Waiting:
    """Replaces urllib's opener: `open` returns when the address has been fetched."""

    def __init__(self, fetcher: PoliteFetcher, urls: Sequence[str]) -> None:
        self.fetcher = fetcher
        self.listed: dict[str, str] = {}  # address as urllib writes it -> address as in the list
        for url in urls:
            with contextlib.suppress(ValueError):
                self.listed[urllib.request.Request(url).full_url] = url

    def open(self, request: urllib.request.Request, data: object = None, timeout: object = None) -> Answer:
        from pipeline.sources.web.opener import Answer

        body = self.fetcher.result(self.listed.get(request.full_url, request.full_url))
        return Answer(200, http.client.HTTPMessage(), body, request.full_url)


def fetch(job: Table) -> bool:
    """Fetch one shard. True when img2dataset finished it; single URLs that fail are rows with an error."""
    import pyarrow as pa

    _leave_out_what_is_not_needed()
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    from pipeline.sources.web.hosts import PoliteFetcher
    from pipeline.sources.web.opener import AGENTS, FetchRules, SafeOpener
    from pipeline.sources.web.robots import OPT_OUTS

    rules = FetchRules(**job["rules"])
    until = time.monotonic() + job["seconds"]
    folder = Path(job["folder"])
    with pa.OSFile(job["urls"], "rb") as handle:
        urls = pa.ipc.open_file(handle).read_all()["url"].to_pylist()
    opener = SafeOpener(rules, job["allow_private"], until)
    fetcher = PoliteFetcher(opener, rules, urls, job["threads"], until, folder.parent / "spool")
    urllib.request.install_opener(Waiting(fetcher, urls))  # type: ignore[arg-type]
    download = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(image_size=0, resize_mode="no", resize_only_if_bigger=False, disable_all_reencoding=True),
        thread_count=job["threads"],
        save_caption=False,
        extract_exif=False,
        output_folder=job["folder"],
        column_list=["url"],
        timeout=rules.silence_s,
        number_sample_per_shard=10_000,
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",  # only a name in the tar; the bytes decide the format
        retries=0,
        user_agent_token=AGENTS[0],
        disallowed_header_directives=sorted(OPT_OUTS) if rules.opt_out else None,
    )
    done, _ = download((0, job["urls"]))
    hosts = {name: asdict(figures) for name, figures in fetcher.figures().items()}
    (folder.parent / HOSTS).write_text(json.dumps(hosts))
    return bool(done)


def _leave_out_what_is_not_needed() -> None:
    """Import only img2dataset's downloader and writer.

    The package itself imports its command line, and with it torch, wandb, albumentations and a reader of pandas: about ten
    seconds of a core for every shard. None of these is used here, because pictures are stored unchanged.
    """
    found = importlib.util.find_spec("img2dataset")
    package = types.ModuleType("img2dataset")
    package.__path__ = list(found.submodule_search_locations or ()) if found else []
    for module in (package, types.ModuleType("wandb"), types.ModuleType("albumentations")):
        sys.modules[module.__name__] = module
    sys.modules["torch"] = None  # type: ignore[assignment]  # webdataset does without it


if __name__ == "__main__":
    sys.exit(0 if fetch(json.loads(Path(sys.argv[1]).read_text())) else 1)
