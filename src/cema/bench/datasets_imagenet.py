"""ImageNet photographs and the sets that test models of ImageNet: ImageNet-C, ImageNet-R, ImageNet-A.

Labels are those of the usual models: 0 to 999, the rank of a class's wnid among all thousand. Sources: Hendrycks &
Dietterich, ICLR 2019 (-C); Hendrycks et al., "The Many Faces of Robustness", ICCV 2021 (-R); Hendrycks et al.,
"Natural Adversarial Examples", CVPR 2021 (-A).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cema.bench.corruptions import COMMON, EXTRA, SEVERITIES
from cema.bench.datasets_files import existing, in_range
from cema.bench.datasets_pictures import SUFFIXES, Absent, Dataset, Photographs
from cema.errors import ConfigError

IMAGENET_CLASSES = 1000
SUBSET_CLASSES = 200
"""Of ImageNet-R and of ImageNet-A, not the same ones."""
IMAGENET_C_URL = "https://zenodo.org/records/2235448"
IMAGENET_R_URL = "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar"
IMAGENET_A_URL = "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar"
_SAMPLES_URL = "https://github.com/EliSchwartz/imagenet-sample-images"
_WNID = re.compile(r"n\d{8}")

Table = dict[str, tuple[int, str]]
"""wnid -> label, name."""


def imagenet(data: Path) -> Dataset:
    """DATA/imagenet/labels.csv (wnid, label, name) with a photograph in photos/WNID.jpg for each row."""
    hint = f"columns wnid, label, name, beside photos/WNID.jpg, e.g. from {_SAMPLES_URL}"
    table = existing(data / "imagenet" / "labels.csv", hint)
    known = _read_table(table)
    paths = [table.parent / "photos" / f"{wnid}.jpg" for wnid in known]
    for path in paths:
        existing(path, f"each row of {table} has a photograph")
    labels = np.array([label for label, _ in known.values()], np.int64)
    return Dataset("imagenet", Photographs(paths), labels, _class_names(known))


def imagenet_c(data: Path) -> Dataset:
    """DATA/CORRUPTION/SEVERITY/WNID/*.JPEG (in DATA/imagenet-c too), the same photographs under each condition.

    The photographs are taken class by class in turn: a limit keeps a share of every class.
    """
    root = _root(data, "imagenet-c")
    conditions = [root / name / str(severity) for name in (*COMMON, *EXTRA) for severity in SEVERITIES]
    first = next((folder for folder in conditions if folder.is_dir()), None)
    if first is None:
        raise ConfigError(
            f"expected folders CORRUPTION/SEVERITY/WNID in {root}, such as {conditions[0]}, there is none",
            hint=f"download ImageNet-C from {IMAGENET_C_URL} and unpack its archives in {root}",
        )
    files = _by_turns(first, IMAGENET_C_URL)
    known = _table_for({file.parent.name for file in files}, root)
    labels = np.array([known[file.parent.name][0] for file in files], np.int64)

    def stored(corruption: str, severity: int) -> Photographs:
        return _stored(root / corruption / str(severity), [file.relative_to(first) for file in files])

    hint = "leave clean out, or run it on photographs of your own with the data set imagenet"
    absent = Absent(len(files), f"ImageNet-C at {root} holds no clean pictures", hint)
    return Dataset("imagenet-c", absent, labels, _class_names(known), stored=stored)


def imagenet_r(data: Path) -> Dataset:
    """DATA/WNID/* of 200 classes (in DATA/imagenet-r too); only these classes count, as in the paper."""
    return _subset(data, "imagenet-r", IMAGENET_R_URL, masked=True)


def imagenet_r_all(data: Path) -> Dataset:
    """ImageNet-R where an answer may be any of the thousand classes."""
    return _subset(data, "imagenet-r", IMAGENET_R_URL, masked=False)


def imagenet_a(data: Path) -> Dataset:
    """DATA/WNID/* of 200 classes (in DATA/imagenet-a too); only these classes count, as in the paper."""
    return _subset(data, "imagenet-a", IMAGENET_A_URL, masked=True)


def imagenet_a_all(data: Path) -> Dataset:
    """ImageNet-A where an answer may be any of the thousand classes."""
    return _subset(data, "imagenet-a", IMAGENET_A_URL, masked=False)


def _subset(data: Path, name: str, url: str, *, masked: bool) -> Dataset:
    root = _root(data, name)
    files = _by_turns(root, url)
    wnids = {file.parent.name for file in files}
    if len(wnids) != SUBSET_CLASSES:  # a part of them would make the masked task easier without a word
        raise ConfigError(
            f"expected pictures of {SUBSET_CLASSES} classes in {root}, got {len(wnids)}", hint=f"download {url} again"
        )
    known = _table_for(wnids, root)
    labels = np.array([known[file.parent.name][0] for file in files], np.int64)
    mask = np.zeros(IMAGENET_CLASSES, np.bool_)
    mask[labels] = True
    kind = name if masked else f"{name}-all"
    return Dataset(kind, Photographs(files), labels, _class_names(known), mask=mask if masked else None)


def _stored(folder: Path, files: list[Path]) -> Photographs:
    hint = f"download it from {IMAGENET_C_URL}"
    if not folder.is_dir():
        raise ConfigError(f"expected a folder of photographs at {folder}, there is none", hint=hint)
    there = {file.relative_to(folder) for file in _by_turns(folder, IMAGENET_C_URL)}
    odd = there.symmetric_difference(files)
    if odd:
        raise ConfigError(f"expected the same photographs in {folder} as elsewhere, not so {min(odd)}", hint=hint)
    return Photographs([folder / file for file in files])


def _root(data: Path, name: str) -> Path:
    return data / name if (data / name).is_dir() else data


def _by_turns(folder: Path, url: str) -> list[Path]:
    """The pictures of folder/WNID/: the first of each class, then the second of each, and so on."""
    if not folder.is_dir():
        raise ConfigError(
            f"expected a folder with one folder per wnid at {folder}, there is none", hint=f"download {url}"
        )
    ranked = [
        (rank, path)
        for group in folder.iterdir()
        if _WNID.fullmatch(group.name) and group.is_dir()
        for rank, path in enumerate(sorted(p for p in group.iterdir() if p.suffix.lower() in SUFFIXES))
    ]
    if not ranked:
        raise ConfigError(
            f"expected pictures ({', '.join(SUFFIXES)}) in {folder}/WNID/, got none", hint=f"download {url}"
        )
    return [path for _, path in sorted(ranked)]


def _table_for(wnids: Iterable[str], root: Path) -> Table:
    """Labels of these wnids: their ranks if they are all thousand, else from a labels.csv in the root or beside it."""
    names = sorted(set(wnids))
    if len(names) == IMAGENET_CLASSES:
        return {wnid: (label, wnid) for label, wnid in enumerate(names)}
    hint = (
        f"with all {IMAGENET_CLASSES} class folders the labels are their ranks; with {len(names)}, a table of columns "
        f"wnid, label (0 to {IMAGENET_CLASSES - 1}), name is needed, there or in the folder above"
    )
    places = (root / "labels.csv", root.parent / "labels.csv", root.parent / "imagenet" / "labels.csv")
    path = next((place for place in places if place.is_file()), None) or existing(places[0], hint)
    known = _read_table(path)
    missing = [wnid for wnid in names if wnid not in known]
    if missing:
        raise ConfigError(
            f"expected a row for each wnid in {path}, not there: {len(missing)}, e.g. {missing[0]}", hint=hint
        )
    return known


def _read_table(path: Path) -> Table:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = {row["wnid"]: (int(row["label"]), row["name"]) for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"expected rows of wnid, label (a number) and name in {path}: {error!r}") from error
    if not table:
        raise ConfigError(f"expected at least one class in {path}, got none")
    in_range(np.array([label for label, _ in table.values()], np.int64), IMAGENET_CLASSES, path)
    return table


def _class_names(table: Table) -> list[str]:
    named = dict(table.values())
    return [named.get(index, str(index)) for index in range(IMAGENET_CLASSES)]
