"""`--share-client-config`: a host golden with the host's client settings, and without one of its secrets.

The small host has a secret in every place where one can stand; all files of the result are searched for them.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from boxwood.images import clientconfig, host
from boxwood.images.clientconfig import ClientConfig, gather


class Secrets:
    """New words, each of which must be in no image and in no note."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self) -> str:
        self.words.append(f"hunter{len(self.words):03}x")
        return self.words[-1]

    def key(self) -> str:
        """One that stands in a path, where only its looks give it away."""
        self.words.append(f"Zx8Qw2Lk5Vn7Rt3Yp{len(self.words):03}")
        return self.words[-1]


NEW = Secrets()
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def certificate(name: str) -> str:
    body = base64.b64encode(b"\x30\x82\x01\x00" + name.encode() * 20).decode()
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def private_key() -> str:
    body = base64.b64encode(NEW().encode()).decode()
    NEW.words.append(body)
    return f"-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----\n"


FILES = {
    "usr/bin/tool": "#!/bin/sh\n",
    "usr/bin/bash": "#!/bin/true\n",
    "usr/bin/python3.11": "#!/bin/true\n",
    "usr/sbin/update-ca-certificates": "#!/bin/sh\n",
    "usr/lib/python3/dist-packages/pip/__main__.py": "",
    "usr/lib/python3.11/os.py": "",
    "usr/pip.conf": f"[global]\nindex-url = https://me:{NEW()}@pypi/\n",
    "etc/os-release": "ID=debian\n",
    "etc/nsswitch.conf": "passwd: files systemd\nhosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n",
    "etc/resolv.conf": "nameserver 10.0.0.53\n",
    "etc/xdg/pip/pip.conf": f"[global]\nindex-url = https://{NEW()}@xdg.corp/simple\n",
    "etc/pip.conf": f"""# the password is {NEW()}
[global]
index-url = https://me:{NEW()}@pypi.corp/simple
extra-index-url = https://{NEW()}@one.corp/simple
    https://two.corp/{NEW.key()}/simple
    https://three.corp/simple?token={NEW()}
    https://me:{NEW()}/{NEW()}@four.corp/simple
cert = /opt/ca/corp.pem
client-cert = /root/client.pem
proxy = http://me:{NEW()}@proxy.corp:3128
find-links = /opt/wheels
trusted-host = pypi.corp
keyring-provider = {NEW()}
{NEW()} = {NEW()}
[{NEW()}]
index-url = https://five.corp/
[install]
timeout = {NEW()}
""",
    "root/.pip/pip.conf": f"nonsense {NEW()}\n",
    "root/.config/pip/pip.conf": "[global]\nretries = 7\n",
    "usr/etc/npmrc": f"cafile=/opt/ca/corp.pem\n//npm.corp/:_authToken={NEW()}\n",
    "root/.npmrc": f"""; {NEW()}
registry=https://me:{NEW()}@npm.corp/
@corp:registry=https://npm.corp/{NEW.key()}/
@other:registry=https://other.corp/npm/
//npm.corp/:_authToken={NEW()}
//npm.corp/:_password={NEW()}
//npm.corp/:username={NEW()}
//me:{NEW()}@npm.corp/:_auth={NEW()}
//npm.corp/:certfile=/root/client.pem
_auth={NEW()}
_authToken = "{NEW()}"
_password='{NEW()}'
{NEW()}
{NEW()}={NEW()}
email={NEW()}@corp
otp={NEW()}
key="{NEW()}"
cert="{NEW()}"
ca[]="{NEW()}"
https-proxy=http://me:{NEW()}@proxy.corp:3128/
noproxy=https://me:{NEW()}@corp
strict-ssl={NEW()}
fetch-retries=4
[section]
registry=https://{NEW()}/
""",
    "root/.netrc": f"machine corp login me password {NEW()}\n",
    "root/client.pem": certificate("client") + private_key(),
    "etc/apt/sources.list": f"""deb http://deb.corp/debian x main # {NEW()}
# deb https://me:{NEW()}@old.corp/debian x main
deb https://me:{NEW()}@closed.corp/debian x main
deb https://{NEW()}@closed.corp/debian x main
deb https://open.corp/{NEW.key()}/debian x main
deb [signed-by=/opt/keys/private.asc] http://key.corp/debian x main
deb [signed-by=/opt/keys/public.asc] http://public.corp/debian x main
{NEW()}
""",
    "etc/apt/sources.list.d/corp.sources": f"""# {NEW()}
Types: deb
URIs: https://me:{NEW()}@stanza.corp/debian
Suites: x
Components: main

Types: deb
# {NEW()}
URIs: https://stanza.corp/debian
Suites: x
Components: main
X-Note: {NEW()}
Description: {NEW()}

Types: deb
URIs: https://unknown.corp/debian
Suites: x
Password: {NEW()}
""",
    "etc/apt/auth.conf": f"machine corp login me password {NEW()}\n",
    "etc/apt/auth.conf.d/corp.conf": f"machine corp login me password {NEW()}\n",
    "etc/apt/apt.conf": f"""Acquire {{ https {{ SslCert "/root/client.pem"; SslKey "/root/{NEW()}"; CaInfo "/opt/ca/apt.pem"; }}; }};
Acquire::https::corp::Login "me:{NEW()}"; Acquire::http::Proxy-Authorization "Basic {NEW()}";
Acquire::http::{NEW()} "{NEW()}"; Acquire::Retries "{NEW()}"; // {NEW()}
""",
    "etc/apt/apt.conf.d/90proxy": f'Acquire::http::Proxy "http://me:{NEW()}@proxy.corp:3128";\n',
    "etc/apt/apt.conf.d/91auto": f'Acquire::http::Proxy-Auto-Detect "/opt/{NEW()}";\nDir::Etc::Netrc "/root/{NEW()}";\n',
    "etc/apt/apt.conf.d/92head": f'Acquire::http::Header "Authorization: Bearer {NEW()}";\nAcquire::Check-Date "false";\n',
    "opt/keys/private.asc": f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{NEW()}\n-----END PGP PRIVATE KEY BLOCK-----\n",
    "opt/keys/public.asc": "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n-----END PGP PUBLIC KEY BLOCK-----\n",
    "opt/ca/corp.pem": f"{NEW()}\n{certificate('corp')}{private_key()}",
    "opt/ca/apt.pem": certificate("apt"),
    "opt/ca/variable.pem": certificate("variable"),
    "opt/ca/dir/one.pem": certificate("one"),
    "opt/ca/dir/two.pem": certificate("two") + private_key(),
    "opt/ca/key.pem": private_key(),
    "opt/wheels/x.whl": NEW(),
    "etc/ssl/certs/ca-certificates.crt": certificate("public") + certificate("appended"),
    "etc/ssl/certs/public.pem": certificate("public"),
    "etc/ssl/certs/server.pem": certificate("server"),
    "usr/share/ca-certificates/public.crt": certificate("public"),
    "var/lib/dpkg/status": "Package: tool\n",
}
ENVIRON = {
    "HOME": "/root",
    "PATH": "/usr/bin",
    "PIP_EXTRA_INDEX_URL": f"https://me:{NEW()}@env.corp/simple https://here.corp/simple",
    "PIP_CLIENT_CERT": f"/root/{NEW()}",
    "PIP_PASSWORD": NEW(),
    "PIP_DEFAULT_TIMEOUT": "180",
    "npm_config__authToken": NEW(),
    "npm_config_//npm.corp/:_authToken": NEW(),
    "NPM_CONFIG_PROXY": f"http://me:{NEW()}@proxy.corp:3128/",
    f"npm_config_{NEW()}": NEW(),
    "SSL_CERT_FILE": "/opt/ca/variable.pem",
    "SSL_CERT_DIR": "/etc/ssl/certs:/opt/ca/dir",
    "REQUESTS_CA_BUNDLE": "/opt/ca/key.pem",
    "NODE_EXTRA_CA_CERTS": f"/nowhere/{NEW()}",
    "GIT_SSL_CAINFO": "/opt/ca/corp.pem",
    "GITHUB_TOKEN": NEW(),
    "HTTPS_PROXY": f"http://me:{NEW()}@proxy.corp:3128/",
}


