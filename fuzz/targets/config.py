"""``device.toml`` and ``cema.toml``: written by people and by enrolment, carried by mail."""

from __future__ import annotations

from cema.config import DeviceConfig, ServeConfig
from cema.config_files import parse
from cema.errors import ConfigError

ALLOWED = ConfigError
_DEVICE = """
url = "https://cloud.example:8470"
group = "g"
device_id = "cam"
token = "secret"
[selection]
e_max = 0.5
[outbox]
max_samples = 7
[uplink]
image_coding = "jpeg-85@160"
"""
_CLOUD = """
[server]
host = "0.0.0.0"
port = 8470
device_requests_per_s = 1e2
[admin]
listener = "shared"
[worker]
update_encoding = "float16"
[groups.g]
bundle = "edge.bundle"
edge_model = "digits-edge"
foundation_model = "digits-foundation"
method = "cema-paper"
options = { norm_impl = "fused" }
"""
SEEDS = [b"\0" + _DEVICE.encode(), b"\1" + _CLOUD.encode()]


def run(data: bytes) -> None:
    """The first byte chooses which file it is."""
    kind: type[DeviceConfig] | type[ServeConfig] = ServeConfig if data[:1] == b"\1" else DeviceConfig
    parse(data[1:].decode(errors="replace"), kind)
