"""URLs of stores: what is shown of them, and what is refused before any driver reads it."""

import pytest

from asyncsched import DefinitionError, store_from_url
from asyncsched.address import check_url, without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:hunter2@h:6379/0", "redis://app:***@h:6379/0"),
        ("redis://app:hun@ter2@h", "redis://app:***@h"),
        ("redis://h/0?password=hunter2&db=1", "redis://h/0?password=***&db=1"),
        (
            "mysql://app@h/app?listener_url=mysql://u:hunter2@h:1/x&a=b@c",
            "mysql://app@h/app?listener_url=mysql://u:***@h:1/x&a=b@c",
        ),
        ("mysql://h/a?b=c%3A%2F%2Fu%3Ahunter2%40h%3A1&d=1", "mysql://h/a?b=c%3A%2F%2Fu%3A***%40h%3A1&d=1"),
        ("mysql://h/a?b=c://u@h:1/x&d=e://h:1", "mysql://h/a?b=c://u@h:1/x&d=e://h:1"),
        ("redis://[::1]:6379/0?name=a@b", "redis://[::1]:6379/0?name=a@b"),
        ("postgresql:///app?host=/tmp&user=a@b", "postgresql:///app?host=/tmp&user=a@b"),
        ("sqlite:///C:/a@b/jobs.db", "sqlite:///C:/a@b/jobs.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    check_url(url)
    assert without_password(url) == shown


@pytest.mark.parametrize("sign", ["/", "?", "#", "/@", "#@/"])
def test_a_password_that_is_not_written_as_a_url_wants_it_is_refused_and_not_shown(sign: str) -> None:
    with pytest.raises(DefinitionError, match=r"'redis://app:\*\*\*@h:6379/0' has one of / \? #") as refusal:
        check_url(f"redis://app:hun{sign}ter2@h:6379/0")
    assert "hun" not in str(refusal.value)
    assert "ter2" not in str(refusal.value)


def test_one_that_begins_like_a_port_is_not_shown_either() -> None:
    assert without_password("redis://app:12#34@h") == "redis://app:***@h"


@pytest.mark.parametrize("url", ["redis://app:hunter2@[::1/0", "redis://app:hunter2@a\u2100b/0"])
def test_a_url_that_cannot_be_split_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(DefinitionError, match="is no URL") as refusal:
        check_url(url)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("url", ["app:hunter2@h", "redis:app:hunter2@h/0", "redis:hunter2@h"])
def test_what_lacks_its_slashes_is_shown_without_its_password(url: str) -> None:
    assert "hunter2" not in without_password(url)


@pytest.mark.parametrize("url", ["sqlite://app:hunter2@h/jobs", "firestore://app:hunter2@h/jobs"])
def test_a_login_where_there_can_be_none_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(DefinitionError) as refusal:
        store_from_url(url)
    assert "app:***@h/jobs" in str(refusal.value)
    assert "hunter2" not in str(refusal.value)