def build(root: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "usr/bin/python3").symlink_to("python3.11")
    for name in ("bin", "lib", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    return root


def use(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Make it the server's environment; PATH stays, since interpreters may need it."""
    for name in os.environ:
        if re.match(r"PIP_|npm_config_|.*(CERT|CA_BUNDLE|CAINFO)|HOME$|XDG_", name, re.I):
            monkeypatch.delenv(name)
    for name, value in environ.items():
        if name != "PATH":
            monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("original") / "host")


@pytest.fixture(scope="module")
def made(original: Path) -> tuple[host.HostImage, Path]:
    images = original.parent / "images"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, ENVIRON)
        image = host.ensure(images, host=original, share_client_config=True)
    return image, images / image.layer_id / "upper"


@pytest.fixture(scope="module")
def plain(original: Path) -> tuple[host.HostImage, Path]:
    """The golden of the same host whose operator has said nothing."""
    images = original.parent / "images"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, ENVIRON)
        image = host.ensure(images, host=original)
    return image, images / image.layer_id / "upper"


def everything(root: Path) -> dict[str, bytes]:
    """Contents of files and targets of links by path."""
    paths = {str(path.relative_to(root)): path for path in root.rglob("*")}
    links = {name: os.readlink(path).encode() for name, path in paths.items() if path.is_symlink()}
    files = {n: path.read_bytes() for n, path in paths.items() if path.is_file() and not path.is_symlink()}
    return links | files


