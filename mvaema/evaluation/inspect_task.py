"""The questions of a dataset as a task of `inspect_ai`, and students as models of it.

    inspect eval mvaema/vqa -T dataset=data/answered --model mvaema/runs/first

What is special about it:
- a student and any chat model are asked the same: the micrograph as an image in the message, and
  the prompt of `mvaema eval`. Scores are those of `mvaema/evaluation/records.py`;
- `mvaema/NAME` is any model that `mvaema eval --model NAME` takes. inspect's own provider `hf`
  drops images and loads causal language models only;
- micrographs are encoded again from their pixels. A model outside the private network is refused
  unless the task allows it;
- inspect writes the micrographs into its log. Keep it as confidential as they are, or pass
  `--no-log-images`.
"""

import base64
import io
from typing import Any

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    get_model,
    modelapi,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver
from inspect_ai.tool import ToolChoice, ToolInfo
from PIL import Image

from mvaema.evaluation.answerers import load_answerer
from mvaema.evaluation.conditions import blank_image
from mvaema.evaluation.questions import Micrographs, Record, cluster_of, records_from_dataset
from mvaema.evaluation.records import score_records
from mvaema.evaluation.texts import FALSE_CLAIMS, METEOR, METEOR_NO_SYNONYMS
from mvaema.evaluation.wordnet import ensure_wordnet
from mvaema.micrographs.dataset import DatasetError, load_micrographs
from mvaema.teacher.endpoint import Endpoint, EndpointError
from processing_mvaema import MVaEMaProcessor

# Providers that run a model in this process. All others have an address, or are refused.
HERE = ("mvaema", "hf", "mockllm", "none")
# Settings of inspect that a student does not take: it is told how to decode by `-M`.
NOT_TAKEN = ("max_tokens", "temperature", "top_p", "top_k", "stop_seqs", "num_choices")


@task
def vqa(
    dataset: str,
    split: str = "validation",
    blank: bool = False,
    synonyms: bool = True,
    allow_external: bool = False,
) -> Task:
    """Every question of a split, with the micrograph.

    Args:
        dataset: micrograph dataset with answers, as for `mvaema eval`.
        split: the split to ask about.
        blank: show a blank image in the place of each micrograph. What a model can do then too, it
            does not owe to its eyes.
        synonyms: score METEOR with WordNet; without, the metric is `meteor_no_synonyms`.
        allow_external: send micrographs to a model outside the private network.

    Raises:
        DatasetError: the split is missing, has no ids or answers, or an image is unreadable.
        LookupError: `synonyms`, and this machine has no WordNet.
    """
    if synonyms:
        ensure_wordnet()
    return Task(
        dataset=MemoryDataset(samples(dataset, split, blank), name=f"mvaema {split}"),
        solver=[keep_private(allow_external), generate()],
        scorer=answer_scores(synonyms),
    )


def samples(dataset: str, split: str, blank: bool = False) -> list[Sample]:
    """A sample for each question; its `metadata` is the answer record, `group` filled in."""
    title = f"split {split!r} of {dataset}"
    micrographs = Micrographs(load_micrographs(dataset, split), title)
    records = [r for r in records_from_dataset(micrographs.dataset) if r["reference"].strip()]
    if not records:
        raise DatasetError(f"{title}: every answer with the outcome `ok` is blank.")
    shown: dict[str, tuple[ContentImage, dict]] = {}
    for image_id in dict.fromkeys(record["image_id"] for record in records):
        image, row = micrographs[image_id], micrographs.row(image_id)
        size = row["pixel_size_nm"]
        scale = {
            "field_of_view_nm": None if size is None else size * image.width,
            "scale_bar": row["scale_bar"],
        }
        image = blank_image(image.size) if blank else image
        shown[image_id] = ContentImage(image=_data_uri(image)), scale
    return [_sample(record, *shown[record["image_id"]]) for record in records]


def _sample(record: Record, image: ContentImage, scale: dict) -> Sample:
    text = ContentText(text=MVaEMaProcessor.prompt(record["question"], **scale))
    return Sample(
        id=f"{record['image_id']} {record['question_id']}",
        input=[ChatMessageUser(content=[image, text])],
        target=record["reference"],
        metadata={**record, "group": cluster_of(record)},
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@solver
def keep_private(allow_external: bool = False) -> Solver:
    """Refuse a model that is not in this process or in the private network, unless allowed."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if not allow_external:
            check_private(get_model())
        return state

    return solve


def check_private(model: Model) -> None:
    """
    Raises:
        PermissionError: the model is outside the private network, or that is not known.
    """
    provider = str(model).partition("/")[0]
    if provider in HERE:
        return
    try:
        if not model.api.base_url:
            raise EndpointError(f"where {provider} sends its requests is not known.")
        Endpoint(model.api.base_url)
    except EndpointError as error:
        raise PermissionError(
            f"{model} is refused: {error} Here the flag is -T allow_external=true; a server of "
            "your own is named with --model-base-url."
        ) from None


@scorer(metrics={"*": [mean(), stderr(cluster="group")]})
def answer_scores(synonyms: bool = True) -> Scorer:
    """METEOR, ROUGE-L and false claims of an answer; its false claims in words."""
    names = (METEOR if synonyms else METEOR_NO_SYNONYMS, "rouge_l", FALSE_CLAIMS)

    async def score(state: TaskState, target: Target) -> Score:
        record = {**state.metadata, "prediction": state.output.completion.strip()}
        (scored,) = score_records([record], synonyms)
        return Score(
            value={name: scored["scores"][name] for name in names},
            answer=record["prediction"],
            explanation="; ".join(scored["facts"]["false_claims"]) or "no false claim",
        )

    return score


@modelapi(name="mvaema")
class StudentAPI(ModelAPI):
    """A student, or any other model that `mvaema eval --model` takes, in this process.

    Args:
        model_name: folder or Hub id.
        model_args: `decoding`, `max_new_tokens`, `chat_template` and `trust_remote_code` of
            `mvaema.evaluation.answerers.load_answerer`.

    Raises:
        ValueError: the model cannot answer questions about images.
        OSError: there is no such model.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ):
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.answerer = load_answerer(model_name, batch_size=1, **model_args)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """The answer to a message of one image and one text.

        Raises:
            ValueError: the messages or settings are others.
        """
        if given := [name for name in NOT_TAKEN if getattr(config, name) is not None]:
            raise ValueError(
                f"mvaema/{self.model_name} takes no {', '.join(given)}: say how to decode with "
                "-M decoding=... and -M max_new_tokens=..."
            )
        image, text = _image_and_text(input)
        ask = self.answerer.answer
        ((answer,),) = await anyio.to_thread.run_sync(ask, [image], [text], *[[None]] * 3)
        return ModelOutput.from_content(self.model_name, answer)

    def max_connections(self) -> int:
        return 1  # in this process, more at once are no faster


def _image_and_text(messages: list[ChatMessage]) -> tuple[Image.Image, str]:
    contents = messages[0].content if len(messages) == 1 else ()
    kinds = [getattr(content, "type", None) for content in contents]
    if sorted(map(str, kinds)) != ["image", "text"]:
        raise ValueError("a student takes one message of one image and one text, and no other.")
    uri, text = contents[kinds.index("image")].image, contents[kinds.index("text")].text
    if not uri.startswith("data:"):
        raise ValueError("a student takes images as data URIs only, not from an address.")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), text
