"""Each tool's settings by that tool's own grammar: tables, and the tools themselves as judges where they are here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from boxwood.images import aptconfig, npmconfig, urls
from boxwood.images.clientconfig import ClientConfig, gather
from boxwood.images.omissions import LeftOut

KEY = "Zx8Qw2Lk5Vn7Rt3Yp9Bd"  # what a token in a path looks like


def host_with(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    root.mkdir(exist_ok=True)
    return root


def shared(tmp_path: Path, files: dict[str, str], environ: dict[str, str] | None = None) -> ClientConfig:
    return gather(host_with(tmp_path / "host", files), {"HOME": "/root", **(environ or {})})


def text_of(config: ClientConfig, path: str) -> str:
    return config.files.get(path, b"").decode()


def settings_of(config: ClientConfig, path: str) -> list[str]:
    return [line for line in text_of(config, path).splitlines() if line]


@pytest.mark.parametrize(
    ("said", "address", "stripped"),
    [
        ("https://mirror.corp/simple", "https://mirror.corp/simple", False),
        ("http://10.0.0.7:8080/simple/", "http://10.0.0.7:8080/simple/", False),
        ("https://[fd00::7]:8443/x", "https://[fd00::7]:8443/x", False),
        ("https://me:pass@mirror.corp/simple", "https://mirror.corp/simple", True),
        ("https://token@mirror.corp/simple", "https://mirror.corp/simple", True),
        ("https://:pass@mirror.corp/simple", "https://mirror.corp/simple", True),
        ("https://mirror.corp/simple?token=pass", "https://mirror.corp/simple", True),
        ("https://mirror.corp/simple#pass", "https://mirror.corp/simple", True),
        ("HTTPS://me:pass@Mirror.corp/x", "https://Mirror.corp/x", True),
        ("https://mirror.corp/debian/20250520T000000Z/", "https://mirror.corp/debian/20250520T000000Z/", False),
        (
            "https://pkgs.corp/9f1b2c3d-aaaa-bbbb-cccc-0123456789ab/simple",
            "https://pkgs.corp/9f1b2c3d-aaaa-bbbb-cccc-0123456789ab/simple",
            False,
        ),
    ],
)
def test_an_address_loses_who_it_lets_in(said: str, address: str, stripped: bool) -> None:
    assert urls.harmless(said) == (address, stripped)


@pytest.mark.parametrize(
    "said",
    [
        "", "mirror.corp", "ftp://mirror.corp/", "file:///opt/wheels", "https://", "https:///x", "https://me:pass@/x",
        "https://me:pa/ss@mirror.corp/", "https://me:12/pass@mirror.corp/", "https://me:p#ss@mirror.corp/",
        "https://pa?ss@mirror.corp/", "https://me:p@ss@mirror.corp/", "https://me%3Apass%40mirror.corp/",
        "https:\\\\me:pass@mirror.corp/", "https://me:pass word@mirror.corp/", "https://${TOKEN}@mirror.corp/",
        "https://mirror.corp/${TOKEN}/", "https://mirror.corp/x;token=pass/", "https://mirror.corp/x\nindex-url=y",
        f"https://mirror.corp/{KEY}/simple", f"https://mirror.corp/api_{KEY}/simple", "https://mirror.corp:99999999/",
        "https://localhost:3141/", "http://127.0.0.1:3142/", "http://127.8.8.8/", "http://[::1]:80/", "http://0.0.0.0/",
        "http://[::ffff:127.0.0.1]/", "http://x.localhost/", "http://LOCALHOST./", 'https://mirror.corp/"', "https://[::1",
    ],
)  # fmt: skip
def test_what_is_no_address_for_an_image(said: str) -> None:
    with pytest.raises(LeftOut) as error:
        urls.harmless(said)
    assert "pass" not in str(error.value)
    assert KEY not in str(error.value)


def test_a_proxy_may_lack_its_scheme() -> None:
    assert urls.proxy("me:pass@proxy.corp:3128") == ("http://proxy.corp:3128", True)


@pytest.mark.parametrize(
    ("files", "environ", "lines"),
    [
        ({}, {}, []),
        (
            {"etc/pip.conf": "[global]\nindex-url = https://a/simple\n"},
            {},
            ["[global]", "index-url = https://a/simple"],
        ),
        (
            {
                "etc/xdg/pip/pip.conf": "[global]\nindex-url = https://a/s\nretries = 1\n",
                "etc/pip.conf": "[global]\nindex_url: https://b/s\n",
                "root/.pip/pip.conf": "[global]\ntimeout = 1\n",
                "root/.config/pip/pip.conf": "[global]\nTimeout = 2\n",
            },
            {},
            ["[global]", "index-url = https://b/s", "retries = 1", "timeout = 2"],
        ),
        (  # the environment is stronger than any section, a section stronger than [global]
            {"etc/pip.conf": "[global]\ntimeout = 1\n[install]\ntimeout = 2\nretries = 3\n"},
            {"PIP_DEFAULT_TIMEOUT": "180", "PIP_RETRIES": ""},
            ["[global]", "timeout = 180", "[install]", "retries = 3"],
        ),
        (
            {"etc/pip.conf": "[global]\nextra-index-url =\n  https://a/s\n  https://me:p@b/s\ntrusted-host = a b:80\n"},
            {},
            ["[global]", "extra-index-url = https://a/s", "    https://b/s", "trusted-host = a", "    b:80"],
        ),
        (
            {"etc/pip.conf": "[global]\nfind-links = /opt/wheels https://a/wheels\nno-index = true\n"},
            {},
            ["[global]", "find-links = https://a/wheels"],
        ),
        (
            {"etc/pip.conf": "[global]\nretries = 7\n", "etc/other.conf": "[global]\nretries = 8\n"},
            {"PIP_CONFIG_FILE": "/etc/other.conf"},
            ["[global]", "retries = 8"],
        ),
        ({"etc/pip.conf": "[global]\nretries = 7\n"}, {"PIP_CONFIG_FILE": "/dev/null"}, []),
        ({"etc/pip.conf": "retries = 7\n"}, {}, []),
        ({"etc/pip.conf": "[global]\nretries = 7\nretries = 8\n"}, {}, []),
        ({"etc/pip.conf": "[global]\nindex-url = https://localhost/\nretries = many\nproxy = x y\n"}, {}, []),
        (
            {"root/my/pip/pip.conf": "[global]\nproxy = http://me:p@proxy.corp:3128\n"},
            {"XDG_CONFIG_HOME": "/root/my"},
            ["[global]", "proxy = http://proxy.corp:3128"],
        ),
    ],
)
def test_pip(tmp_path: Path, files: dict[str, str], environ: dict[str, str], lines: list[str]) -> None:
    assert settings_of(shared(tmp_path, files, environ), "/etc/pip.conf") == lines


def test_pip_reads_what_is_written(tmp_path: Path) -> None:
    files = {
        "etc/pip.conf": "[global]\nindex-url = https://me:p@a.corp/simple\nextra-index-url = https://b/s https://c/s\n"
        "timeout = 7\n[install]\nprefer-binary = yes\ntrusted-host = a.corp b\n"
    }
    (tmp_path / "made.conf").write_text(text_of(shared(tmp_path, files), "/etc/pip.conf"))
    environ = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(tmp_path / "made.conf"), "HOME": str(tmp_path)}
    python = shutil.which("python3", path="/usr/bin:/bin")
    asked = [python or "python3", "-m", "pip", "config", "list"]
    said = subprocess.run(asked, env=environ, capture_output=True, text=True, check=False)
    if python is None or said.returncode:
        pytest.skip("needs pip")
    of_the_system = _of_the_system(asked, tmp_path)
    ours = [line for line in said.stdout.splitlines() if line not in of_the_system and "config-file" not in line]
    assert ours == [
        "global.extra-index-url='https://b/s\\nhttps://c/s'",
        "global.index-url='https://a.corp/simple'",
        "global.timeout='7'",
        "install.prefer-binary='yes'",
        "install.trusted-host='a.corp\\nb'",
    ]


def _of_the_system(asked: list[str], home: Path) -> list[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return subprocess.run(asked, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("registry=https://a/", "registry", "https://a/"),
        ('  registry = "https://a/" ', "registry", "https://a/"),
        ("registry='https://a/'", "registry", "https://a/"),
        ("registry=https://a/ ; comment", "registry", "https://a/"),
        ("registry=https://a/#x", "registry", "https://a/"),
        (r"x=a\;b\#c\\d\e", "x", r"a;b#c\d\e"),
        ("strict-ssl", "strict-ssl", "true"),
        ("x=", "x", ""),
        ("x = y = z", "x", "y = z"),
        ('x="a', "x", '"a'),
        (r'x="a\"b"', "x", 'a"b'),
        ("x='a", "x", "'a"),
        ('"quoted key"=x', "quoted key", "x"),
        ("//r/:_authToken=abc=", "//r/:_authToken", "abc="),
    ],
)
def test_npm_lines(line: str, key: str, value: str) -> None:
    assert list(npmconfig.parse(f"; a comment\r\n# another\n\n{line}\n[section]\ny=z\n")) == [(key, value)]
    node = shutil.which("node")
    ini = next(Path("/usr").glob("*/node_modules/npm/node_modules/ini/lib/ini.js"), None)
    if node is not None and ini is not None:
        program = f"console.log(JSON.stringify(require({json.dumps(str(ini))}).parse({json.dumps(line)})))"
        said = json.loads(subprocess.run([node, "-e", program], capture_output=True, check=True).stdout)
        assert said == {key: True if value == "true" else value}


@pytest.mark.parametrize(
    ("files", "environ", "lines"),
    [
        ({}, {}, []),
        (
            {"etc/npmrc": "fetch-retries=1\naudit=true", "usr/etc/npmrc": "fetch-retries=2", "root/.npmrc": "audit=false"},
            {"npm_config_fund": "false", "NPM_CONFIG_FETCH_TIMEOUT": "9"},
            ["audit=false", "fetch-retries=2", "fetch-timeout=9", "fund=false"],
        ),
        (
            {"root/.npmrc": "@corp:registry=https://me:p@npm.corp/\n//npm.corp/:_authToken=x\nregistry=https://r/"},
            {},
            ["@corp:registry=https://npm.corp/", "registry=https://r/"],
        ),
        (
            {"opt/node/bin/node": "", "opt/node/etc/npmrc": "maxsockets=3", "usr/etc/npmrc": "maxsockets=2"},
            {"PATH": "/bin:/opt/node/bin"},
            ["maxsockets=3"],
        ),
        (
            {"my/etc/npmrc": "maxsockets=3", "my/rc": "strict-ssl=false", "root/.npmrc": "fund=false"},
            {"npm_config_prefix": "/my", "npm_config_userconfig": "/my/rc"},
            ["maxsockets=3", "strict-ssl=false"],
        ),
        (
            {"root/.npmrc": "registry=${R}\nproxy=http://me:p@p.corp:1\nhttps-proxy=null\nnoproxy=.corp,a\nnoproxy[]=b"},
            {},
            ["noproxy=.corp,a", "proxy=http://p.corp:1"],
        ),
        ({"root/.npmrc": "audit=maybe\nfetch-retries=x\nregistry=http://localhost:4873/\n"}, {}, []),
        ({}, {"npm_config_registry": "https://r/", "npm_config_@corp:registry": "https://n/"},
         ["@corp:registry=https://n/", "registry=https://r/"]),
    ],
)  # fmt: skip
def test_npm(tmp_path: Path, files: dict[str, str], environ: dict[str, str], lines: list[str]) -> None:
    config = shared(tmp_path, files, environ)
    assert settings_of(config, "/etc/npmrc") == lines
    assert ("/usr/etc/npmrc" in config.links) == bool(lines)


APT = """
# a comment with "quotes" and {braces}
Acquire::Retries 3; // three
Acquire { http { Proxy "http://proxy.corp:3128"; Proxy::inner.corp "DIRECT"; Timeout "9" }; /* an { end */ };
"""
APT_BLOCKS = """Acquire::http::Proxy "http://a:1"; Acquire { Check-Date false; https { Verify-Peer "false"; Timeout "7"; }; };
APT::Never { "a"; "b"; }; APT::Update::Post-Invoke { "rm -f /x/*.deb || true"; };
#clear Acquire::http; Acquire::Retries "1"; acquire::retries "2";
"""


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ('Acquire::Retries "3";', {"Acquire::Retries": "3"}),
        ("Acquire::Retries 3;", {"Acquire::Retries": "3"}),
        ('Acquire { Retries "3"; };', {"Acquire::Retries": "3"}),
        ('Acquire::http::Proxy::inner.corp "DIRECT";', {"Acquire::http::Proxy::inner.corp": "DIRECT"}),
        (APT_BLOCKS, {"Acquire::Check-Date": "false", "Acquire::https::Verify-Peer": "false",
                      "Acquire::https::Timeout": "7", "acquire::retries": "2"}),
        (APT, {
            "Acquire::Retries": "3", "Acquire::http::Proxy": "http://proxy.corp:3128",
            "Acquire::http::Proxy::inner.corp": "DIRECT", "Acquire::http::Timeout": "9"}),
    ],
)  # fmt: skip
def test_apt_settings(tmp_path: Path, text: str, settings: dict[str, str]) -> None:
    config = shared(tmp_path, {"etc/apt/apt.conf": text})
    made = text_of(config, aptconfig.TARGET)
    assert dict(aptconfig.parse(made)) == settings
    if (program := shutil.which("apt-config")) is not None:
        for name, content in (("theirs", text), ("ours", made)):
            (tmp_path / name).write_text(f"Dir::Etc::Parts /nothing; Dir::Etc::Main /nothing;\n{content}")
        said = [
            subprocess.run([program, "dump", *settings], env={"APT_CONFIG": str(tmp_path / name), "PATH": "/usr/bin"},
                           capture_output=True, text=True, check=True).stdout.lower()
            for name in ("theirs", "ours")
        ]  # fmt: skip
        for name, value in settings.items():
            for dump in said:
                assert f'{name} "{value}";'.lower() in dump


@pytest.mark.parametrize("text", ["Acquire {", "}", 'Acquire::Retries "3', "Acquire::Retries"])
def test_a_broken_configuration_is_not_shared(tmp_path: Path, text: str) -> None:
    config = shared(tmp_path, {"etc/apt/apt.conf": text})
    assert aptconfig.TARGET not in config.files
    assert any("cannot be read" in note for note in config.notes)


def test_a_proxy_of_this_host_itself_is_taken_back(tmp_path: Path) -> None:
    """apt.conf.d is in every image; what cannot work there is cleared where client settings are shared."""
    config = shared(tmp_path, {"etc/apt/apt.conf.d/01proxy": 'Acquire::http::Proxy "http://127.0.0.1:3142";\n'})
    assert text_of(config, aptconfig.TARGET) == "#clear Acquire::http::Proxy;\n"
    assert config.notes == ("client settings of apt: left out: Proxy (an address of this host itself)",)


PUBLIC_KEY = (
    "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: of somebody\n\nmDME\n=AbCd\n-----END PGP PUBLIC KEY BLOCK-----\n"
)
STANZA = """Types: deb
# a comment
URIs: https://a.corp/debian
 http://b.corp/debian