def test_no_secret_is_shared(original: Path, made: tuple[host.HostImage, Path]) -> None:
    image, root = made
    found = everything(root)
    assert len(NEW.words) > 80
    for word in (*NEW.words, "PRIVATE KEY", "hunter", "Zx8Qw2Lk"):
        holders = [name for name, data in found.items() if word.encode() in data or word in name]
        assert not holders, f"{word} in {holders}"
        assert word not in repr(image.notes)
        assert word.encode() not in (original.parent / "images/index.json").read_bytes()


def test_nothing_is_shared_unless_the_operator_says_so(
    plain: tuple[host.HostImage, Path], made: tuple[host.HostImage, Path], tmp_path: Path
) -> None:
    """The golden is the one of a host without all these settings."""
    image, root = plain
    settings = ("etc/pip.conf", "etc/xdg", "usr/etc", "usr/pip.conf", "root", "opt", "etc/apt/auth.conf")
    bare = build(tmp_path / "host", {name: text for name, text in FILES.items() if not name.startswith(settings)})
    other = host.ensure(tmp_path / "images", host=bare)
    found = everything(root)
    assert found == everything(tmp_path / "images" / other.layer_id / "upper")
    for word in ("pypi.corp", "npm.corp", "proxy.corp", "10.0.0.53", "mdns4", "boxwood-host"):
        holders = [name for name, data in found.items() if word.encode() in data or word in name]
        assert not holders, f"{word} in {holders}"
    assert not [name for name in found if name.endswith(("npmrc", "pip.conf"))]
    assert (root / "etc/gitconfig").read_text() == "[safe]\n\tdirectory = *\n"
    assert (root / BUNDLE[1:]).read_text() == FILES[BUNDLE[1:]]
    assert image.notes == ()
    assert image.fingerprint != made[0].fingerprint


