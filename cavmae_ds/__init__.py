"""cavmae_ds: large-batch pretraining of audio-visual masked autoencoders."""

__version__ = "0.1.0"
