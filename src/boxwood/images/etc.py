"""What an image of this host gets of its /etc (and of /var/lib): what is on the list, and never a secret.

Three nets: only names on the list; of these nothing that the host hides from its own users or whose name says what it
is; and nothing whose content is a private key, a URL with a password or, in files that shells read, an assignment to
a token. All is copied, nothing linked: these files are edited in place.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from boxwood.images.farm import put_status, visible

Wanted = Callable[[str, bytes], bool]  # path below the source, content

CONFIGURATION = (
    # who and what this system is
    "debian_version", "os-release", "lsb-release", "redhat-release", "fedora-release", "system-release", "arch-release",
    "alpine-release", "SuSE-release", "issue", "issue.net", "localtime", "timezone", "adjtime", "locale.alias",
    "locale.conf", "locale.gen", "vconsole.conf", "terminfo",
    # the C library, the loader, the network's names
    "nsswitch.conf", "ld.so.conf", "ld.so.conf.d", "ld.so.cache", "gai.conf", "host.conf", "services", "protocols",
    "rpc", "networks", "ethertypes", "netconfig", "bindresvport.blacklist", "iproute2", "libnl-3", "gss",
    # accounts and log-in, without anybody's data
    "login.defs", "shells", "adduser.conf", "deluser.conf", "pam.conf", "pam.d", "security", "libaudit.conf",
    "profile", "profile.d", "bash.bashrc", "bashrc", "bash_completion.d", "bash_completion", "inputrc", "skel", "zsh",
    # packages
    "alternatives", "dpkg", "debconf.conf", "ucf.conf", "apt", "yum.repos.d", "dnf", "yum.conf", "pki", "rpm",
    "pacman.conf", "pacman.d", "makepkg.conf", "apk",
    # certificates that all may see
    "ssl", "ca-certificates", "ca-certificates.conf", "crypto-policies",
    # languages and tools
    "perl", "python", "python2*", "python3*", "java", "java-*", "jvm-*", "maven", "php", "R", "lua", "emacs", "texmf",
    "ghc", "groff", "vim", "nanorc", "gdb", "debuginfod", "gprofng.rc", "manpath.config", "man_db.conf", "magic",
    "magic.mime", "mime.types", "mailcap", "mailcap.order", "wgetrc", "xattr.conf", "mke2fs.conf", "fonts", "X11",
    "ImageMagick-*", "OpenCL", "vulkan", "glvnd", "sgml", "xml", "xdg", "dictionaries-common", "papersize",
)  # fmt: skip
DEFAULTS = ("locale", "useradd", "nss")  # of /etc/default
STATE = (  # of /var/lib: what the tools of packages remember
    "pam", "ucf", "shells.state", "sgml-base", "xml-core", "python", "vim", "dictionaries-common", "aspell", "ispell",
    "ca-certificates-java", "ghc", "texmf", "emacsen-common", "alternatives",
)  # fmt: skip
PACKAGES = ("alternatives", "arch", "available", "cmethopt", "diversions", "info", "parts", "statoverride", "status",
            "triggers")  # of /var/lib/dpkg  # fmt: skip
NEVER = (
    "*.key", "*.p12", "*.pfx", "*.jks", "*.keytab", "*.kdbx", "*.ovpn", "opasswd*", "*.password", "*.passwd",
    "*secret*", "*credential*", "*token*", "auth.conf*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "private",
    "nssdb", "settings.xml", "entitlement", "consumer", "product", "gnupg", "*.dpkg-*", "*.ucf-*", "*.rpm*", "*~",
    "*.bak", "*.old", "*.orig", "*.save", "*.sw?", ".*.sw?", ".git", ".netrc", ".npmrc", ".pypirc", ".pgpass",
    ".git-credentials",
)  # fmt: skip
APT_OPTIONS = ("01autoremove*", "70debconf", "docker-*")  # taken as they are, though they name programs to be run
MOST = 32 << 20  # bytes of one file

_PRIVATE_KEY = re.compile(rb"PRIVATE KEY( BLOCK)?-----|^AGE-SECRET-KEY-", re.M)
_URL_WITH_PASSWORD = re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/@\"']*:[^\s/@\"']*@", re.I)
_ACCESS = re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/\"']*@", re.I)
_ASSIGNED = re.compile(
    rb"(token|secret|passwd|password|passphrase|api_?key|access_?key|credentials?|auth)\w*[ \t]*=[ \t]*['\"]?[^\s'\"$]",
    re.I,
)
_CERTIFICATE = re.compile(rb"^-----BEGIN (TRUSTED |X509 )?CERTIFICATE-----", re.M)
_APT_REACHES_OUT = re.compile(
    rb"Invoke|Hook|Install-Pkgs|Auto-?Detect|SslKey|SslCert|Password|Login|Authorization|Token|Secret", re.I
)
_MAY_ASSIGN = {"profile", "profile.d", "bash.bashrc", "bashrc", "bash_completion.d", "skel", "zsh", "R", "yum.repos.d",
               "yum.conf", "dnf", "pacman.conf", "pacman.d"}  # fmt: skip


def copy_configuration(host: Path, root: Path) -> None:
    """The listed part of the host's /etc, and of /usr/etc where the host keeps its defaults there."""
    for place in ("etc", "usr/etc"):
        if (host / place).is_dir() and not (host / place).is_symlink():
            copy_listed(host / place, root / place, CONFIGURATION, harmless)
    copy_listed(host / "etc/default", root / "etc/default", DEFAULTS, harmless)


