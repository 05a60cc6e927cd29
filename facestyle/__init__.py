"""facestyle: style-guided face transformation on your own photos.

    >>> import facestyle
    >>> model = facestyle.load("female-male")
    >>> model.card.domains
    ('female', 'male')

``load`` opens a model, ``Translator.sample_style`` and ``Translator.style_of`` make styles,
``restyle`` takes a picture's faces there and back. Everything is imported when first used:
``import facestyle`` alone costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facestyle.opening import open_translator as load
    from facestyle.pipeline import reference_style, restyle

__version__ = "0.1.0"
__all__ = ["__version__", "load", "reference_style", "restyle"]

_HOMES = {
    "load": ("facestyle.opening", "open_translator"),
    "restyle": ("facestyle.pipeline", "restyle"),
    "reference_style": ("facestyle.pipeline", "reference_style"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'facestyle' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
