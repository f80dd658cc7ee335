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
    """Return counts and sums by region. In a thread, as SQLite blocks."""
    query = json.loads(job.workload)
    path = Path(os.environ["SHARDS"]).resolve() / f"sales-{int(query['year'])}.db"
    # Read only: a missing file is an error, and not created.
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return json.dumps(database.execute(QUERY, (query["since"],)).fetchall()).encode()
