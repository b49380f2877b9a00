"""Fetch a list of addresses politely: few connections to a host at a time, pauses between requests, and robots rules followed.

Reads: the network, through an opener. Writes: pictures into one spool file, and the files of web/slots.py, which make the
limits of a host hold for all processes of this machine. Addresses wait in a queue for each host, so that a slow host does not
delay others. After answers 429, and 503 with Retry-After, the host is given a pause and the address is queued again; a
host that keeps refusing is set aside, and its addresses fail with the reason `host_refused`. Memory: the addresses, and
one picture for each thread.
"""

from __future__ import annotations

import email.utils
import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.sources.web.addresses import Refused
from pipeline.sources.web.opener import (
    AGAIN_S,
    ASKS_TOO_MUCH,
    Answer,
    FetchRules,
    SafeOpener,
    host_of,
    may_pass,
    moved_to,
)
from pipeline.sources.web.slots import HostSlots

_TRIES = 5  # requests for an address that is answered with 429

_SLOWEST_S = 5.0  # the longest pause after answers 429 without Retry-After


@dataclass
class HostFigures:
    """Counts of requests to one host and of their results."""

    requests: int = 0
    ok: int = 0
    failed: int = 0
    bytes: int = 0
    slowed: int = 0  # answers that asked for a pause
    set_aside: str = ""  # the reason why it was set aside; empty: it was not


@dataclass
class _Task:
    """One address in progress: where it leads now, and the attempts so far."""

    url: str  # as it is in the list
    now: str  # after redirects
    hops: int = 0
    attempts: int = 0
    waits: int = 0


@dataclass
class _Host:
    name: str
    pause_s: float
    limit: int = 1  # until the site's rules are known
    known: bool = False
    delay_s: float = 0.0  # its Crawl-delay
    ready: float = 0.0  # time.monotonic() from which on requests are allowed
    active: int = 0
    refused: int = 0  # refusals in a row
    offered: bool = False  # it is in the heap of available hosts
    queue: deque[_Task] = field(default_factory=deque)
    figures: HostFigures = field(default_factory=HostFigures)


