"""One step of transformers' `Trainer` on FOLDER/rows.pt; rank 0 writes FOLDER/trained.pt.

torchrun --nproc_per_node 2 tests/support/trainer_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from modeling_mvaema import MVaEMaModel

folder = Path(sys.argv[1])
rows = torch.load(folder / "rows.pt")
arguments = TrainingArguments(
    str(folder / "trainer"),
    per_device_train_batch_size=2,
    max_steps=1,
    learning_rate=0.1,
    optim="sgd",
    max_grad_norm=0,
    lr_scheduler_type="constant",
    save_strategy="no",
    remove_unused_columns=False,
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    dataloader_pin_memory=False,
)
trainer = Trainer(
    MVaEMaModel.from_pretrained(folder / "model"),
    arguments,
    train_dataset=rows,
    data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
)
trainer.train()
if trainer.is_world_process_zero():
    torch.save(trainer.model.state_dict(), folder / "trained.pt")
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
