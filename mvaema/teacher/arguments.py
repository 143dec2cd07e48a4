"""The arguments of a run; their help is the documentation."""

import re
from dataclasses import dataclass, field

from mvaema.micrographs.schema import OUTCOMES
from mvaema.teacher.batch import BatchLimits
from mvaema.teacher.prompt import Sampling
from mvaema.teacher.requests import RequestArguments, check_positive

POSITIVE = (
    "max_tokens",
    "concurrency",
    "timeout",
    "batch_poll",
    "batch_requests",
    "batch_megabytes",
    "pilot",
    "max_cost",
    "requests_per_minute",
    "tokens_per_minute",
)


@dataclass(kw_only=True)
class ExportArguments:
    """What is written from the journals of a folder."""

    output_dir: str = field(
        metadata={
            "help": "Folder on a local disk for the journal, the prepared images and the dataset."
        }
    )
    prices: str | None = field(
        default=None, metadata=RequestArguments.__dataclass_fields__["prices"].metadata
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Repository (owner/name) to upload the dataset to."}
    )
    public: bool = field(
        default=False, metadata={"help": "Make that repository public; it is private otherwise."}
    )


@dataclass(kw_only=True)
class MergeArguments(ExportArguments):
    """Which output folders become one."""

    parts: list[str] = field(
        default_factory=list, metadata={"help": "Output folders of the shards."}
    )

    def __post_init__(self):
        if not self.parts:
            raise ValueError("--parts: name the output folders to merge.")


@dataclass(kw_only=True)
class AskArguments(RequestArguments, ExportArguments):
    """What is asked, whom, and how carefully."""

    images: str = field(
        metadata={
            "help": "Folder of microscope files (class folders label what they hold), table of "
            "files (CSV, JSONL, Parquet with a `path` column), or folder of a dataset."
        }
    )
    teacher_model: str = field(metadata={"help": "Name of the vision model at the endpoint."})
    endpoint: str = field(
        default="http://localhost:8000/v1",
        metadata=RequestArguments.__dataclass_fields__["endpoint"].metadata,
    )
    split: str = field(
        default="train", metadata={"help": "Split to read where --images is a dataset."}
    )
    questions: list[str] = field(
        default_factory=list, metadata={"help": "Question groups to ask; all by default."}
    )
    prompt: str | None = field(
        default=None, metadata={"help": "Prompt file instead of mvaema/teacher/prompt.yaml."}
    )
    temperature: float = field(
        default=Sampling.temperature, metadata={"help": "Sampling temperature."}
    )
    top_p: float = field(default=Sampling.top_p, metadata={"help": "Nucleus sampling."})
    image_format: str = field(
        default="png", metadata={"help": "`png` (lossless), `jpeg` or `webp` (smaller uploads)."}
    )
    requests_per_minute: float | None = field(default=None, metadata={"help": "Cap on requests."})
    tokens_per_minute: float | None = field(
        default=None, metadata={"help": "Cap on tokens, in and out together."}
    )
    retry: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Outcomes to ask again ({', '.join(OUTCOMES[1:])}); all attempts are kept."
        },
    )
    shard: str = field(
        default="0/1", metadata={"help": "Part i of n, as in 3/100 (from 0), for a job array."}
    )
    batch: bool = field(
        default=False, metadata={"help": "Use the Batch API: cheaper, answers within 24 hours."}
    )
    batch_poll: float = field(
        default=BatchLimits.poll, metadata={"help": "Seconds between two looks at open batches."}
    )
    batch_requests: int = field(
        default=BatchLimits.max_requests, metadata={"help": "Requests in one batch file, at most."}
    )
    batch_megabytes: float = field(
        default=BatchLimits.max_bytes / 1e6, metadata={"help": "Size of one batch file, at most."}
    )
    give_up_batches: list[str] = field(
        default_factory=list,
        metadata={
            "help": "With --batch: batches that the provider no longer has. What they did not "
            "answer is asked again, and paid for again if they ran."
        },
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Count the requests that a run would send now, with tokens and cost; send "
            "nothing, write nothing."
        },
    )
    pilot: int | None = field(
        default=None,
        metadata={"help": "Ask about the first N images only and extrapolate; the answers count."},
    )
    export: bool = field(
        default=True, metadata={"help": "Whether to write the dataset at the end."}
    )

    def __post_init__(self):
        wrong = sorted(set(self.retry) - set(OUTCOMES[1:]))
        if wrong:
            raise ValueError(
                f"--retry {' '.join(wrong)}: expected some of {', '.join(OUTCOMES[1:])}."
            )
        check_positive(self, POSITIVE)
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError(f"--shard must be i/n with 0 <= i < n, as in 3/100, not {self.shard}.")
        self.part, self.parts = int(found[1]), int(found[2])
        if self.give_up_batches and not self.batch:
            raise ValueError("--give_up_batches needs --batch, which asks the provider first.")
        if self.push_to_hub and not self.export:
            raise ValueError("--push_to_hub needs the dataset: do not pass --no_export.")
