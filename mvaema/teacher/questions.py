"""Which questions are still to be asked: the images' questions less those in the journal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mvaema.teacher.journal import Journal, PreparedImage, Question
from mvaema.teacher.prompt import Prompt, fingerprint


@dataclass(frozen=True)
class Plan:
    """What is asked about every image, and how.

    Attributes:
        model: name of the teacher model.
        parameters: the sampling part of the request body.
        prompt: the wording.
        question_ids: the question groups to ask.
        retry: outcomes that are asked again,
        retry_until: in replies up to this id, those from before the run: nothing is asked again
            twice in one run.
    """

    model: str
    parameters: dict
    prompt: Prompt
    question_ids: tuple[str, ...]
    retry: frozenset[str] = frozenset()
    retry_until: int = 0

    def text(self, image: PreparedImage, question_id: str) -> str:
        """The rendered prompt of one question."""
        return self.prompt.render(
            question_id,
            (image.width, image.height),
            caption=image.caption,
            pixel_size_nm=image.pixel_size_nm,
            scale_bar=image.scale_bar,
        )

    def pending(self, journal: Journal, image: PreparedImage) -> list[Question]:
        """The questions about an image that have no settled reply, or one to be retried, and
        are in no open batch."""
        attempts = journal.attempts(image.image_id)
        waiting = journal.waiting(image.image_id)
        questions = []
        for question_id in self.question_ids:
            text = self.text(image, question_id)
            name = fingerprint(image.sha256, text, self.model, self.parameters, self.prompt.version)
            earlier = attempts.get(name, [])
            settled = [row for row in earlier if row["settled"]]
            if name in waiting or (settled and not self._again(settled)):
                continue
            file = journal.folder / image.file
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file}: the prepared image is gone; restore it, or use another --output."
                )
            questions.append(
                Question(
                    fingerprint=name,
                    image_id=image.image_id,
                    question_id=question_id,
                    text=text,
                    file=file,
                    size=(image.width, image.height),
                    attempt=max((row["attempt"] for row in earlier), default=0) + 1,
                )
            )
        return questions

    def _again(self, settled: list) -> bool:
        last = settled[-1]
        return (
            last["outcome"] in self.retry
            and last["id"] <= self.retry_until
            and all(row["outcome"] != "ok" for row in settled)
        )

    def __call__(
        self, journal: Journal, images: Iterable[PreparedImage | None]
    ) -> Iterator[list[Question]]:
        """The pending questions image by image: the ten questions of an image stay together, so
        that a server's prefix cache serves them. An empty list for an image with none."""
        for image in images:
            yield self.pending(journal, image) if image is not None else []