def copy_package_state(host: Path, root: Path) -> None:
    """What dpkg, apt and the tools of packages keep in /var/lib."""
    copy_listed(host / "var/lib", root / "var/lib", STATE, harmless)
    copy_listed(host / "var/lib/dpkg", root / "var/lib/dpkg", PACKAGES, never=())
    copy_listed(host / "var/lib/apt", root / "var/lib/apt", ("extended_states",))


def copy_authorities(host: Path, root: Path) -> None:
    """The host's own certificate authorities: the links in ssl/certs point to them. Certificates and nothing else."""
    place = "usr/local/share/ca-certificates"
    if (host / place).is_dir():
        copy_listed(host / place, root / place, ("*",), _certificate)


def copy_listed(
    source: Path, target: Path, names: tuple[str, ...], wanted: Wanted | None = None, never: tuple[str, ...] = NEVER
) -> None:
    """Copy what `source` has of `names` (patterns), without files that `wanted` refuses."""
    try:
        found = sorted(os.listdir(source))
    except (FileNotFoundError, NotADirectoryError):
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in found:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in names):
            for path, status in _walk(source, name, never):
                _copy(source, target, path, status, wanted)


def _walk(source: Path, path: str, never: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result]]:
    """`path` and all below it, parents first, without what the host hides or what is never taken."""
    if any(fnmatch.fnmatchcase(os.path.basename(path), pattern) for pattern in never):
        return
    try:
        status = os.lstat(source / path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        yield path, status
    elif stat.S_ISREG(status.st_mode):
        if status.st_mode & stat.S_IROTH and status.st_size <= MOST:
            yield path, status
    elif stat.S_ISDIR(status.st_mode) and visible(status):
        yield path, status
        for name in sorted(os.listdir(source / path)):
            yield from _walk(source, f"{path}/{name}", never)


def _copy(source: Path, target: Path, path: str, status: os.stat_result, wanted: Wanted | None) -> None:
    original, copy = source / path, target / path
    if stat.S_ISDIR(status.st_mode):
        copy.mkdir(mode=0o755, exist_ok=True)
        fd = os.open(copy, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        put_status(fd, status)
        os.close(fd)
    elif stat.S_ISLNK(status.st_mode):
        copy.symlink_to(os.readlink(original))
    else:
        data = original.read_bytes()
        if wanted is not None and not wanted(path, data):
            return
        if path.startswith("apt/"):
            data = _without_access(path, data)
        with open(copy, "xb") as f:
            f.write(data)
            f.flush()
            put_status(f.fileno(), status)


def harmless(path: str, data: bytes) -> bool:
    """Does this file of /etc go into an image as it is? `path` is below /etc."""
    if _PRIVATE_KEY.search(data):
        return False
    first, _, rest = path.partition("/")
    if path.startswith("xdg/pip/"):
        return False  # clientconfig.py has it where it is to be had
    if first == "apt":
        return _apt_wanted(rest, data)
    if first == "ssl":
        return rest in ("openssl.cnf", "certs/java/cacerts") or (rest.startswith("certs/") and _certificate(path, data))
    if first in _MAY_ASSIGN and _ASSIGNED.search(data):
        return False
    return not _URL_WITH_PASSWORD.search(data)


def gives_access(data: bytes) -> bool:
    """Is there a private key or an address with a user in it?"""
    return bool(_PRIVATE_KEY.search(data) or _ACCESS.search(data))


def _certificate(path: str, data: bytes) -> bool:
    return bool(_CERTIFICATE.search(data)) and not _PRIVATE_KEY.search(data)


def _apt_wanted(path: str, data: bytes) -> bool:
    first, _, name = path.partition("/")
    if first in ("sources.list", "sources.list.d"):
        return first == "sources.list" or name.endswith((".list", ".sources"))
    if first in ("apt.conf", "apt.conf.d"):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in APT_OPTIONS):
            return True
        return not _APT_REACHES_OUT.search(data) and not _ACCESS.search(data)
    return first in ("preferences", "preferences.d", "trusted.gpg", "trusted.gpg.d", "keyrings")


def _without_access(path: str, data: bytes) -> bytes:
    """Sources of packages without those that need somebody's access; other files as they are."""
    if path.endswith(".sources"):
        stanzas = re.split(rb"\n[ \t]*\n", data)
        return b"\n\n".join(stanza for stanza in stanzas if not _ACCESS.search(stanza))
    if path.startswith("apt/sources.list"):
        return b"".join(line for line in data.splitlines(keepends=True) if not _ACCESS.search(line))
    return data
