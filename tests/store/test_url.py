"""The URLs of stores, taken apart and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.url import DatabaseAddress, StoreUrl

KNOWN = {"sync", "password_file", "password_env", "durable"}


def parse(url: str) -> StoreUrl:
    return StoreUrl.parse(url, KNOWN)


def test_parts() -> None:
    """Scheme, place and options come apart; only the options' escapes are decoded."""
    url = parse("db:/a%20b:c?durable=no&sync=interval=1%2E5")
    assert (url.scheme, url.place) == ("db", "/a%20b:c")
    assert url.options == {"durable": "no", "sync": "interval=1.5"}
    assert url.sync_interval() == 1.5
    assert not url.is_on("durable", default=True)


def test_defaults() -> None:
    """Without options everything is as safe as can be."""
    url = parse("db:x")
    assert url.sync_interval() == 0.0
    assert parse("db:x?sync=always").sync_interval() == 0.0
    assert url.is_on("durable", default=True)
    assert url.password() is None


@pytest.mark.parametrize(
    ("place", "server"),
    [
        ("//root@db.example/jobs", DatabaseAddress("root", (("db.example", None),), "jobs")),
        ("//db:5432", DatabaseAddress("", (("db", 5432),), "")),
        (
            "//a%40b@one:1,two,[::1]:3/x%2Fy",
            DatabaseAddress("a@b", (("one", 1), ("two", None), ("::1", 3)), "x/y"),
        ),
        ("//[::1]/0", DatabaseAddress("", (("::1", None),), "0")),
        ("///jobs", DatabaseAddress("", (("", None),), "jobs")),
    ],
)
def test_server(place: str, server: DatabaseAddress) -> None:
    """User, hosts, ports and database come apart, with escapes decoded."""
    assert parse(f"db:{place}").address() == server


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("db:x?colour=red", "no option 'colour'; it takes durable, password_env, password_file, sync"),
        ("db:x?sync=always&sync=always", "takes sync=VALUE once"),
        ("db:x?sync", "takes sync=VALUE once"),
    ],
)
def test_options_that_make_no_sense(url: str, says: str) -> None:
    """An option that is unknown, given twice or without a value is refused."""
    with pytest.raises(StoreConfigError, match=says):
        parse(url)


@pytest.mark.parametrize(
    "value", ["never", "interval", "interval=", "interval=0", "interval=x", "interval=nan"]
)
def test_sync_that_makes_no_sense(value: str) -> None:
    """Only ``always`` and an interval of some seconds are taken."""
    with pytest.raises(StoreConfigError, match="sync=always or sync=interval=SECONDS"):
        parse(f"db:x?sync={value}").sync_interval()


@pytest.mark.parametrize("place", ["db", "//host:0/x", "//host:65536/x", "//host:x/x"])
def test_server_that_makes_no_sense(place: str) -> None:
    """A place that is no server's is refused with a hint."""
    with pytest.raises(StoreConfigError, match=r"//USER@HOST/NAME|a port from 1 to 65535"):
        parse(f"db:{place}").address()


def test_yes_and_no() -> None:
    """A switch takes nothing else."""
    with pytest.raises(StoreConfigError, match="durable=yes or durable=no, not durable=maybe"):
        parse("db:x?durable=maybe").is_on("durable", default=True)


def test_password_in_the_url_is_refused_unseen() -> None:
    """A password in a URL is refused, and not repeated in the message."""
    with pytest.raises(StoreConfigError, match="password_file=PATH") as caught:
        parse("db://me:s3cret@host/x").address()
    assert "s3cret" not in str(caught.value)


def test_passwords_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password comes from a file, without its line end, or from the environment."""
    file = tmp_path / "password"
    file.write_text("s3 cret \n")
    monkeypatch.setenv("DB_PASSWORD", "hidden")
    assert parse(f"db:x?password_file={file}").password() == "s3 cret "
    assert parse("db:x?password_env=DB_PASSWORD").password() == "hidden"


def test_passwords_that_are_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a variable that is not there is named."""
    monkeypatch.delenv("NO_SUCH", raising=False)
    (tmp_path / "binary").write_bytes(b"\xff")
    for options, says in (
        (f"password_file={tmp_path}/none", "none: No such file"),
        (f"password_file={tmp_path}/binary", "not text in UTF-8"),
        ("password_env=NO_SUCH", "no NO_SUCH"),
        ("password_env=A&password_file=b", "not both"),
    ):
        with pytest.raises(StoreConfigError, match=says):
            parse(f"db:x?{options}").password()
