"""Values as bytes and back, for workloads and results; plain functions, to be called where they are wanted.

There is none for pickle on purpose: whoever may submit a job could run any code in its worker.
"""

from __future__ import annotations

import json
from typing import Any


def to_json(value: Any) -> bytes:
    """A value as JSON in UTF-8, as short as can be.

    Raises:
        TypeError: it holds something that JSON does not know.
        ValueError: it holds itself, or a number that is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def from_json(data: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none, or not in UTF-8.
    """
    return json.loads(data.decode())
