"""clipmill: quality-captioned CLIP encoders, fine-tuned for dense tasks and served."""


def __getattr__(name: str) -> str:
    """``__version__``, looked up when it is asked for: each worker would pay 40 ms for it.

    Raises AttributeError for any other name.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("clipmill")
    raise AttributeError(name)
