"""What comes over a socket instead of a request: framing, heads, credentials, paths, methods that are not ours.

``build`` gives the bytes. Options: ``half`` = the client says that nothing more comes; ``slow`` = it sends them to a
cloud without patience and then waits; ``silent`` = there is nobody left to answer, the connection just ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from cema.cloud.connection import MAX_HEAD_BYTES
from hostile.batches import batch
from hostile.case import TAKEN, Case

FRAMING, HEAD, CALLER, PATH, METHOD, SLOW = (
    "http framing", "http head", "http credentials", "http path", "http method", "http patience",
)  # fmt: skip
BAD, NOWHERE, LATE = "message_invalid", "not_found", "body_timeout"
HOST, TOKEN = b"Host: x\r\n", b"Authorization: Bearer secret-of-cam\r\n"
GET, POST = b"GET /v1/groups/g HTTP/1.1\r\n", b"POST /v1/groups/g/samples HTTP/1.1\r\n"
UPLOAD = POST + HOST + TOKEN + b"Content-Type: application/msgpack\r\n"
CHUNKED = UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = len(batch())


def _case(decoder: str, name: str, code: str, data: bytes | Callable[[], bytes], **options: object) -> Case:
    return Case(name, decoder, name, code, data if callable(data) else partial(bytes, data), options)


def asks(headers: bytes, line: bytes = GET) -> bytes:
    return line + HOST + headers + b"\r\n"


def chunks(data: bytes) -> bytes:
    return CHUNKED + data


def sized(length: bytes, body: bytes | None = None) -> bytes:
    return UPLOAD + b"Content-Length: " + length + b"\r\n\r\n" + (batch() if body is None else body)


_framing = partial(_case, FRAMING)
FRAMINGS = [
    _framing("a TLS greeting", BAD, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"x" * 500 + b"\r\n\r\n"),
    _framing("garbage", BAD, b"\0\xff garbage\r\n\r\n"),
    _framing("an SSH greeting", BAD, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    _framing("HTTP 0.9", BAD, b"GET /v1/groups/g\r\n\r\n"),
    _framing("two lengths", BAD, UPLOAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    _framing("length below 0", BAD, lambda: sized(b"-1")),
    _framing("length with a sign", BAD, lambda: sized(b"+%d" % LENGTH)),
    _framing("length in hexadecimal", BAD, lambda: sized(b"0x10")),
    _framing("length of words", BAD, lambda: sized(b"many")),
    _framing("length of 5000 digits", BAD, lambda: sized(b"9" * 5000)),
    _framing("length in other digits", BAD, lambda: sized("٤٢".encode())),
    _framing("length of 10^18", "too_large", lambda: sized(b"1" + b"0" * 18, b"")),
    _framing("length too small", BAD, lambda: sized(b"%d" % (LENGTH - 1))),
    _framing("length too large and the end", TAKEN, lambda: sized(b"%d" % (LENGTH + 1)), half=True, silent=True),
    _framing("length 0", BAD, lambda: sized(b"0", b"")),
    _framing("no length", BAD, UPLOAD + b"\r\n"),
    _framing("unknown transfer coding", BAD, UPLOAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    _framing("transfer coding twice", BAD, UPLOAD + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n"),
    _framing("transfer coding in disguise", BAD, UPLOAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    _framing("chunk of no digits", BAD, lambda: chunks(b"zz\r\nab\r\n0\r\n\r\n")),
    _framing("chunk below 0", BAD, lambda: chunks(b"-1\r\nab\r\n0\r\n\r\n")),
    _framing("chunk of 30 digits", BAD, lambda: chunks(b"f" * 30 + b"\r\nab\r\n")),
    _framing("chunk without its end", BAD, lambda: chunks(b"2\r\nabXX0\r\n\r\n")),
    _framing("chunk with a long extension", BAD, lambda: chunks(b"2;" + b"x" * 100_000 + b"\r\nab\r\n0\r\n\r\n")),
    _framing("many trailers", BAD, lambda: chunks(b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n")),
    _framing("trailer with a token", BAD, lambda: chunks(b"0\r\nAuthorization: Bearer x\r\n\r\n")),
    _framing("chunks beyond the limit", "too_large",
          lambda: chunks((b"8000\r\n" + bytes(0x8000) + b"\r\n") * 7 + b"0\r\n\r\n")),
    _framing("empty chunks", BAD, lambda: chunks(b"0\r\n\r\n")),
    _framing("chunks of one byte that are no batch", BAD, lambda: chunks(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")),
    _framing("chunks and the end", TAKEN, lambda: chunks(b"2\r\nab\r\n"), half=True, silent=True),
    _framing("an unknown expectation", BAD, lambda: sized(b"0", b"").replace(HOST, HOST + b"Expect: 200-maybe\r\n")),
    _framing("a second request that is none", BAD,
          asks(TOKEN).replace(b"\r\n\r\n", b"\r\nConnection: x\r\n\r\n")[:-2] + b"\0: x\r\n\r\n"),
]  # fmt: skip
_head = partial(_case, HEAD)
HEADS = [
    _head("no host", BAD, GET + TOKEN + b"\r\n"),
    _head("two hosts", BAD, GET + HOST * 2 + TOKEN + b"\r\n"),
    _head("NUL in a value", BAD, asks(TOKEN + b"X: a\0b\r\n")),
    _head("blank behind a name", BAD, asks(TOKEN + b"X : a\r\n")),
    _head("no name", BAD, asks(TOKEN + b": a\r\n")),
    _head("no colon", BAD, asks(TOKEN + b"abc\r\n")),
    _head("control character in a name", BAD, asks(TOKEN + b"X\x01: a\r\n")),
    _head("letters of other scripts in a name", BAD, asks(TOKEN + "Ä: a\r\n".encode())),
    _head("a value too long", BAD, lambda: asks(TOKEN + b"X: " + b"a" * 100_000 + b"\r\n")),
    _head("a value of 16 MB", BAD, lambda: asks(TOKEN + b"X: " + b"a" * (16 << 20) + b"\r\n")),
    _head("20000 headers", BAD, lambda: asks(TOKEN + b"a: b\r\n" * 20_000)),
    _head("headers just too long", BAD, lambda: asks(TOKEN + b"a: b\r\n" * ((MAX_HEAD_BYTES + 8192) // 6))),
    _head("a name too long", BAD, lambda: asks(TOKEN + b"x" * 100_000 + b": a\r\n")),
    _head("an address too long", BAD, lambda: asks(TOKEN, b"GET /v1/groups/" + b"g" * 100_000 + b" HTTP/1.1\r\n")),
    _head("a query too long", BAD, lambda: asks(TOKEN, b"GET /v1/groups/g?" + b"a=b&" * 30_000 + b" HTTP/1.1\r\n")),
    _head("a first line without an end", BAD, lambda: b"GET /" + b"x" * 200_000),
    _head("blanks in an address", BAD, asks(TOKEN, b"GET /v1/groups/g x HTTP/1.1\r\n")),
    _head("bytes in an address", BAD, asks(TOKEN, b"GET /v1/groups/\xff HTTP/1.1\r\n")),
    _head("tab in a first line", BAD, asks(TOKEN, b"GET\t/v1/groups/g HTTP/1.1\r\n")),
    _head("another protocol", BAD, asks(TOKEN, b"GET /v1/groups/g EVIL/1.1\r\n")),
    _head("8000 empty values", TAKEN, lambda: asks(TOKEN + b"a:\r\n" * 5000)),
    _head("folded value", TAKEN, asks(TOKEN + b"X: a\r\n b\r\n")),
    _head("websocket", TAKEN, asks(TOKEN + b"Connection: Upgrade\r\nUpgrade: websocket\r\n")),
    _head("http 2 upgrade", TAKEN, asks(TOKEN + b"Connection: Upgrade\r\nUpgrade: h2c\r\n")),
    _head("a forwarded address", TAKEN, asks(TOKEN + b"X-Forwarded-For: " + b"1.1.1.1," * 1000 + b"\r\n")),
    _head("impossible ranges", TAKEN, asks(TOKEN + b"Range: bytes=9-1,,-\r\n")),
    _head("a date of the far future", TAKEN, asks(TOKEN + b"If-Modified-Since: Fri, 31 Dec 9999 23:59:59 GMT\r\n")),
]  # fmt: skip
_caller = partial(_case, CALLER)
UNKNOWN, FORBIDDEN = "unauthenticated", "forbidden"
CALLERS = [
    _caller("no token", UNKNOWN, asks(b"")),
    _caller("an empty header", UNKNOWN, asks(b"Authorization:\r\n")),
    _caller("no word behind Bearer", UNKNOWN, asks(b"Authorization: Bearer \r\n")),
    _caller("basic", UNKNOWN, asks(b"Authorization: Basic Y2FtOng=\r\n")),
    _caller("a token without Bearer", UNKNOWN, asks(b"Authorization: secret-of-cam\r\n")),
    _caller("a wrong token", UNKNOWN, asks(b"Authorization: Bearer wrong\r\n")),
    _caller("a token with more behind", UNKNOWN, asks(b"Authorization: Bearer secret-of-cam, x\r\n")),
    _caller("a token in capitals", UNKNOWN, asks(b"Authorization: Bearer SECRET-OF-CAM\r\n")),
    _caller("a token of bytes", UNKNOWN, asks(b"Authorization: Bearer \xff\xfe\xfd\r\n")),
    _caller("a token of 20 KB", UNKNOWN, lambda: asks(b"Authorization: Bearer " + b"x" * 20_000 + b"\r\n")),
    _caller("a token twice", UNKNOWN, asks(TOKEN * 2)),
    _caller("two tokens, the good one first", UNKNOWN, asks(TOKEN + b"Authorization: Bearer x\r\n")),
    _caller("two tokens, the good one last", UNKNOWN, asks(b"Authorization: Bearer x\r\n" + TOKEN)),
    _caller("sql", UNKNOWN, asks(b"Authorization: Bearer ' OR 1=1 --\r\n")),
    _caller("a token's hash", UNKNOWN, asks(b"Authorization: Bearer " + b"a" * 64 + b"\r\n")),
    _caller("a revoked token", UNKNOWN, asks(b"Authorization: Bearer secret-of-gone\r\n")),
    _caller("a token in the query", UNKNOWN, asks(b"", GET.replace(b" HTTP", b"?access_token=secret-of-cam HTTP"))),
    _caller("a cookie", UNKNOWN, asks(b"Cookie: Authorization=Bearer secret-of-cam\r\n")),
    _caller("a proxy's header", UNKNOWN, asks(b"Proxy-Authorization: Bearer secret-of-cam\r\n")),
    _caller("a person's token", FORBIDDEN, asks(b"Authorization: Bearer secret-of-ron\r\n")),
    _caller("another group", FORBIDDEN, asks(TOKEN, b"GET /v1/groups/other HTTP/1.1\r\n")),
    _caller("a body without a token", UNKNOWN, lambda: POST + HOST + b"Content-Length: 5\r\n\r\nhello"),
    _caller("a revoked device's batch", UNKNOWN, lambda: sized(b"%d" % LENGTH).replace(b"of-cam", b"of-gone")),
]  # fmt: skip


def _path(path: str, code: str) -> Case:
    line = b"GET " + path.encode() + b" HTTP/1.1\r\n"
    return _case(PATH, f"path {path:.60}", code, asks(TOKEN, line))


PATHS = [
    *(
        _path(path, NOWHERE)
        for path in ("/", "/v1", "/v1/groups/g/", "//v1/groups/g", "/v1/groups/g/../other", "/v1/groups/%2e%2e/x", "*",
                     "/V1/groups/g", "http://evil/v1/groups/g", "\\v1\\groups\\g", "/v1/groups/g/updates/latest/x",
                     "/v1/admin/groups", "/metrics", "/.git/config", "/v1/groups/g/updates/../../../etc/passwd",
                     "/v1/groups/g/updates/5", "/" + "a/" * 8000)
    ),
    *(
        _path(path, FORBIDDEN)
        for path in ("/v1/groups/G", "/v1/groups/g%00", "/v1/groups/%ff", "/v1/groups/g%0d%0aX:y", "/v1/groups/..",
                     "/v1/groups/g;x", "/v1/groups/g#x", "/v1/groups/%25", "/v1/groups/'%20OR%201=1",
                     "/v1/groups/" + "g" * 20_000)
    ),
    *(
        _path("/v1/groups/g/updates" + query, BAD)
        for query in ("/0", "/-1", "/1e3", "/1.5", "/" + "9" * 30, "/%31%00", "?limit=0", "?limit=1e99", "?limit=-1",
                      "?limit=1001", "/latest?after=-1", "/latest?after=x", "/latest?after=" + "9" * 6000,
                      "/latest?wait=-1", "/latest?wait=nan", "/latest?wait=1s", "/latest?from=-1",
                      "/latest?after=1&after=x")
    ),
    *(
        _path("/v1/groups/g/updates/latest" + query, "base_mismatch")
        for query in ("?base=", "?base=f2", "?base=%ff%00", "?base=" + "f" * 20_000, "?base=f1&base=f2")
    ),
]  # fmt: skip
METHODS = [
    *(
        _case(METHOD, f"method {method.decode()}", BAD, asks(TOKEN, method + GET[3:]))
        for method in (b"PUT", b"POST", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"get", b"PROPFIND",
        b"X" * 900)
    ),
    _case(METHOD, "samples asked for", BAD, asks(TOKEN, b"GET /v1/groups/g/samples HTTP/1.1\r\n")),
    _case(METHOD, "method in a header", TAKEN, asks(TOKEN + b"X-HTTP-Method-Override: DELETE\r\n")),
    _case(METHOD, "a method of blanks", BAD, asks(TOKEN, b"  " + GET[3:])),
]  # fmt: skip
_slow = partial(_case, SLOW, slow=True)
SLOWS = [
    _slow("nothing", TAKEN, b"", silent=True),
    _slow("half a first line", LATE, b"GET /v1/gro"),
    _slow("half a head", LATE, GET + HOST + b"X-Slow: 1\r\n"),
    _slow("a blank line", BAD, b"\r\n"),
    _slow("no body", LATE, lambda: sized(b"%d" % LENGTH, b"")),
    _slow("half a body", LATE, lambda: sized(b"%d" % LENGTH, batch()[:9])),
    _slow("half a chunk", LATE, lambda: chunks(b"ff\r\nabc")),
    _slow("chunk of 2^64", LATE, lambda: chunks(b"f" * 16 + b"\r\nab\r\n")),
    _slow("no end of chunks", LATE, lambda: chunks(b"3\r\nabc\r\n")),
    _slow("a body that waits to be asked for", LATE,
          lambda: sized(b"%d" % LENGTH, b"").replace(HOST, HOST + b"Expect: 100-continue\r\n")),
    _slow("the rest of a refused body", UNKNOWN, POST + HOST + b"Content-Length: 99\r\n\r\nabc"),
    _slow("half a second head", TAKEN, asks(TOKEN) + b"GET /v1"),
]  # fmt: skip
CASES = [*FRAMINGS, *HEADS, *CALLERS, *PATHS, *METHODS, *SLOWS]
