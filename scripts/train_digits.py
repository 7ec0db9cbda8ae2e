"""Train the digits pair that comes with cema: a mildly trained edge network and a robust foundation network.

    python scripts/train_digits.py            writes src/cema/cloud/models/weights/digits*

The edge network sees clean pictures, slightly shifted and in slightly different light, so that corruption hurts it, as
happens in life; the foundation network sees strong distortions. About two minutes on one core; the same torch gives
the same weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from cema.cloud.models import digits

WEIGHTS = Path(digits.__file__).parent / "weights"
SEED = 0
BATCH = 100
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
EDGE_EPOCHS, FOUNDATION_EPOCHS = 40, 80
EDGE_SHIFT_PX, FOUNDATION_SHIFT_PX = 2, 4
ROTATION_RAD, SCALE = math.radians(12), 0.1
EDGE_CONTRAST_MIN, EDGE_BRIGHTNESS = 0.6, 0.1  # without them, a grey background alone gives one confident wrong class
NOISE_SD, CONTRAST_MIN, BRIGHTNESS, BLUR_SD_PX = 0.3, 0.25, 0.3, 1.8  # upper ends; pixels in 0..1

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def warp(images: torch.Tensor, shift_px: float, rotation: float, scale: float, g: torch.Generator) -> torch.Tensor:
    """Shift, rotate and scale each picture of float32 [B, 3, H, W] by its own draw; outside is black."""
    count = len(images)
    angle, size = uniform((count,), -rotation, rotation, g), uniform((count,), 1 - scale, 1 + scale, g)
    shift = uniform((count, 2), -shift_px, shift_px, g) * (2 / images.shape[-1])
    cos, sin = angle.cos() * size, angle.sin() * size
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).view(count, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def blur(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Gaussian blur, one width for the whole batch."""
    sd = float(uniform((1,), 0.2, BLUR_SD_PX, g))
    x = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-(x**2) / (2 * sd**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1)
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    along_width = functional.conv2d(padded, kernel[:, :, None, :], groups=3)
    return functional.conv2d(along_width, kernel[:, :, :, None], groups=3)


def relight(images: torch.Tensor, contrast_min: float, brightness: float, g: torch.Generator) -> torch.Tensor:
    """Less contrast around each picture's mean, then lighter or darker."""
    each, mean = (len(images), 1, 1, 1), images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * uniform(each, contrast_min, 1.0, g) + mean + uniform(each, -brightness, brightness, g)


def augment_edge(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return relight(warp(images, EDGE_SHIFT_PX, 0.0, 0.0, g), EDGE_CONTRAST_MIN, EDGE_BRIGHTNESS, g).clamp(0, 1)


def augment_foundation(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Half of the batches blurred; then contrast, brightness and noise for each picture."""
    images = warp(images, FOUNDATION_SHIFT_PX, ROTATION_RAD, SCALE, g)
    if torch.rand((), generator=g) < 0.5:
        images = blur(images, g)
    images = relight(images, CONTRAST_MIN, BRIGHTNESS, g)
    noise = torch.randn(images.shape, generator=g) * uniform((len(images), 1, 1, 1), 0.0, NOISE_SD, g)
    return (images + noise).clamp(0, 1)


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - digits.PIXEL_MEAN) / digits.PIXEL_STD


def train(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, augment: Augment) -> None:
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.SGD(module.parameters(), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=epochs * (len(images) // BATCH))
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):  # type: ignore[no-untyped-call]
            loss = functional.cross_entropy(module(normalised(augment(images[rows], generator))), labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    module.eval()


@torch.no_grad()
def accuracy(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return float((module(normalised(images)).argmax(1) == labels).float().mean())


def main() -> None:
    pictures, numbers = digits.digit_images()
    images, labels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(numbers)
    seen, held_out = (torch.from_numpy(rows) for rows in digits.split())
    print(f"training pixels: mean {images[seen].mean():.3f}, sd {images[seen].std():.3f}")
    noisy = (images + 0.3 * torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))).clamp(0, 1)
    record = {}
    WEIGHTS.mkdir(exist_ok=True)
    for name, kind, epochs, augment in (
        ("digits-edge", digits.DigitsEdge, EDGE_EPOCHS, augment_edge),
        ("digits-foundation", digits.DigitsFoundation, FOUNDATION_EPOCHS, augment_foundation),
    ):
        torch.manual_seed(SEED)
        module = kind()
        train(module, images[seen], labels[seen], epochs, augment)
        record[name] = {
            "parameters": sum(p.numel() for p in module.parameters()),
            "accuracy_held_out": round(accuracy(module, images[held_out], labels[held_out]), 4),
            "accuracy_held_out_noise_sd_0.3": round(accuracy(module, noisy[held_out], labels[held_out]), 4),
        }
        state = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
        (WEIGHTS / f"{name}.safetensors").write_bytes(save(state))
        print(name, record[name])
    record["data"] = {"train": len(seen), "held_out": len(held_out)}
    (WEIGHTS / "digits.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums do not depend on the number of cores then
    torch.use_deterministic_algorithms(True)
    main()
