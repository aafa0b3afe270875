"""How names are found in a box: the one server, and only modules of the C library that need no daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwood.images import names, skeleton


def test_the_nameserver_is_the_same_in_every_image() -> None:
    assert names.RESOLV == "nameserver 169.254.1.1\noptions edns0 timeout:3 attempts:2\n"
    assert skeleton.FILES["etc/resolv.conf"][0] == names.RESOLV


@pytest.mark.parametrize(
    ("host", "box"),
    [
        ("hosts: files mdns4_minimal [NOTFOUND=return] dns mymachines", "hosts: files dns"),
        ("hosts:\tmymachines resolve [!UNAVAIL=return] files myhostname dns # x", "hosts: files dns"),
        ("hosts: dns [ NOTFOUND=return SUCCESS=merge ] files", "hosts: files dns"),
        ("passwd:  files systemd", "passwd: files\nhosts: files dns"),
        ("group: files [SUCCESS=merge] systemd sss", "group: files\nhosts: files dns"),
        ("passwd: sss", "passwd: files\nhosts: files dns"),
        ("netgroup: nis", "netgroup: files\nhosts: files dns"),
        ("services: db files", "services: db files\nhosts: files dns"),
        ("# a comment\n\nshadow: files", "# a comment\n\nshadow: files\nhosts: files dns"),
        ("", "hosts: files dns"),
    ],
)
def test_modules_that_ask_a_daemon_are_left_out(host: str, box: str) -> None:
    assert names.switched(host) == f"{box}\n"


def test_a_link_to_what_is_not_in_the_image_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nsswitch.conf").symlink_to("/etc/authselect/nsswitch.conf")
    skeleton.fit_nsswitch(tmp_path)
    assert not (tmp_path / "etc/nsswitch.conf").is_symlink()
