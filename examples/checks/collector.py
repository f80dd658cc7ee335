"""Worker: passes the results of checks to Nagios as passive checks.

The environment variable ``COMMAND_FILE`` names Nagios' command file; any other file is written as well.
"""

from __future__ import annotations

import json
import os

from gearman_twisted import Job
from gearman_twisted.worker import in_thread


@in_thread
def collect(job: Job) -> None:
    """Append a line. In a thread, as Nagios' file is a pipe that blocks writers."""
    result = json.loads(job.workload)
    fields = (result["host"], result["service"], str(result["status"]), result["output"])
    # A line end in a field would begin another command.
    command = ";".join(["PROCESS_SERVICE_CHECK_RESULT", *fields]).replace("\n", " ")
    with open(os.environ["COMMAND_FILE"], "a") as file:  # noqa: PTH123
        file.write(f"[{result['time']}] {command}\n")
