"""What a user may set: rate limits, a budget, the way through the network, and when tasks are polled."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import TYPE_CHECKING, Any

import attrs

from ._field_help import ShowsFields
from ._validation import (
    above_zero,
    check_above_zero,
    check_kind,
    check_proxy,
    hide_password,
    is_number,
    read_host,
    whole_above_zero,
)
from .errors import InvalidRequest

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@attrs.frozen
class Rate(metaclass=ShowsFields):
    """So many requests in any window of so many seconds."""

    count: int = attrs.field(validator=whole_above_zero)
    """Requests in a window."""
    per_s: float = attrs.field(kw_only=True, validator=above_zero)
    """Length of the window, in seconds."""


def _check_rate(_: object, attribute: attrs.Attribute[Any], rate: Rate) -> None:
    check_kind(attribute.name, rate, Rate, "a Rate(count, per_s=seconds)")


def _is_slower(rate: Rate, other: Rate) -> bool:
    return rate.count * other.per_s < other.count * rate.per_s


def _default_ceiling(limits: Limits) -> Rate:
    query, fastest = limits.query, Rate(100, per_s=1.0)
    return query if isinstance(query, Rate) and _is_slower(fastest, query) else fastest


def _check_ceiling(limits: Limits, attribute: attrs.Attribute[Any], ceiling: Rate | None) -> None:
    if ceiling is None:
        return
    check_kind(attribute.name, ceiling, Rate, "a Rate(count, per_s=seconds) or None")
    if _is_slower(ceiling, limits.query):
        raise InvalidRequest(
            f"{attribute.name} must not be slower than query, {limits.query.count} in "
            f"{limits.query.per_s:g} s; None keeps queries at that"
        )


@attrs.frozen(kw_only=True)
class Limits(metaclass=ShowsFields):
    """The limits of the account and of this process; the published ones are the defaults.

    Source: https://docs.kie.ai (20 new tasks in 10 seconds, 10 queries a second)
    """

    create: Rate = attrs.field(default=Rate(20, per_s=10.0), validator=_check_rate)
    """New tasks of the account."""
    query: Rate = attrs.field(default=Rate(10, per_s=1.0), validator=_check_rate)
    """Queries of the account, polls, records, balance: the speed that they begin with."""
    query_ceiling: Rate | None = attrs.field(
        default=attrs.Factory(_default_ceiling, takes_self=True), validator=_check_ceiling
    )
    """The most that queries come to; by default 100 a second, or *query* where that is faster.

    While polls are overdue and nothing was refused, queries get faster by a quarter each 10 s. A 429 takes
    them back to what held before, which a journal remembers for a day; what was refused is tried again after
    2 minutes, then after twice as long each time. A window below a second makes these times shorter too.
    None, or the same as *query*, keeps them at *query*.
    """
    create_connections: int = attrs.field(default=4, validator=whole_above_zero)
    """Creates on the wire at once: also the most that one crash can leave unknown."""
    query_connections: int = attrs.field(default=16, validator=whole_above_zero)
    """Queries on the wire at once."""


@attrs.frozen(kw_only=True)
class Budget(metaclass=ShowsFields):
    """A hard stop before the next create, for the life of the session (or of its journal)."""

    credits: float | None = attrs.field(default=None, validator=above_zero)
    """What has not settled, or may exist after an unknown create, counts as what the service holds for it,
    else as its expected price: the most of what its model took so far (per second of audio where the seconds
    of a local file are known) and what the price table says. See "A budget" in the README for the promise."""
    tasks: int | None = attrs.field(default=None, validator=whole_above_zero)
    """Creates that may be sent, whatever becomes of them; None is any number."""


def _check_proxy(_: object, attribute: attrs.Attribute[Any], proxy: str | None) -> None:
    if proxy is not None:
        check_proxy(attribute.name, proxy)


def _check_context(_: object, attribute: attrs.Attribute[Any], context: SSLContext | None) -> None:
    if context is None:
        return
    check_kind(attribute.name, context, SSLContext, "an ssl.SSLContext")
    if context.protocol == PROTOCOL_TLS_SERVER:
        raise InvalidRequest(f"{attribute.name} must be a context for clients: ssl.create_default_context()")


def _check_resolver(_: object, attribute: attrs.Attribute[Any], resolver: AbstractResolver | None) -> None:
    is_one = callable(getattr(resolver, "resolve", None)) and not isinstance(resolver, type)
    if resolver is not None and not is_one:
        raise InvalidRequest(f"{attribute.name} must be an aiohttp resolver, got {type(resolver).__name__}")


def _items(field: str, given: Iterable[object], what: str) -> tuple[object, ...]:
    """Return what is in a list of a user's; a text would fall apart into its characters."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InvalidRequest(f"{field} must be a list of {what}, got {type(given).__name__}")
    return tuple(given)


