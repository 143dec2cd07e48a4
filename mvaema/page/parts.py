"""What the tabs share: the student's workers, and errors in plain words.

What is special about it: a visitor reads why something did not work and what to do, never a stack
trace. The operator's log has the place in the code, and nothing of the micrograph.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import gradio as gr

from mvaema.page.asking import Asker
from mvaema.page.limits import PageLimits
from mvaema.page.looking import Looker
from mvaema.page.opening import Opener
from mvaema.page.waiting import Worker
from mvaema.serving.refusals import Refusal
from mvaema.serving.service import Service

HERE = Path(__file__).parent

logger = logging.getLogger("mvaema.serving.page")

WENT_WRONG = "The page failed at this. Try again, or with another file; the log says where."


class Workers:
    """One student and all who work with it.

    Args:
        service: started, with its student loaded.
        limits: of the page.

    Attributes:
        asker, looker, opener, measurer: see their modules.
    """

    def __init__(self, service: Service, limits: PageLimits):
        self.service, self.limits = service, limits
        self.name = service.name
        self.looker = Looker(service.student, limits.work_seconds)
        self.measurer = Worker("measuring", limits.work_seconds)
        self.asker = Asker(service)
        self.opener = Opener(service, self.looker, self.measurer, limits)

    def close(self) -> None:
        self.looker.close()
        self.measurer.close()


def html(value: str = "", *, script: str | None = None, elem_classes: str = "mv-said") -> gr.HTML:
    """HTML with the page's own looks, and the script beside this file that brings it to life."""
    code = script and HERE.joinpath(script).read_text(encoding="utf-8")
    return gr.HTML(
        value, js_on_load=code, elem_classes=elem_classes, apply_default_css=False, padding=False
    )


def plainly(handler: Callable) -> Callable:
    """A handler (async, or an async generator) whose errors a visitor can read."""

    if inspect.isasyncgenfunction(handler):

        @functools.wraps(handler)
        async def streamed(*given):
            try:
                async with aclosing(handler(*given)) as pieces:
                    async for piece in pieces:
                        yield piece
            except Exception as error:
                raise _told(error) from None

        return streamed

    @functools.wraps(handler)
    async def called(*given):
        try:
            return await handler(*given)
        except Exception as error:
            raise _told(error) from None

    return called


def _told(error: Exception) -> gr.Error:
    if isinstance(error, Refusal):
        said = str(error)
        return gr.Error(said[:1].upper() + said[1:], title="Not done", print_exception=False)
    logger.error("a handler failed", exc_info=error)
    return gr.Error(WENT_WRONG, title="Not done", print_exception=False)
