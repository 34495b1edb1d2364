"""cavmae_ds: large-batch pretraining of audio-visual masked autoencoders."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cavmae_ds.api import Embedder, Embedding, load

__version__ = "0.1.0"
__all__ = ["Embedder", "Embedding", "load"]


def __getattr__(name: str) -> Any:
    """What of the package is for Python code; it brings torch along, which importing the package does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cavmae_ds import api

    return getattr(api, name)
