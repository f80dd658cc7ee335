"""Arguments of a worker that make no sense, on both event loops."""

from __future__ import annotations

from typing import Any

import pytest

from gearman_twisted.errors import ConfigError
from tests.kit.loops import TestLoop


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"servers": 3}, "a server is given as text.*not as 3"),
        ({"servers": [3]}, "a server is given as text.*not as 3"),
        ({"servers": []}, "at least one server"),
        ({"functions": 3}, "functions takes functions or modules that are marked .*, not 3"),
        ({"functions": "module"}, "functions takes .* not 'module'"),
        ({"functions": {"f": len}}, "functions takes .* not {'f'"),
        ({"functions": len}, "has no function that is marked"),
    ],
)
def test_arguments_that_make_no_sense(loop: TestLoop, arguments: dict[str, Any], says: str) -> None:
    """They are refused when the worker is made, in words of our own."""
    with pytest.raises(ConfigError, match=says):
        loop.face("worker").GearmanWorker(**arguments, **loop.options)
