"""The table of settings and what ``twistd gearman`` and ``gearmand`` make of it."""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest

from gearman_twisted.commands.gearmand.options import parse
from gearman_twisted.commands.gearmand.parser import make_parser
from gearman_twisted.commands.twistd.server import ServerOptions
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server.settings import (
    NO_SETTINGS,
    SETTINGS,
    ConnectionLimits,
    ListeningSettings,
    Option,
    ServiceSettings,
    Setting,
    offered,
)

COMMANDS = ("twistd", "gearmand")
PAIRS = [(command, setting, option) for command in COMMANDS for setting, option in offered(command)]
every_option = pytest.mark.parametrize(
    ("command", "setting", "option"), PAIRS, ids=[f"{pair[0]}-{pair[1].name}" for pair in PAIRS]
)

# A value that is out of range, or none at all, for each reader.
REFUSED = {
    "backlog": "-1",
    "keepalive_idle": "0",
    "keepalive_interval": "32768",
    "keepalive_count": "128",
    "save_timeout": "-1",
    "job_retries": "256",
    "order": "3.0",
    "handle_prefix": "a b",
    "memory": "much",
    "max_packet_bytes": "4294967297",
    "max_memory": "900000",
}
ACCEPTED: dict[str, tuple[str, Any]] = {
    "listen": ("4731", ("4731",)),
    "http": ("8080", ("8080",)),
    "backlog": ("7", 7),
    "keepalive_idle": ("-1", -1),
    "keepalive_interval": ("32767", 32767),
    "keepalive_count": ("1", 1),
    "store": ("memory:", "memory:"),
    "save_timeout": ("0.5", 0.5),
    "job_retries": ("255", 255),
    "order": ("1.1", "1.1"),
    "handle_prefix": ("H:x", b"H:x"),
    "memory": ("2G", 2 << 30),
    "max_packet_bytes": ("4G", 0xFFFFFFFF),
    "max_memory": ("3G", 3 << 30),
    "exceptions": ("", True),
    "allow_shutdown": ("", True),
}


def settings_of(command: str, *words: str) -> dict[str, Any]:
    """Return what a command makes of its words, by the names of the settings."""
    if command == "gearmand":
        return parse(["--config-file=", *words], {}).settings
    options = ServerOptions()
    options.parseOptions(list(words))
    return options.settings


def help_of(command: str) -> str:
    """Return the help of a command on one line."""
    text = make_parser().format_help() if command == "gearmand" else ServerOptions().getUsage()
    return " ".join(text.split())


def word(setting: Setting, option: Option, text: str) -> str:
    return f"--{option.long}" if setting.read is None else f"--{option.long}={text}"


@pytest.mark.parametrize("cls", [EngineSettings, ConnectionLimits, ListeningSettings, ServiceSettings])
def test_every_field_is_a_row(cls: type) -> None:
    """Each field that an operator can set has one row in the table."""
    rows = [setting.field_name for setting in SETTINGS if setting.sets is cls]
    assert sorted(rows) == sorted(set(attrs.fields_dict(cls)) - NO_SETTINGS)


def test_every_row_is_offered_or_says_why_not() -> None:
    """Both commands have an option for each row, or the row has the reason."""
    for setting in SETTINGS:
        for option in (setting.twistd, setting.gearmand):
            assert isinstance(option, Option) or len(option) > 20


@every_option
def test_option_sets_the_setting(command: str, setting: Setting, option: Option) -> None:
    """The option of either command gives the setting its value; the short form is the same option."""
    text, value = ACCEPTED[setting.name]
    assert settings_of(command, word(setting, option, text))[setting.name] == value
    if option.short:
        assert settings_of(command, f"-{option.short}{text}")[setting.name] == value


@every_option
def test_default_in_help_is_the_real_one(command: str, setting: Setting, option: Option) -> None:
    """The default that --help shows is what the command uses if the option is not given."""
    (text,) = re.findall(re.escape(setting.help) + r"(?: \(default: (.*?)\))?", help_of(command))
    used = settings_of(command).get(setting.name)
    if setting.read is None:
        assert (text, used) == ("", False)
    elif setting.name == "store" and command == "gearmand":
        assert (used, parse(["--config-file="], {}).store_url) == (None, text)
    elif setting.shown_default is not None:
        assert (text, used) == (setting.shown_default, None)
    else:
        value = setting.value(text)
        assert (setting.default if used is None else used) == ((value,) if setting.is_repeatable else value)


@every_option
def test_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], command: str, setting: Setting, option: Option
) -> None:
    """A value that makes no sense ends the process with 1 and one line that names the option."""
    if setting.read is None or setting.sets is ServiceSettings:
        return  # takes no value; is checked where it is used
    with pytest.raises(SystemExit) as ended:
        settings_of(command, word(setting, option, REFUSED[setting.name]))
    said = capsys.readouterr().err
    if command == "twistd":
        said = str(ended.value.code)  # Python prints it, and ends with 1
    else:
        assert ended.value.code == 1
    assert re.search(rf"(--\S+/)?--{option.long}:? takes .*, not .*{REFUSED[setting.name]}", said)
    assert said.strip().count("\n") == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_settings_are_independent(command: str) -> None:
    """An option changes its own setting and no other."""
    before = settings_of(command)
    for setting, option in offered(command):
        text, _ = ACCEPTED[setting.name]
        after = settings_of(command, word(setting, option, text))
        assert {name for name in after if after[name] != before.get(name)} == {setting.name}


def test_help_of_twistd_lists_every_option() -> None:
    """The groups of the help have every option once."""
    grouped = [name for _, names in ServerOptions.groups for name in names]
    assert sorted(grouped) == sorted(name.rstrip("=") for name in ServerOptions().longOpt)


def test_zero_retries_are_told_aloud() -> None:
    """``--job-retries 0``, which once meant no limit, is explained on standard error at the start."""
    options = parse(["--config-file=", "-j", "0"], {})
    (note,) = options.loud_notes
    assert note.startswith("--job-retries 0 gives up a job")
    assert options.notes == [note]
    assert parse(["--config-file=", "-j", "1"], {}).loud_notes == []


def test_sockets_probe_silent_peers() -> None:
    """Keep-alive is set on sockets, and with it a limit for sent data that is not acknowledged."""
    assert [value for _, _, value in ListeningSettings().socket_options()] == [60, 15, 4, 120_000]
    assert [value for _, _, value in ListeningSettings(keepalive_idle=-1).socket_options()] == [15, 4]
