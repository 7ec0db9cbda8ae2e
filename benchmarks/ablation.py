"""What each part of ``cema`` is worth, and how much its numbers matter: specs of the tables ``method-*`` with options.

One part or number is changed at a time. Shown on the four corruptions that everything was tuned on (kept.FOUR), first
2,000 photographs. OFFLINE: the device alone; it is judged on clean and on sorted streams, too.
"""

from __future__ import annotations

from collections.abc import Iterator

from kept import FOUR

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
    "trust_least x 3": {"blend.trust_least": 0.75},
    "memory / 3": {"statistics.memory": 32},
    "memory x 3": {"statistics.memory": 288},
    "measured / 3": {"statistics.measured": 11},
    "measured x 3": {"statistics.measured": 96},
    "period_max x 3": {"statistics.period_max": 384},
    "period and period_max / 2": {"statistics.period": 32, "statistics.period_max": 64},
    "change / 3": {"statistics.change": 0.73},
    "window x 3": {"statistics.window": 48},
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
}
"""Of ``cema``."""
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


def changes() -> Iterator[Spec]:
    """With and without noticing that the world has changed: the four corruptions and clean pictures in a row."""
    row = ("gaussian_noise", "contrast", "clean", "gaussian_blur", "jpeg_compression")
    for options in (OFFLINE["as it is"], OFFLINE["no change is noticed"]):
        for method in ("cema-offline", "cema"):
            yield _spec(method, options, corruptions=row, setting="continual")


def pareto() -> Iterator[Spec]:
    """From 1 to 100 % of the samples."""
    for rate in RATES:
        yield _spec("cema", {"pacing.rate": rate, "pacing.start": max(1.0, 128 * rate)}, corruptions=FOUR)
