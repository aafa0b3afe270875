"""Settings: where they come from, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwood.core.config import Config, ConfigError


def test_defaults(tmp_path):
    config = Config.load(tmp_path, environ={})
    assert (config.data, config.host, config.port, config.idle_seconds) == (tmp_path, "127.0.0.1", 18888, 60)


def test_the_caller_goes_before_the_environment_before_the_file(tmp_path):
    (tmp_path / "config.toml").write_text('port = 1\nidle_seconds = 2\nhost = "::1"\nmemory_mib = 64\n')
    environ = {"BOXWOOD_PORT": "3", "BOXWOOD_IDLE_SECONDS": "0.5", "BOXWOOD_IMAGES": "~/i", "BOXWOOD_API_KEY": "x"}
    config = Config.load(tmp_path, environ=environ, port=4, host=None)
    assert (config.port, config.idle_seconds, config.host, config.memory_mib) == (4, 0.5, "::1", 64)
    assert config.images == Path("~/i").expanduser()
    assert Config.load(environ={"BOXWOOD_DATA": str(tmp_path)}).host == "::1"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = 'x'", "port is 'x', not a whole number"),
        ("port = true", "not a whole number"),
        ("port = 1.5", "not a whole number"),
        ("port = 70000", "between 0 and 65535"),
        ("idle_seconds = -1", "between"),
        ("idle_seconds = nan", "between"),
        ("host = 1", "not a text"),
        ("host = ''", "host is empty"),
        ("port = ", "config.toml"),
        ("data = '/x'", "unknown setting"),
        ("network = 'host'", "network is 'host': it must be internet or none"),
        ("network = false", "not a text"),
        ("network_allow = 1", "not a list of texts"),
        ("network_allow = ['a', 1]", "not a list of texts"),
        ("network_allow = {a = 1}", "not a list of texts"),
        ("share_client_config = 1", "not true or false"),
        ("share_client_config = 'maybe'", "not true or false"),
        ("dialects = ['agentkernel', 'klingon']", "dialects names 'klingon': known are agentkernel"),
        ("image_names = 1", "not a table of texts"),
        ("[image_names]\na = 1", "not a table of texts"),
        ("image_names = 'a'", "not a table of texts"),
    ],
)
def test_complaints(tmp_path, text, complaint):
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        Config.load(tmp_path, environ={})


def test_lists_and_truths(tmp_path):
    (tmp_path / "config.toml").write_text('network_allow = ["10.0.0.1", " a.example "]\nshare_client_config = true\n')
    config = Config.load(tmp_path, environ={})
    assert (config.network_allow, config.share_client_config) == (("10.0.0.1", "a.example"), True)
    environ = {"BOXWOOD_NETWORK_ALLOW": "10.0.0.2, b.example,,", "BOXWOOD_SHARE_CLIENT_CONFIG": " Off"}
    config = Config.load(tmp_path, environ=environ)
    assert (config.network_allow, config.share_client_config) == (("10.0.0.2", "b.example"), False)
    for yes in ("1", "true", "YES", "on"):
        assert Config.load(tmp_path, environ={"BOXWOOD_SHARE_CLIENT_CONFIG": yes}).share_client_config is True
    assert Config.load(tmp_path, environ=environ, network_allow=["c"]).network_allow == ("c",)
    config = Config.load(tmp_path / "elsewhere", environ={"BOXWOOD_NETWORK": "none"})
    assert (config.network, config.network_allow, config.share_client_config) == ("none", (), False)


def test_the_environment_is_named_in_complaints(tmp_path):
    with pytest.raises(ConfigError, match="BOXWOOD_PORT: port is 'a'"):
        Config.load(tmp_path, environ={"BOXWOOD_PORT": "a"})


def test_images_and_dialects(tmp_path):
    config = Config.load(tmp_path, environ={})
    assert config.dialects == ("agentkernel", "arl-kubernetes", "arl-gateway")
    assert config.image_names["alpine:3.20"] == "arkuntu"
    (tmp_path / "config.toml").write_text('dialects = []\n[image_names]\n"node:22" = "node"\n"alpine:3.24" = ""\n')
    config = Config.load(tmp_path, environ={})
    assert config.dialects == ()
    assert (config.image_names["node:22"], config.image_names["alpine:3.20"]) == ("node", "arkuntu")
    assert "alpine:3.24" not in config.image_names
    environ = {"BOXWOOD_IMAGE_NAMES": "a:1=b, alpine:3.20=c"}
    config = Config.load(tmp_path, environ=environ)
    assert (config.image_names["a:1"], config.image_names["alpine:3.20"]) == ("b", "c")


@pytest.mark.parametrize(
    ("name", "value"), [("disk_mib", 15), ("disk_mib_most", 1), ("disk_mib", -1), ("disk_mib", 1 << 24)]
)
def test_disks_are_of_some_use(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        Config(tmp_path, **{name: value})


def test_a_default_disk_fits_under_the_ceiling(tmp_path):
    assert Config(tmp_path, disk_mib=64, disk_mib_most=64).disk_mib == 64
    with pytest.raises(ConfigError, match="more than disk_mib_most"):
        Config(tmp_path, disk_mib=65, disk_mib_most=64)
