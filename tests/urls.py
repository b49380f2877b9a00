"""A list of picture URLs, most of them good, and a server on 127.0.0.2 that answers the others with typical errors.

All other loopback addresses are refused, and so are redirects to them. The expected result of each kind is beside it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.encoders import RANDOM
from tests.server import Fault, Server

HOST = "127.0.0.2"
MOST = 300_000  # bytes of a picture
LIMITS = (
    "fetch = { max_bytes = 300000, silence_s = 4.0, total_s = 7.0, redirects = 3, connections = 12, pause_s = 0.0 }\n"
    "threads = 24\n"
)

# kind -> (rows of it in a list of 300, how it ends, how it ends when tried again with the server repaired; None: as before)
KINDS: dict[str, tuple[int, str, str | None]] = {
    "missing": (12, "http_404", ""),
    "forbidden": (3, "http_403", ""),
    "broken": (3, "http_500", ""),
    "cut": (6, "truncated", ""),
    "page": (6, "not_an_image", ""),
    "half": (4, "truncated", ""),  # a file cut short at its source: only decoding tells
    "slow": (2, "timeout", ""),
    "drip": (2, "timeout", ""),
    "endless": (3, "too_large", ""),
    "large": (3, "too_large", ""),
    "to_loopback": (5, "private_address", ""),
    "to_localhost": (2, "private_address", ""),
    "round": (3, "too_many_redirects", ""),
    "moved": (6, "", None),  # a redirect as it should be
    "opted_out": (6, "opt_out", None),
    "disallowed": (6, "robots", None),
    "literal": (4, "private_address", None),
    "nowhere": (2, "dns", None),
    "no_url": (3, "no_url", None),
    "other_scheme": (3, "bad_url", None),
    "unsafe": (8, "punsafe", None),
    "small": (8, "where", None),
    "twice": (4, "", None),
}
FILTERED = ("opt_out", "robots", "punsafe", "where")


@dataclass
class UrlList:
    """The served pictures, and the expected results."""

    kinds: list[str]
    urls: list[str | None]
    first: Counter[str] = field(default_factory=Counter)  # reasons, "" for ok, of the build
    then: Counter[str] = field(default_factory=Counter)  # the same after a retry

    def failed(self) -> list[int]:
        return [i for i, kind in enumerate(self.kinds) if KINDS.get(kind, (0, "", None))[1] not in ("", *FILTERED)]


def url_list(server: Server, file: Path, pictures: Sequence[bytes]) -> UrlList:
    """Write the list (Parquet: link, text, licence, punsafe, width) for so many pictures and have the server answer it."""
    count = len(pictures)
    kinds = [kind for kind, (rows, _, _) in KINDS.items() for _ in range(rows * count // 300)]
    kinds += ["good"] * (count - len(kinds))
    order = sorted(range(count), key=lambda i: i * 7919 % count if count % 7919 else i)  # spread over the list
    kinds = [kinds[i] for i in order]
    server.folder.mkdir(parents=True, exist_ok=True)
    (server.folder / "robots.txt").write_text("User-agent: *\nDisallow: /closed/\n\nUser-agent: others\nDisallow: /\n")
    (server.folder / "closed").mkdir()
    made = UrlList(kinds, [])
    rows: list[dict[str, Any]] = []
    for i, kind in enumerate(kinds):
        url = _serve(server, kind, i, pictures[i], made)
        made.urls.append(url)
        ends, again = KINDS.get(kind, (0, "", None))[1:]
        made.first[ends] += 1
        made.then[ends if again is None else again] += 1
        rows.append({"link": url, "text": f"picture {i}", "licence": f"licence {i % 3}",
                     "punsafe": 0.9 if kind == "unsafe" else 0.1, "width": 64 if kind == "small" else 512})  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=100)
    return made


def _serve(server: Server, kind: str, i: int, data: bytes, made: UrlList) -> str | None:
    """Serve one picture as its kind requires; returns the URL for the list."""
    path = f"/closed/{i}.png" if kind == "disallowed" else f"/{i}.png"
    port = server.url.rsplit(":", 1)[1]
    (server.folder / path.lstrip("/")).write_bytes(data)
    faults = {
        "missing": Fault("status", 404),
        "forbidden": Fault("status", 403),
        "broken": Fault("status", 500),
        "cut": Fault("cut", len(data) // 2),
        "page": Fault("html"),
        "half": Fault("short", len(data) // 2),
        "slow": Fault("slow", 60),
        "drip": Fault("drip"),
        "endless": Fault("endless"),
        "large": Fault("announce", MOST + 1),
        "to_loopback": Fault("status", 302, (("Location", f"http://127.0.0.1:{port}{path}"),)),
        "to_localhost": Fault("status", 301, (("Location", f"http://localhost:{port}{path}"),)),
        "round": Fault("status", 302, (("Location", path),)),
        "opted_out": Fault("headers", 0, (("X-Robots-Tag", "max-image-preview: none, noai"),)),
    }
    if kind in faults:
        server.fail(path, faults[kind], times=-1)
    if kind == "moved":
        server.fail(f"/old{path}", Fault("status", 302, (("Location", path),)), times=-1)
        return f"{server.url}/old{path}"
    literal = [f"http://10.0.0.1{path}", f"http://[::1]:{port}{path}", f"http://2130706433:{port}{path}",
               f"http://169.254.169.254{path}"]  # fmt: skip
    others = {"literal": literal[i % 4], "nowhere": f"http://nowhere{i}.invalid{path}", "no_url": None,
              "other_scheme": f"ftp://{HOST}{path}"}  # fmt: skip
    if kind == "twice":
        earlier = next((url for kind, url in zip(made.kinds, made.urls, strict=False) if kind == "good"), None)
        return earlier or server.url + path
    return others[kind] if kind in others else server.url + path


def manifest_of(path: Path, file: Path, more: str = "", shard_rows: int = 1000) -> str:
    path.write_text(
        f'name = "listed"\ntitle = "Listed"\nlicence = "see each row"\nterms = "none"\nopt_out = "none"\n'
        f"encoder = {json.dumps(RANDOM)}\n[source]\n"
        f'kind = "urls"\npath = {json.dumps(str(file))}\nimage = "link"\ncaption = "text"\nshard_rows = {shard_rows}\n'
        f"[source.options]\n{LIMITS}drop_above = {{ punsafe = 0.5 }}\n{more}"
    )
    return str(path)
