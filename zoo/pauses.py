"""Pauses between tries: growing, and spread by chance so that those who were refused together don't come back together.

Takes what the first and the longest may be. Gives one pause after another. Next: `zoo.model_logs`, `zoo.transfer`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass


@dataclass(kw_only=True)
class Pauses:
    """Before try n + 1: 0 to `first` · 2^(n-1) seconds, at most `longest`, evenly spread."""

    first: float  # seconds
    longest: float  # seconds
    made: int = 0

    def wait(self) -> None:
        time.sleep(random.uniform(0, min(self.longest, self.first * 2 ** min(self.made, 30))))
        self.made += 1