def _read_networks(given: Iterable[str | IPNetwork]) -> tuple[IPNetwork, ...]:
    networks: list[IPNetwork] = []
    for text in _items("allow", given, "networks"):
        try:
            networks.append(ipaddress.ip_network(str(text)))  # of a number it would make an address
        except ValueError as exc:
            raise InvalidRequest(
                f"allow must hold networks such as '198.18.0.0/15', got {text!r}: {exc}"
            ) from None
    return tuple(networks)


def _read_hosts(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(read_host("allow_http_to", host) for host in _items("allow_http_to", given, "host names"))


@attrs.frozen(kw_only=True)
class Network(metaclass=ShowsFields):
    """The way from here to the service, where it is not the plain one.

    Of the environment only ``KIE_PROXY`` and ``SSL_CERT_FILE`` are read, for what is not given here and for
    sessions that are not with this machine; ``HTTPS_PROXY``, ``NO_PROXY`` and a netrc never are.

    Raises:
        InvalidRequest: A field is wrong; the message names it.
    """

    proxy: str | None = attrs.field(
        default=None, validator=_check_proxy, repr=lambda proxy: repr(proxy and hide_password(proxy))
    )
    """``http://``, ``https://``, ``socks4://`` or ``socks5://`` with host and port, for creates, queries,
    uploads and downloads. A SOCKS proxy needs the extra ``socks``, resolves names itself and takes all; the
    others tunnel what is https, and what is plain http goes without them: they would read the key."""
    ssl: SSLContext | None = attrs.field(default=None, validator=_check_context)
    """Which certificates are trusted, for every host; by default the system's and those of
    ``SSL_CERT_FILE``."""
    allow: tuple[IPNetwork, ...] = attrs.field(default=(), converter=_read_networks)
    """Networks that results may be downloaded from though they are not public, such as ``198.18.0.0/15``
    behind a fake-ip proxy."""
    allow_http_to: tuple[str, ...] = attrs.field(default=(), converter=_read_hosts)
    """Hosts that get the API key without TLS and may be private: a sandbox in another container."""
    resolver: AbstractResolver | None = attrs.field(default=None, validator=_check_resolver)
    """What looks up names, an `aiohttp.abc.AbstractResolver`; it is yours to close."""

    @property
    def is_socks(self) -> bool:
        """Tell whether every connection is made by a SOCKS proxy."""
        return self.proxy is not None and self.proxy.lower().startswith("socks")

    def http_proxy_for(self, url: str) -> str | None:
        """Return the HTTP proxy that tunnels to a URL, if one does."""
        return self.proxy if not self.is_socks and url.lower().startswith("https:") else None

    def allows_http(self, host: str) -> bool:
        """Tell whether a host was named in `allow_http_to`."""
        return host.lower().rstrip(".") in self.allow_http_to

    def allows_address(self, address: str) -> bool:
        """Tell whether an IP address lies in a network named in `allow`."""
        try:
            return any(ipaddress.ip_address(address.partition("%")[0]) in network for network in self.allow)
        except ValueError:
            return False


DOCUMENTED: tuple[tuple[float, float], ...] = ((30.0, 2.5), (120.0, 7.5), (math.inf, 22.5))
"""The service's own advice: every 2-3 s for 30 s, every 5-10 s until 2 min, every 15-30 s after.

Source: https://docs.kie.ai/market/common/get-task-detail
"""


def _check_tiers(_: object, __: attrs.Attribute[Any], tiers: tuple[tuple[float, float], ...]) -> None:
    check_kind("tiers", tiers, (tuple, list), "a tuple of pairs of seconds")
    try:
        ages_s, intervals_s = [age_s for age_s, _ in tiers], [interval_s for _, interval_s in tiers]
    except (TypeError, ValueError):
        raise InvalidRequest("tiers must hold pairs of seconds: (until so old, every so many)") from None
    if not all(map(is_number, (*ages_s, *intervals_s))):
        raise InvalidRequest("tiers must hold numbers of seconds")
    do_rise = ages_s == sorted(set(ages_s)) and all(age_s > 0 for age_s in ages_s)  # false for a nan
    if not tiers or not do_rise or ages_s[-1] != math.inf:
        raise InvalidRequest("tiers must rise and the last must end at math.inf")
    if not all(interval_s > 0 for interval_s in intervals_s):
        raise InvalidRequest("tiers must hold intervals above zero")


def _check_delays(_: object, attribute: attrs.Attribute[Any], delays_s: tuple[float, ...]) -> None:
    check_kind(attribute.name, delays_s, (tuple, list), "a tuple of delays in seconds")
    if not all(is_number(delay_s) and delay_s > 0 for delay_s in delays_s):
        raise InvalidRequest(f"{attribute.name} must hold delays above zero")


def _check_share(_: object, attribute: attrs.Attribute[Any], share: float) -> None:
    if not is_number(share) or not 0 <= share < 1:
        raise InvalidRequest(f"{attribute.name} must be a number of at least 0 and below 1, got {share!r}")


def _check_switch(_: object, attribute: attrs.Attribute[Any], value: bool) -> None:
    check_kind(attribute.name, value, bool, "True or False")


@attrs.frozen(kw_only=True)
class PollSchedule(metaclass=ShowsFields):
    """The rule for the times at which a task is polled.

    By itself it learns: from the tasks of a model that ended, and from those that still run, how likely
    an end is at each age, and polls as often as the square root of that (the optimum: J. B. Keller 1974,
    https://doi.org/10.1287/mnsc.21.3.256, derived in `kie_async.planning.poll_curve`). Until it has seen
    three tasks of a model end it polls no more often than *tiers* say. `documented` always goes by them,
    `fixed` by one interval.

    With callbacks, polls are as rare as the share of lost callbacks allows: the mean wait over all
    tasks stays *wait_s*, whoever brings the news.
    """

    learns: bool = attrs.field(default=True, validator=_check_switch)
    """Whether *tiers* give way to what was seen."""
    wait_s: float = attrs.field(default=1.5, validator=above_zero)
    """How long an end may go unnoticed, on average."""
    wait_share: float = attrs.field(default=0.01, validator=_check_share)
    """The same as a share of what a model's tasks take; the longer of the two counts."""
    first_s: float = attrs.field(default=2.0, validator=above_zero)
    """The delay before the first poll of a new task, by the tiers."""
    tiers: tuple[tuple[float, float], ...] = attrs.field(default=DOCUMENTED, validator=_check_tiers)
    """Pairs (until the task is so old, poll every so many seconds)."""
    longest_gap_s: float = attrs.field(default=300.0, validator=above_zero)
    """No task goes without a poll for longer, whatever was learned and however well callbacks come."""
    safety_net_s: float = attrs.field(default=60.0, validator=above_zero)
    """With callbacks: the delay between polls of a task of unknown length, or one past its expected end."""
    callback_grace_s: float = attrs.field(default=10.0, validator=above_zero)
    """How long after the end of its task a callback counts as lost."""
    jitter: float = attrs.field(default=0.1, validator=_check_share)
    """The random part of a delay, as a share of it either way."""
    recheck_s: tuple[float, ...] = attrs.field(default=(1.0, 2.0, 4.0), validator=_check_delays)
    """Delays before further polls when a callback outran the record, or a success came without a result."""
    ring_gap_s: float = attrs.field(default=1.0, validator=above_zero)
    """The shortest time between two polls of one task that callbacks ask for."""
    visibility_grace_s: float = attrs.field(default=90.0, validator=above_zero)
    """How long the service may say that it does not know a task before that counts as an answer."""

    @classmethod
    def fixed(cls, interval_s: float, *, jitter: float = 0.1) -> PollSchedule:
        """Return a schedule that polls every *interval_s* seconds, callbacks or not.

        Raises:
            InvalidRequest: The interval is not above zero.
        """
        check_above_zero("interval_s", interval_s)
        return cls(
            learns=False,
            first_s=interval_s,
            tiers=((math.inf, interval_s),),
            longest_gap_s=interval_s,
            safety_net_s=interval_s,
            jitter=jitter,
        )

    @classmethod
    def documented(cls) -> PollSchedule:
        """Return a schedule that goes by the service's own advice."""
        return cls(learns=False)
