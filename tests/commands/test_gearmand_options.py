"""What ``gearmand`` makes of its command line, its config file and its environment."""

from __future__ import annotations

import re
import socket
import subprocess
import syslog
from pathlib import Path

import pytest

from gearman_twisted.commands.gearmand.log import Syslog
from gearman_twisted.commands.gearmand.options import GearmandOptions, parse
from gearman_twisted.commands.gearmand.parser import DEFAULT_CONFIG_FILE, DEFAULT_LOG_FILE, make_parser
from tests.kit.paths import doc_page


def parsed(*words: str, **environment: str) -> GearmandOptions:
    """The options, whatever the machine has in /etc."""
    return parse(["--config-file=", *words], environment)


def refused(capsys: pytest.CaptureFixture[str], *words: str, **environment: str) -> str:
    """The one line with which the process ends."""
    with pytest.raises(SystemExit) as ended:
        parse(["--config-file=", *words], environment)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("gearmand: ")
    assert said.count("\n") == 1
    return said


def test_defaults_are_those_of_gearmand() -> None:
    """Without options it listens on all addresses, port 4730, and keeps jobs in memory."""
    options = parsed()
    assert (options.address, options.store_url) == ("*:4730", "memory:")
    assert (options.verbose, options.job_retries, options.daemon) == ("ERROR", -1, False)
    assert (options.pid_file, options.user, options.protocols) == (None, None, [])
    assert options.notes == []


def test_memory_and_patience() -> None:
    """The options of ours that bound the memory and the waiting for a store are sizes and seconds."""
    options = parsed()
    assert (options.memory, options.save_timeout) == (None, 30.0)
    options = parsed("--memory", "2G", "--save-timeout=0.5")
    assert (options.memory, options.save_timeout) == (2 << 30, 0.5)


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["-L", "localhost"], "localhost:4730"),
        (["-L::1", "-p4731"], "[::1]:4731"),
        (["--listen=", "--port="], "*:4730"),
        (["--listen", "10.0.0.1", "--port", "0"], "10.0.0.1:0"),
    ],
)
def test_place_to_listen(words: list[str], address: str) -> None:
    """-L takes a host or an address of either family, -p a number or the name of a service."""
    assert parsed(*words).address == address


def test_port_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port may be given by the name of its service, where the machine knows it."""
    monkeypatch.setattr(socket, "getservbyname", lambda name, _kind: {"jobs": 4747}[name])
    assert parsed("-p", "jobs").port == 4747
    assert parsed(GEARMAND_PORT="jobs").port == 4747


@pytest.mark.parametrize(
    ("words", "store"),
    [
        (["-q", "builtin"], "memory:"),
        (["-q", "LibSQLite3", "--libsqlite3-db=/x/y.db"], "sqlite:/x/y.db"),
        (["--store", "sqlite:jobs.db"], "sqlite:jobs.db"),
    ],
)
def test_stores(words: list[str], store: str) -> None:
    """-q takes the names of gearmand in any case, --store any store of ours."""
    assert parsed(*words).store_url == store


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["surplus"], "'surplus'"),
        (["-v"], "--verbose LEVEL"),
        (["--frobnicate=1"], "--frobnicate"),
        (["--threa", "3"], "--threa"),
        (["--threads"], "expected one argument"),
        (["--threads", "abc"], "'abc'"),
        (["--hashtable-buckets", "0"], "--hashtable-buckets"),
        (["-j", "256"], "from -1 to 255"),
        (["-j", "many"], "'many'"),
        (["--job-handle-prefix", "a b"], "--job-handle-prefix"),
        (["-p", "65536"], "'65536'"),
        (["-p", "no-such-service"], "'no-such-service'"),
        (["--http-port", "x"], "--http-port"),
        (["-b", "-1"], "--backlog"),
        (["-f", "10"], "--file-descriptors"),
        (["-f", " 64"], "--file-descriptors"),
        (["-p", "4730x"], "'4730x'"),
        (["--keepalive-idle", "0"], "or -1"),
        (["--keepalive-count", "128"], "or -1"),
        (["--verbose", "info"], "'info'"),
        (["--order", "3.0"], "--order"),
        (["--order=1.1", "-R"], "contradict"),
        (["-r", "smtp"], "'smtp'"),
        (["-q", "libpq"], "builtin or libsqlite3 or mysql or postgres or redis, not 'libpq'"),
        (["-q", "libsqlite3"], "--libsqlite3-db"),
        (["-q", "builtin", "--store", "memory:"], "not allowed with"),
        (["-q", "mysql", "--mysql-password", "secret"], "--mysql-db=NAME"),
        (["-q", "Postgres", "--libpq-conninfo", "db"], "--libpq-conninfo is not understood"),
        (["-q", "redis", "--redis-port", "many"], "--redis-port"),
        (["-q", "libmemcached"], "--store URL"),
        (["-q", "libtokyocabinet", "--libtokyocabinet-file=x"], "-q libsqlite3"),
        (["-q", "libdrizzle", "--libdrizzle-mysql"], "there is no store libdrizzle here"),
        (["--ssl-ca-file=x"], "without --ssl"),
        (["--ssl-certificate", "x"], "without --ssl"),
        (["--ssl-key", "x"], "without --ssl"),
    ],
)
def test_nonsense_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    """What makes no sense, or asks for what there is not, is refused in one line, with status 1."""
    said = refused(capsys, *words)
    assert says in said
    assert "secret" not in said


def test_all_options_of_debians_gearmand_are_known() -> None:
    """Whatever Debian's gearmand lists under --help is an option here, with the same short form."""
    shown = subprocess.run(
        ["/usr/sbin/gearmand", "--help"], capture_output=True, text=True, check=True
    ).stdout
    theirs = re.findall(r"^  (?:(-\w) \[ )?(--[\w-]+)", shown, re.MULTILINE)
    assert len(theirs) > 40
    ours = make_parser()._option_string_actions
    for short, long in theirs:
        assert long in ours
        assert not short or ours[short] is ours[long]


