"""What a module with a filter says of its width, and how it is changed."""

from __future__ import annotations

from typing import Any

from torch import nn


class FilterWidth(nn.Module):
    """A module with ``sigma``; it keeps ``_sigma`` and says in ``_change_sigma`` what follows."""

    _sigma: float | None

    @property
    def sigma(self) -> float | None:
        """The present width of the filter, None for a box; setting it is ``set_sigma``."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float | None) -> None:
        self._change_sigma(value)

    def set_sigma(self, sigma: float | None) -> None:
        """Change the width of the filter in place; ``sigma`` is a positive number, None a box.

        A compiled module is not compiled again, and one in a captured CUDA graph filters with the
        new width: the filter lies on the module's device, and a replay reads it there.
        """
        self._change_sigma(sigma)

    def _change_sigma(self, sigma: float | None) -> None:
        raise NotImplementedError

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Up to 2026-11-28 sigma was an attribute of what was pickled.
        renamed = {"_sigma" if name == "sigma" else name: v for name, v in state.items()}
        super().__setstate__(renamed)
