"""Class names and the sentences that they are put in."""

from pathlib import Path
from typing import Literal

from clipmill.errors import ConfigError, SourceError

PromptSet = Literal["openai-80", "openai-7", "plain", "given"]
"""OpenAI's 80 sentences for ImageNet, their best 7, a photo alone, or the config's own."""

IMAGENET = "imagenet"
"""In place of a file of class names: OpenAI's names of ImageNet's classes, in wnid order."""


def prompt_templates(prompts: PromptSet, given: tuple[str, ...]) -> tuple[str, ...]:
    """Sentences with ``{}`` where the class's name goes.

    Raises:
        ConfigError: none are given, or one has no ``{}``.
    """
    if prompts == "plain":
        return ("a photo of a {}.",)
    if prompts != "given":
        import open_clip

        known = {
            "openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "openai-7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        }[prompts]
        return tuple(str(template("{}")) for template in known)
    wrong = [template for template in given if template.count("{}") != 1]
    if wrong or not given:
        raise ConfigError(
            f"templates were {wrong[0]!r}" if wrong else "templates were empty",
            expected="sentences with one {} each, where the class's name goes",
            action="correct templates, or choose prompts=openai-80",
        )
    return given


def class_names(classes: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    """A name for each of the data's classes, in their order.

    ``classes`` is empty for the data's own names, ``imagenet``, or a text file: a line a class, in
    order of class ids, or ``OWN NAME<tab>WORDS`` in any order.

    Raises:
        SourceError: there is no such file, or it doesn't fit the data's classes.
    """
    if not classes:
        return tuple(name.replace("_", " ") for name in folders)
    if classes == IMAGENET:
        import open_clip

        lines = list(open_clip.IMAGENET_CLASSNAMES)
    else:
        path = Path(classes)
        if not path.is_file():
            raise SourceError(
                f"{classes} is not a file",
                expected=f"a text file with a line a class, or {IMAGENET!r}",
                action="correct the path",
            )
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    if lines and all("\t" in line for line in lines):
        named = dict(line.split("\t", 1) for line in lines)
        missing = [name for name in folders if name not in named]
        if missing:
            raise SourceError(
                f"{classes} names no class {missing[0]!r}",
                expected=f"a line for each of the data's {len(folders)} classes",
                action="add the line",
            )
        return tuple(named[name].strip() for name in folders)
    if len(lines) < len(folders):
        raise SourceError(
            f"{classes} has {len(lines)} names, and the data has {len(folders)} classes",
            expected="a name for each class",
            action="give another list of classes",
        )
    return tuple(lines)
