"""Which versions a deletion marks: against the plain way, in which every version carries all that it learned from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cema.cloud.store.base import UpdateRow
from cema.cloud.store.checks import descendants

# per version: (how many samples it is the first to learn from, whether another bundle came before, rollback to)
Histories = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.none() | st.integers(0, 20)), min_size=1, max_size=12
)


def told(history: list[tuple[int, bool, int | None]]) -> tuple[list[UpdateRow], dict[int, set[int]], dict[int, int]]:
    """The rows, what each version carries, and which version was the first to learn from each sample."""
    rows: list[UpdateRow] = []
    carried: dict[int, set[int]] = {0: set()}
    first: dict[int, int] = {}
    bundle = 0
    for version, (count, new_bundle, to) in enumerate(history, 1):
        bundle += new_bundle
        here = [row.version for row in rows if row.fingerprint == str(bundle)]
        restores = None if to is None or not here else ([0, *here])[to % (len(here) + 1)]
        if restores is None:
            new = set(range(len(first), len(first) + count))
            first.update(dict.fromkeys(new, version))
            carried[version] = new | (carried[version - 1] if here else set())
        else:
            carried[version] = carried[restores]
        rows.append(UpdateRow("g", version, "", "", str(bundle), "m", 0, 0, None, 0, {}, restores))
    return rows, carried, first


@given(Histories, st.data())
def test_a_version_is_marked_by_exactly_what_it_carries(
    history: list[tuple[int, bool, int | None]], data: st.DataObject
) -> None:
    rows, carried, first = told(history)
    deleted = {sample for sample in first if data.draw(st.booleans())}
    learned = {row.version: sum(first[sample] == row.version for sample in deleted) for row in rows}
    marks = descendants(data.draw(st.permutations(rows)), learned)
    assert marks == {row.version: len(carried[row.version] & deleted) for row in rows}


@given(Histories, st.data())
def test_with_old_versions_forgotten_no_mark_is_missing(
    history: list[tuple[int, bool, int | None]], data: st.DataObject
) -> None:
    rows, carried, first = told(history)
    learned = {row.version: sum(version == row.version for version in first.values()) for row in rows}
    kept = rows[data.draw(st.integers(0, len(rows) - 1)) :]
    marks = descendants(kept, learned)
    assert all(marks[row.version] >= len(carried[row.version]) for row in kept)
