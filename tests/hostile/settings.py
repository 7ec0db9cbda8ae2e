"""Configuration files that cannot be: ``device.toml`` and ``cema.toml`` with wrong keys, types, ranges, sizes.

``build`` gives the file's bytes.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import partial

from cema.config_files import MAX_FILE_BYTES
from hostile.case import Case

DEVICE, SERVE = "device.toml", "cema.toml"
BAD, PLAIN = "config_invalid", "plain_http"
FIELDS = {"url": "'http://127.0.0.1:1'", "group": "'g'", "device_id": "'d'", "token": "'secret'"}
GROUP = "[groups.g]\nbundle = 'g.cema'\nedge_model = 'digits-edge'\n"


def device(more: str = "", **changes: str | None) -> str:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    return "".join(f"{name} = {value}\n" for name, value in fields.items()) + more


def _case(decoder: str, name: str, build: Callable[[], str | bytes], code: str = BAD) -> Case:
    def encoded() -> bytes:
        made = build()
        return made if isinstance(made, bytes) else made.encode()

    return Case(f"{decoder} {name}", decoder, name, code, encoded)


_device, _serve = partial(_case, DEVICE), partial(_case, SERVE)
_TEXTS = {
    "lists in lists": lambda: "x = " + "[" * 50_000,
    "closed lists in lists": lambda: "x = " + "[" * 5000 + "]" * 5000,
    "tables in tables": lambda: "x = " + "{a=" * 20_000,
    "a key of 20000 parts": lambda: ".".join("a" * 20_000) + " = 1",
    "a number of 10000 digits": lambda: "x = " + "9" * 10_000,
    "a date that is none": lambda: "x = 2026-02-31",
    "a key twice": lambda: "x = 1\nx = 2",
    "a table twice": lambda: "[uplink]\n[uplink]",
    "a text without an end": lambda: "x = '''abc",
    "a value without a key": lambda: "= 1",
    "a key without a value": lambda: "x =",
    "yaml": lambda: "url: http://x\ngroup: g",
    "json": lambda: '{"url": "x"}',
    "xml": lambda: "<config/>",
    "a carriage return": lambda: "x = 1\ry = 2",
    "an unknown key": lambda: "surprise = 1",
    "an unknown table": lambda: "[surprise]\nx = 1",
}
_BYTES: dict[str, Callable[[], bytes]] = {
    "latin-1": lambda: device(group="'gä'").encode("latin-1"),
    "utf-16": lambda: device().encode("utf-16"),
    "a byte order mark": lambda: b"\xef\xbb\xbf" + device().encode(),
    "half a character": lambda: device(group="'gä'").encode()[:-20] + b"\xc3",
    "surrogates": lambda: device().encode() + b"# \xed\xa0\x80",
    "NUL": lambda: device().encode() + b"\0",
    "gzip": lambda: gzip.compress(device().encode()),
    "a program": lambda: b"\x7fELF" + bytes(1000),
    "one byte more than allowed": lambda: device().encode() + b"#" * MAX_FILE_BYTES,
    "64 MB": lambda: device().encode() + b"\n" * (64 * 1024 * 1024),
}
_SECTIONS = [
    ("[uplink]\nsurprise = 1", "unknown key in a table"),
    ("[uplink]\nbatch_samples = 0", "below the range"),
    ("[uplink]\nbatch_samples = 257", "above the range"),
    ("[uplink]\nbatch_samples = 1.0", "a float for a number of things"),
    ("[uplink]\nbatch_samples = true", "a truth value for a number"),
    ("[uplink]\nbatch_samples = '16'", "text for a number"),
    ("[uplink]\nbatch_samples = 99999999999999999999999", "a huge number"),
    ("[uplink]\nbatch_samples = [16]", "a list for a number"),
    ("[uplink]\nmax_latency_s = '2s'", "a unit in the value"),
    ("[uplink]\nmax_latency_ms = 2000", "another unit in the key"),
    ("[uplink]\nmax_latency_s = -1", "a time below 0"),
    ("[uplink]\nmax_latency_s = nan", "a time that is no number"),
    ("[uplink]\nmax_latency_s = inf", "an infinite time"),
    ("[uplink]\nmax_latency_s = 1e300", "a time of 10^300 s"),
    ("[uplink]\nmax_latency_s = 2026-01-01", "a date for a time"),
    ("[uplink]\nallow_plain_http = 1", "a number for a truth value"),
    ("[uplink]\nallow_plain_http = 'false'", "text for a truth value"),
    ("[uplink]\nimage_coding = 'jpeg-101'", "a quality above 100"),
    ('[uplink]\nimage_coding = "png\\n"', "a line feed behind a coding"),
    ("[uplink]\nproxy = 'not a proxy'", "a proxy with blanks"),
    ("[uplink]\nproxy = 'socks5://127.0.0.1:1'", "a proxy of another kind"),
    ("[uplink]\nproxy = 'http://[::1'", "a proxy with half an address"),
    ('[uplink]\nca_file = "a\\u0000b"', "NUL in the name of a file"),
    ("[uplink]\nca_pem = 'garbage'", "a certificate that is none"),
    ("[uplink]\nca_file = '/nowhere.pem'", "a certificate that is not there"),
    ("[selection]\ne_max = 1.1", "a share above 1"),
    ("[selection]\ne_max = '40%'", "a share in percent"),
    ("[outbox]\nmax_bytes = '256 MB'", "bytes with a unit"),
    ("[outbox]\nmax_bytes = 0", "no bytes"),
    ("[runtime]\nadaptation = true", "a truth value for a word"),
    ("[runtime]\nadaptation = 'ON'", "a word in capitals"),
    ("[runtime]\nproviders = 'CPUExecutionProvider'", "text for a list"),
    ("uplink = 1", "a number for a table"),
    ("uplink = []", "a list for a table"),
]
_FIELDS: list[tuple[str, str | None, str]] = [
    ("url", None, "url missing"), ("url", "1", "url is a number"), ("url", "''", "url empty"),
    ("url", "'ftp://127.0.0.1'", "url of another kind"), ("url", "'//127.0.0.1'", "url without a kind"),
    ("url", "'http://[::1'", "url with half an address"), ("url", "'http://127.0.0.1:99999'", "url with port 99999"),
    ("url", "'http://127.0.0.1:port'", "url with a word as port"), ("url", "'https://ex ample'", "url with a blank"),
    ("url", "\"http://127.0.0.1:1/\\r\\nX: y\"", "url with another header"),
    ("url", "'https://℀.de'", "url that turns into a path"),
    ("url", "'file:///etc/passwd'", "url of a file"),
    ("group", None, "group missing"), ("group", "''", "group empty"), ("group", "'../g'", "group is a path"),
    ("group", "\"g\\n\"", "group with a line feed"), ("group", f"'{'g' * 65}'", "group of 65 characters"),
    ("group", "'gü'", "group with an umlaut"), ("group", "['g']", "group is a list"),
    ("device_id", "'-d'", "device with a dash in front"), ("device_id", "\"d\\u0000\"", "device with NUL"),
    ("token", "\"se\\ncret\"", "token with a line feed"), ("token", "'se cret'", "token with a blank"),
    ("token", "'sécret'", "token with an accent"), ("token", "5", "token is a number"), ("token", "''", "token empty"),
    ("token_file", "'absent'", "token file that is not there"), ("token_file", "\"a\\u0000b\"", "token file with NUL"),
    ("token_file", "'.'", "token file that is a folder"), ("token_file", "'/dev/zero'", "token file without an end"),
    ("public_key", "'AAAA'", "public key too short"), ("public_key", "'not base64'", "public key that is no base64"),
    ("public_key", "7", "public key is a number"), ("state_dir", "\"a\\u0000b\"", "state folder with NUL"),
    ("state_dir", "1", "state folder is a number"), ("verify_updates", "'no'", "verification by a word"),
]  # fmt: skip
DEVICES = [
    *(_device(name, partial(lambda make: device() + make(), make)) for name, make in _TEXTS.items()),
    *(_device(name, build) for name, build in _BYTES.items()),
    *(_device(name, partial(device, text)) for text, name in _SECTIONS),
    *(_device(name, partial(device, **{field: value})) for field, value, name in _FIELDS),
    _device("plain http beyond this machine", partial(device, url="'http://192.0.2.1'"), PLAIN),
    _device("plain http to a name", partial(device, url="'http://cloud.example'"), PLAIN),
]
_CLOUD = [
    ("[server]\nport = 65536", "port 65536"), ("[server]\nport = -1", "port -1"),
    ("[server]\nport = '80'", "port as text"),
    ("[server]\nport = 8470.0", "port as a float"), ("[server]\nsurprise = 1", "an unknown key of the server"),
    ("[server]\nmax_body_bytes = 0", "no bytes for a body"),
    ("[server]\nmax_body_bytes = '16 MB'", "a body with a unit"),
    ("[server]\nmax_batch_samples = 0", "no samples in a batch"), ("[server]\npoll_interval_s = 0", "no pause"),
    ("[server]\npoll_interval_s = nan", "a pause that is no number"),
    ("[server]\nreceive_timeout_s = 0", "no patience"),
    ("[server]\ndevice_requests_per_s = -1", "a rate below 0"),
    ("[server]\ndevice_requests_per_s = inf", "an infinite rate"),
    ("[server]\nhost = '999.1.1.1'\nbehind_tls_proxy = true", "a host that is none"),
    ("[server]\nhost = '" + "a" * 70 + "'\nbehind_tls_proxy = true", "a host with a long name"),
    ("[server]\nhost = \"a\\u0000\"\nbehind_tls_proxy = true", "a host with NUL"),
    ("[server]\ntls_certificate = 'absent.pem'", "a certificate without a key"),
    ("[server]\ntls_certificate = 'absent.pem'\ntls_key = 'absent.pem'", "a certificate that is not there"),
    ("[server]\ntls_certificate = \"a\\u0000\"\ntls_key = 'x'", "a certificate with NUL"),
    ("[admin]\nlistener = 'both'", "an unknown kind of listener"), ("[admin]\nport = 99999", "an admin port of 99999"),
    ("[worker]\nprocesses = -1", "processes below 0"), ("[worker]\nlease_s = 1", "a lease too short"),
    ("[worker]\nupdate_encoding = 'int8'", "an unknown encoding"), ("[retention]\nkeep_versions = 0", "no versions"),
    ("[retention]\nid_memory_s = '8 days'", "days"),
    ("[groups.'../x']\nbundle = 'b'\nedge_model = 'm'", "a group that is a path"),
    ("[groups.\"g\\n\"]\nbundle = 'b'\nedge_model = 'm'", "a group with a line feed"),
    ("[groups.g]\nedge_model = 'm'", "a group without a bundle"),
    ("[groups.g]\nbundle = 'b'", "a group without a model"),
    (GROUP + "options = {a = [1]}", "options with a list"), (GROUP + "options = 'fast'", "options as text"),
    (GROUP + "seed = 0.5", "a seed of 0.5"), (GROUP + "adaptation = 'maybe'", "an unknown switch"),
    (GROUP + "surprise = 1", "an unknown key of a group"), ("groups = ['g']", "groups as a list"),
    ("groups = 1", "groups as a number"),
]  # fmt: skip
SERVES = [
    *(_serve(name, make) for name, make in _TEXTS.items()),
    *(_serve(name, build) for name, build in _BYTES.items()),
    *(_serve(name, partial(str, text)) for text, name in _CLOUD),
    _serve("plain http on all networks", lambda: "[server]\nhost = '0.0.0.0'\nport = 0", PLAIN),
]
CASES = [*DEVICES, *SERVES]
