"""Clocks that are apart: signatures for a bucket are refused, and logs of several hosts cannot be read together."""

from __future__ import annotations

from collections.abc import Mapping

from cavmae_ds.doctor.finding import Finding, fix, note, ok

NOTED_S, REFUSED_S = 1.0, 5.0
REPAIR = "run chrony or ntpd on every host (chronyc tracking, timedatectl set-ntp true)"


def clock_finding(name: str, ahead_s: float, of: str) -> Finding:
    """One clock against another; a fraction of a second is how well it was measured."""
    said = f"{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} {of}"
    if abs(ahead_s) > REFUSED_S:
        return fix(name, said, REPAIR)
    return note(name, said, REPAIR) if abs(ahead_s) > NOTED_S else ok(name, f"within {NOTED_S:g} s of {of}")


def clocks_of_ranks(times_s: Mapping[int, float]) -> Finding:
    """Seconds since 1970 of each rank at one moment."""
    earliest, latest = min(times_s, key=times_s.__getitem__), max(times_s, key=times_s.__getitem__)
    apart_s = times_s[latest] - times_s[earliest]
    if apart_s <= NOTED_S:
        return ok("clocks", f"all within {apart_s:.2f} s")
    said = f"rank {latest}'s is {apart_s:.1f} s ahead of rank {earliest}'s"
    return (fix if apart_s > REFUSED_S else note)("clocks", said, REPAIR)
