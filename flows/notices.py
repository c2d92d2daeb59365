"""Messages about runs, to the addresses in DIFFUSION_NOTIFY: chats, mail and webhooks, by Apprise.

A message that cannot be sent never fails a run. Addresses hold secrets, so no log line shows one.
"""

import logging

from apprise import Apprise, AppriseAsset, NotifyType

from diffusion_core.config.environment import load_environment
from diffusion_core.errors import UserError
from flows.failure import StageFailed

VARIABLE = "DIFFUSION_NOTIFY"
# Apprise logs addresses.
logging.getLogger("apprise").setLevel(logging.CRITICAL)

_logger = logging.getLogger(__name__)


def check_addresses() -> None:
    """Check the addresses before a run begins.

    Raises:
        StageFailed: Apprise does not know one of them.
    """
    try:
        receivers = _receivers()
    except UserError as error:
        raise StageFailed(str(error), is_mistake=True) from None
    unknown = [number for number, each in enumerate(receivers, start=1) if not each]
    if unknown:
        raise StageFailed(
            f"Apprise does not know address {unknown[0]} of {len(receivers)} in {VARIABLE}: write it as"
            " https://appriseit.com says, for example slack://token, discord://id/token or jsons://host/path",
            is_mistake=True,
        )


def send(title: str, body: str, kind: NotifyType = NotifyType.INFO) -> None:
    """Send a message to all addresses; warn where one did not take it."""
    receivers = _receivers()
    refused = sum(not each.notify(body=body, title=title, notify_type=kind) for each in receivers)
    if refused:
        _logger.warning(
            "%d of %d addresses in %s did not take a message: see that their servers answer, and that they are right",
            refused,
            len(receivers),
            VARIABLE,
        )


def _receivers() -> list[Apprise]:
    """Return a receiver for each address, an empty one for an address that Apprise does not know."""
    secret = load_environment().notify
    receivers = []
    for address in [] if secret is None else secret.get_secret_value().split():
        receiver = Apprise(asset=AppriseAsset(app_id="diffusion", app_desc="diffusion", app_url=""))
        receiver.add(address)
        receivers.append(receiver)
    return receivers
