"""The process that img2dataset fetches a shard in: `python -m pipeline.sources.url_worker JOB.json`.

Reads: a job (sources/web/pictures.py writes it) and an Arrow file of URLs. Writes: img2dataset's webdataset shard, in the
job's folder: 00000.tar, 00000.parquet, 00000_stats.json. img2dataset schedules, fetches, honours X-Robots-Tag and writes; its
`urlopen` goes through our opener, because its own asks nothing of an address. Pictures are stored as they came, never decoded.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any


def fetch(job: dict[str, Any]) -> bool:
    """Fetch one shard. True when img2dataset finished it; single URLs that fail are rows with an error."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    from pipeline.sources.web.opener import AGENTS, FetchRules, SafeOpener
    from pipeline.sources.web.robots import OPT_OUTS

    rules = FetchRules(**job["rules"])
    opener = SafeOpener(rules, job["allow_private"], time.monotonic() + job["seconds"])
    urllib.request.install_opener(opener)  # type: ignore[arg-type]
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
        encode_format="jpg",  # a name in the tar; the bytes decide what they are
        retries=0,
        user_agent_token=AGENTS[0],
        disallowed_header_directives=sorted(OPT_OUTS) if rules.opt_out else None,
    )
    done, _ = download((0, job["urls"]))
    return bool(done)


if __name__ == "__main__":
    sys.exit(0 if fetch(json.loads(Path(sys.argv[1]).read_text())) else 1)