class PoliteFetcher:
    """Fetches all addresses of a list in the background; `result` waits for one of them. Shared by threads."""

    def __init__(
        self, opener: SafeOpener, rules: FetchRules, urls: Sequence[str], threads: int, until: float, spool: Path
    ) -> None:
        self.opener, self.rules, self.until = opener, rules, until
        self._hosts: dict[str, _Host] = {}
        self._results: dict[str, tuple[int, int] | Refused] = {}
        self._lock = threading.Lock()
        self._awaited: dict[str, threading.Event] = {}  # by address: set when it is done
        self._waiting: list[tuple[float, int, _Host]] = []  # a heap of available hosts, each once
        self._numbers = itertools.count()
        # One idle thread watches the clock for all; the others sleep until there is work for them. If all of them watched,
        # every answer and every pause would wake every thread.
        self._watch, self._sleepers = threading.Condition(self._lock), threading.Condition(self._lock)
        self._watched_until: float | None = None  # when the watching thread wakes; None: no thread watches
        self._spool = spool.open("w+b")
        self._written = 0
        self._slots = HostSlots()
        self._asked = set(urls)
        self._left = len(self._asked)
        with self._lock:
            for url in dict.fromkeys(urls):
                self._enqueue(_Task(url, url))
        for number in range(min(threads, max(1, self._left))):
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True).start()

    def result(self, url: str) -> bytes:
        """The bytes of an address of the list, once it is done. Raises Refused."""
        if url not in self._asked:
            raise Refused("lost: it is not in the list")
        with self._lock:
            done = None if url in self._results else self._awaited.setdefault(url, threading.Event())
        if done is not None:
            done.wait()
        found = self._results[url]
        if isinstance(found, Refused):
            raise found
        return os.pread(self._spool.fileno(), found[1], found[0])

    def figures(self) -> dict[str, HostFigures]:
        """Figures by host, the hosts with the most requests first."""
        with self._lock:
            hosts = sorted(self._hosts.values(), key=lambda host: (-host.figures.requests, host.name))
            return {host.name: host.figures for host in hosts}

    # ---- the queues; the caller holds the lock

    def _enqueue(self, task: _Task) -> None:
        try:
            name = host_of(task.now)
        except Refused as refused:
            self._finish(task, refused)
            return
        host = self._hosts.setdefault(name, _Host(name, self.rules.pause_s))
        host.queue.append(task)
        self._offer(host)

    def _offer(self, host: _Host) -> None:
        """Put a host that has addresses and a free connection into the heap in which threads look for work."""
        if host.figures.set_aside:
            self._set_aside(host, host.figures.set_aside)
        if host.queue and host.active < host.limit and not host.offered:
            heapq.heappush(self._waiting, (host.ready, next(self._numbers), host))
            host.offered = True

    def _finish(self, task: _Task, found: tuple[int, int] | Refused) -> None:
        if task.url not in self._results:
            self._results[task.url] = found
            self._left -= 1
        if (done := self._awaited.pop(task.url, None)) is not None:
            done.set()

    def _next(self) -> tuple[_Host, _Task] | None:
        """A host that is available now, and one of its addresses; None if nothing is left. Waits until there is one."""
        with self._lock:
            while self._left:
                now = time.monotonic()
                if now >= self.until:
                    self._give_up_all()
                    break
                host = self._ready_host(now)
                if host is not None:
                    task = host.queue.popleft()
                    host.active += 1
                    host.ready = max(host.ready, now + max(host.pause_s, host.delay_s))
                    self._offer(host)
                    self._tell()
                    return host, task
                wakes = min(self.until, self._waiting[0][0]) if self._waiting else self.until
                if self._watched_until is not None:
                    self._tell()
                    self._sleepers.wait()
                    continue
                self._watched_until = wakes
                self._watch.wait(wakes - now)
                self._watched_until = None
            self._sleepers.notify_all()
            self._watch.notify_all()
            return None

    def _ready_host(self, now: float) -> _Host | None:
        """The host at the top of the heap if it is available now. Hosts that have to wait longer move down."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, host = heapq.heappop(self._waiting)
            host.offered = False
            if host.ready <= now and host.queue and host.active < host.limit:
                return host
            self._offer(host)
        return None

    def _tell(self) -> None:
        """Make sure that a thread watches the clock for the host at the top of the heap."""
        if not self._waiting:
            return
        if self._watched_until is None:
            self._sleepers.notify()
        elif self._waiting[0][0] < self._watched_until:
            self._watch.notify()

    def _give_up_all(self) -> None:
        for host in self._hosts.values():
            while host.queue:
                host.figures.failed += 1
                self._finish(host.queue.popleft(), Refused("deadline: the shard's time was up"))

    def _set_aside(self, host: _Host, why: str) -> None:
        host.figures.set_aside = why
        while host.queue:
            host.figures.failed += 1
            self._finish(host.queue.popleft(), Refused(f"host_refused: {why}"))

    # ---- the work of a thread

    def _work(self) -> None:
        while (found := self._next()) is not None:
            host, task = found
            with self._slots.take(host.name, host.limit, host.pause_s, host.delay_s) as wait:
                outcome = self._ask(host, task) if not wait else None
            with self._lock:
                host.active -= 1
                if outcome is None:  # other processes have the host's connections, or its turn
                    host.queue.appendleft(task)
                    host.ready = max(host.ready, time.monotonic() + wait)
                else:
                    self._settle(host, task, outcome)
                self._offer(host)

    def _ask(self, host: _Host, task: _Task) -> Answer | Refused:
        """One request. The first request to a host reads the site's rules instead, and the address is queued again."""
        try:
            if not host.known:
                delay = self.opener.prepare(task.now)
                with self._lock:
                    host.known, host.delay_s = True, delay
                    host.limit = 1 if delay else max(1, self.rules.connections)
                    host.ready = max(host.ready, time.monotonic() + max(host.pause_s, delay))
            with self._lock:
                host.figures.requests += 1
            return self.opener.visit(task.now, min(time.monotonic() + self.rules.total_s, self.until))
        except Refused as refused:
            return refused
        except Exception as error:  # an unexpected answer; without a reason, callers would wait for the address forever
            return Refused(f"not_fetched: {type(error).__name__}: {error}")

    def _settle(self, host: _Host, task: _Task, outcome: Answer | Refused) -> None:
        """Record the result of a request, and queue the address again if necessary."""
        now = time.monotonic()
        host.ready = max(host.ready, now + host.delay_s)
        if isinstance(outcome, Refused):
            self._failed(host, task, outcome)
        elif outcome.status == 200:
            host.refused, host.pause_s = 0, max(self.rules.pause_s, host.pause_s * 0.8)
            host.limit = 1 if host.delay_s else min(max(1, self.rules.connections), host.limit + 1)
            host.figures.ok += 1
            host.figures.bytes += len(outcome.body)
            self._finish(task, self._store(outcome.body))
        elif moved := moved_to(outcome):
            host.refused = 0
            task.hops, task.now = task.hops + 1, moved
            if task.hops > self.rules.redirects:
                host.figures.failed += 1
                self._finish(task, Refused(f"too_many_redirects: more than {self.rules.redirects}"))
            else:
                self._enqueue(task)
        elif outcome.status == 429 or (outcome.status == 503 and outcome.headers.get("Retry-After")):
            self._slow_down(host, task, outcome, now)
        else:
            self._failed(host, task, Refused(f"http_{outcome.status}: {outcome.url}"))

    def _failed(self, host: _Host, task: _Task, refused: Refused) -> None:
        passing = may_pass(refused)
        host.refused = host.refused + 1 if passing else 0
        task.attempts += 1
        if str(refused).startswith(ASKS_TOO_MUCH):
            host.figures.failed += 1
            self._finish(task, refused)
            self._set_aside(host, str(refused).removeprefix(ASKS_TOO_MUCH))
        elif passing and host.refused >= self.rules.refusals:
            host.figures.failed += 1
            self._finish(task, refused)
            self._set_aside(host, f"{host.name} failed {host.refused} times in a row, last: {refused}")
        elif passing and task.attempts < self.rules.attempts:
            host.ready = max(host.ready, time.monotonic() + AGAIN_S)
            host.queue.append(task)
        else:
            host.figures.failed += 1
            self._finish(task, refused)

    def _slow_down(self, host: _Host, task: _Task, answer: Answer, now: float) -> None:
        """A host asked for a pause: continue after it, over one connection."""
        host.figures.slowed += 1
        host.refused += 1
        task.waits += 1
        host.limit = 1
        host.pause_s = min(_SLOWEST_S, max(2 * host.pause_s, 0.1))
        wait = retry_after(answer.headers.get("Retry-After"))
        wait = min(2.0**host.refused * AGAIN_S, 60.0) if wait is None else wait
        refused = Refused(f"http_{answer.status}: {answer.url}")
        if task.waits >= _TRIES:
            host.figures.failed += 1
            self._finish(task, refused)
        else:
            host.queue.appendleft(task)
        if host.refused >= self.rules.refusals:
            self._set_aside(host, f"{host.name} answered {answer.status} {host.refused} times in a row")
        elif wait > self.rules.most_wait_s or now + wait >= self.until:
            self._set_aside(host, f"{host.name} asks to wait {wait:.0f} s")
        else:
            host.ready = max(host.ready, now + wait)

    def _store(self, body: bytes) -> tuple[int, int] | Refused:
        place = self._written, len(body)
        try:
            if os.pwrite(self._spool.fileno(), body, place[0]) < len(body):
                return Refused("not_stored: no space left on the disk")
        except OSError as error:
            return Refused(f"not_stored: {error}")
        self._written += len(body)
        return place


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if it says nothing."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        return None
