"""Fixtures for the tests of stores."""

from __future__ import annotations

from tests.kit.databases import (
    database,
    mariadb,
    mysql_url,
    own_mariadb,
    own_postgres,
    postgres,
    postgres_url,
    server,
)
from tests.kit.redis_server import own_redis, redis_url, safe_redis

__all__ = [
    "database",
    "mariadb",
    "mysql_url",
    "own_mariadb",
    "own_postgres",
    "own_redis",
    "postgres",
    "postgres_url",
    "redis_url",
    "safe_redis",
    "server",
]
