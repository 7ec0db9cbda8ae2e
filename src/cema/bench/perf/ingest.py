"""Ingest: how many samples a second one core takes in while a fleet hangs on long polls."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import msgspec
import numpy as np
from PIL import Image

from cema.bench.perf.models import PerfPair
from cema.bench.perf.resident import resident_mib
from cema.bench.perf.rows import Sheet
from cema.bench.perf.service import GROUP, Service
from cema.config import DeviceConfig, UplinkConfig
from cema.edge.client import CloudClient
from cema.wire.messages import BOOT_ID_BYTES, SAMPLE_ID_BYTES, Sample, SampleBatch

POLLS, BATCH, UPLOADERS = 500, 16, 4
PICTURES, PICTURE_PX, PICTURE_BYTES = 512, 224, 12_000
"""Distinct JPEG pictures, their side and about their size; ids are new every time."""
SECONDS, SECONDS_UNTIL_WARM, MINUTES_OF_MEMORY = 30, 150, 10
"""Of speed; then until buffers and caches of the process have their size; then of watching its memory."""
CLOUD_CORE = 0


def ingest(sheet: Sheet, pair: PerfPair, *, memory: bool) -> None:
    """memory: go on for ten minutes and see whether the process grows."""
    pictures = [_picture(seed) for seed in range(PICTURES)]
    size = float(np.mean([len(picture) for picture in pictures]))
    with Service(pair.bundle, pair.edge_name, cpu=CLOUD_CORE) as service, _polls(service.enrol("poller")):
        devices = [service.enrol(f"camera-{number}") for number in range(UPLOADERS)]
        fingerprint = pair.bundle.manifest.fingerprint
        latencies = _upload(devices, pictures, fingerprint, SECONDS)
        sheet.at_least("ingest on one core", "samples/s", 400, len(latencies) * BATCH / SECONDS,
                       f"{size:.0f} B each, batches of {BATCH}, deflated, {POLLS} long polls held")  # fmt: skip
        sheet.at_most("upload, p99", "ms", 250, 1000 * float(np.percentile(latencies, 99)),
                      f"p50 {1000 * float(np.median(latencies)):.0f} ms, {UPLOADERS} busy devices")  # fmt: skip
        if memory:
            _upload(devices, pictures, fingerprint, SECONDS_UNTIL_WARM)
            mib = [resident_mib(service.process.pid)]
            for _ in range(MINUTES_OF_MEMORY):
                _upload(devices, pictures, fingerprint, 60)
                mib.append(resident_mib(service.process.pid))
            sheet.at_most("growth of memory in ten minutes at full speed", "MiB", 16, max(mib) - mib[0],
                          "minute by minute " + " ".join(f"{each:.0f}" for each in mib))  # fmt: skip


def _picture(seed: int) -> bytes:
    """A JPEG of about PICTURE_BYTES; no two are alike."""
    rng, file = np.random.default_rng(seed), io.BytesIO()
    coarse = rng.integers(0, 256, (PICTURE_PX // 8, PICTURE_PX // 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
    smooth.save(file, "JPEG", quality=80)
    return file.getvalue()


def _upload(devices: list[DeviceConfig], pictures: list[bytes], fingerprint: str, seconds: float) -> list[float]:
    """Latencies in seconds of all uploads; each device sends as fast as it is answered."""
    taken: list[float] = []
    end_s = time.monotonic() + seconds
    threads = [
        threading.Thread(target=_stream, args=(device, pictures[number::UPLOADERS], fingerprint, end_s, taken))
        for number, device in enumerate(devices)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def _stream(device: DeviceConfig, pictures: list[bytes], fingerprint: str, end_s: float, taken: list[float]) -> None:
    assert device.token is not None
    client = CloudClient(device.url, GROUP, device.token, config=UplinkConfig())
    boot_id, seq = os.urandom(BOOT_ID_BYTES), 0
    greeting = SampleBatch(
        device_id=device.device_id, boot_id=boot_id, fingerprint=fingerprint, samples_seen=0, samples=[]
    )
    client.upload(greeting)  # as every device begins; the answer says that it may deflate
    while time.monotonic() < end_s:
        chosen = [pictures[(seq + offset) % len(pictures)] for offset in range(BATCH)]
        samples = [_sample(picture, seq + offset) for offset, picture in enumerate(chosen)]
        body = client.pack(msgspec.structs.replace(greeting, samples_seen=seq + BATCH, samples=samples))
        assert body.encoding is not None
        started_s = time.perf_counter()
        receipt = client.upload_body(body)
        taken.append(time.perf_counter() - started_s)
        assert receipt.accepted == BATCH
        seq += BATCH
    client.close()


def _sample(picture: bytes, seq: int) -> Sample:
    return Sample(
        sample_id=os.urandom(SAMPLE_ID_BYTES), seq=seq, codec="jpeg", image=picture, label=0, probability=0.5,
        entropy=1.0, update_version=0, captured_at_ms=0,
    )  # fmt: skip


@contextmanager
def _polls(device: DeviceConfig) -> Iterator[None]:
    """POLLS connections that ask again as soon as they are answered, from a thread of their own."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(_hold_all(device, stop),))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _hold_all(device: DeviceConfig, stop: asyncio.Event) -> None:
    tasks = [asyncio.create_task(_hold(device)) for _ in range(POLLS)]
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _hold(device: DeviceConfig) -> None:
    address = urlsplit(device.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    request = (
        f"GET /v1/groups/{GROUP}/updates/latest?after=0&wait=50 HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {device.token}\r\n\r\n"
    ).encode()
    try:
        while True:
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")  # 204 has no body
    finally:
        writer.close()
