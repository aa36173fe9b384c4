"""The marker of the tests that need the simulated hosts of hosts.py."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs the hosts that `make cluster-test` simulates")
