"""Our server answers as Debian's gearmand does, but for the differences that are allowed and documented."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from gearman_twisted.wire.constants import PacketType
from tests.differential.examples import EXAMPLES
from tests.differential.match import Match, Report
from tests.differential.player import PROFILES, Hung
from tests.differential.rules import ANSWERS, EXCLUDED, RULES
from tests.differential.script import SCRIPTS, Script, packet
from tests.kit.gearmand import Gearmand
from tests.kit.paths import doc_page
from tests.kit.servers import WirePeer

PAGE = doc_page("differences.md").read_text()
# gearmand's functions stay for ever, and each makes its lists longer.
_SCRIPTS_PER_PROCESS = 300


class Arena:
    """A gearmand for each profile, started anew when it hangs, dies or has seen enough.

    Attributes:
        played: how many scripts were played to their end.
        hung: how many were given up, because gearmand hung or died.
        steps: how many steps were compared, and how many there were.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[str, Gearmand] = {}
        self._numbers = itertools.count()
        self._used: dict[str, int] = {}
        self.played = 0
        self.hung = 0
        self.steps = [0, 0]

    def play(self, script: Script) -> Report | None:
        """Plays a script; None if gearmand did not survive it."""
        name = script.profile
        self._used[name] = self._used.get(name, 0) + 1
        if self._used[name] > _SCRIPTS_PER_PROCESS:
            self._stop(name)
        if name not in self._servers:
            directory = self._directory / f"{name}-{next(self._numbers)}"
            directory.mkdir()
            self._used[name] = 1
            self._servers[name] = Gearmand(directory, "-t", "1", *PROFILES[name][1])
        try:
            report = Match(script, self._servers[name], b"%06d" % next(self._numbers)).play()
        except Hung:
            self.hung += 1
            self._stop(name)
            return None
        self.played += 1
        self.steps[0] += report.steps
        self.steps[1] += report.planned
        return report

    def _stop(self, name: str) -> None:
        self._servers.pop(name).close()

    def close(self) -> None:
        """Ends all that was started."""
        for name in list(self._servers):
            self._stop(name)


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Where the two servers meet."""
    made = Arena(tmp_path_factory.mktemp("gearmand"))
    yield made
    made.close()


def campaign(arena: Arena, scripts: int) -> None:
    """Plays so many random scripts, and holds that nearly all of them could be compared to their end."""
    played, hung, steps = arena.played, arena.hung, list(arena.steps)

    @settings(
        max_examples=scripts,
        # The same scripts each time, as a merge must not hang on a corner that nobody has met before;
        # `make differential` looks for those.
        derandomize="FRESH_SCRIPTS" not in os.environ,
        deadline=None,
        print_blob=True,
        # What fails is shrunk against a process that keeps what earlier scripts left: explaining is too dear.
        phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(SCRIPTS)
    def play(script: Script) -> None:
        arena.play(script)

    play()
    assert arena.played - played >= 0.98 * scripts
    assert arena.hung - hung <= 0.01 * scripts
    assert arena.steps[0] - steps[0] >= 0.85 * (arena.steps[1] - steps[1]), "rules end too many scripts"


def test_random_scripts(arena: Arena) -> None:
    """Whatever peers send, ours answers it as gearmand does."""
    campaign(arena, 200)


@pytest.mark.soak
def test_many_random_scripts(arena: Arena) -> None:
    """The same, at length."""
    campaign(arena, 3000)


@pytest.mark.parametrize("rule", RULES)
def test_rules_are_needed(rule: str, arena: Arena) -> None:
    """Each allowed difference is there, and nothing else comes with it."""
    report = arena.play(EXAMPLES[rule])
    assert report is not None
    assert rule in report.used


def test_the_answers_to_what_kills_are_all_allowed() -> None:
    """Every answer where gearmand has none belongs to a rule."""
    assert set(ANSWERS) <= set(RULES)
    assert set(EXAMPLES) == set(RULES)


@pytest.mark.parametrize(
    "deadly", [packet(0x80000000, b""), b"create function \n"], ids=["type", "create function"]
)
def test_what_kills_gearmand(deadly: bytes, gearmand: Gearmand) -> None:
    """gearmand dies of a type of 32 bits, and of a function without a name; so they are in no script."""
    with WirePeer(gearmand.port) as peer:
        peer.socket.sendall(deadly)
        assert peer.receive() is None
    assert gearmand.process.wait(timeout=30) != 0


def test_a_bare_line_feed_cuts_a_name(gearmand: Gearmand) -> None:
    """gearmand cuts the last letter of a name that ends with a bare LF; so scripts send CRLF there."""
    with WirePeer(gearmand.port) as peer:
        assert peer.text(b"create function abc", b"\r\n") == b"OK\r\n"
        assert peer.text(b"status", b".\n") == b"ab\t0\t0\t0\n.\n"


def test_a_function_with_jobs_can_be_dropped(gearmand: Gearmand) -> None:
    """gearmand drops a function with queued jobs, which point to freed memory; so scripts do not."""
    with WirePeer(gearmand.port) as peer:
        assert peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w") is not None
        assert peer.text(b"drop function f\r", b"\r\n") == b"OK\r\n"
        assert peer.text(b"status", b".\n") == b".\n"


def _rows() -> Iterator[str]:
    """The first cells of the tables about what peers see."""
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        if section.partition("\n")[0] in ("Jobs", "Workers", "Errors", "Text protocol"):
            for row in re.findall(r"^\| (.+?) \| ", section, re.MULTILINE):
                if row != "gearmand":
                    yield row


def test_rules_and_documentation_are_one_list() -> None:
    """What is allowed is documented, and what is documented is allowed or excluded with a reason."""
    assert set(_rows()) == {*RULES.values(), *(row for row, _ in EXCLUDED)}
