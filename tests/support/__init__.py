"""What several tests share: servers on loopback, files written on the spot, the project's root."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
