"""Queues jobs that wait for the model, and runs them in batches across connections."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import Gauge, Histogram

from .jobs import Job

logger = logging.getLogger("uvicorn.error")

ROWS = Histogram(
    "magnet_batch_rows", "Rows per batch", ["kind"], buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
SECONDS = Histogram("magnet_batch_seconds", "Seconds per batch", ["kind"])
WAITING = Gauge("magnet_rows_waiting", "Rows in the queue", ["kind"])

WINDOW = 0.005
"""Seconds in which further jobs may join a batch."""


class Busy(Exception):
    """The queue is full.

    Attributes:
        retry_after: the seconds after which it may have room.
    """

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class Queue:
    """Jobs of one kind, and the thread in which their batches run, one after another.

    Args:
        kind: its name in the metrics.
        run: runs jobs with equal keys.
        max_rows: the most rows in a batch. A larger job gets a separate batch.
        max_waiting: the most rows that may wait. Beyond that, jobs are refused with `Busy`.
    """

    def __init__(
        self, kind: str, run: Callable[[Sequence[Any]], None], max_rows: int, max_waiting: int
    ):
        self.kind, self.run, self.max_rows, self.max_waiting = kind, run, max_rows, max_waiting
        self.waiting: list[Job] = []
        self.seconds_per_row = 0.05
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, f"magnet-{kind}")
        WAITING.labels(kind).set_function(lambda: self.rows_waiting)

    @property
    def rows_waiting(self) -> int:
        """Waiting rows whose clients are still connected."""
        return sum(job.size for job in self.waiting if not job.cancelled)

    def put(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            Busy: the queue is full.
        """
        rows = self.rows_waiting
        if rows and rows + job.size > self.max_waiting:
            raise Busy(max(1, math.ceil(rows * self.seconds_per_row)))
        self.waiting.append(job)
        self._arrived.set()

    async def work(self) -> None:
        """Run batches until this is cancelled."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(WINDOW)
            if jobs := self._take():
                await self._run(jobs)

    async def _run(self, jobs: list[Job]) -> None:
        rows, began = sum(job.size for job in jobs), time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self.run, jobs)
        except Exception as error:  # an answer for every request, whatever happens
            logger.exception("a batch of %s failed", self.kind)
            for job in jobs:
                job.tell(error)
        seconds = time.monotonic() - began
        self.seconds_per_row += 0.2 * (seconds / rows - self.seconds_per_row)
        ROWS.labels(self.kind).observe(rows)
        SECONDS.labels(self.kind).observe(seconds)

    def _take(self) -> list[Job]:
        """Take the oldest job, and later ones that fit into its batch."""
        jobs: list[Job] = []
        rows, rest = 0, []
        for job in self.waiting:
            if job.cancelled:
                continue
            if not jobs or (job.key == jobs[0].key and rows + job.size <= self.max_rows):
                jobs.append(job)
                rows += job.size
            else:
                rest.append(job)
        self.waiting = rest
        if not rest:
            self._arrived.clear()
        return jobs
