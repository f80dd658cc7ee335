"""Convert values to bytes and back, for workloads and results.

There is deliberately no pickle: anyone who may submit a job could run any code in its worker.
"""

from __future__ import annotations

import json
from typing import Any


def to_json(value: Any) -> bytes:
    """Return a value as compact JSON in UTF-8.

    Raises:
        TypeError: it contains a type that JSON does not have.
        ValueError: it contains itself, or a number that is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or not UTF-8.
    """
    return json.loads(data.decode())
