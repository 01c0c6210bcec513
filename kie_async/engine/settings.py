"""What a session was given, checked and frozen, and what of it the environment says."""

from __future__ import annotations

import random
import ssl
from functools import lru_cache
from pathlib import Path

import attrs

from .._secrets import Secret
from .._validation import check_proxy, is_loopback, read_environment
from ..callbacks.address import callback_mac, is_valid_mac
from ..callbacks.base import Delivery
from ..callbacks.receiver import CallbackReceiver
from ..config import Budget, Limits, Network, PollSchedule
from ..errors import InvalidRequest
from ..journal.account import Account
from ..journal.base import Journal
from .event_hook import Hook


@attrs.frozen(kw_only=True)
class CallbackPolicy:
    """Where callbacks come to, how an address is proven to be ours, and what a delivery may say by itself."""

    url: str | None = attrs.field(repr=False)
    """Its query, if it has one, may be a secret of the user's server."""
    secrets: tuple[Secret, ...] = attrs.field(repr=False)
    """The first one makes new addresses; all are tried on those that are delivered to."""
    confirm: bool | None
    """None trusts signed deliveries only, True none, False all."""
    is_received: bool
    """Whether callbacks come to this session, and not to somebody else's server."""

    def address_of(self, intent_id: str) -> str | None:
        """Return the callback URL of an intent: the path is its address, its last part proves it is ours."""
        if self.url is None:
            return None
        path, mark, query = self.url.partition("?")
        return f"{path}/{intent_id}/{callback_mac(intent_id, secret=self.secrets[0])}{mark}{query}"

    def is_address_of(self, intent_id: str, url: str) -> bool:
        """Tell whether a callback URL that the service shows is the one of this intent.

        Only the end of its path counts: host, slashes and query may come back in another form.
        """
        return self._owner_of(url) == intent_id

    def is_address_of_another(self, intent_id: str, url: str) -> bool:
        """Tell whether a callback URL that the service shows is surely the one of another intent of ours."""
        return self._owner_of(url) not in {"", intent_id}

    def _owner_of(self, url: str) -> str:
        """Return whose callback address a URL is, "" if it is none of ours."""
        path = url.strip().partition("#")[0].partition("?")[0]
        owner, mac = ["", "", *filter(None, path.split("/"))][-2:]
        return owner if is_valid_mac(owner, mac, callback_secrets=self.secrets) else ""

    def trusts(self, delivery: Delivery) -> bool:
        """Tell whether a delivery is trusted without asking the service."""
        return delivery.is_signed if self.confirm is None else not self.confirm


@attrs.frozen(kw_only=True)
class Settings:
    """What a session was given, checked."""

    account: Account
    upload_url: str
    receiver: CallbackReceiver | None
    callbacks: CallbackPolicy
    journal: str | Path | Journal | None
    max_in_flight: int
    max_queued: int | None
    limits: Limits
    network: Network
    poll: PollSchedule
    task_timeout_s: float
    create_timeout_s: float | None
    budget: Budget | None
    on_event: Hook | None
    rng: random.Random

    @property
    def key(self) -> Secret:
        """Return the API key."""
        return self.account.key

    @property
    def base_url(self) -> str:
        """Return where the API is."""
        return self.account.url

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Return everything that must stand in no error, no record and no journal."""
        hmac_keys = self.receiver.hmac_keys if self.receiver is not None else ()
        return (self.key, *hmac_keys, *self.callbacks.secrets)


def with_environment(network: Network, base_url: str) -> Network:
    """Return *network* with the proxy and the certificates that the environment names, where it has none.

    A session with this machine needs neither.

    Raises:
        InvalidRequest: ``KIE_PROXY`` or ``SSL_CERT_FILE`` is wrong; the message names it.
    """
    if is_loopback(base_url):
        return network
    proxy, certificates = read_environment("KIE_PROXY"), read_environment("SSL_CERT_FILE")
    if proxy and network.proxy is None:
        check_proxy("KIE_PROXY", proxy)
        network = attrs.evolve(network, proxy=proxy)
    if certificates and network.ssl is None:
        network = attrs.evolve(network, ssl=_trusting(certificates))
    return network


def _trusting(file: str) -> ssl.SSLContext:
    try:
        return _read_certificates(file, Path(file).stat().st_mtime_ns)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise InvalidRequest(f"SSL_CERT_FILE names {file!r}, which cannot be read: {why}") from None


@lru_cache(maxsize=4)
def _read_certificates(file: str, changed_ns: int) -> ssl.SSLContext:
    """Return what trusts the certificates in a file; read once per version, since that takes a while."""
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=file)
    context.set_alpn_protocols(["http/1.1"])
    return context
