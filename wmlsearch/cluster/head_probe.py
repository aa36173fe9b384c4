"""Whether the head of a cluster still runs: a driver that calls a dead head blocks for a minute, then Ray ends it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

PROBE_S = 1.0  # between two looks
ANSWER_S = 2.0
# So long a head may be gone: one with fault tolerance comes back. Ray itself ends the driver after 60 s.
RESTART_S = 45.0


class HeadProbe:
    """Looks whether anything listens at the address of a cluster's head.

    Only a refusal counts: the head's machine is there, and its server is not. A head that is silent may be behind a
    network that is cut, which Ray survives.

    Args:
        address: "HOST:PORT" of the head's server.
        clock: Returns seconds.
    """

    def __init__(self, address: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self.clock = clock
        self._looked: float | None = None
        self._gone_since: float | None = None

    def gone_s(self) -> float:
        """Return for how many seconds the head has been gone; 0.0 if it listens, or does not refuse."""
        now = self.clock()
        if self._looked is None or now - self._looked >= PROBE_S:
            self._looked = now
            self._gone_since = (self._gone_since or now) if self._is_refused() else None
        return 0.0 if self._gone_since is None else max(now - self._gone_since, 1e-9)

    def _is_refused(self) -> bool:
        with contextlib.suppress(OSError):
            host, _, port = self.address.rpartition(":")
            try:
                socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()
            except ConnectionRefusedError:
                return True
        return False
