"""A small real command for job tests: `python -m tests.jobprogram VERB ...`; each start adds a line to ./starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main(verb: str, *rest: str) -> int:
    with Path("starts").open("a") as handle:
        handle.write(f"{os.getpid()} {verb} {' '.join(rest)}\n")
    starts = len(Path("starts").read_text().splitlines())
    if verb == "say":
        print("some progress", file=sys.stderr)
        print(json.dumps({"name": "db", "ok": 9, "filtered": 1, "failed": 0, "input": 10, "arguments": rest}))
    elif verb == "leak":
        print("the value is " + os.environ["MY_TOKEN"], file=sys.stderr)
        print(json.dumps({"seen": os.environ["MY_TOKEN"]}))
        return 1
    elif verb == "environment":
        print(json.dumps({name: os.environ.get(name, "") for name in rest} | {"cwd": str(Path.cwd())}))
    elif verb == "fail":
        print("it broke", file=sys.stderr)
        return 3 if starts <= int(rest[0]) else 0
    elif verb == "misuse":
        return 2
    elif verb == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path("pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    elif verb == "sleep":
        time.sleep(float(rest[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