Suites: bookworm
Components: main
X-Repolib-Name: mine
"""


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        (
            "sources.list",
            "deb http://a/debian x main # of ours\n# deb http://b x main\n",
            "deb http://a/debian x main\n",
        ),
        (
            "sources.list.d/a.list",
            "deb [ arch=amd64,arm64  signed-by=/usr/share/keyrings/a.gpg ] https://a/debian ./\n",
            "deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/a.gpg] https://a/debian ./\n",
        ),
        (
            "sources.list",
            "deb https://me:p@a/d x main\ndeb http://b/d x main\ndeb https://me@a/d x main\ndeb file:/srv/d ./\n"
            "deb cdrom:[Debian 12]/ x main\ndeb [secret=1] http://c/d x\nnonsense\ndeb http://localhost:3142/d x main\n",
            "deb http://b/d x main\n",
        ),
        ("sources.list", "deb mirror+https://a/m+n.txt x main\n", "deb mirror+https://a/m+n.txt x main\n"),
        ("sources.list", "deb https://a/b+c/ x main\n", "deb https://a/b+c/ x main\n"),
        (
            "sources.list",
            "deb mirror+file:/etc/apt/mirrors.txt x main\n",
            "deb mirror+file:/etc/apt/mirrors.txt x main\n",
        ),
        ("sources.list", "deb mirror+file:/srv/mirrors.txt x main\n", ""),
        ("sources.list", "deb [signed-by=/nowhere.gpg] http://a/d x main\n", ""),
        ("sources.list", "deb [signed-by=/opt/private.asc] http://a/d x main\n", ""),
        (
            "sources.list.d/a.sources",
            STANZA,
            "Types: deb\nURIs: https://a.corp/debian http://b.corp/debian\nSuites: bookworm\nComponents: main\n\n",
        ),
        ("sources.list.d/a.sources", STANZA.replace("//b", "//me:p@b") + "\n\n" + STANZA.replace("Types", "Kinds"), ""),
        ("sources.list.d/a.sources.bak", STANZA, ""),
        (
            "sources.list.d/a.sources",
            "Types: deb\nURIs: http://a/d\nSuites: x\nSigned-By:\n "
            + PUBLIC_KEY.replace("\n\n", "\n.\n").strip().replace("\n", "\n "),
            "Types: deb\nURIs: http://a/d\nSuites: x\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n =AbCd\n"
            " -----END PGP PUBLIC KEY BLOCK-----\n\n",
        ),
        (
            "sources.list.d/a.sources",
            "Types: deb\nURIs: http://a/d\nSuites: x\nSigned-By:\n -----BEGIN PGP PRIVATE KEY BLOCK-----\n .\n mDME\n",
            "",
        ),
    ],
)
def test_apt_sources(tmp_path: Path, name: str, text: str, kept: str) -> None:
    others = {
        "usr/share/keyrings/a.gpg": "x",
        "etc/apt/mirrors.txt": "http://a/d\tpriority:1\n# x\nhttp://b/d\n",
        "opt/private.asc": PUBLIC_KEY.replace("PUBLIC", "PRIVATE"),
    }
    config = shared(tmp_path, {f"etc/apt/{name}": text, **others})
    assert text_of(config, f"/etc/apt/{name}") == kept
    if "mirrors.txt" in kept:
        assert text_of(config, "/etc/apt/mirrors.txt") == "http://a/d\tpriority:1\nhttp://b/d\n"


def test_a_keyring_from_elsewhere_comes_along_with_its_public_keys(tmp_path: Path) -> None:
    files = {
        "etc/apt/sources.list": "deb [signed-by=/opt/a.asc] http://a/d x main\n",
        "opt/a.asc": f"for mr. smith\n{PUBLIC_KEY}",
    }
    config = shared(tmp_path, files)
    (keyring,) = [name for name in config.files if name.startswith("/etc/apt/keyrings/")]
    assert text_of(config, "/etc/apt/sources.list") == f"deb [signed-by={keyring}] http://a/d x main\n"
    assert text_of(config, keyring) == PUBLIC_KEY.replace("Comment: of somebody\n", "")


def test_what_cannot_be_read_is_said_and_the_rest_is_shared(tmp_path: Path) -> None:
    """A link in a circle stands for all that the system refuses: root is refused little else."""
    files = {
        "etc/apt/sources.list": "deb [signed-by=/opt/circle] http://a/d x main\ndeb http://b/d x main\n"
        "deb mirror+file:/etc/apt/circle x main\n",
        "root/.npmrc": "fund=false\n",
    }
    small = host_with(tmp_path / "host", files)
    for name in ("opt/circle", "etc/apt/circle", "etc/pip.conf", "etc/npmrc", "etc/apt/apt.conf"):
        (small / name).parent.mkdir(parents=True, exist_ok=True)
        (small / name).symlink_to(f"{small}/{name}")
    config = gather(small, {"HOME": "/root", "SSL_CERT_FILE": "/opt/circle"})
    assert set(config.files) == {"/etc/apt/sources.list", "/etc/npmrc"}
    assert text_of(config, "/etc/apt/sources.list") == "deb http://b/d x main\n"
    assert sum("cannot be read" in note for note in config.notes) == 3
