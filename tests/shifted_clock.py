"""Run `predictions` with a wall clock that is as many seconds ahead of the machine's as the file SHIFT says at the time.

What the service reads is `time.time`; its monotonic clock stays as it is. The library libfaketime cannot do this to a
process with many threads: one thread reads the clock while another one reads the file again. Built with a lock against
that, it breaks `time.sleep` if the monotonic clock is left alone.
"""

import os
import time
from pathlib import Path

shift, machine_time = Path(os.environ["SHIFT"]), time.time
time.time = lambda: machine_time() + int(shift.read_text())

from predictions.cli.main import main  # noqa: E402, only now, so that no module has the other clock

main()
