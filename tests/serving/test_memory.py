"""What the C library keeps: few heaps, however many threads have loaded something."""

import re
import subprocess
import sys

import pytest

THREADS = """
import ctypes, os, threading
from serving.memory import bound_heaps, give_back
if {bounded}:
    bound_heaps()
libc, barrier = ctypes.CDLL(None), threading.Barrier(8)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
def work():
    barrier.wait()
    held = [libc.malloc(5000) for _ in range(200)]
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
give_back(at_once=True)
out = ctypes.c_void_p(libc.fdopen(os.dup(1), b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(bounded: bool) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", THREADS.format(bounded=bounded)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return len(re.findall(r"<heap nr=", ran.stdout))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's own settings")
def test_threads_share_two_heaps() -> None:
    assert heaps(bounded=False) > 2
    assert heaps(bounded=True) <= 2
