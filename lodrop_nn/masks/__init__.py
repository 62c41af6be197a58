"""Masks of LoRA Dropout: their law, where they are kept, and how they act on the factors.

Nothing here knows PEFT; :mod:`lodrop_nn.adapter` brings the two together.
"""

from lodrop_nn.masks.bank import MaskBank
from lodrop_nn.masks.laws import iid_masks, seeded_generator
from lodrop_nn.masks.settings import MaskSettings
from lodrop_nn.masks.update import masked_update

__all__ = ["MaskBank", "MaskSettings", "iid_masks", "masked_update", "seeded_generator"]
