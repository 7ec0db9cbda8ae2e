"""What each part of ``cema`` is worth, and how much its numbers matter: specs of the tables ``method-*`` with options.

One part or number is changed at a time. Shown on the four corruptions that everything was tuned on (kept.FOUR), first
2,000 photographs. OFFLINE: the device alone; it is judged on clean and on sorted streams, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from kept import FOUR

from cema.bench.corruptions import COMMON
from cema.bench.grid import Spec

Options = dict[str, bool | int | float | str]

OFFLINE: dict[str, Options] = {
    "as it is": {},
    "always full trust": {"blend.shift_half": 1e-6},
    "no least trust": {"blend.trust_least": 0.0},
    "deep layers follow all the same": {"blend.classes": 1},
    "any number of pictures is evidence": {"blend.evidence": 0.0},
    "all of the measured statistics": {"blend.share_max": 0.99, "blend.shift_half": 1e-6, "blend.evidence": 0.0},
    "no class prior": {"classes.rounds": 0},
    "prior x 3": {"classes.prior": 15.0},
    "prior / 3": {"classes.prior": 1.7},
    "narrow / 3": {"classes.narrow": 0.2},
    "no change is noticed": {"statistics.change": 1e9},
    "share_max / 3": {"blend.share_max": 0.22},
    "evidence x 3": {"blend.evidence": 24.0},
    "evidence / 3": {"blend.evidence": 2.7},
    "shift_half x 3": {"blend.shift_half": 0.09},
    "shift_half / 3": {"blend.shift_half": 0.01},
    "shift_power x 3": {"blend.shift_power": 6.0},
    "shift_power / 3": {"blend.shift_power": 0.67},
    "trust_least x 3": {"blend.trust_least": 0.75},
    "memory / 3": {"statistics.memory": 32},
    "memory x 3": {"statistics.memory": 288},
    "measured / 3": {"statistics.measured": 11},
    "measured x 3": {"statistics.measured": 96},
    "period_max x 3": {"statistics.period_max": 384},
    "period and period_max / 2": {"statistics.period": 32, "statistics.period_max": 64},
    "change x 3": {"statistics.change": 6.6},
    "change / 3": {"statistics.change": 0.73},
    "window x 3": {"statistics.window": 48},
    "least x 3": {"statistics.least": 24},
    "least / 3": {"statistics.least": 3},
    "classes.window x 3": {"classes.window": 192},
    "classes.window / 3": {"classes.window": 21},
    "classes.memory x 3": {"classes.memory": 3000.0},
    "classes.memory / 3": {"classes.memory": 333.0},
    "classes.start x 3": {"classes.start": 768.0},
    "classes.start / 3": {"classes.start": 85.0},
    "classes.sigmas x 3": {"classes.sigmas": 9.0},
    "classes.sigmas / 3": {"classes.sigmas": 1.0},
    "classes.rounds x 3": {"classes.rounds": 15},
    "classes.rounds / 3": {"classes.rounds": 2},
}
"""Of ``cema-offline``."""
CLOUD: dict[str, Options] = {
    "as it is": {},
    "foundation model alone teaches": {"student_share": 0.0},
    "student alone teaches (cema-lite)": {"student_share": 1.0},
    "edge_lr x 3": {"edge_lr": 0.0075},
    "edge_lr / 3": {"edge_lr": 0.00083},
    "no entropy term": {"entropy_weight": 0.0},
    "no label term": {"label_weight": 0.0},
    "divergence alone": {"entropy_weight": 0.0, "label_weight": 0.0, "divergence_weight": 7.0},
    "no random slice": {"pacing.random_share": 0.0},
    "random slice alone": {"pacing.e_min": 1.0, "pacing.random_share": 0.3},
    "e_min as in the paper": {"pacing.e_min": 0.02},
    "e_min x 3": {"pacing.e_min": 0.3},
    "never silent, no class prior": {"classes.narrow": 0.0},
    "no class prior": {"classes.rounds": 0},
    "momentum / 3": {"momentum": 0.3},
    "e_max / 3": {"e_max": 0.13},
    "e_max x 2.5": {"e_max": 1.0},
    "divergence_weight x 3": {"divergence_weight": 9.0},
    "divergence_weight / 3": {"divergence_weight": 1.0},
    "entropy_weight x 3": {"entropy_weight": 9.0},
    "label_weight x 3": {"label_weight": 3.0},
    "random_share x 3": {"pacing.random_share": 0.3},
    "random_share / 3": {"pacing.random_share": 0.033},
    "start / 3": {"pacing.start": 11.0},
    "most x 3": {"pacing.most": 192.0},
    "most / 3": {"pacing.most": 21.0},
    "e_max_warmup x 3": {"pacing.e_max_warmup": 192},
    "e_max_warmup / 3": {"pacing.e_max_warmup": 21},
    "least_images x 3": {"least_images": 48},
    "least_images / 3": {"least_images": 5},
}
"""Of ``cema``."""
WORLDS: dict[str, Options] = {
    "as it is": {},
    "the last alone remembered": {"statistics.worlds": 0},
    "worlds / 3": {"statistics.worlds": 3},
    "again x 3": {"statistics.again": 3.0},
    "again / 3": {"statistics.again": 0.33},
    "never anew": {"statistics.anew": 1e9},
    "anew x 3": {"statistics.anew": 12.0},
    "anew / 3": {"statistics.anew": 1.33},
    "unlike x 3": {"statistics.unlike": 6.0},
    "unlike / 3": {"statistics.unlike": 0.67},
}
"""Of ``cema-offline``, where conditions come back."""
LOOKS: dict[str, Options] = {
    "as it is": {},
    "one look for all": {"mixture.most": 1},
    "most / 3": {"mixture.most": 2},
    "looks x 3": {"mixture.looks": 768},
    "looks and least / 3": {"mixture.looks": 85, "mixture.least": 43},
    "every x 3": {"mixture.every": 384},
    "every / 3": {"mixture.every": 43},
    "wait x 3": {"mixture.wait": 6144},
    "wait / 3": {"mixture.wait": 683},
    "gain x 3": {"mixture.gain": 0.03},
    "gain / 3": {"mixture.gain": 0.0033},
    "margin x 3": {"mixture.margin": 0.9},
    "margin / 3": {"mixture.margin": 0.1},
    "alternation x 3": {"mixture.alternation": 0.375},
    "alternation / 3": {"mixture.alternation": 0.042},
    "rare x 3": {"mixture.rare": 0.15},
    "rare / 3": {"mixture.rare": 0.017},
    "largest / 3": {"mixture.largest": 0.3},
    "doubts x 3": {"mixture.doubts": 6},
    "flutter x 3": {"mixture.flutter": 9},
    "flutter / 3": {"mixture.flutter": 1},
    "odd x 3": {"mixture.odd": 60.0},
    "odd / 3": {"mixture.odd": 6.7},
    "rounds x 3": {"mixture.rounds": 75},
    "rounds / 3": {"mixture.rounds": 8},
    "starts x 3": {"mixture.starts": 6},
    "starts / 2": {"mixture.starts": 1},
}
"""Of ``cema-offline``, where conditions alternate and where they come one after the other."""
PARTS = {
    "cema-offline": (
        "as it is",
        "always full trust",
        "no least trust",
        "deep layers follow all the same",
        "any number of pictures is evidence",
        "all of the measured statistics",
        "no class prior",
    ),
    "cema": (
        "as it is",
        "foundation model alone teaches",
        "student alone teaches (cema-lite)",
        "divergence alone",
        "no random slice",
        "e_min as in the paper",
    ),
}
"""What is shown with three seeds: the parts of the method, without which it would be another."""
RATES = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0)
"""Samples per picture at full trust: the curve of accuracy against bytes."""
FEW = 256
"""Pictures of each condition, an eighth of what other tables have."""
PALE = ("fog", "clean", "frost")
"""Conditions in a row: by the numbers of ``pixel_style`` frost looks much the same as clean pictures."""
BEYOND = (0.5, 1.0)
"""Shares of all pictures sent whatever their entropy and the trust: the end of the curve, beyond the filters."""


def _spec(method: str, options: Options, **changes: object) -> Spec:
    given = {method: options} if options else {}
    return Spec(dataset="cifar10", methods=(method,), limit=2000, options=given, **changes)  # type: ignore[arg-type]


def ablation(variants: dict[str, Options], method: str, seeds: tuple[int, ...] = (0,)) -> Iterator[Spec]:
    """Each variant on the four corruptions and clean pictures alone, and on two of them sorted by class."""
    for options in variants.values():
        yield _spec(method, options, corruptions=(*FOUR, "clean"), seeds=seeds)
        yield _spec(method, options, corruptions=FOUR[:2], setting="correlated", alpha=0.0, seeds=seeds)


def parts(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """The parts of the method, with several seeds."""
    for method, variants in (("cema-offline", OFFLINE), ("cema", CLOUD)):
        yield from ablation({name: variants[name] for name in PARTS[method]}, method, seeds)


def changes(seeds: tuple[int, ...]) -> Iterator[Spec]:
    """With and without noticing that the world has changed: the four corruptions and clean pictures in a row; and
    milder ones, of CIFAR-10 only a few pictures each, so that most go unnoticed but by what is measured."""
    row = ("gaussian_noise", "contrast", "clean", "gaussian_blur", "jpeg_compression")
    for options in (OFFLINE["as it is"], OFFLINE["no change is noticed"]):
        for method in ("cema-offline", "cema"):
            yield _spec(method, options, corruptions=row, setting="continual")
    for known in (
        Spec(dataset="cifar10", methods=("source",), corruptions=COMMON, limit=FEW),
        Spec(dataset="imagenet", methods=("source",), corruptions=PALE),
    ):
        passing = msgspec.structs.replace(known, setting="continual", severity=3, seeds=seeds)
        yield passing
        yield msgspec.structs.replace(passing, methods=("cema-offline",))
        never = {"cema-offline": WORLDS["never anew"]}
        yield msgspec.structs.replace(passing, methods=("cema-offline",), options=never)


def worlds() -> Iterator[Spec]:
    """Numbers that matter only where the world changes: conditions that come back, alternate, or do neither."""
    for variants, settings in ((WORLDS, ("recurring",)), (LOOKS, ("mixed", "continual"))):
        for options in variants.values():
            for setting in settings:
                yield _spec("cema-offline", options, corruptions=FOUR, setting=setting)


def deep() -> Iterator[Spec]:
    """Parts that are for other models: whose own statistics are off, or of whose samples few pass the filter."""
    variants: tuple[tuple[str, tuple[str, ...], Options], ...] = (
        ("source", ("clean",), {}),
        ("cema-offline", ("clean", "fog"), {}),
        ("cema-offline", ("clean", "fog"), OFFLINE["no least trust"]),
        ("cema", ("gaussian_noise",), {}),
        ("cema", ("gaussian_noise",), CLOUD["no random slice"]),
        ("cema", ("gaussian_noise",), CLOUD["student alone teaches (cema-lite)"]),
    )
    for method, corruptions, options in variants:
        given = {method: options} if options else {}
        yield Spec(dataset="imagenet", methods=(method,), corruptions=corruptions, severity=3, passes=4, options=given)


def pareto() -> Iterator[Spec]:
    """From 1 to 100 % of the samples."""
    for rate in RATES:
        yield _spec("cema", {"pacing.rate": rate, "pacing.start": max(1.0, 128 * rate)}, corruptions=FOUR)
    tokens = {"pacing.rate": 1.0, "pacing.start": 2048.0, "pacing.most": 2048.0}
    for share in BEYOND:
        yield _spec("cema", {**tokens, "pacing.random_share": share}, corruptions=FOUR)
