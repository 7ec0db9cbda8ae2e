"""``cema bundle``: make what a device runs from a torch model, and look into it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np

from cema.cli.files import write_file
from cema.cli.output import emit_json, json_option
from cema.errors import ConfigError
from cema.wire.bundle import INPUT_TYPES, Bundle, encode_bundle, load_bundle
from cema.wire.messages import Preprocess, UpdateManifest
from cema.wire.update import encode_update, fits_float16

if TYPE_CHECKING:
    from cema.cloud.models import LoadedModel

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def _numbers(count: int, kind: type[int] | type[float]) -> Callable[..., tuple[float, ...] | None]:
    """Callback of options such as ``--size 224,224``: that many numbers with commas between."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise click.BadParameter(f"expected {count} numbers with commas between, got {value!r}", ctx, param)
        return numbers

    return convert


@click.group()
def bundle() -> None:
    """Make and inspect bundles: the model as devices run it."""


@bundle.command()
@click.argument("model")
@click.option("--weights", type=click.Path(path_type=Path), help="Safetensors file; default: the model's own.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle file to write.")
@click.option("--size", callback=_numbers(2, int), metavar="H,W", help="Input size in px.")
@click.option("--resize-short", type=click.IntRange(0), help="Scale the short side to this first, then crop; 0 = off.")
@click.option("--mean", callback=_numbers(3, float), metavar="R,G,B", help="Of pixel values in 0..1.")
@click.option("--std", callback=_numbers(3, float), metavar="R,G,B", help="Of pixel values in 0..1.")
@click.option("--interpolation", type=click.Choice(INTERPOLATIONS))
@click.option("--classes", metavar="FILE|N", help="A file with one name a line, or their number.")
@click.option(
    "--input",
    "input_type",
    type=click.Choice(INPUT_TYPES),
    default=INPUT_TYPES[0],
    show_default=True,
    help="What the graph takes: pixels, or normalised float32 for accelerators that cannot cast.",
)
@click.option("--int8", is_flag=True, help="Let the graph compute in int8; needs --calibration.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="DIR|NPZ",
    help="Pictures as the device sees them: a folder, or an .npz with 'images'.",
)
@json_option
def build(
    model: str, weights: Path | None, out: Path, classes: str | None, input_type: str, int8: bool,
    calibration: Path | None, as_json: bool, **recipe: Any,
) -> None:  # fmt: skip
    """Export MODEL (a known name or module:factory) and check it against torch.

    Known names bring preprocessing and classes; module:factory needs --size and --classes.
    """
    from cema.cloud.export import build_bundle
    from cema.cloud.models import load_model

    if int8 and calibration is None:
        raise ConfigError("--int8 needs pictures to calibrate with", hint="give --calibration DIR, or an .npz")
    if calibration is not None and not int8:
        raise ConfigError("--calibration is for int8 bundles only", hint="add --int8, or leave it out")
    loaded = load_model(model, weights)
    built = build_bundle(
        loaded.module,
        name=loaded.name,
        preprocess=_preprocess(loaded, recipe),
        classes=_classes(loaded, classes),
        input_type=input_type,
    )
    fidelity: dict[str, Any] = {}
    if calibration is not None:
        built, fidelity = _in_int8(built, calibration)
    write_file(out, encode_bundle(built))
    _report(built, out, as_json, fidelity)


@bundle.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Check FILE and print what is in it."""
    _report(load_bundle(file), file, as_json)


def _in_int8(built: Bundle, calibration: Path) -> tuple[Bundle, dict[str, Any]]:
    from cema.cloud.calibration import load_pictures
    from cema.cloud.int8 import quantised

    made, fidelity = quantised(built, load_pictures(calibration, built.manifest.preprocess))
    return made, {"label_agreement": round(fidelity.agreement, 4), "logit_error": round(fidelity.error, 4)}


def describe(content: Bundle) -> dict[str, Any]:
    """What ``inspect`` prints. norm_layers: number by kind. update_bytes: of one update for this bundle, as a file."""
    manifest = content.manifest
    kinds = Counter({tensor.name.rpartition(".")[0]: tensor.kind for tensor in manifest.norm}.values())
    update = UpdateManifest(
        group="default", version=1, fingerprint=manifest.fingerprint, method="source", created_at_ms=0,
        encoding="float16" if fits_float16(content.source_parameters()) else "float32",
    )  # fmt: skip
    return {
        "fingerprint": manifest.fingerprint,
        "model": manifest.model,
        "size": list(manifest.preprocess.size),
        "input_type": manifest.input_type or "float32",
        "precision": manifest.precision or "float32",
        "classes": len(manifest.classes),
        "norm_layers": dict(kinds),
        "norm_bytes": len(content.norm),
        "update_bytes": len(encode_update(update, content.source_parameters())),
        "bundle_bytes": len(encode_bundle(content)),
    }


def _report(content: Bundle, file: Path, as_json: bool, measured: Mapping[str, Any] | None = None) -> None:
    facts = {"file": str(file), **describe(content), **(measured or {})}
    if as_json:
        emit_json(facts)
        return
    facts["size"] = " x ".join(map(str, facts["size"]))
    facts["norm_layers"] = ", ".join(f"{count} {kind}" for kind, count in facts["norm_layers"].items())
    for key, value in facts.items():
        click.echo(f"{key:15} {value}")


def _preprocess(loaded: LoadedModel, recipe: dict[str, Any]) -> Preprocess:
    given = {key: value for key, value in recipe.items() if value is not None}
    if loaded.preprocess is None and "size" not in given:
        raise ConfigError(f"the input size of {loaded.name} is not known", hint="give --size H,W")
    if min(given.get("size", (1,))) < 1 or min(given.get("std", (1,))) <= 0:
        raise ConfigError(f"expected a positive size and positive stds, got {given}")
    made = msgspec.structs.replace(loaded.preprocess, **given) if loaded.preprocess else Preprocess(**given)
    if made.resize_short and made.resize_short < max(made.size):
        raise ConfigError(
            f"expected a short side of at least {max(made.size)} px to crop from, got {made.resize_short}",
            hint="raise --resize-short, or set it to 0 to resize straight to the input size",
        )
    return made


def _classes(loaded: LoadedModel, option: str | None) -> list[str]:
    if option is None:
        if loaded.classes is None:
            raise ConfigError(f"the classes of {loaded.name} are not known", hint="give --classes FILE or their number")
        return loaded.classes
    if option.isdecimal():
        return [str(index) for index in range(int(option))]
    try:
        return [line.strip() for line in Path(option).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected a file with class names at {option}: {error}") from error
