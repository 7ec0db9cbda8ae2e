"""Configuration: strict, anchored to its file, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from cema.config import DeviceConfig, ServeConfig
from cema.config_files import device_token, load_device, load_serve, parse
from cema.errors import ConfigError

DEVICE = 'url = "https://cloud"\ngroup = "doors"\ndevice_id = "gate-3"\n'
GROUP = '[groups.doors]\nbundle = "doors.cema"\nedge_model = "resnet20"\n'


@pytest.fixture(autouse=True)
def _no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CEMA_TOKEN", raising=False)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_three_lines_make_a_device() -> None:
    config = parse(DEVICE, DeviceConfig)
    assert (config.url, config.group, config.device_id) == ("https://cloud", "doors", "gate-3")
    assert config.verify_updates
    assert config.selection.e_max == 0.4
    assert config.outbox.max_samples == 20_000


def test_memory_for_all_uploads_is_enough_for_one() -> None:
    with pytest.raises(ConfigError, match=r"cema.toml: expected max_queued_bytes >= 2000, got 1999 - at `\$.server`"):
        parse("[server]\nmax_body_bytes = 2000\nmax_queued_bytes = 1999", ServeConfig, source="cema.toml")
    assert (
        parse("[server]\nmax_body_bytes = 2000\nmax_queued_bytes = 2000", ServeConfig).server.max_queued_bytes == 2000
    )


def test_values_of_tables_are_taken_over() -> None:
    config = parse(
        DEVICE + '[selection]\ne_max = 0.3\n[runtime]\nproviders = ["A", "B"]\nadaptation = "off"', DeviceConfig
    )
    assert config.selection.e_max == 0.3
    assert (config.runtime.providers, config.runtime.adaptation) == (("A", "B"), "off")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (DEVICE + "colour = 1", "colour"),
        (DEVICE + "[uplink]\nbatch_size = 1", "batch_size"),
        (DEVICE + "[uplinc]\nbatch_samples = 1", "uplinc"),
        (DEVICE + "[selection]\ne_max = 1.5", "selection.e_max"),
        (DEVICE + "[selection]\ne_max = -0.1", "selection.e_max"),
        (DEVICE + "[selection]\ne_max = nan", "selection.e_max"),
        (DEVICE + "[selection]\ne_max_lambda = 0", "selection.e_max_lambda"),
        (DEVICE + "[outbox]\nmax_samples = 0", "outbox.max_samples"),
        (DEVICE + "[outbox]\nmax_samples = 2.5", "outbox.max_samples"),
        (DEVICE + '[outbox]\nmax_samples = "many"', "outbox.max_samples"),
        (DEVICE + "[uplink]\npoll_wait_s = 56", "uplink.poll_wait_s"),
        (DEVICE + '[runtime]\nadaptation = "maybe"', "runtime.adaptation"),
        (DEVICE.replace("doors", "do ors"), "group"),
        (DEVICE.replace("gate-3", "../gate"), "device_id"),
        (DEVICE.replace("gate-3", "a" * 65), "device_id"),
        ('url = "https://cloud"', "group"),
        (DEVICE.replace('"https://cloud"', "1"), "url"),
    ],
)
def test_a_wrong_device_file_names_the_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        parse(text, DeviceConfig)
    assert "docs/configuration.md" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("[server]\nport = 70000", "server.port"),
        ("[server]\nprot = 1", "prot"),
        ("[worker]\nlease_s = 1", "worker.lease_s"),
        ("[retention]\nkeep_versions = 0", "retention.keep_versions"),
        ("[groups.doors]\nbundle = 'x'", "edge_model"),
        (GROUP + "methods = 'tent'", "methods"),
        (GROUP.replace("doors]", '"do ors"]'), "groups"),
        (GROUP + "options = { lr = [1] }", "options"),
    ],
)
def test_a_wrong_cloud_file_names_the_key(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse(text, ServeConfig)


@pytest.mark.parametrize(
    "text", ["group = ", "group = " + 2000 * "[", "group = " + 5000 * "9"], ids=["cut", "deep", "long"]
)
def test_text_that_is_not_toml_names_the_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"my\.toml is not TOML"):
        parse(text, DeviceConfig, source="my.toml")


def test_paths_of_a_device_are_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = written(tmp_path / "device.toml", DEVICE + 'token_file = "secret"\n[uplink]\nca_file = "ca.pem"')
    monkeypatch.chdir(tmp_path / "elsewhere")
    for given in (path, Path("../device.toml")):
        config = load_device(given)
        assert config.state_dir == str(tmp_path / "cema-state")
        assert config.token_file == str(tmp_path / "secret")
        assert config.uplink.ca_file == str(tmp_path / "ca.pem")


def test_paths_of_the_cloud_are_relative_to_its_file(tmp_path: Path) -> None:
    text = GROUP + 'edge_weights = "w/edge.safetensors"\n[server]\ntls_certificate = "c.pem"\ntls_key = "/etc/k.pem"'
    config = load_serve(written(tmp_path / "cema.toml", text))
    assert config.server.data_dir == str(tmp_path / "cema-data")
    assert config.server.tls_certificate == str(tmp_path / "c.pem")
    assert config.server.tls_key == "/etc/k.pem"
    group = config.groups["doors"]
    assert (group.bundle, group.foundation_weights) == (str(tmp_path / "doors.cema"), None)
    assert group.edge_weights == str(tmp_path / "w" / "edge.safetensors")


def test_an_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.toml", "binary.toml", "."):
        with pytest.raises(ConfigError, match="configuration file"):
            load_device(tmp_path / name)


def test_the_token_comes_from_environment_then_file_then_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = written(tmp_path / "secret", "from-file\n")
    both = parse(DEVICE + f'token = "inline"\ntoken_file = "{secret}"', DeviceConfig)
    assert device_token(parse(DEVICE + 'token = "inline"', DeviceConfig)) == "inline"
    assert device_token(both) == "from-file"
    monkeypatch.setenv("CEMA_TOKEN", " from-environment\n")
    assert device_token(both) == "from-environment"


def test_a_missing_token_says_where_it_can_come_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="CEMA_TOKEN"):
        device_token(parse(DEVICE, DeviceConfig))
    with pytest.raises(ConfigError, match="absent"):
        device_token(parse(DEVICE + f'token_file = "{tmp_path}/absent"', DeviceConfig))
    with pytest.raises(ConfigError, match="empty"):
        device_token(parse(DEVICE + f'token_file = "{written(tmp_path / "e", "")}"', DeviceConfig))
