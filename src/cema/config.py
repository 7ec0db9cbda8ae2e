"""Everything about deployment that has a number or a name: ``device.toml`` on the edge, ``cema.toml`` in the cloud.

Each setting stands once, with unit, range and reason. Unknown keys are errors. A method's own numbers (learning
rates, thresholds of the paper) live at the top of the method's file, not here. ``docs/configuration.md`` is
generated from this file.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cema.types import IMAGE_CODING

Seconds = Annotated[float, Meta(ge=0, le=86_400 * 30)]
Count = Annotated[int, Meta(ge=1, le=100_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 42)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Rate = Annotated[float, Meta(ge=0, le=1e12)]
ImageCoding = Annotated[str, Meta(pattern=rf"^(auto|{IMAGE_CODING})\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
FilePath = Annotated[str, Meta(pattern=r"^[^\x00]*\Z")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all configuration tables: immutable, strict."""


# --- edge: device.toml -------------------------------------------------------------------------------------------


class SelectionConfig(Section, frozen=True, kw_only=True):
    """Which samples are worth sending (CEMA section 3.1; defaults in edge/selection.py terms, fractions of ln C)."""

    enabled: bool = True  # false = every sample is sent
    e_max: Fraction = 0.4  # upper bound at the start, fraction of ln C (EATA, CEMA: 0.4)
    e_min: Fraction = 0.02  # lower bound, fraction of ln C (CEMA: 0.02); method cema has its own
    e_max_lambda: Annotated[float, Meta(gt=0, le=10)] = 1.0  # lambda of Eq. 2 (paper: 1.0)
    e_max_warmup_samples: Annotated[int, Meta(ge=0)] = 256  # images before the bound moves; cema has its own
    dynamic: bool = True  # whether Eq. 2 moves the bound at all
    d_margin: Fraction = 1.0  # redundancy filter of EATA: drop if |cos| >= this; 1.0 = off


class OutboxConfig(Section, frozen=True, kw_only=True):
    """The durable queue between prediction and network."""

    max_samples: Count = 20_000  # oldest are dropped beyond; at 3 KB each about 60 MB
    max_bytes: Bytes = 256 * 1024 * 1024  # the file's bound: a small share of a 4 GB card
    memory_samples: Count = 256  # bounded queue before the disk; lost at a crash, counted
    expiry_s: Seconds = 7 * 86_400  # older samples are of no use; the cloud remembers ids one day longer
    commit_interval_s: Seconds = 0.2  # how long a sample may wait in memory for its batch


class UplinkConfig(Section, frozen=True, kw_only=True):
    """How the device talks to the cloud. Devices dial out only."""

    batch_samples: Annotated[int, Meta(ge=1, le=256)] = 16  # samples per upload
    batch_bytes: Bytes = 1024 * 1024  # and bytes per upload, whichever comes first
    max_latency_s: Seconds = 2.0  # a smaller batch is sent after this long
    heartbeat_s: Seconds = 10.0  # with nothing to send, samples_seen is still reported this often
    poll_wait_s: Annotated[float, Meta(ge=0, le=55)] = 30.0  # long poll; proxies cut idle requests at 60 s
    connect_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 10.0  # for address, TCP and TLS
    read_timeout_s: Annotated[float, Meta(gt=0, le=600)] = 30.0  # beyond poll_wait_s, for the answer itself
    backoff_min_s: Annotated[float, Meta(gt=0, le=3600)] = 0.5  # first pause after a failure; doubles with full jitter
    backoff_max_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0  # longest pause after failures
    max_bytes_per_day: Annotated[int, Meta(ge=0)] = 0  # uplink budget, 0 = unlimited
    send_samples: bool = True  # false = no picture leaves this device; it follows its stream and takes updates as ever
    blur_px: Annotated[float, Meta(ge=0, le=100)] = 0.0  # radius of a Gaussian blur before upload, at the model's size
    ca_file: FilePath | None = None  # private authority (PEM), the only one trusted then; relative to this file
    ca_pem: str | None = None  # the same, written out here; 'cema device enrol' does, if the cloud has server.tls_ca
    client_certificate: FilePath | None = None  # PEM, for a cloud with server.tls_client_ca; relative to this file
    client_key: FilePath | None = None  # PEM, of client_certificate; relative to this file
    allow_plain_http: bool = False  # true = http:// beyond this machine: only where something else encrypts the link
    image_coding: ImageCoding = "auto"  # of uploads: auto, png, jpeg-85, jpeg-85-444, webp-80; @160: 160 px at most
    proxy: str | None = None  # http://host:port; default: HTTPS_PROXY of the environment


