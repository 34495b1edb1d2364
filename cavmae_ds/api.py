"""What of the package is for Python code: `cavmae_ds.load("runs/base").embed("clip.mp4")`."""

from cavmae_ds.evaluation.embedding import Embedder, Embedding, load

__all__ = ["Embedder", "Embedding", "load"]
