"""Turns conference legs into rows: new ones, and newer states of those that are stored.

The rule that must stay true: what arrives is stored whole or not at all, a leg keeps its row and
its ``seq``, and an older state undoes nothing. The public functions are whole transactions.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Final, NamedTuple

import orjson

from cdrd.batch import QuarantinedReport
from cdrd.followed import Followed
from cdrd.leg import ConferenceLeg, is_another, merge
from cdrd.local_time import Choice, Repeated, Span, choice_of, decide, repeated_hour, utc_text
from cdrd.record import utc_milliseconds
from cdrd.row import insert_quarantined
from cdrd.schema import transaction
from cdrd.sizes import PAYLOAD_BYTES
from cdrd.source import IMPORT

IDS_A_QUERY: Final = 500
"""SQLite before 3.32 binds 999 values a statement at most."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is to be stored in one transaction, all of one portal.

    ``until`` and ``since`` are Unix seconds: when the legs were read, and when the portal's table
    was read to its end before that, None where it was not. ``again`` has the CallIDs of rows that
    were read before: such a leg is not stored anew, should it have been deleted, nor refused anew.
    """

    portal: str
    zone: tzinfo
    until: float
    source: str = IMPORT
    since: float | None = None
    legs: Sequence[ConferenceLeg] = ()
    quarantined: Sequence[QuarantinedReport] = ()
    again: frozenset[int] = frozenset()
    followed: Followed | None = None  # up to where the portal's table was read with this


@dataclass(slots=True)
class StoredLegs:
    """What became of legs; each of them is counted once, but for those that were deleted before.

    ``changed`` has the CallIDs of those that were stored or updated. ``told`` has those with a time
    in an hour that came twice, also ones that were stored before: whether anything tells which of
    the two it was. ``undecided`` has those of them of which nothing tells it, and which were not
    stored with that time before.
    """

    stored: int = 0
    updated: int = 0
    unchanged: int = 0
    quarantined: list[tuple[int, QuarantinedReport]] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    undecided: list[int] = field(default_factory=list)
    told: dict[int, bool] = field(default_factory=dict)


class _Row(NamedTuple):
    """A leg as it is stored."""

    seq: int
    leg: ConferenceLeg


def store_legs(connection: sqlite3.Connection, arrival: Arrival) -> StoredLegs:
    """Store legs and what could be none. Raises sqlite3.Error, and then nothing is stored."""
    outcome = StoredLegs()
    refused = list(arrival.quarantined)
    with transaction(connection):
        for legs in _one_state_each(arrival.legs):
            known = _read_rows(connection, arrival.portal, list(legs))
            for call_id in _strangers(legs, known):
                leg, row = legs.pop(call_id), known.pop(call_id)
                if call_id not in arrival.again:
                    refused.append(_refused(arrival, leg, row.leg))
            for call_id in arrival.again & (legs.keys() - known.keys()):
                del legs[call_id]
            _store(connection, arrival, legs, known, outcome)
        outcome.quarantined = insert_quarantined(connection, refused)
        if arrival.followed is not None:
            _remember_followed(connection, arrival.portal, arrival.followed)
    return outcome


def read_followed(connection: sqlite3.Connection, portal: str) -> Followed | None:
    """Read up to where a portal's table was read, None where it never was."""
    query = "SELECT call_id, timezone, digests FROM followed_portal WHERE portal = ?"
    found = connection.execute(query, (portal,)).fetchone()
    if found is None:
        return None
    call_id, timezone, digests = found
    if digests is None:
        return Followed.with_all_due(call_id, timezone)
    read = {int(call_id): digest for call_id, digest in orjson.loads(digests).items()}
    return Followed(call_id, timezone, read)


def read_in_progress(connection: sqlite3.Connection, portal: str, joined_after: str) -> list[int]:
    """Read the CallIDs of the legs without an end that joined after an instant, in order."""
    found = connection.execute(
        "SELECT call_id FROM conference_leg WHERE portal = ? AND leave_time IS NULL"
        " AND join_time > ? ORDER BY call_id",
        (portal, joined_after),
    )
    return [call_id for (call_id,) in found]