def test_what_a_vm_needs_is_shared(made: tuple[host.HostImage, Path]) -> None:
    _, root = made
    assert (root / "etc/pip.conf").read_text().splitlines() == [
        "[global]",
        f"cert = {BUNDLE}",
        "extra-index-url = https://env.corp/simple",
        "    https://here.corp/simple",
        "index-url = https://pypi.corp/simple",
        "proxy = http://proxy.corp:3128",
        "retries = 7",
        "timeout = 180",
        "trusted-host = pypi.corp",
    ]
    npmrc = [
        "@other:registry=https://other.corp/npm/",
        f"cafile={BUNDLE}",
        "fetch-retries=4",
        "https-proxy=http://proxy.corp:3128/",
        "proxy=http://proxy.corp:3128/",
        "registry=https://npm.corp/",
    ]
    for name in ("etc/npmrc", "usr/etc/npmrc", "usr/local/etc/npmrc"):
        path = root / name
        assert os.readlink(path) == "/etc/npmrc" if path.is_symlink() else path.read_text().splitlines() == npmrc
    assert (root / "etc/apt/apt.conf.d/99boxwood-host").read_text().splitlines() == [
        "#clear Acquire::Retries;",
        'Acquire::http::Proxy "http://proxy.corp:3128";',
        'Acquire::Check-Date "false";',
        f'Acquire::https::CaInfo "{BUNDLE}";',
    ]
    keyring = next((root / "etc/apt/keyrings").iterdir()).name
    assert (root / "etc/apt/sources.list").read_text().splitlines() == [
        "deb http://deb.corp/debian x main",
        f"deb [signed-by=/etc/apt/keyrings/{keyring}] http://public.corp/debian x main",
    ]
    assert "https://stanza.corp/debian" in (root / "etc/apt/sources.list.d/corp.sources").read_text()
    assert f"sslCAInfo = {BUNDLE}" in (root / "etc/gitconfig").read_text()
    assert (root / "etc/gitconfig").read_text().startswith("[safe]")


def test_the_bundle_holds_every_authority_and_what_makes_it_has_them_too(made: tuple[host.HostImage, Path]) -> None:
    _, root = made
    bundle = (root / BUNDLE[1:]).read_text()
    named = ("appended", "corp", "apt", "variable", "one", "two")
    assert [certificate(name) in bundle for name in ("public", *named)] == [True] * 7
    assert certificate("server") not in bundle
    assert certificate("client") not in bundle
    sources = {path.read_text() for path in (root / "usr/local/share/ca-certificates").iterdir()}
    assert sources == {certificate(name) for name in named}
    links = [path for path in (root / "etc/ssl/certs").iterdir() if path.name.startswith("boxwood-")]
    assert len(links) == len(named)
    assert all(os.readlink(path).startswith("/usr/local/share/ca-certificates/boxwood-") for path in links)


def test_the_notes_name_what_was_left_out(made: tuple[host.HostImage, Path]) -> None:
    notes = {note.partition(":")[0].rpartition(" ")[2]: note for note in made[0].notes}
    expected = {
        "pip": ["client-cert (it gives access)", "find-links (a path of this host)", "index-url", "cannot be read"],
        "npm": ["_authToken (it gives access)", "_password (it", "certfile (it", "ca (only cafile", "more (not known"],
        "apt": ["auth.conf (secrets)", "SslKey (it gives access)", "a source of packages", "without what gives access: Proxy"],
        "certificates": ["NODE_EXTRA_CA_CERTS (names no certificate)", "REQUESTS_CA_BUNDLE (names no certificate)"],
    }  # fmt: skip
    for tool, words in expected.items():
        for word in words:
            assert word in notes[tool]


def test_names_are_found_over_the_network(
    made: tuple[host.HostImage, Path], plain: tuple[host.HostImage, Path]
) -> None:
    for _, root in (made, plain):
        assert (root / "etc/resolv.conf").read_text().startswith("nameserver 169.254.1.1\n")
        assert (root / "etc/nsswitch.conf").read_text() == "passwd: files\nhosts: files dns\n"


def test_the_host_keeps_its_files(original: Path, made: tuple[host.HostImage, Path]) -> None:
    assert {name: (original / name).read_text() for name in FILES} == FILES


