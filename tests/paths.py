"""Places that several tests need."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = REPOSITORY.parent / "shared" / "data" / "ms-flair"  # real volumes, which lie beside a repository and never in it
