"""Offers a delivery to one session: to what it has in memory, or to what its journal knows."""

from __future__ import annotations

from ..errors import CallbackRejected
from .base import CallbackVerdict, Delivery, Inbox
from .unread import UnreadDelivery


async def offer(inbox: Inbox, news: Delivery | UnreadDelivery, *, is_noted: bool) -> CallbackVerdict | None:
    """Hand a delivery to a session if it knows the intent, or its journal; on the session's own loop."""
    intent_id = news.intent_id
    task_id = await inbox.find_noted(intent_id) if is_noted else inbox.owner_of(intent_id)
    if (delivery := delivery_for(task_id, news)) is None:
        return None
    await inbox.accept(delivery)
    return acceptance(delivery, inbox)


def delivery_for(task_id: str | None, news: Delivery | UnreadDelivery) -> Delivery | None:
    """Return the delivery as a session takes it that has this task or none yet; None if it is not its own.

    Raises:
        CallbackRejected: The intent has another task, or the signature is not of this one.
    """
    if task_id is None:
        return None
    delivery = news.delivery_for(task_id) if isinstance(news, UnreadDelivery) else news
    if task_id not in {"", delivery.record.task_id}:
        raise CallbackRejected("id of another task", 400)
    return delivery


def acceptance(delivery: Delivery, inbox: Inbox) -> CallbackVerdict:
    """Return the answer to a delivery that a session takes."""
    return CallbackVerdict(
        status=200,
        record=delivery.record,
        is_signed=delivery.is_signed,
        intent_id=delivery.intent_id,
        inbox=inbox,
    )