def test_defaults_of_debians_gearmand_are_ours() -> None:
    """The defaults that Debian's gearmand lists are ours too, but for those in differences.md."""
    shown = subprocess.run(
        ["/usr/sbin/gearmand", "--help"], capture_output=True, text=True, check=True
    ).stdout
    theirs = dict(re.findall(r"--([\w-]+)(?: \])? arg \(=(.+)\)", shown))
    assert theirs.pop("pid-file") == "/var/gearmand.pid"
    assert theirs.pop("backlog") == "32"
    assert theirs.pop("job-retries") == "0"  # means no limit there
    for name in ("idle", "interval", "count"):
        assert theirs.pop(f"keepalive-{name}") == "-1"  # the system's: two hours until the first probe
    options = parsed()
    ours: dict[str, object] = {
        name: getattr(options, name.replace("-", "_"))
        for name in (
            "verbose",
            "http-port",
            "port",
        )
    }
    ours |= {"log-file": DEFAULT_LOG_FILE, "config-file": DEFAULT_CONFIG_FILE}
    ours["queue-type"] = options.queue_type
    assert {name: theirs[name] for name in ours} == {name: str(value) for name, value in ours.items()}


def test_all_options_are_documented() -> None:
    """Every option stands in its documentation."""
    page = doc_page("gearmand.md").read_text()
    for option in make_parser()._option_string_actions:
        assert f"`{option}" in page, option


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-t", "4"], "--threads has no effect"),
        (["--hashtable-buckets=991"], "--hashtable-buckets has no effect"),
        (["-R"], "--round-robin has no effect"),
        (["-w", "0"], "--worker-wakeup has no effect"),
        (["--keepalive"], "--keepalive has no effect"),
        (["--coredump"], "--coredump has no effect"),
        (["--store-queue-on-shutdown"], "--store-queue-on-shutdown has no effect"),
        (["--libsqlite3-table=t"], "--libsqlite3-table has no effect"),
        (["--libsqlite3-db=x"], "--libsqlite3-db has no effect"),
        (["--mysql-host=db"], "--mysql-host has no effect"),
    ],
)
def test_options_without_effect_say_so(words: list[str], says: str) -> None:
    """An option that is accepted for nothing makes one note, also if it has its default."""
    (note,) = parsed(*words).notes
    assert note.startswith(says)


def test_threads_and_buckets_are_told_aloud() -> None:
    """Only of --threads and --hashtable-buckets is the operator told on standard error."""
    options = parsed("-t", "4", "--hashtable-buckets", "991", "-R", "--coredump")
    assert [note.split()[0] for note in options.loud_notes] == ["--threads", "--hashtable-buckets"]


@pytest.mark.parametrize(
    ("words", "value", "port"),
    [
        ([], "4731", 4731),
        (["-p", "4730"], "4731", 4731),  # as gearmand has it
        (["-p", "4732"], "4731", 4732),
        ([], "", 4730),
        ([], "tcp://10.0.0.1:4730", 4730),
    ],
)
def test_port_from_the_environment(words: list[str], value: str, port: int) -> None:
    """GEARMAND_PORT takes the place of 4730, and of no other port; a URL there is not a port."""
    assert parsed(*words, GEARMAND_PORT=value).port == port


