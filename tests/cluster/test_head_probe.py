"""A head that refuses connections is gone; one that is silent, or comes back, is not."""

from __future__ import annotations

import socket

from wmlsearch.cluster.head_probe import HeadProbe


def listener(port: int = 0) -> socket.socket:
    made = socket.create_server(("127.0.0.1", port))
    made.settimeout(5)
    return made


def test_the_time_since_the_head_has_refused_is_counted_until_it_is_back() -> None:
    now = [100.0]
    head = listener()
    port = head.getsockname()[1]
    probe = HeadProbe(f"127.0.0.1:{port}", lambda: now[0])
    assert probe.gone_s() == 0
    head.close()
    assert probe.gone_s() == 0, "it was looked at within the same second"
    now[0] = 101.0
    assert 0 < probe.gone_s() < 0.01
    now[0] = 107.5
    assert probe.gone_s() == 6.5
    head = listener(port)
    now[0] = 109.0
    assert probe.gone_s() == 0
    head.close()
    now[0] = 120.0
    assert 0 < probe.gone_s() < 0.01, "counted anew"


def test_a_silent_head_is_not_gone(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def silent(*_: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    assert HeadProbe("10.0.0.1:6379").gone_s() == 0
