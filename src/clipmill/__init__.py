"""clipmill: quality-captioned CLIP encoders, fine-tuned for dense tasks and served."""

from importlib.metadata import version

__version__ = version("clipmill")
