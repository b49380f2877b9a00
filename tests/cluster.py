"""A real Ray cluster for tests: each node is a `ray start` process tree, in a network namespace where that is allowed.

Where namespaces are not allowed, nodes share the machine's network and differ by ports. Every process carries a marker in
its environment; only marked processes are ever ended. Nothing outside a private temporary directory is touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPO = Path(__file__).resolve().parent.parent
MARKER = "RDMPIPE_TEST_NODE"


def namespaces_allowed() -> bool:
    """Whether this process may make network namespaces and links between them."""
    if not shutil.which("ip") or os.environ.get("RDMPIPE_TEST_NO_NETNS"):
        return False
    name = f"rdmtry{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    link = ["ip", "link", "add", f"t{os.getpid()}", "type", "bridge"]
    fine = subprocess.run(link, capture_output=True).returncode == 0
    subprocess.run(["ip", "link", "del", f"t{os.getpid()}"], capture_output=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return fine


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def read_authentication_again() -> None:
    """Make Ray read its authentication mode and token from the environment again; it reads them once per process."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@dataclass
class Node:
    """One Ray node: its address, and how to find its processes."""

    name: str
    address: str
    marker: str
    namespace: str = ""

    def pids(self) -> list[int]:
        """The processes with its marker, and their children: Ray's agents write over their environment."""
        found: set[int] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self.marker:
                    found |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        return sorted(found)

    def kill(self) -> None:
        """End every process of the node at once, as a power cut would."""
        for _ in range(100):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)


