"""Runs queries on fillings, in processes of their own that are killed when they take too long.

`sql_worker` is what those processes run, and says what else holds a query.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from envs.types import InputError
from envs.verify import sql_worker
from envs.verify.fillings import Filling
from envs.verify.given import Part

SECONDS = 1.0  # processor time of a query over all fillings together
# Wall time to answer a query, or to fill a database. Only a machine that is too busy needs so long.
PATIENCE = 30.0
MAX_QUERY = 10_000  # characters
MAX_REPLY = 16 * 2**20  # bytes
KEPT_DATABASES = 256  # per worker, about 70 KB each
BUSY = "evaluate again when the machine has less to do"
KEPT_WORKERS = 2 * (os.cpu_count() or 1)


def ask(filling: Filling | Part, query: str, seconds: float = SECONDS) -> tuple[dict[str, Any], float]:
    """Runs a query: any text.

    Returns:
        What `sql_worker` replies to a query (`rows` and `columns`, `invalid` or `failed`), and the seconds
        of processor time that it took.

    Raises:
        InputError: no worker can be started, it does not answer or was killed, or the domain is not one of
            SQL. Nothing can be said of the query then.
    """
    if reason := _no_query(query):
        return {"invalid": reason}, 0.0
    name = filling.name()
    worker = None
    try:
        worker = _workers.take(name)
        if name not in worker.loaded:
            worker.load(filling)
    except (OSError, RuntimeError, EOFError) as error:
        if worker:
            worker.end()
        reason = str(error) or "it does not answer"
        raise InputError(f"the SQLite worker cannot be started: {reason}") from None
    reply = _run(worker, name, query, seconds)
    if "failed" in reply:
        worker.end()  # it may not be in order any more
    else:
        _workers.put(worker)
    return reply, float(reply.get("spent", 0.0))


def _no_query(query: str) -> str:
    """Why a text is not worth asking about; empty where it is."""
    if len(query) > MAX_QUERY:
        return f"longer than {MAX_QUERY:,} characters"
    if not query.strip():
        return "empty"
    try:
        query.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return "has a NUL character" if "\0" in query else ""


def _run(worker: _Worker, name: str, query: str, seconds: float) -> dict[str, Any]:
    """The worker's reply. It is ended where it gives none."""
    too_long = {"failed": f"ran longer than {SECONDS:g} s"}
    if seconds <= 0:
        return too_long
    try:
        reply = worker.ask({"query": query, "of": name, "seconds": seconds}, PATIENCE)
    except TimeoutError:  # a query that is at work would have been ended before
        worker.end()
        raise InputError(f"the SQLite worker did not answer within {PATIENCE:g} s: {BUSY}") from None
    except (EOFError, ValueError):  # it ended, or wrote half a reply
        status = worker.end()
        if status == -signal.SIGPROF:
            return too_long
        if status in (-signal.SIGKILL, -signal.SIGTERM):
            raise InputError(f"the SQLite worker was killed: {BUSY}") from None
        return {"failed": "used too much memory"}
    return too_long if reply.get("failed") == sql_worker.TOO_LONG else reply


class _Worker:
    """A process that runs queries: see `sql_worker` for what it is asked and replies."""

    def __init__(self) -> None:
        self.loaded: dict[str, None] = {}  # names of its databases, oldest first
        environment = {}
        if "LD_LIBRARY_PATH" in os.environ:  # some Pythons cannot start without it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", sql_worker.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def load(self, filling: Filling | Part) -> None:
        """Makes a database; the oldest one goes where there are too many.

        Raises:
            TimeoutError, EOFError: see `ask`.
        """
        if len(self.loaded) >= KEPT_DATABASES:
            oldest = next(iter(self.loaded))
            self.ask({"drop": oldest}, PATIENCE)
            del self.loaded[oldest]
        self.ask({"load": filling.name(), "tables": filling.tables()}, PATIENCE)
        self.loaded[filling.name()] = None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to one request.

        Raises:
            TimeoutError: there is none after `seconds`.
            EOFError: the process has ended.
            ValueError: the reply is not JSON.
        """
        deadline = time.monotonic() + seconds
        self._send(json.dumps(request).encode())
        return json.loads(self._receive(deadline))

    def _send(self, content: bytes) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(len(content).to_bytes(4, "big") + content)
            self.process.stdin.flush()
        except OSError:
            raise EOFError from None

    def _receive(self, deadline: float) -> bytes:
        assert self.process.stdout
        poll = select.poll()
        poll.register(self.process.stdout, select.POLLIN)
        received, size = bytearray(), 4
        while len(received) < size:
            left = max(0.0, deadline - time.monotonic())
            if not poll.poll(1000 * left):
                raise TimeoutError
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            received += part
            if len(received) >= 4:
                size = 4 + int.from_bytes(received[:4], "big")
            if not part or size > MAX_REPLY:
                raise EOFError
        return bytes(received[4:])

    def end(self) -> int:
        """Ends it, if it has not ended, and returns its exit status: negative for a signal."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return self.process.wait()


class _Workers:
    """The processes that wait for work. A thread takes one, or starts one, and puts it back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []
        # A worker dies with the thread that started it, so one thread that never ends starts them all.
        self.starter = ThreadPoolExecutor(1, thread_name_prefix="sql-worker-starter")

    def take(self, name: str) -> _Worker:
        """An idle worker, one that has the database `name` if there is one.

        Raises:
            OSError, RuntimeError: no process can be started.
        """
        with self.lock:
            while self.idle:
                having_it = (worker for worker in self.idle if name in worker.loaded)
                worker = next(having_it, self.idle[-1])
                self.idle.remove(worker)
                if worker.process.poll() is None:
                    return worker
                worker.end()
        return self.starter.submit(_Worker).result()

    def put(self, worker: _Worker) -> None:
        with self.lock:
            if len(self.idle) < KEPT_WORKERS:
                self.idle.append(worker)
                return
        worker.end()

    def end(self) -> None:
        with self.lock:
            while self.idle:
                self.idle.pop().end()


_workers = _Workers()


def _forget() -> None:
    """After a fork the workers are the parent's."""
    global _workers
    _workers = _Workers()


def _end_all() -> None:
    _workers.end()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end_all)
