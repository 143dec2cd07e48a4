"""torchrun --nproc_per_node 2 tests/support/ddp_worker.py FOLDER

One training step on this rank's part of FOLDER/batch.pt; rank 0 writes losses and gradients.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from modeling_mvaema import MVaEMaModel

folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model = MVaEMaModel.from_pretrained(folder / "model").train()
batch = torch.load(folder / "batch.pt")
part = {name: tensor.chunk(world)[rank] for name, tensor in batch.items()}
# Ranks pad to their own longest text, as a collator does.
for ids, mask in (("input_ids", "attention_mask"), ("statement_ids", "statement_mask")):
    longest = int(part[mask].sum(1).max())
    part |= {ids: part[ids][:, :longest], mask: part[mask][:, :longest]}
parallel = DistributedDataParallel(model)
output = parallel(**part)
output.loss.backward()
losses = torch.stack([output[n].detach() for n in ("loss", "itc_loss", "itm_loss", "lm_loss")])
dist.all_reduce(losses)
if rank == 0:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save({"losses": losses / world, "gradients": gradients}, folder / "result.pt")
dist.barrier()  # gloo's threads must not outlive their peers
dist.destroy_process_group()