def test_another_setting_is_another_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, images = build(tmp_path / "host"), tmp_path / "images"
    use(monkeypatch, ENVIRON)
    first = host.ensure(images, host=small, share_client_config=True)
    assert host.find(images, small) is None
    assert host.find(images, small, share_client_config=True) == first
    with open(small / "etc/pip.conf", "a") as f:
        f.write(f"[global2]\nother = {NEW()}\n")  # nothing of it is shared: the golden stays, the notes do not
    second = host.ensure(images, lambda *_: pytest.fail("made again"), small, share_client_config=True)
    assert (second.layer_id, second.fingerprint) == (first.layer_id, first.fingerprint)
    assert second.notes != first.notes
    (small / "root/.config/pip/pip.conf").write_text("[global]\nretries = 8\n")
    assert host.find(images, small, share_client_config=True) is None
    third = host.ensure(images, host=small, share_client_config=True)
    assert third.layer_id != first.layer_id
    assert "retries = 8" in (images / third.layer_id / "upper/etc/pip.conf").read_text()
    monkeypatch.setenv("PIP_RETRIES", "9")
    assert host.find(images, small, share_client_config=True) is None
    (small / "root/.config/pip/pip.conf").write_text("[global]\nretries = 7\n")
    monkeypatch.delenv("PIP_RETRIES")
    found = host.find(images, small, share_client_config=True)
    assert found is not None
    assert found.layer_id == first.layer_id


