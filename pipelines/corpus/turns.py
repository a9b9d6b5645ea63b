"""What the threads of one actor share: the right to label, and the account of what the process spends."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Several may work at once, or one that has to be alone; who waits to be alone comes before newcomers."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.num_working = self.num_waiting = 0
        self.is_alone = False

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[None]:
        """Wait for a turn, and have it for the time of the block."""
        with self.condition:
            self.num_waiting += alone
            if alone:
                self.condition.wait_for(lambda: not self.num_working)
            else:
                self.condition.wait_for(lambda: not self.is_alone and not self.num_waiting)
            self.num_waiting -= alone
            self.num_working += 1
            self.is_alone = alone
        try:
            yield
        finally:
            with self.condition:
                self.num_working -= 1
                self.is_alone = False
                self.condition.notify_all()


class Meter:
    """Time that passed and CPU time of this process, each told once although the work overlaps."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.told = time.perf_counter()
        self.cpu_told = time.process_time()

    def read(self, since: float) -> tuple[float, float]:
        """(busy, CPU) seconds up to now of work that began at `since`, less what other work has told already.

        Args:
            since: by `time.perf_counter`.
        """
        with self.lock:
            now, cpu = time.perf_counter(), time.process_time()
            busy, spent = now - max(since, self.told), cpu - self.cpu_told
            self.told, self.cpu_told = now, cpu
            return busy, spent
