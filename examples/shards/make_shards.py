"""Create four SQLite files with sales: one shard per year.

python make_shards.py DIRECTORY
"""

from __future__ import annotations

import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

YEARS = (2021, 2022, 2023, 2024)
REGIONS = ("north", "east", "south", "west")


def main(directory: str) -> None:
    """Write the files, with the same sales each time."""
    chance = random.Random(4730)
    Path(directory).mkdir(exist_ok=True)
    for year in YEARS:
        path = Path(directory) / f"sales-{year}.db"
        path.unlink(missing_ok=True)
        sales = [
            (f"{year}-{chance.randint(1, 12):02}", chance.choice(REGIONS), chance.randint(100, 99_999))
            for _ in range(chance.randint(500, 1500))
        ]
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE sales (month TEXT, region TEXT, cents INTEGER)")
            database.executemany("INSERT INTO sales VALUES (?, ?, ?)", sales)
        print(f"{path}: {len(sales)} sales")


if __name__ == "__main__":
    main(*sys.argv[1:])
