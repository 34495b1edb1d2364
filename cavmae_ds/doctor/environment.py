"""What variables and clocks say: shown, or refused, but never a credential's value."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from cavmae_ds.doctor.finding import Finding, fix, note, ok

SHOWN = "NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "UCX_", "FI_"
CREDENTIALS = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"
SECRET = "KEY", "TOKEN", "SECRET", "PASSWORD"
NOTED_S, REFUSED_S = 1.0, 5.0
"""Of clocks: signatures for a bucket are refused, and logs of several hosts cannot be read together."""


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Settings of the network and which credentials are set."""
    return network_settings(environment, set(psutil.net_if_addrs()))


def network_settings(environment: Mapping[str, str], interfaces: set[str]) -> list[Finding]:
    """Variables of NCCL and gloo as they are, but for those that may be secret; interfaces must be there."""
    shown = sorted(name for name in environment if name.startswith(SHOWN))
    said = ", ".join(f"{name}={_value(name, environment[name])}" for name in shown)
    found = [note("network settings", said) if said else ok("network settings", "none, as it should be")]
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        wanted = environment.get(name, "")
        exact = name.startswith("GLOO") or wanted.startswith("=")
        names = [one for one in wanted.lstrip("=").split(",") if one]
        if names and not wanted.startswith("^") and not any(_there(one, interfaces, exact) for one in names):
            there = ", ".join(sorted(interfaces))
            found.append(fix(name, f"{wanted}, this host has {there}", f"unset {name}, or name one of these"))
    have = [name for name in CREDENTIALS if environment.get(name)]
    endpoint = environment.get("S3_ENDPOINT_URL", "")
    where = "another endpoint by S3_ENDPOINT_URL" if endpoint else "AWS's own endpoint"
    found.append(ok("credentials", f"set: {', '.join(have) or 'no AWS_*'}; {where}"))
    return found


def _there(name: str, interfaces: set[str], exact: bool) -> bool:
    return name in interfaces if exact else any(one.startswith(name) for one in interfaces)


def clock_finding(name: str, ahead_s: float, of: str, whose: str = "") -> Finding:
    """One clock (whose, if not this host's) against another; a fraction of a second is how well it was measured."""
    if abs(ahead_s) <= NOTED_S:
        return ok(name, f"within {NOTED_S:g} s of {of}")
    said = f"{whose}{abs(ahead_s):.1f} s {'ahead of' if ahead_s > 0 else 'behind'} {of}"
    do = "run chrony or ntpd on every host (chronyc tracking, timedatectl set-ntp true)"
    return (fix if abs(ahead_s) > REFUSED_S else note)(name, said, do)


def clocks_of_ranks(times_s: Mapping[int, float]) -> Finding:
    """Seconds since 1970 of each rank at one moment."""
    earliest, latest = min(times_s, key=times_s.__getitem__), max(times_s, key=times_s.__getitem__)
    apart_s = times_s[latest] - times_s[earliest]
    return clock_finding("clocks", apart_s, f"rank {earliest}'s", f"rank {latest}'s is ")


def _value(name: str, value: str) -> str:
    return "(set)" if any(part in name.upper() for part in SECRET) else value