@dataclass
class Cluster:
    """A head and workers. Nodes reach servers that listen on `host`."""

    folder: Path
    isolated: bool
    host: str  # this machine's address as the nodes see it
    env: dict[str, str]
    nodes: list[Node] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    started: int = 0
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)  # of the first node

    @property
    def dashboard(self) -> str:
        return f"http://{self.nodes[0].address}:{self.ports['dashboard']}"

    @property
    def gcs(self) -> str:
        return f"{self.nodes[0].address}:{self.ports['gcs']}"

    @property
    def client_env(self) -> dict[str, str]:
        return {name: self.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}

    def add(self, cpus: int = 1, hide: Path | None = None) -> Node:
        """Start one more node; the first is the head. hide: this node sees an empty directory there (namespaces only)."""
        number, self.started = self.started, self.started + 1
        node = Node(f"n{number}", self._address(number), self.marker if number == 0 else uuid.uuid4().hex)
        self.nodes.append(node)
        prefix: list[str] = []
        if self.isolated:
            node.namespace = f"{self._tag}n{number}"
            self._wire(node, number)
            prefix = ["ip", "netns", "exec", node.namespace]
            if hide is not None:  # `ip netns exec` gives it mounts of its own, too
                prefix += ["sh", "-c", 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"', "sh", str(hide)]
        ray = str(Path(sys.executable).with_name("ray"))
        options = f"--num-cpus {cpus} --num-gpus 0 --memory {1 << 30} --object-store-memory {80 << 20}".split()
        options += ["--disable-usage-stats", "--node-ip-address", node.address]
        for name in ("node-manager-port", "object-manager-port", "metrics-export-port", "dashboard-agent-listen-port"):
            port = self._port(name)
            options += [f"--{name}", str(port)]
            if number == 0:
                self.ports[name] = port
        if number == 0:
            self.ports |= {"gcs": self._port("gcs", 6379), "dashboard": self._port("dashboard", 8265)}
            options += ["--head", "--port", str(self.ports["gcs"]), "--temp-dir", str(self.folder / "session")]
            options += ["--dashboard-host", node.address, "--dashboard-port", str(self.ports["dashboard"])]
            options += ["--ray-client-server-port", str(self._port("client", 10001))]
        else:
            options += ["--address", self.gcs]
        done = subprocess.run(
            [*prefix, ray, "start", *options],
            env={**self.env, MARKER: node.marker},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, f"ray start of node {number} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return node

    def kill(self, node: Node) -> None:
        """End a node permanently."""
        node.kill()
        self.nodes.remove(node)
        if node.namespace:
            self._ip("netns", "del", node.namespace)

    def cable(self, node: Node, plugged: bool) -> None:
        """Take a node off the network, or back on it. Needs namespaces."""
        self._ip("link", "set", f"{self._tag}v{node.name[1:]}", "up" if plugged else "down")

    def close(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
            if node.namespace:
                subprocess.run(["ip", "netns", "del", node.namespace], capture_output=True)
        if self.isolated:
            subprocess.run(["ip", "link", "del", f"{self._tag}br"], capture_output=True)

    # ---- addresses

    @property
    def _tag(self) -> str:
        return f"rdm{os.getpid() % 100000}"

    def _address(self, number: int) -> str:
        return (
            f"{self.host.rsplit('.', 1)[0]}.{10 + number}"
            if self.isolated
            else f"127.0.0.{1 if number == 0 else 10 + number}"
        )

    def _port(self, name: str, usual: int = 0) -> int:
        """A node in its own namespace uses the usual ports, any other node free ports."""
        fixed = {"node-manager-port": 7001, "object-manager-port": 7002, "metrics-export-port": 7003}
        fixed["dashboard-agent-listen-port"] = 7004
        return (usual or fixed[name]) if self.isolated else free_port()

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def _wire(self, node: Node, number: int) -> None:
        """Make a namespace with one link to the bridge."""
        outside, inside = f"{self._tag}v{number}", f"{self._tag}i{number}"
        self._ip("netns", "add", node.namespace)
        self._ip("link", "add", outside, "type", "veth", "peer", "name", inside)
        self._ip("link", "set", outside, "master", f"{self._tag}br", "up")
        self._ip("link", "set", inside, "netns", node.namespace)
        self._ip("-n", node.namespace, "link", "set", "lo", "up")
        self._ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", inside)
        self._ip("-n", node.namespace, "link", "set", inside, "up")


@contextlib.contextmanager
def cluster(nodes: int = 3, env: dict[str, str] | None = None) -> Iterator[Cluster]:
    """A head without CPUs for workers, and `nodes - 1` workers of one CPU each. Token authentication is on."""
    folder = Path(tempfile.mkdtemp(prefix="rdmray"))
    token = folder / "token"
    token.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
    isolated = namespaces_allowed()
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PYTHONPATH": str(REPO),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_health_check_initial_delay_ms": "0",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "5",
        "RAY_num_prestart_python_workers": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "OMP_NUM_THREADS": "1",
        **(env or {}),
    }
    made = Cluster(folder, isolated, "127.0.0.1", settings)
    if isolated:
        made.host = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}.1"
        made._ip("link", "add", f"{made._tag}br", "type", "bridge")
        made._ip("addr", "add", f"{made.host}/24", "dev", f"{made._tag}br")
        made._ip("link", "set", f"{made._tag}br", "up")
    try:
        made.add(cpus=0)
        for _ in range(nodes - 1):
            made.add(cpus=1)
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


# ---- one cluster that all tests share


def shared_cluster(folder: Path) -> str:
    """The address of the Ray cluster of this folder, a node with nine CPUs. The first caller starts it."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        started = folder / "started"
        if not started.exists():
            (folder / "token").write_text(uuid.uuid4().hex + uuid.uuid4().hex)
            settings = {**os.environ, **authentication(folder), "PYTHONPATH": str(REPO)}
            settings |= {"RAY_num_prestart_python_workers": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
            made = Cluster(folder, False, "127.0.0.1", settings)
            (folder / "marker").write_text(made.marker)
            made.add(cpus=9)
            started.write_text(made.gcs)
        return started.read_text()


def our_actors() -> list[int]:
    """The processes of this driver's actors."""
    import ray

    return [process.pid for process in _actors(ray.get_runtime_context().get_job_id())]


def actors_of(driver: int) -> list[psutil.Process]:
    """The processes of the actors of another process that uses the cluster to which this process is connected."""
    from ray._private.state import jobs

    return [process for job in jobs() if job["DriverPid"] == driver for process in _actors(job["JobID"])]


def _actors(job: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name().startswith("ray::Worker") and process.environ().get("RAY_JOB_ID") == job:
                found.append(process)
    return found


def authentication(folder: Path) -> dict[str, str]:
    """The environment variables with which a process can use the cluster of this folder."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def end_shared_cluster(folder: Path) -> None:
    """End the cluster of this folder, if it was started, and remove the folder."""
    if (folder / "marker").exists():
        Node("n0", "127.0.0.1", (folder / "marker").read_text()).kill()
    shutil.rmtree(folder, ignore_errors=True)
