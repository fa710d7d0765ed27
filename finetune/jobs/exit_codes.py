"""What a role's process says by its exit code."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1  # error.json says why
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: everything is saved, and the same command resumes
EXIT_PEER_LOST = 76  # another process of its cluster has gone; this one has nothing to say of itself
EXIT_NOT_STARTED = 69  # EX_UNAVAILABLE: another process has its role or its port; stderr says which
