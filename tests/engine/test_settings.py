"""The callback address of an intent: where it is put in a user's URL, and in which forms it is recognised."""

from __future__ import annotations

import pytest
from support.tables import together

from kie_async._secrets import Secret
from kie_async.callbacks.address import callback_mac, new_intent_id
from kie_async.engine.settings import CallbackPolicy

SECRET = Secret("secret")
INTENT = new_intent_id()
MAC = callback_mac(INTENT, secret=SECRET)


def policy(url: str | None) -> CallbackPolicy:
    return CallbackPolicy(url=url, secrets=(Secret("new"), SECRET)[::-1], confirm=None, is_received=True)


@together(
    ("url", "address"),
    [
        (None, None),
        ("https://a.org/kie", f"https://a.org/kie/{INTENT}/{MAC}"),
        ("https://a.org", f"https://a.org/{INTENT}/{MAC}"),
        ("https://a.org/kie?code=1&x=a/b", f"https://a.org/kie/{INTENT}/{MAC}?code=1&x=a/b"),
        ("https://a.org?code=1", f"https://a.org/{INTENT}/{MAC}?code=1"),
    ],
)
def test_the_address_goes_behind_the_path_and_before_the_query(url: str | None, address: str | None) -> None:
    assert policy(url).address_of(INTENT) == address


@together(
    ("form", "is_ours"),
    [
        ("https://a.org/kie/{}/{}", True),
        ("https://a.org/kie/{}/{}/", True),
        ("https://a.org/kie/{}/{}//", True),
        ("https://a.org/kie//{}//{}", True),
        ("https://a.org/kie/{}/{}?v=1", True),
        ("https://a.org/kie/{}/{}/?v=1/2", True),
        ("https://a.org/kie/{}/{}#x", True),
        (" https://a.org/kie/{}/{}\n", True),
        ("https://A.ORG:443/KIE/{}/{}", True),
        ("http://inside:8080/{}/{}", True),
        ("https://a.org/kie/{}/{}/more", False),
        ("https://a.org/kie/x{}/{}", False),
        ("https://a.org/kie/{}/{}x", False),
        ("https://a.org/kie?next=/{}/{}", False),
        ("https://a.org/kie#/{}/{}", False),
        ("{}", False),
        ("", False),
    ],
)
def test_our_own_address_is_recognised_by_the_end_of_its_path(form: str, is_ours: bool) -> None:
    assert policy("https://a.org/kie?code=1").is_address_of(INTENT, form.format(INTENT, MAC)) is is_ours


def test_another_intents_address_is_not_ours() -> None:
    other = policy("https://a.org").address_of(new_intent_id())
    assert other is not None
    assert not policy("https://a.org").is_address_of(INTENT, other)


def test_a_query_that_may_be_a_secret_is_not_shown() -> None:
    assert "s3cret" not in repr(policy("https://a.org?code=s3cret"))


@pytest.mark.parametrize("secret", ["new", "secret"])
def test_any_of_the_secrets_may_have_made_it(secret: str) -> None:
    url = f"https://a.org/{INTENT}/{callback_mac(INTENT, secret=Secret(secret))}/"
    assert policy("https://a.org").is_address_of(INTENT, url)
