"""The threads on which commands are executed."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Threads that live as long as the process: the sandbox's processes die with the thread that started
    them."""
    return ThreadPoolExecutor(2 * (os.cpu_count() or 1), thread_name_prefix="verify")