class RuntimeConfig(Section, frozen=True, kw_only=True):
    """ONNX Runtime on this device."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)  # in order of preference
    threads: Annotated[int, Meta(ge=0, le=256)] = 0  # 0 = one per core, at most 4
    adaptation: Literal["on", "off"] = "on"  # off = source parameters, nothing uploaded


class StatisticsConfig(Section, frozen=True, kw_only=True):
    """Norm statistics that the device measures itself (docs/method.md); for bundles with a statistics graph."""

    follow: Literal["auto", "on", "off"] = "auto"  # auto = as the group's method says, off until the cloud was heard
    class_prior: bool = True  # while few classes show, answers are weighed by them
    answer_again: bool = True  # first pictures after a change, in batches of 8 and more: predicted a second time
    duty: Annotated[float, Meta(gt=0, le=1)] = 0.1  # of time one thread measures, once a world is known and rests


class DeviceConfig(Section, frozen=True, kw_only=True):
    """``device.toml``: written by ``cema device enrol``, read by ``cema edge run`` and ``EdgeAgent``."""

    url: str  # https://host[:port][/prefix] of the cloud
    group: Name  # whose model this device runs
    device_id: Name  # unique in the cloud
    token: str | None = None  # a key or a one-time token; or token_file, or the environment variable CEMA_TOKEN
    token_file: FilePath | None = None  # holds the token alone; relative to this file
    public_key: str | None = None  # Ed25519, base64; the cloud's updates and bundles are checked against it
    verify_updates: bool = True  # false accepts unsigned content: only on a trusted link
    state_dir: FilePath = "cema-state"  # relative to this file
    selection: SelectionConfig = SelectionConfig()
    outbox: OutboxConfig = OutboxConfig()
    uplink: UplinkConfig = UplinkConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    statistics: StatisticsConfig = StatisticsConfig()


# --- cloud: cema.toml --------------------------------------------------------------------------------------------


class ServerConfig(Section, frozen=True, kw_only=True):
    """The web process."""

    host: str = "127.0.0.1"  # address to listen on; 0.0.0.0 = all networks
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8470  # 0 = any free port
    public_url: str | None = None  # what devices dial; default http://host:port
    data_dir: FilePath = "cema-data"  # database, blobs and keys; relative to this file
    encrypt_samples: bool = False  # whether pictures of devices are encrypted before they are written to data_dir
    sample_key_file: FilePath | None = None  # their keys; default data_dir/keys/samples.key; relative to this file
    tls_certificate: FilePath | None = None  # PEM, relative to this file; with tls_key the service speaks HTTPS itself
    tls_key: FilePath | None = None  # PEM; relative to this file
    tls_ca: FilePath | None = None  # private authority behind tls_certificate (PEM): enrolled devices trust it alone
    tls_client_ca: FilePath | None = None  # PEM; devices then also need a certificate that it signed (mutual TLS)
    behind_tls_proxy: bool = False  # true = plain http beyond this machine: only where a proxy in front speaks TLS
    max_body_bytes: Bytes = 16 * 1024 * 1024  # of an upload, also once inflated; 16 photographs of 1 MB
    max_batch_samples: Count = 256  # samples per upload
    max_queued_uploads: Count = 32  # of all devices, complete and waiting for the store; told to come back beyond
    max_queued_bytes: Bytes = 256 * 1024 * 1024  # of all bodies in memory; at least max_body_bytes
    receive_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0  # for a request's head, and silence in its body
    max_poll_wait_s: Seconds = 55.0  # below the 60 s at which proxies cut idle requests
    poll_interval_s: Annotated[float, Meta(gt=0, le=10)] = 0.1  # how often one shared task looks for new versions
    drain_s: Seconds = 10.0  # SIGTERM: time for running requests and the running step
    device_requests_per_s: Rate = 100.0  # of one device, in the long run; it is told to wait beyond; 0 = unlimited
    device_upload_bytes_per_s: Rate = 16 * 1024 * 1024  # of one device, likewise, as inflated; 0 = unlimited

    def __post_init__(self) -> None:
        if self.max_queued_bytes < self.max_body_bytes:
            raise ValueError(f"expected max_queued_bytes >= {self.max_body_bytes}, got {self.max_queued_bytes}")


class AdminConfig(Section, frozen=True, kw_only=True):
    """Where operators and readers ask: ``/v1/admin`` and ``/metrics``. Same certificate as the server."""

    listener: Literal["separate", "shared"] = "separate"  # shared = on the devices' address and port
    host: str = "127.0.0.1"  # address of the separate listener
    port: Annotated[int, Meta(ge=0, le=65_535)] | None = None  # default: server.port + 1; 0 = any free port


class WorkerConfig(Section, frozen=True, kw_only=True):
    """The adaptation workers."""

    processes: Annotated[int, Meta(ge=0, le=256)] = 1  # 0 = web only; run python -m cema.cloud.worker elsewhere
    threads: Annotated[int, Meta(ge=0, le=256)] = 0  # torch threads each, 0 = cores / processes
    lease_s: Annotated[float, Meta(gt=1, le=3600)] = 10.0  # a crashed worker's group is free again after this
    idle_interval_s: Annotated[float, Meta(gt=0, le=60)] = 0.05  # pause between looks at the queue
    publish_min_interval_s: Seconds = 10.0  # versions are coalesced: at most one per group in this time
    update_encoding: Literal["float16", "float32"] = "float16"  # of updates; float32 for devices without float16


class RetentionConfig(Section, frozen=True, kw_only=True):
    """How long the cloud keeps what it no longer needs for training, and at most what it trains on."""

    id_memory_s: Seconds = 8 * 86_400  # sample ids against duplicates: the outbox's expiry plus a day
    keep_versions: Count = 1000  # updates per group that stay downloadable
    sample_age_s: Annotated[float, Meta(ge=0, le=86_400 * 3650)] = 0  # older pictures go, to the hour; 0 = never
    samples_per_group: Annotated[int, Meta(ge=0, le=100_000_000)] = 0  # the oldest go beyond, to the hour; 0 = no limit


class GroupConfig(Section, frozen=True, kw_only=True):
    """One fleet that shares a model: its bundle, the torch models behind it and the method."""

    bundle: FilePath  # file made by ``cema bundle build``; relative to this file
    edge_model: str  # a known name or module:factory
    foundation_model: str | None = None  # as edge_model; for methods that learn from a larger one
    edge_weights: FilePath | None = None  # safetensors, for models that need a file; relative to this file
    foundation_weights: FilePath | None = None  # safetensors; relative to this file
    method: str = "cema"  # name of the adaptation method
    options: dict[str, bool | int | float | str] = {}  # overrides of the method's numbers
    seed: int = 0  # of the replay draws
    adaptation: Literal["on", "off"] = "on"  # off = no steps; devices use the source, upload nothing


class ServeConfig(Section, frozen=True, kw_only=True):
    """``cema.toml``: read by ``cema serve`` and by the commands for administration."""

    groups: dict[Name, GroupConfig] = {}
    server: ServerConfig = ServerConfig()
    admin: AdminConfig = AdminConfig()
    worker: WorkerConfig = WorkerConfig()
    retention: RetentionConfig = RetentionConfig()


def is_loopback(host: str) -> bool:
    """Whether an address never leaves this machine; a name other than localhost is not believed."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
