"""Where things lie in a checkout, for tests at any depth."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
PROCESSES = SUPPORT / "processes"
"""Programs that tests start as processes of their own."""
ROOT = SUPPORT.parents[1]
CORPUS = ROOT / "traces" / "corpus"
PROTOCOL_M = ROOT / "examples" / "protocol_m.py"
