"""Where the processor time of a command goes: all threads of one process under cProfile, with a clock of processor time.

    python jobs/profiles.py [--top 15] COMMAND ...

COMMAND is the arguments of `rdmpipe` (`build-index atelier --limit 500`), or a script of this folder and its arguments
(`jobs/bench_search.py --out DIR ...`). It runs in this process. Prints a Markdown table of the functions with the most
processor time of their own, in milliseconds, then the load and the totals. What the command prints goes to standard error. A
thread that waits uses no processor time, so waits are not listed: compare the total with the wall time.

cProfile makes small Python functions look slower than they are, and counts what a C function does in threads of its own (BLAS,
OpenMP) only in the total. Child processes are in the total only. From Python 3.12 on, cProfile allows one profile at a time, so
only the main thread is measured there.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import os
import pstats
import resource
import runpy
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

Where = tuple[str, int, str]  # a function: file, line, name


class Total(TypedDict):
    calls: int
    own: float  # seconds


@contextlib.contextmanager
def profiling() -> Iterator[list[cProfile.Profile]]:
    """Profile the block: this thread, and the threads that it starts."""
    profiles: list[cProfile.Profile] = []
    run = threading.Thread.run

    def run_profiled(thread: threading.Thread) -> None:
        profiles.append(profile := cProfile.Profile(time.thread_time))
        profile.runcall(run, thread)

    if sys.version_info < (3, 12):
        threading.Thread.run = run_profiled  # type: ignore[method-assign]
    profiles.append(main := cProfile.Profile(time.thread_time))
    try:
        with main:
            yield profiles
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]


def run_command(command: list[str]) -> None:
    """Run a script, or a command of rdmpipe, in this process. What it prints goes to standard error."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as pipeline/cli/app.py does
    script = command[0].endswith(".py")
    sys.argv = command if script else ["rdmpipe", *command]
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
        if script:
            runpy.run_path(command[0], run_name="__main__")
        else:
            from pipeline.cli.app import app  # its main() ends the process

            app()


def table(profiles: list[cProfile.Profile], top: int) -> str:
    """The functions with the most processor time of their own, as a Markdown table, and the time in the profile."""
    found = totals(profiles)
    whole = sum(total["own"] for total in found.values())
    lines = ["| function | calls | own ms | share |", "|---|---|---|---|"]
    for where, total in sorted(found.items(), key=lambda item: -item[1]["own"])[:top]:
        share = 100 * total["own"] / whole
        lines.append(f"| `{name_of(where)}` | {total['calls']:,} | {1000 * total['own']:,.0f} | {share:.1f} % |")
    return "\n".join([*lines, "", f"in the profile: {whole:.1f} s"])


def totals(profiles: list[cProfile.Profile]) -> dict[Where, Total]:
    """Calls and own processor time of each function, over all threads."""
    found: dict[Where, Total] = defaultdict(lambda: {"calls": 0, "own": 0.0})
    for profile in profiles:
        profile.create_stats()
        if not getattr(profile, "stats", None):
            continue  # a thread that never ended
        for where, (_, calls, own, _, _) in pstats.Stats(profile, stream=io.StringIO()).stats.items():  # type: ignore[attr-defined]
            found[where]["calls"] += calls
            found[where]["own"] += own
    return found


def name_of(where: Where) -> str:
    """`package/module.py:line function`, without the path of the installation."""
    file, line, name = where
    if file == "~":
        return name.strip("<>").replace("built-in method ", "").replace("method ", "")
    parts = Path(file).parts
    start = parts.index("site-packages") + 1 if "site-packages" in parts else max(0, len(parts) - 3)
    return f"{'/'.join(parts[start:])}:{line} {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", type=int, default=15, help="functions to list")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if not options.command:
        parser.error("give a command, such as: build-index atelier --limit 500")
    load, wall, busy = os.getloadavg()[0], time.perf_counter(), time.process_time()
    with profiling() as profiles:
        run_command(options.command)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(table(profiles, options.top))
    print(
        f"processor time of this process: {busy:.1f} s, of its child processes: {child.ru_utime + child.ru_stime:.1f} s; "
        f"wall {wall:.1f} s; load {load:.1f}"
    )


if __name__ == "__main__":
    main()
