"""The version that is served: the one that a name means now, loaded again when an alias moves."""

import logging
import threading
from collections.abc import Callable

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.served import Served, load_served, version_now

_logger = logging.getLogger(__name__)


class Following:
    """Keeps the loaded version that an alias or a number names.

    What goes wrong with a new version leaves the one before in place: a store that does not answer, files that are
    damaged.

    Args:
        environment: the environment, with the store.
        name: the registered model.
        version: an alias or a number.
        device: where versions are loaded to.
        seconds: between two looks at the store.
        loaded: is called with each version that is served from then on.

    Raises:
        UserError: there is no such version, or it cannot be loaded.
        Unavailable: the tracking store does not answer.
    """

    def __init__(
        self,
        environment: Environment,
        name: str,
        version: str,
        device: torch.device,
        seconds: float,
        loaded: Callable[[Served], None],
    ) -> None:
        self._environment = environment
        self._name, self._version, self._device = name, version, device
        self._loaded = loaded
        self._served = load_served(environment, name, version, device)
        loaded(self._served)
        self._problem: str | None = None
        self._closed = threading.Event()
        # A number always names the same version.
        if not version.isdecimal():
            threading.Thread(target=self._follow, args=(seconds,), daemon=True, name="following").start()

    @property
    def served(self) -> Served:
        """The version now; the next call may return another."""
        return self._served

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()

    def _follow(self, seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                number = version_now(self._environment, self._name, self._version)
                if number != self._served.version:
                    self._served = load_served(self._environment, self._name, number, self._device)
                    self._loaded(self._served)
                    _logger.warning("version %s of %s is served now", number, self._name)
                self._problem = None
            # Whatever a new version or its store does, the one before is served.
            except Exception as error:
                sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                if sentence != self._problem:
                    _logger.warning("version %s of %s stays: %s", self._served.version, self._name, sentence)
                self._problem = sentence
