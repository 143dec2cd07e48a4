"""One step of transformers' `Trainer` on FOLDER/rows.pt; rank 0 writes FOLDER/trained.pt.

torchrun --nproc_per_node 2 tests/support/trainer_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from modeling_mvaema import MVaEMaModel


def trainer(model, rows, folder, names=None, add=lambda batch: {}, **settings) -> Trainer:
    """One step of plain gradient descent on all rows, or on some columns of them."""

    def collate(rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in names or rows[0]}
        return batch | add(batch)

    arguments = TrainingArguments(
        str(folder),
        **{"per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 0.1} | settings,
        optim="sgd",
        max_grad_norm=0,
        logging_steps=1,
        lr_scheduler_type="constant",
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate)


def main(folder: Path) -> None:
    model, rows = MVaEMaModel.from_pretrained(folder / "model"), torch.load(folder / "rows.pt")
    run = trainer(model, rows, folder / "trainer", per_device_train_batch_size=2)
    run.train()
    if run.is_world_process_zero():
        torch.save(run.model.state_dict(), folder / "trained.pt")
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
