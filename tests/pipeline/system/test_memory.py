import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
from pipeline.system.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**22)
before = faults()
for _ in range(20):
    np.ones(2**22)  # 32 MiB
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


COUNT_BYTES = """
from pipeline.system.memory import keep_freed_memory, return_freed_memory
keep_freed_memory()
import numpy as np
import psutil
blocks = [np.ones(2**20) for _ in range(16)]  # 128 MiB
pinned = np.ones(2**10)
del blocks
kept = psutil.Process().memory_info().rss
return_freed_memory()
print(kept - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_what_is_kept_is_given_back_when_a_stage_is_done() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_BYTES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_a_large_block_that_was_freed_is_not_faulted_in_again() -> None:
    assert faults("as it is") > 10 * faults("kept")
