"""Where the repository is, and the configuration of a run that takes seconds."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "tests" / "support" / "tiny_config.py")
