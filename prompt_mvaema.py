"""How caption, scale and question become a prompt, for each runtime: without torch.

This file travels with `lengths_mvaema.py`: `save_pretrained` and `push_to_hub` copy both into the
model repository.
"""

try:  # inside a model repository, where transformers loads this file as part of a package
    from .lengths_mvaema import format_length
except ImportError:  # from the project's root
    from lengths_mvaema import format_length


def prompt(
    question: str,
    caption: str | None = None,
    field_of_view_nm: float | None = None,
    scale_bar: str | None = None,
) -> str:
    """Caption, scale and question, in this order; unknown parts are left out.

    Args:
        question: the question, not blank.
        caption: a sentence about the image.
        field_of_view_nm: real-world width of the image in nanometres. It is measured, and
            therefore used instead of `scale_bar` if both are known.
        scale_bar: length that the scale bar states, such as "500 nm".

    Raises:
        ValueError: the question is blank.
    """
    if not question.strip():
        raise ValueError("a question is empty; give a question, or leave out `text`.")
    scale = None
    if field_of_view_nm is not None:
        scale = f"The field of view is {format_length(field_of_view_nm)} wide."
    elif scale_bar is not None:
        scale = f"The scale bar marks {scale_bar}."
    return " ".join(part for part in (caption, scale, question) if part)


__all__ = ["prompt"]
