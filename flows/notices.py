"""Messages about runs, to the addresses in DIFFUSION_NOTIFY: chats, mail and webhooks, by Apprise.

A message that cannot be sent never fails a run. Addresses hold secrets, so no log line shows one.
"""

import logging
from typing import TypeAlias

from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType

from diffusion_core.config.environment import load_environment
from diffusion_core.errors import UserError
from flows.failure import StageFailed
from flows.transcript import without_userinfo

VARIABLE = "DIFFUSION_NOTIFY"
Logger: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]
# Both log addresses.
logging.getLogger("apprise").setLevel(logging.CRITICAL)
logging.getLogger("urllib3").setLevel(logging.INFO)


def check_addresses() -> None:
    """Check the addresses before a run begins.

    Raises:
        StageFailed: Apprise does not know one of them.
    """
    try:
        receivers = _receivers()
    except UserError as error:
        raise StageFailed(str(error), is_mistake=True) from None
    unknown = [number for number, (_, is_known) in enumerate(receivers, start=1) if not is_known]
    if unknown:
        raise StageFailed(
            f"Apprise does not know address {unknown[0]} of {len(receivers)} in {VARIABLE}: write it as"
            " https://appriseit.com says, for example slack://token, discord://id/token or jsons://host/path",
            is_mistake=True,
        )


def send(title: str, body: str, kind: NotifyType, logger: Logger) -> None:
    """Send a message to all addresses, without passwords in it; warn where one did not take it.

    Args:
        title: of the message.
        body: of the message, as text.
        kind: of the message.
        logger: of the run.
    """
    receivers = _receivers()
    title, body = without_userinfo(title), without_userinfo(body)
    refused = sum(
        # Names of files are other people's, and must not be read as HTML.
        not (is_known and each.notify(body, title, notify_type=kind, body_format=NotifyFormat.TEXT))
        for each, is_known in receivers
    )
    if refused:
        logger.warning(
            "%d of %d addresses in %s did not take a message: see that their servers answer, and that they are right",
            refused,
            len(receivers),
            VARIABLE,
        )


def _receivers() -> list[tuple[Apprise, bool]]:
    """Return a receiver for each address, and whether Apprise knows all of the address."""
    secret = load_environment().notify
    receivers = []
    for address in [] if secret is None else secret.get_secret_value().split():
        receiver = Apprise(asset=AppriseAsset(app_id="diffusion", app_desc="diffusion", app_url=""))
        receivers.append((receiver, bool(receiver.add(address))))
    return receivers
