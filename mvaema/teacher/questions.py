"""Which questions are still to be asked: all of them, less those that the journal settles."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mvaema.teacher.journal import Journal, PreparedImage, Question
from mvaema.teacher.money import Request
from mvaema.teacher.prompt import Prompt, question_fingerprint


@dataclass(frozen=True)
class Plan:
    """What is asked about every image, and how.

    Attributes:
        model: name of the teacher model.
        parameters: the sampling part of the request body.
        prompt: the wording.
        question_ids: the question groups to ask.
        retry: outcomes that are asked again.
        retry_until: id of the last reply before the run. Later ones are not asked again: one run
            retries a question once.
    """

    model: str
    parameters: dict
    prompt: Prompt
    question_ids: tuple[str, ...]
    retry: frozenset[str] = frozenset()
    retry_until: int = 0

    def asked_about(self, image: PreparedImage) -> tuple[str, ...]:
        """Ids of the questions about an image."""
        return self.question_ids

    def text(self, image: PreparedImage, question_id: str) -> str:
        """The rendered prompt of one question."""
        return self.prompt.render(
            question_id,
            (image.width, image.height),
            caption=image.caption,
            pixel_size_nm=image.pixel_size_nm,
            scale_bar=image.scale_bar,
        )

    def fingerprint(self, image: PreparedImage, question_id: str) -> str:
        """What names the request for one question, with the image's labels as they are."""
        text = self.text(image, question_id)
        return question_fingerprint(
            image.sha256, text, self.model, self.parameters, self.prompt.version
        )

    def request(self, journal: Journal, image_id: str, question_id: str) -> Request | None:
        """What is asked about an image; None where the journal does not have it any more."""
        if not journal.query("SELECT 1 FROM images WHERE image_id = ?", [image_id]):
            return None
        image = journal.image(image_id)
        return self.text(image, question_id), (image.width, image.height)

    def longest(self, journal: Journal) -> Request | None:
        """The request whose prompt had most tokens, of those in the journal."""
        rows = journal.query(
            "SELECT image_id, question_id FROM replies WHERE completion_tokens IS NOT NULL AND "
            "image_id IN (SELECT image_id FROM images) ORDER BY prompt_tokens DESC LIMIT 1"
        )
        return self.request(journal, *rows[0]) if rows else None

    def pending(self, journal: Journal, image: PreparedImage) -> list[Question]:
        """The questions about an image that are not settled, or are to be retried, and that are in
        no open batch."""
        attempts = journal.attempts(image.image_id)
        in_batches = journal.in_batches(image.image_id)
        questions = []
        for question_id in self.asked_about(image):
            name = self.fingerprint(image, question_id)
            earlier = attempts.get(name, [])
            settled = [row for row in earlier if row["settled"]]
            if name in in_batches or (settled and not self._again(name, settled)):
                continue
            questions.append(
                Question(
                    fingerprint=name,
                    image_id=image.image_id,
                    question_id=question_id,
                    text=self.text(image, question_id),
                    file=journal.folder / image.file,
                    size=(image.width, image.height),
                    attempt=max((row["attempt"] for row in earlier), default=0) + 1,
                )
            )
        return questions

    def _again(self, fingerprint: str, settled: list) -> bool:
        last = settled[-1]
        return (
            last["outcome"] in self.retry
            and last["id"] <= self.retry_until
            and all(row["outcome"] != "ok" for row in settled)
        )

    def __call__(
        self,
        journal: Journal,
        images: Iterable[PreparedImage | None],
        is_intact: Callable[[PreparedImage], bool],
    ) -> Iterator[list[Question]]:
        """The pending questions, image by image, so that a server's prefix cache serves the ten
        questions of an image. An empty list for an image without any, or whose file is not intact.
        """
        for image in images:
            questions = self.pending(journal, image) if image is not None else []
            yield questions if questions and is_intact(image) else []
