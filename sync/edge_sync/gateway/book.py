"""The rules of the register: what may be held, settled, sealed and fenced.

Runs inside a transaction that somebody else begins and commits. Guarantees, after every step:

- redeemed + held <= amount, for each lease, checked here and again by the table;
- a sealed or fenced lease takes no new hold, and neither is ever undone;
- a hold is released only where the caller knows that nothing was sent, never once it is unclear;
- one key is one bill: a second request with it gets the first answer or the first one's state;
- a register that no hub has told its epoch, as one that was lost, takes no hold.

A step that raises ``Refused`` has written nothing. Reads no clock. A lease's signature was checked
before.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from edge.errors import StoreError
from edge_sync.gateway.records import Answer, Ask, Flag, Settled, Standing
from edge_sync.gateway.refusals import Refused
from edge_sync.money.lease import Lease

OPEN = ("held", "unclear")
_NEXT = "(SELECT coalesce(max(seq), 0) + 1 FROM holds)"
_STANDING = "SELECT lease_id, device_id, scope, period, epoch, amount, held, redeemed, open, sealed"
_ROW = """SELECT seq, hold_id, lease_id, state, most, actual, reported, flag, begun_at, ended_at
    FROM holds"""


class Book:
    """The rules over one connection, inside a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._run = connection.execute

    def hold(self, ask: Ask) -> Answer | None:
        """Hold the most a request can cost; return the first answer where it was asked before.

        Raises:
            Refused: ``revoked``, ``conflict``, ``in_progress``, ``unclear``, ``answered``,
                ``expired_lease``, ``unavailable``, ``fenced``, ``sealed``, ``bad_lease`` or
                ``exhausted``.

        """
        self._admit(ask.lease)
        before = self._run(
            "SELECT state, request_hash, actual FROM holds WHERE hold_id = ?", (ask.hold_id,)
        ).fetchone()
        if before is not None and (before[0] != "released" or before[1] != ask.request_hash):
            return self._again(ask, *before)
        if ask.now > ask.lease.not_after:
            raise _no("expired_lease", "The lease has expired.")
        raises = self._check_epoch(ask)
        new = self._check_lease(ask)
        if raises:
            self.fence(ask.hub, ask.lease.epoch)
        self._put(ask, new=new, first=before is None)
        return None

    def settle(
        self,
        hold_id: str,
        reported: int | None,
        *,
        now: float,
        flag: Flag = "",
        answer: Answer | None = None,
    ) -> Settled:
        """Close a hold at what it cost; settling it again in the same way changes nothing.

        Args:
            hold_id: held or unclear.
            reported: micro-dollars; ``None`` or less than 0 counts as the hold's maximum.
            now: seconds since the epoch.
            flag: why it is not simply what the upstream said.
            answer: kept for the same request asked again.

        Raises:
            Refused: there is no such hold, or it was closed otherwise.

        """
        state, lease_id, most, actual, told = self._find(hold_id)
        if reported is not None and reported < 0:
            reported, flag = None, "bad_usage"
        due = most if reported is None else min(reported, most)
        excess = 0 if reported is None else reported - due
        flag = "over" if excess else flag
        if state not in OPEN:
            if state == "settled" and actual == due:
                return Settled(due, excess, told)
            raise _no("conflict", f"Hold {hold_id} is {state} at {actual} micro-dollars.")
        self._run(
            f"UPDATE holds SET state = 'settled', actual = ?, reported = ?, flag = ?, "  # noqa: S608
            f"ended_at = ?, seq = {_NEXT} WHERE hold_id = ?",
            (due, reported, flag, now, hold_id),
        )
        self._close(lease_id, most, redeemed=due)
        if answer is not None:
            self._run(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)",
                (hold_id, answer.status, answer.kind, answer.body, now),
            )
        return Settled(due, excess, flag)

    def reconcile(self, hold_id: str, actual_microusd: int, *, now: float) -> Settled:
        """Close a hold whose outcome was unclear at what the provider billed.

        Raises:
            Refused: there is no such hold, it is under way, or it was closed otherwise.

        """
        if self._find(hold_id)[0] == "held":
            raise _no("in_progress", f"Hold {hold_id} is under way.")
        return self.settle(hold_id, actual_microusd, now=now, flag="reconciled")

    def keep(self, hold_id: str) -> None:
        """Note that a hold's outcome is unclear: it stays at its maximum until reconciled."""
        self._run(
            f"UPDATE holds SET state = 'unclear', seq = {_NEXT} "  # noqa: S608
            "WHERE hold_id = ? AND state = 'held'",
            (hold_id,),
        )

    def keep_all(self) -> int:
        """Note that every hold of a process that ended is unclear; return how many there were."""
        held = self._run("SELECT hold_id FROM holds WHERE state = 'held'").fetchall()
        for (hold_id,) in held:
            self.keep(hold_id)
        return len(held)

    def release(self, hold_id: str, *, now: float) -> None:
        """Give a hold back; the caller knows that nothing was sent.

        Raises:
            Refused: there is no such hold, its outcome is unclear, or it was settled.

        """
        state, lease_id, most, _, _ = self._find(hold_id)
        if state == "released":
            return
        if state != "held":
            raise _no("conflict", f"Hold {hold_id} is {state} and cannot be given back.")
        self._run(
            f"UPDATE holds SET state = 'released', actual = 0, ended_at = ?, seq = {_NEXT} "  # noqa: S608
            "WHERE hold_id = ?",
            (now, hold_id),
        )
        self._close(lease_id, most, redeemed=0)

    def seal(self, lease_id: str, *, now: float) -> Standing:
        """Take no more holds on a lease, for ever, also where it was never seen."""
        self._run(
            "INSERT OR IGNORE INTO leases VALUES (?, '', '', '', 0, 0, 0, 0, 0, 0, ?, NULL)",
            (lease_id, now),
        )
        self._run(
            "UPDATE leases SET sealed = 1, sealed_at = ? WHERE lease_id = ? AND sealed = 0",
            (now, lease_id),
        )
        found = self.standing(lease_id)
        if found is None:
            raise StoreError(f"Lease {lease_id} was sealed and is not in the register.")
        return found

    def fence(self, hub: str, epoch: int) -> int:
        """Refuse leases of older epochs; return the epoch in force, which never falls."""
        self._run(
            "INSERT INTO epochs VALUES (?, ?) "
            "ON CONFLICT (hub) DO UPDATE SET epoch = max(epoch, excluded.epoch)",
            (hub, epoch),
        )
        return self.epoch(hub) or epoch

    def revoke(self, device_id: str, *, revoked: bool, now: float) -> None:
        """Refuse a device, or take it back."""
        if revoked:
            self._run("INSERT OR IGNORE INTO revoked VALUES (?, ?)", (device_id, now))
        else:
            self._run("DELETE FROM revoked WHERE device_id = ?", (device_id,))

    def adjust(
        self, adjustment_id: str, hold_id: str, *, amount_microusd: int, reason: str, now: float
    ) -> None:
        """Note that a provider gave something back; the lease's own counts do not change.

        Raises:
            Refused: the hold is not settled, all adjustments of it would exceed what it cost, or
                the id stands for another adjustment.

        """
        before = self._run(
            "SELECT hold_id, amount FROM adjustments WHERE adjustment_id = ?", (adjustment_id,)
        ).fetchone()
        if before is not None:
            if before == (hold_id, amount_microusd):
                return
            raise _no("conflict", f"Adjustment {adjustment_id} was made with other values.")
        state, _, _, actual, _ = self._find(hold_id)
        given = self._one("SELECT coalesce(sum(amount), 0) FROM adjustments WHERE hold_id = ?",
                          hold_id)  # fmt: skip
        if state != "settled" or not 0 < amount_microusd <= (actual or 0) - given:
            less = f"of which {given} were given back: {amount_microusd} cannot be"
            raise _no("conflict", f"Hold {hold_id} is {state} at {actual} micro-dollars, {less}.")
        self._run(
            "INSERT INTO adjustments VALUES (?, ?, ?, ?, ?)",
            (adjustment_id, hold_id, amount_microusd, reason, now),
        )

    def forget_answers(self, *, before: float) -> int:
        """Drop the bodies of answers from before a time; their holds stay."""
        return self._run("DELETE FROM answers WHERE at < ?", (before,)).rowcount

    def epoch(self, hub: str) -> int | None:
        """Return the epoch in force; ``None`` where the hub is not known yet."""
        found = self._run("SELECT epoch FROM epochs WHERE hub = ?", (hub,)).fetchone()
        return None if found is None else int(found[0])

    def standing(self, lease_id: str) -> Standing | None:
        """Return how a lease stands; ``None`` where it was never seen."""
        found = self._run(f"{_STANDING} FROM leases WHERE lease_id = ?", (lease_id,)).fetchone()
        return None if found is None else Standing.of(found)

    def standings(self, *, after: str, limit: int) -> list[Standing]:
        """Return leases in the order of their ids, behind one of them."""
        rows = self._run(
            f"{_STANDING} FROM leases WHERE lease_id > ? ORDER BY lease_id LIMIT ?", (after, limit)
        )
        return [Standing.of(row) for row in rows]

    def revoked(self, *, after: str, limit: int) -> list[str]:
        """Return devices that are refused in the order of their ids, behind one of them."""
        sql = "SELECT device_id FROM revoked WHERE device_id > ? ORDER BY device_id LIMIT ?"
        return [row[0] for row in self._run(sql, (after, limit))]

    def totals(self) -> dict[str, int]:
        """Return money in micro-dollars and counts over the whole register."""
        held, redeemed, still_open, leases = self._run(
            "SELECT coalesce(sum(held), 0), coalesce(sum(redeemed), 0), "
            "coalesce(sum(open), 0), count(*) FROM leases"
        ).fetchone()
        return {
            "held_microusd": held,
            "redeemed_microusd": redeemed,
            "used_microusd": held + redeemed,
            "adjusted_microusd": self._one("SELECT coalesce(sum(amount), 0) FROM adjustments"),
            "open": still_open,
            "unclear": self._one("SELECT count(*) FROM holds WHERE state = 'unclear'"),
            "leases": leases,
        }

    def rows(self, *, after: int, limit: int) -> list[dict[str, Any]]:
        """Return holds in the order of their last change, behind a number of it."""
        cursor = self._run(f"{_ROW} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def check(self) -> None:
        """Count every lease anew from its holds.

        Raises:
            StoreError: a lease's counts are not those of its holds.

        """
        wrong = self._run(
            """SELECT l.lease_id FROM leases l LEFT JOIN (
                   SELECT lease_id, sum(state IN ('held', 'unclear')) AS n,
                          sum(iif(state IN ('held', 'unclear'), most, 0)) AS held,
                          sum(iif(state = 'settled', actual, 0)) AS redeemed
                   FROM holds GROUP BY lease_id) h ON h.lease_id = l.lease_id
               WHERE l.held <> coalesce(h.held, 0) OR l.redeemed <> coalesce(h.redeemed, 0)
                  OR l.open <> coalesce(h.n, 0) OR l.held + l.redeemed > l.amount
               UNION ALL SELECT lease_id FROM holds
               WHERE lease_id NOT IN (SELECT lease_id FROM leases) LIMIT 1"""
        ).fetchone()
        if wrong is not None:
            raise StoreError(
                f"The register does not add up at lease {wrong[0]}.",
                hint="Stop the gateway, keep the file, and restore it from a copy.",
            )

    def _admit(self, lease: Lease) -> None:
        if self._run("SELECT 1 FROM revoked WHERE device_id = ?", (lease.device_id,)).fetchone():
            raise _no("revoked", f"Device {lease.device_id} was revoked.")

    def _again(self, ask: Ask, state: str, request_hash: str, actual: int | None) -> Answer:
        """Answer for a key that was used before."""
        if request_hash != ask.request_hash:
            raise Refused(
                "conflict",
                "The idempotency key was used for another request.",
                hint="Use a new key for a new request.",
            )
        if state == "held":
            raise Refused(
                "in_progress",
                "The same request is being answered.",
                hint="Ask again with the same key.",
                retry_after_s=1,
            )
        if state == "unclear":
            raise Refused(
                "unclear",
                "Whether the request was answered and billed is not known; its hold is kept.",
                hint="Ask with a new key; the old hold is for the hub's admin to reconcile.",
            )
        found = self._run(
            "SELECT status, kind, body FROM answers WHERE hold_id = ?", (ask.hold_id,)
        ).fetchone()
        if found is None:
            raise Refused(
                "answered",
                f"The request was answered for {actual} micro-dollars; its answer is not kept.",
                hint="Use a new key to ask, and pay, again.",
                cost_microusd=actual,
            )
        status, kind, body = found
        return Answer(status, kind, body, actual)

    def _check_epoch(self, ask: Ask) -> bool:
        """Say whether the lease raises the epoch; one of an older epoch is refused."""
        known = self.epoch(ask.hub)
        if known is None:  # maybe it was lost, and with it what the lease has paid for
            hint = "The hub says why: `edge-hub gateways list`."
            raise Refused("unavailable", "No hub has told its epoch.", hint=hint, retry_after_s=2)
        if ask.lease.epoch < known:
            raise _no("fenced", f"The lease is of epoch {ask.lease.epoch}; it is {known} now.")
        return ask.lease.epoch > known

    def _check_lease(self, ask: Ask) -> bool:
        """Check that the lease can bear the hold; say whether it is new here."""
        lease = ask.lease
        row = self._run(
            "SELECT amount, held, redeemed, sealed, device_id FROM leases WHERE lease_id = ?",
            (lease.lease_id,),
        ).fetchone()
        amount, held, redeemed, sealed, device = row or (lease.amount_microusd, 0, 0, 0, "")
        if sealed:
            raise _no("sealed", "The lease is sealed.")
        if row is not None and (amount, device) != (lease.amount_microusd, lease.device_id):
            raise _no("bad_lease", "The lease has the id of another one.")
        left = amount - held - redeemed
        if ask.most_microusd > left:
            raise Refused(
                "exhausted",
                f"The request can cost {ask.most_microusd} micro-dollars, {left} are left.",
                hint="Ask for fewer tokens, or sync with the hub for another lease.",
            )
        return row is None

    def _put(self, ask: Ask, *, new: bool, first: bool) -> None:
        lease, most = ask.lease, ask.most_microusd
        if new:
            self._run(
                "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, 0, 1, 0, ?, NULL)",
                (lease.lease_id, lease.scope, lease.period, lease.device_id, lease.epoch,
                 lease.amount_microusd, most, ask.now),
            )  # fmt: skip
        else:
            self._run(
                "UPDATE leases SET held = held + ?, open = open + 1 WHERE lease_id = ?",
                (most, lease.lease_id),
            )
        if first:
            self._run(
                f"INSERT INTO holds VALUES (?, ?, ?, 'held', ?, NULL, NULL, '', ?, NULL, {_NEXT})",  # noqa: S608
                (ask.hold_id, lease.lease_id, ask.request_hash, most, ask.now),
            )
            return
        self._run(
            f"UPDATE holds SET lease_id = ?, state = 'held', most = ?, actual = NULL, "  # noqa: S608
            f"begun_at = ?, ended_at = NULL, seq = {_NEXT} WHERE hold_id = ?",
            (lease.lease_id, most, ask.now, ask.hold_id),
        )

    def _find(self, hold_id: str) -> tuple[str, str, int, int | None, str]:
        row: tuple[str, str, int, int | None, str] | None = self._run(
            "SELECT state, lease_id, most, actual, flag FROM holds WHERE hold_id = ?", (hold_id,)
        ).fetchone()
        if row is None:
            raise Refused(
                "not_found", f"There is no hold {hold_id}.", hint="Look its id up in the rows."
            )
        return row

    def _close(self, lease_id: str, most: int, *, redeemed: int) -> None:
        self._run(
            "UPDATE leases SET held = held - ?, redeemed = redeemed + ?, open = open - 1 "
            "WHERE lease_id = ?",
            (most, redeemed, lease_id),
        )

    def _one(self, sql: str, *values: Any) -> int:
        return int(self._run(sql, values).fetchone()[0])


def _no(code: str, message: str) -> Refused:
    hint = "Sync with the hub for another lease." if code != "conflict" else "Look at its row."
    return Refused(code, message, hint=hint)