def test_the_maker_gets_nothing_of_the_servers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, ENVIRON)
    started: list[dict[str, str]] = []
    popen = subprocess.Popen

    def watched(command: list[str], **options: object) -> object:
        if "boxwood.images.host" in command:
            started.append(options["env"])  # type: ignore[arg-type]
            assert not any(word in " ".join(command) for word in NEW.words)
        return popen(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", watched)
    host.ensure(tmp_path / "images", host=build(tmp_path / "host"), share_client_config=True)
    assert [set(environ) - {"PATH", "LD_LIBRARY_PATH"} for environ in started] == [set()]


def test_settings_are_never_written_outside_the_image(tmp_path: Path) -> None:
    """Directories of the host that are links stay links in its image, and would lead back to the host."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    for directory in (outside / "apt", outside / "deep", root / "etc/ssl", root / "usr", root / "srv"):
        directory.mkdir(parents=True)
    (outside / "apt/theirs.list").write_text("deb http://x y\n")
    (root / "etc/apt").mkdir()
    (root / "etc/apt/sources.list.d").symlink_to(outside / "apt")
    (root / "etc/ssl/certs").symlink_to("../../../../../../../.." + str(outside / "deep"))
    (root / "usr/local").symlink_to("/srv")
    (root / "etc/pip.conf").symlink_to(outside / "pip.conf")
    config = ClientConfig(
        {"/etc/apt/sources.list.d/a.list": b"a", BUNDLE: b"b", "/usr/local/share/x": b"c", "/etc/pip.conf": b"d"},
        {"/usr/local/etc/npmrc": "/etc/npmrc"},
    )
    clientconfig.put(config, root)
    assert everything(outside) == {"apt/theirs.list": b"deb http://x y\n"}
    assert (root / str(outside)[1:] / "apt/a.list").read_bytes() == b"a"
    assert (root / str(outside)[1:] / "deep/ca-certificates.crt").read_bytes() == b"b"
    assert (root / "srv/share/x").read_bytes() == b"c"
    assert os.readlink(root / "srv/etc/npmrc") == "/etc/npmrc"
    assert (root / "etc/pip.conf").read_bytes() == b"d"


def test_links_in_a_circle_are_said(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/etc")
    with pytest.raises(OSError, match="too many links"):
        clientconfig.put(ClientConfig({"/etc/pip.conf": b""}, {}), tmp_path)


@pytest.mark.parametrize("name", ["/dev/zero", "/etc/fifo", "/etc", "relative.pem", "/nowhere", "~/ca.pem", "a\0b"])
def test_a_setting_may_name_anything(tmp_path: Path, name: str) -> None:
    small = build(tmp_path / "host")
    os.mkfifo(small / "etc/fifo")
    (small / "dev").mkdir()
    (small / "dev/zero").symlink_to("/dev/zero")
    (small / "root/ca.pem").write_text(certificate("home"))
    config = gather(small, {"HOME": "/root", "SSL_CERT_FILE": name, "npm_config_cafile": name})
    bundle = config.files[BUNDLE].decode()
    assert (certificate("home") in bundle) == (name == "~/ca.pem")


def test_a_host_without_any_settings_shares_none(tmp_path: Path) -> None:
    assert gather(tmp_path, {"HOME": "/root"}) == ClientConfig({}, {}, ())


def test_openssl_finds_an_authority_that_was_added(tmp_path: Path) -> None:
    """By its directory alone, as most builds of OpenSSL look for it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/CN=corp", "-keyout", tmp_path / "key"]
    subprocess.run([*made, "-out", tmp_path / "corp.pem"], check=True, capture_output=True)
    small = build(tmp_path / "host")
    shutil.copy(tmp_path / "corp.pem", small / "opt/ca/corp.pem")
    config = gather(small, {"HOME": "/root", "SSL_CERT_FILE": "/opt/ca/corp.pem"})
    (tmp_path / "root/usr/local").mkdir(parents=True)
    clientconfig.put(config, tmp_path / "root")
    certs = tmp_path / "root/etc/ssl/certs"
    for link in certs.iterdir():  # as it looks from inside
        if link.is_symlink() and (target := os.readlink(link)).startswith("/"):
            link.unlink()
            link.symlink_to(f"{tmp_path}/root{target}")
    said = subprocess.run(
        ["openssl", "verify", "-no-CAfile", "-CApath", certs, tmp_path / "corp.pem"], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("links", "written"),
    [
        ({}, "etc/pki/tls/certs/ca-bundle.crt"),
        (
            {"etc/pki/tls/certs/ca-bundle.crt": "/etc/pki/ca-trust/extracted/pem/tls.pem"},
            "etc/pki/ca-trust/extracted/pem/tls.pem",
        ),
        ({"etc/pki/tls/certs/ca-bundle.crt": "/var/lib/tls.pem"}, "etc/pki/tls/certs/ca-bundle.crt"),
    ],
)
def test_where_other_distributions_have_their_bundle(tmp_path: Path, links: dict[str, str], written: str) -> None:
    small = tmp_path / "host"
    for name in ("etc/pki/tls/certs", "etc/pki/ca-trust/source/anchors", "opt"):
        (small / name).mkdir(parents=True)
    place = small / "etc/pki/tls/certs/ca-bundle.crt"
    for name, target in links.items():
        (small / name).symlink_to(os.path.relpath(small / target[1:], (small / name).parent))
        place = small / target[1:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(certificate("public"))
    (small / "opt/corp.pem").write_text(certificate("corp"))
    config = gather(small, {"HOME": "/root", "PIP_CERT": "/opt/corp.pem"})
    assert config.files[f"/{written}"].decode() == certificate("public") + certificate("corp")
    assert config.files["/etc/pip.conf"] == b"[global]\ncert = /etc/pki/tls/certs/ca-bundle.crt\n"
    anchors = [name for name in config.files if name.startswith("/etc/pki/ca-trust/source/anchors/")]
    assert [config.files[name].decode() for name in anchors] == [certificate("corp")]


def test_what_is_shared_survives_its_way_to_the_maker(original: Path) -> None:
    config = gather(original, ENVIRON)
    again = ClientConfig.from_json(config.to_json())
    assert (again.files, again.links, again.digest()) == (config.files, config.links, config.digest())
    one, other = itertools.islice((gather(original, ENVIRON | {"PIP_RETRIES": str(n)}).digest() for n in (1, 2)), 2)
    assert one != other
