"""``cema bench``: run methods over drifting streams, and make a report of it."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from cema.cli.bench_compare import compare
from cema.cli.bench_perf import perf
from cema.cli.output import emit_json, json_option
from cema.errors import BenchError, ConfigError

USUAL_PROCESSES, MOST_PROCESSES = 8, 256
"""Unless asked for: each holds torch and two models. Most: what may be asked for."""
FOUR = "gaussian_noise,contrast,gaussian_blur,jpeg_compression"


@click.group()
def bench() -> None:
    """Measure methods: accuracy, bytes and milliseconds."""


bench.add_command(perf)
bench.add_command(compare)


_FOLDER = click.Path(path_type=Path)
_WEIGHTS = click.Path(exists=True, dir_okay=False)
_MODEL_OPTIONS = (
    click.option("--edge-model", metavar="NAME", help="Instead of the data set's: a known name, or module:factory."),
    click.option("--foundation-model", metavar="NAME", help="As --edge-model. Without it, an --edge-model has none."),
    click.option("--edge-weights", type=_WEIGHTS, metavar="FILE", help="Safetensors."),
    click.option("--foundation-weights", type=_WEIGHTS, metavar="FILE", help="Safetensors."),
)
_STREAM_OPTIONS = (
    click.option("--dataset", default="digits", show_default=True, metavar="NAME", help="See docs/benchmark.md."),
    click.option("--data", type=_FOLDER, help="Its folder or file [env: CEMA_DATA]."),
    click.option("--limit", type=click.IntRange(1), help="The first N photographs; default: all."),
    click.option("--skip", default=0, type=click.IntRange(0), help="Leave out so many before, e.g. to tune on others."),
    click.option("--corruptions", default=FOUR, show_default=True, metavar="A,B|all|extra|clean",
                 help="Ids of ImageNet-C; all = its fifteen, extra = its four others, clean = none."),
    click.option("--severity", default=5, show_default=True, type=click.IntRange(1, 5)),
    click.option("--setting", default="reset", show_default=True, metavar="NAME", help="reset, continual, gradual, "
                 "mixed, recurring, correlated or label_shift."),
    click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1)),
    click.option("--edges", default=1, show_default=True, type=click.IntRange(1, 64), help="Devices of the group."),
    click.option("--alpha", default=0.1, show_default=True, type=click.FloatRange(0),
                 help="correlated: Dirichlet concentration, 0 = sorted by class."),
    click.option("--imbalance", default=10.0, show_default=True, type=click.FloatRange(1),
                 help="label_shift: most frequent class / rarest."),
    click.option("--visits", default=3, show_default=True, type=click.IntRange(2), help="recurring: rounds."),
    click.option("--passes", default=1, show_default=True, type=click.IntRange(1), help="How often a stream goes "
                 "over the photographs: reset, correlated, label_shift."),
    click.option("--shuffle/--stored-order", default=True, show_default=True, help="Order of the photographs: drawn "
                 "from the seed, or as the data set has it, to compare with figures of one stream."),
)  # fmt: skip
_LINK_OPTIONS = (
    click.option("--link", default="instant", show_default=True, metavar="NAME|key=value,...",
                 help="instant, fibre, lte, nb-iot, patchy, or e.g. up_bps=1e6,latency_s=0.2."),
    click.option("--delay", default="0", show_default=True, metavar="N,...",
                 help="Batches between the arrival of an update and its use; several: a sweep."),
    click.option("--fps", default=30.0, show_default=True, type=click.FloatRange(0, min_open=True),
                 help="Pictures per second of a device, for links that take time."),
)  # fmt: skip
_RUN_OPTIONS = (
    click.option("--methods", default="source,bn,cema-paper,cema", show_default=True, metavar="A,B,...",
                 help="Names of docs/benchmark.md, or module:Class."),
    click.option("--option", "options", multiple=True, metavar="METHOD.KEY=VALUE",
                 help="Overrides a method's number; may be given several times."),
    click.option("--seeds", default="0", show_default=True, metavar="N,...",
                 help="Each draws order, corruptions and the methods' own draws."),
    click.option("--out", default="cema-bench", show_default=True, type=_FOLDER, help="Finished cells and report."),
    click.option("--json", "json_file", metavar="FILE|-", help="Write all rows and their provenance there.",
                 type=click.Path(dir_okay=False, writable=True, allow_dash=True)),
    click.option("--resume", is_flag=True, help="Keep the cells below --out that are finished already."),
    click.option("--processes", default=0, type=click.IntRange(0, MOST_PROCESSES),
                 help=f"0 = one per core, at most {USUAL_PROCESSES}; 1 for honest times."),
    click.option("--cache", type=_FOLDER, help="Corrupted pictures [default: cema below the user's cache folder]."),
)  # fmt: skip


def _options(command: Any) -> Any:
    for option in reversed((*_STREAM_OPTIONS, *_RUN_OPTIONS, *_LINK_OPTIONS, *_MODEL_OPTIONS)):
        command = option(command)
    return command


@bench.command("run")
@_options
def run_command(**given: Any) -> None:
    """Run every method on every stream; one row per method, corruption and seed.

    Each finished cell is kept below --out: an interrupted run goes on with --resume. The report is written there, too.
    """
    from cema.bench.provenance import provenance
    from cema.bench.report import write_report
    from cema.bench.report_page import count
    from cema.bench.rows import Results, encode_results
    from cema.bench.run import run
    from cema.cli.bench_progress import Progress

    started_at = datetime.now(UTC)
    processes = given["processes"] or min(os.cpu_count() or 1, USUAL_PROCESSES)
    place = _workplace(given, processes)
    with Progress() as watcher:
        finished = run(place, given["out"], resume=given["resume"], processes=processes, watcher=watcher)
    results = Results(rows=finished.rows, provenance=provenance(sys.argv[1:], started_at))
    if given["json_file"] == "-":
        emit_json(results)
    elif given["json_file"]:
        _write(Path(given["json_file"]), encode_results(results))
    if finished.rows:
        files = write_report([results], given["out"])
        click.echo(f"{count(len(finished.rows), 'row')}; report: {files.html}", err=True)
    if finished.failures:
        cells = "; ".join(f"{failure.cell.method}: {failure.message}" for failure in finished.failures[:3])
        raise BenchError(f"failed: {count(len(finished.failures), 'cell')}; {cells}")


@bench.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default="cema-bench", show_default=True, type=_FOLDER, help="Folder of the report.")
@json_option
def report(files: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """One HTML page (with JSON and CSV beside it) from the FILES of one or several runs.

    FILES are those of 'cema bench run --json', or the results.json of an earlier report.
    """
    from cema.bench.report import read_results, write_report

    written = write_report([results for path in files for results in read_results(path)], out)
    if as_json:
        emit_json({"html": str(written.html), "json": str(written.json), "csv": str(written.csv)})
    else:
        click.echo(f"report: {written.html}")


def _workplace(given: dict[str, Any], processes: int) -> Any:
    """Everything checked that can be checked before the first process starts."""
    from cema.bench.datasets import load_dataset
    from cema.bench.grid import Spec, conditions, read_corruptions, read_numbers, read_options
    from cema.bench.link import read_link
    from cema.bench.pairs import pair_names
    from cema.bench.start import check_method
    from cema.bench.work import Workplace, identity

    data = given["data"] or (Path(os.environ["CEMA_DATA"]) if os.environ.get("CEMA_DATA") else None)
    models = (given[name] for name in ("edge_model", "foundation_model", "edge_weights", "foundation_weights"))
    names = pair_names(given["dataset"], data, *models)
    spec = Spec(
        **{name: given[name] for name in _AS_GIVEN},
        methods=tuple(name.strip() for name in given["methods"].split(",") if name.strip()),
        corruptions=read_corruptions(given["corruptions"]),
        seeds=read_numbers(given["seeds"]),
        delays=read_numbers(given["delay"]),
        link=read_link(given["link"]),
        options=read_options(given["options"]),
    )
    for method in spec.methods:
        check_method(method, spec.options.get(method, {}), foundation=names.foundation is not None)
    dataset = load_dataset(given["dataset"], data).part(given["skip"], given["limit"])
    spec = msgspec.structs.replace(spec, identity=identity(dataset, names, conditions(spec, dataset.labels)))
    cache = given["cache"] or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cema"
    return Workplace(spec, names, data, cache, max((os.cpu_count() or 1) // processes, 1))


_AS_GIVEN = (
    "dataset", "severity", "setting", "batch_size", "skip", "limit", "edges", "fps", "alpha", "imbalance", "visits",
    "shuffle", "passes",
)  # fmt: skip
"""Options that are fields of the specification as they stand."""


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}") from error
