"""Training in several processes, started by torchrun: replicas of the model (DDP) or shards of it (FSDP2, ZeRO).

Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054), Zhao et al. 2023 (FSDP, arXiv 2304.11277).
"""

from quatrain.training.distributed.base import Losses, ParallelStrategy, device_of
from quatrain.training.distributed.group import make_parallel

__all__ = ["Losses", "ParallelStrategy", "device_of", "make_parallel"]
