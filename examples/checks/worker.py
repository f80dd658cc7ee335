"""Worker: runs check commands as Nagios does, and submits their output as jobs for ``check_results``.

A job is an object in JSON: ``host``, ``service`` and ``command``, a list of which the first is the name of a
program in the directory ``plugins`` beside this file. Its exit status is 0 for OK, 1 for WARNING, 2 for
CRITICAL and 3 for UNKNOWN, its first line of output is for people. The environment variable
``GEARMAN_SERVER`` says where results go.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

from twisted.internet.threads import deferToThread

from gearman_twisted import GearmanClient, Job
from gearman_twisted.errors import GearmanError, RetryLater

PLUGINS = Path(__file__).parent / "plugins"
TIMEOUT = 30
UNKNOWN = 3

client = GearmanClient(os.environ["GEARMAN_SERVER"])


def run(command: list[str]) -> tuple[int, str]:
    """Run a plugin; return its status and its line. Errors are a status too."""
    name, *arguments = command
    # Only plugins of that directory, and no shell: clients must not run arbitrary commands.
    if name not in {plugin.name for plugin in PLUGINS.iterdir()}:
        return UNKNOWN, f"there is no plugin {name!r}"
    try:
        done = subprocess.run(
            [PLUGINS / name, *arguments], capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return UNKNOWN, f"no answer within {TIMEOUT} seconds"
    except OSError as error:
        return UNKNOWN, f"cannot run {name}: {error}"
    line = done.stdout.partition("\n")[0] or "no output"
    return done.returncode if 0 <= done.returncode <= UNKNOWN else UNKNOWN, line


async def check(job: Job) -> None:
    """Run a check. Its job ends only after its result is stored by the server."""
    wanted = json.loads(job.workload)
    status, line = await deferToThread(run, wanted["command"])
    result = {
        "time": int(time.time()),
        "host": wanted["host"],
        "service": wanted["service"],
        "status": status,
        "output": line,
    }
    try:
        await client.submit_background("check_results", json.dumps(result).encode(), retry=True)
    except GearmanError as error:
        # The check runs again, which is harmless.
        raise RetryLater(10) from error
