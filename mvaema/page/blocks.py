"""The tabs to a page.

What is special about it: fonts are the system's, so no address of a font is in the page; its footer
links nowhere.
"""

from pathlib import Path

import gradio as gr

from mvaema.page.ask_tab import AskTab
from mvaema.page.batch_tab import BatchTab
from mvaema.page.pair_tab import PairTab
from mvaema.page.parts import Workers, html
from mvaema.page.trust import MAPS, NO_MAPS, TEXT

TITLE = "MVaEMa: ask about a micrograph"
CSS = Path(__file__).with_name("page.css")
# Files that are left although each is removed when it is read: looked for so often, gone when so
# old, in seconds.
LEFTOVERS = (60, 600)


def theme() -> gr.themes.Base:
    """Colours with enough contrast, and the system's own fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        button_secondary_background_fill="*neutral_200",
        button_secondary_background_fill_hover="*neutral_300",
        button_secondary_background_fill_dark="*neutral_700",
        button_secondary_background_fill_hover_dark="*neutral_600",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )


def make_blocks(workers: Workers) -> gr.Blocks:
    """The page, not launched yet."""
    maps = workers.looker.shows_attention
    look = ", and see where the student looked" if maps else ""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=LEFTOVERS) as page:
        html(
            "<h1>Ask about a micrograph</h1><p>Drop an electron micrograph, ask what it shows"
            f"{look}. It stays on the machine that runs this page. "
            f"Student: <strong>{workers.name}</strong>.</p>",
            elem_classes="mv-head",
        )
        with gr.Tab("Ask"):
            AskTab(workers)
        with gr.Tab("Compare two"):
            PairTab(workers)
        with gr.Tab("Batch"):
            BatchTab(workers)
        gr.Markdown(TEXT.format(maps=MAPS if maps else NO_MAPS), elem_id="trust")
    limits = workers.limits.serving
    page.queue(max_size=limits.max_queue, api_open=False, default_concurrency_limit=None)
    return page
