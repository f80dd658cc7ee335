"""Worker: answers a query from one shard, a SQLite file.

A job is an object in JSON: ``year`` says which shard, ``since`` the first month, as in ``2022-06``. The
result is a list of ``[region, count, cents]``. The environment variable ``SHARDS`` names the directory of the
files.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from gearman_twisted import Job
from gearman_twisted.worker import in_thread

QUERY = "SELECT region, COUNT(*), SUM(cents) FROM sales WHERE month >= ? GROUP BY region"


@in_thread
def sales(job: Job) -> bytes:
    """Returns counts and sums by region. A thread, as SQLite lets its caller wait for the disk."""
    query = json.loads(job.workload)
    path = Path(os.environ["SHARDS"]).resolve() / f"sales-{int(query['year'])}.db"
    # Read only: a file that is not there is an error, not a new one.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return json.dumps(database.execute(QUERY, (query["since"],)).fetchall()).encode()