def _remember_followed(connection: sqlite3.Connection, portal: str, followed: Followed) -> None:
    if followed != read_followed(connection, portal):
        digests = orjson.dumps(followed.digests, option=orjson.OPT_NON_STR_KEYS).decode()
        connection.execute(
            "INSERT OR REPLACE INTO followed_portal (portal, call_id, timezone, digests)"
            " VALUES (?, ?, ?, ?)",
            (portal, followed.call_id, followed.timezone, digests),
        )


def _one_state_each(legs: Iterable[ConferenceLeg]) -> list[dict[int, ConferenceLeg]]:
    """Part legs into rounds, so that two states of one leg come one after the other."""
    rounds: list[dict[int, ConferenceLeg]] = []
    for leg in legs:
        free = next((states for states in rounds if leg.call_id not in states), None)
        if free is None:
            free = {}
            rounds.append(free)
        free[leg.call_id] = leg
    return rounds


def _store(
    connection: sqlite3.Connection,
    arrival: Arrival,
    legs: Mapping[int, ConferenceLeg],
    known: dict[int, _Row],
    outcome: StoredLegs,
) -> None:
    states = {
        call_id: merge(known[call_id].leg, leg, arrival.zone) if call_id in known else leg
        for call_id, leg in legs.items()
    }
    _settle_repeated_hours(connection, arrival, states, known, outcome)
    for call_id, leg in states.items():
        row = known.get(call_id)
        _write(connection, row, leg)
        if call_id in legs:  # else it is a neighbour whose times these have told
            _count(outcome, row, leg)


def _write(connection: sqlite3.Connection, row: _Row | None, leg: ConferenceLeg) -> None:
    if row is None:
        connection.execute(_INSERT, leg)
    elif row.leg != leg:
        connection.execute(_UPDATE, (*leg, row.seq))


def _count(outcome: StoredLegs, row: _Row | None, leg: ConferenceLeg) -> None:
    if row is not None and row.leg == leg:
        outcome.unchanged += 1
        return
    outcome.changed.append(leg.call_id)
    outcome.stored += row is None
    outcome.updated += row is not None


def _strangers(legs: Mapping[int, ConferenceLeg], known: Mapping[int, _Row]) -> list[int]:
    """Name the CallIDs that are stored for another leg: another portal's, or an id given again."""
    return [call_id for call_id, row in known.items() if is_another(row.leg, legs[call_id])]


def _refused(arrival: Arrival, leg: ConferenceLeg, stored: ConferenceLeg) -> QuarantinedReport:
    payload = orjson.dumps(leg._asdict())
    return QuarantinedReport(
        received_at=utc_milliseconds(arrival.until),
        pbx=arrival.portal,
        peer="",
        source=arrival.source,
        reason=f"CallID {leg.call_id} is that of another leg, joined {stored.join_local}: is it of"
        " another portal, or has the portal begun its ids anew? give it another name in [[portal]]",
        payload=payload[:PAYLOAD_BYTES],
        size=len(payload),
    )


def _read_rows(
    connection: sqlite3.Connection, portal: str, call_ids: Sequence[int]
) -> dict[int, _Row]:
    rows: dict[int, _Row] = {}
    for start in range(0, len(call_ids), IDS_A_QUERY):
        some = call_ids[start : start + IDS_A_QUERY]
        marks = ", ".join("?" * len(some))
        where = f"portal = ? AND call_id IN ({marks})"
        rows.update(_select(connection, where, (portal, *some)))
    return rows


def _select(
    connection: sqlite3.Connection, where: str, values: Sequence[str | int]
) -> Iterator[tuple[int, _Row]]:
    query = f"SELECT * FROM conference_leg WHERE {where}"  # noqa: S608 - no outside text
    for seq, *columns in connection.execute(query, values):
        leg = ConferenceLeg._make(columns)
        yield leg.call_id, _Row(seq, leg)


# The hour that comes twice