def test_port_of_kubernetes_is_ignored_with_a_word() -> None:
    """A GEARMAND_PORT as Kubernetes sets it is named in the log."""
    (note,) = parsed(GEARMAND_PORT="tcp://10.0.0.1:4730").notes
    assert "GEARMAND_PORT=tcp://10.0.0.1:4730" in note
    assert parsed("-p", "4731", GEARMAND_PORT="tcp://10.0.0.1:4730").notes == []


def test_nonsense_in_the_environment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A GEARMAND_PORT that is no port ends the process rather than being guessed at."""
    assert "GEARMAND_PORT" in refused(capsys, GEARMAND_PORT="no-such-service")


def from_file(tmp_path: Path, content: str, *words: str) -> GearmandOptions:
    path = tmp_path / "gearmand.conf"
    path.write_text(content)
    return parse([*words, "--config-file", str(path)], {})


def test_config_file(tmp_path: Path) -> None:
    """Its words, parted by blanks and line ends, are options."""
    options = from_file(tmp_path, "--verbose=INFO\r\n--job-retries 3  -L 127.0.0.1\n\n--exceptions")
    assert (options.verbose, options.job_retries, options.exceptions) == ("INFO", 3, True)
    assert options.listen == "127.0.0.1"


def test_command_line_goes_before_the_config_file(tmp_path: Path) -> None:
    """Where both say something, the command line is right, and the file holds for the rest."""
    options = from_file(tmp_path, "--port=1111 --verbose=INFO", "-p", "2222")
    assert (options.port, options.verbose) == (2222, "INFO")


@pytest.mark.parametrize(
    ("content", "words", "store"),
    [
        ("-q libsqlite3 --libsqlite3-db=a.db", ["--store=memory:"], "memory:"),
        ("--store=memory:", ["-q", "libsqlite3", "--libsqlite3-db=a.db"], "sqlite:a.db"),
        ("-q libsqlite3", ["--libsqlite3-db=a.db"], "sqlite:a.db"),
    ],
)
def test_store_of_command_line_and_config_file(
    tmp_path: Path, content: str, words: list[str], store: str
) -> None:
    """A store of the command line takes the place of the file's, whichever way either was named."""
    assert from_file(tmp_path, content, *words).store_url == store


def test_other_words_in_the_config_file_are_ignored(tmp_path: Path) -> None:
    """Comments and lines of another style are passed over, as gearmand does."""
    options = from_file(tmp_path, "# a comment\nport = 1111\n[gearmand]\n--port=2222\n")
    assert options.port == 2222


def test_a_tab_in_the_config_file_is_part_of_the_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tab does not part words, as in gearmand."""
    assert from_file(tmp_path, "--log-file=a\tb").log_file == "a\tb"


def test_there_are_no_quotes_in_the_config_file(tmp_path: Path) -> None:
    """A quote is a letter like any other, and keeps no blank in a word, as in gearmand."""
    assert from_file(tmp_path, "--log-file=\"a b\" --user='c'").log_file == '"a'
    assert from_file(tmp_path, "--user='c'").user == "'c'"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("# see --manual", "'--manual'"),
        ("--check-args", "--check-args"),
        ("--verbose=loud", "'loud'"),
        ("-q mysql", "mysql"),
    ],
)
def test_nonsense_in_the_config_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    """Also what looks like an option within a comment."""
    with pytest.raises(SystemExit) as ended:
        from_file(tmp_path, content)
    assert ended.value.code == 1
    assert says in capsys.readouterr().err


def test_a_missing_config_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that was asked for has to be there."""
    assert "/no/such.conf: No such file" in refused(capsys, "--config-file", "/no/such.conf")


def test_syslog_is_told_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes to syslog comes from ``gearmand``, of the facility for users."""
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *args: told.append(args))
    Syslog()
    [(name, _, facility)] = told
    assert (name, facility) == ("gearmand", syslog.LOG_USER)


@pytest.mark.parametrize(
    "level", ["FATAL", "ALERT", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]
)
def test_levels_are_those_of_gearmand(level: str) -> None:
    """--verbose takes each of gearmand's eight levels."""
    assert parsed("--verbose", level).verbose == level


def test_check_args_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """--check-args says nothing and ends with 0 when all is well, else with 1 and the reason."""
    with pytest.raises(SystemExit) as ended:
        parsed("--check-args", "-p", "4731")
    assert ended.value.code == 0
    assert capsys.readouterr() == ("", "")
    assert "'nonsense'" in refused(capsys, "--check-args", "-q", "nonsense")
