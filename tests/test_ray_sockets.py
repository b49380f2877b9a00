"""A Ray cluster that rdmpipe starts: the addresses on which it listens, and its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import REPO

pytestmark = pytest.mark.cluster

DRIVER = """
import os, sys
from pipeline.execution import ray_connection
before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
with ray_connection():
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    print(ray.get(ray.remote(lambda: 7).remote()), flush=True)
    sys.stdin.readline()
after = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH") or name.startswith("RAY_ENABLE")}
print(after == {name: value for name, value in before.items() if name in after}, flush=True)
"""

CLIENT = """
import sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("in:", len(ray.nodes()))
"""


def descendants(pid: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> dict[str, str]:
    """Local addresses on which the processes listen, each with its process's name."""
    owners = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                owners[os.readlink(file)] = Path(f"/proc/{pid}/comm").read_text().strip()  # noqa: PTH115
            except OSError:
                continue
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in owners:
                found[fields[1]] = owners[f"socket:[{fields[9]}]"]
    return found


def is_loopback(address: str) -> bool:
    host = address.split(":")[0]  # in the machine's byte order: 127.x.x.x ends in 7F, as does ::ffff:127.x.x.x
    mapped = len(host) == 8 or host.startswith("0000000000000000FFFF0000")
    return host.endswith("7F") if mapped else host == "00000000000000000000000001000000"  # ::1


def test_our_own_cluster_listens_on_loopback_alone_and_asks_for_a_token() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**variables, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert driver.stdin is not None and driver.stdout is not None
    try:
        address, answer = driver.stdout.readline().strip(), driver.stdout.readline().strip()
        assert answer == "7" and address.startswith("127.0.0.1:")
        sockets = listening(descendants(driver.pid))
        assert {"gcs_server", "raylet"} <= set(sockets.values())
        assert {name: where for where, name in sockets.items() if not is_loopback(where)} == {}
        for token in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            client = subprocess.run(
                [sys.executable, "-c", CLIENT, address], capture_output=True, text=True, timeout=250,
                env={**variables, **token, "RAY_gcs_rpc_server_reconnect_timeout_s": "5"},
            )  # fmt: skip
            assert "in:" not in client.stdout and client.returncode != 0
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert driver.stdout.readline().strip() == "True"  # the settings end with the cluster
        assert driver.wait(120) == 0
    finally:
        driver.kill()
        driver.communicate()