def _settle_repeated_hours(
    connection: sqlite3.Connection,
    arrival: Arrival,
    states: dict[int, ConferenceLeg],
    known: dict[int, _Row],
    outcome: StoredLegs,
) -> None:
    """Decide the times of repeated hours in ``states``; add the neighbours that this tells.

    What is decided depends on all legs of the hour, not on how they came into files and slices.
    """
    spans = {call_id: _span(leg, arrival.zone) for call_id, leg in states.items()}
    doubtful = {call_id: span for call_id, span in spans.items() if _is_doubtful(span)}
    joined = {call_id: span.join for call_id, span in doubtful.items() if not span.join.told}
    for hour in {repeated_hour(choice, arrival.zone) for choice in joined.values()}:
        for call_id, row in _read_hour(connection, arrival.portal, hour):
            if call_id not in states:
                doubtful[call_id] = _span(row.leg, arrival.zone)
                states[call_id] = row.leg
                known[call_id] = row
    narrowed = {
        call_id: _seen(span, states[call_id], known.get(call_id), arrival)
        for call_id, span in doubtful.items()
    }
    for call_id, span in _decide(narrowed, doubtful, arrival.zone).items():
        states[call_id] = _timed(states[call_id], span)
        outcome.told[call_id] = not _is_doubtful(span)
        if _is_news(span, states[call_id], known.get(call_id)):
            outcome.undecided.append(call_id)


def _span(leg: ConferenceLeg, zone: tzinfo) -> Span:
    leave = choice_of(leg.leave_local, zone) if leg.leave_local is not None else None
    return Span(choice_of(leg.join_local, zone), leave)


def _is_doubtful(span: Span) -> bool:
    return not span.join.told or (span.leave is not None and not span.leave.told)


def _is_news(span: Span, leg: ConferenceLeg, row: _Row | None) -> bool:
    """Tell whether a time is in doubt that was not stored before."""
    if row is None:
        return _is_doubtful(span)
    join_is_new = row.leg.join_local != leg.join_local
    leave_is_new = row.leg.leave_local != leg.leave_local
    return (join_is_new and not span.join.told) or (
        leave_is_new and span.leave is not None and not span.leave.told
    )


def _read_hour(
    connection: sqlite3.Connection, portal: str, hour: Repeated
) -> Iterator[tuple[int, _Row]]:
    """Read the legs that joined within a repeated hour."""
    where = "portal = ? AND join_time >= ? AND join_time < ?"
    return _select(connection, where, (portal, utc_text(hour.first), utc_text(hour.end)))


def _seen(span: Span, leg: ConferenceLeg, row: _Row | None, arrival: Arrival) -> Span:
    """Narrow by what was decided before, and by when the table was read with and without a time."""
    stored = row.leg if row is not None else None
    join = _narrow(span.join, leg.join_time, stored and stored.join_local, leg.join_local, arrival)
    if span.leave is None or leg.leave_time is None or leg.leave_local is None:
        return Span(join, None)
    known_local = stored and stored.leave_local
    return Span(join, _narrow(span.leave, leg.leave_time, known_local, leg.leave_local, arrival))


def _narrow(
    choice: Choice, instant: str, known_local: str | None, local: str, arrival: Arrival
) -> Choice:
    if choice.told:
        return choice
    if instant == utc_text(choice.later):  # it was only ever taken on evidence
        return Choice(choice.later, choice.later)
    return choice.seen(None if known_local == local else arrival.since, arrival.until)


def _decide(
    narrowed: Mapping[int, Span], said: Mapping[int, Span], zone: tzinfo
) -> dict[int, Span]:
    """Decide hour by hour, in the order of the CallIDs.

    A leg that joined outside such an hour says nothing of others.
    """
    hours: dict[Repeated, list[int]] = {}
    for call_id in sorted(narrowed):
        join = said[call_id].join
        if not join.told:
            hours.setdefault(repeated_hour(join, zone), []).append(call_id)
    decided = dict(narrowed)
    for call_ids in hours.values():
        spans = decide([narrowed[call_id] for call_id in call_ids])
        decided.update(zip(call_ids, spans, strict=True))
    return decided


def _timed(leg: ConferenceLeg, span: Span) -> ConferenceLeg:
    leave_time = utc_text(span.leave.earlier) if span.leave is not None else None
    return leg._replace(join_time=utc_text(span.join.earlier), leave_time=leave_time)


_COLUMNS: Final = ", ".join(ConferenceLeg._fields)
_INSERT: Final = (
    f"INSERT INTO conference_leg ({_COLUMNS})"  # noqa: S608 - no outside text
    f" VALUES ({', '.join('?' * len(ConferenceLeg._fields))})"
)
_UPDATE: Final = (
    f"UPDATE conference_leg SET ({_COLUMNS})"  # noqa: S608 - no outside text
    f" = ({', '.join('?' * len(ConferenceLeg._fields))}) WHERE seq = ?"
)
