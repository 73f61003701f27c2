"""What values a run's settings may have, wherever they are written: on the command line, in a --phase, in DeepSpeed's
JSON. The ends are generous; beyond them lies a slip of the finger or a number that no later step can hold.
"""

from typing import Literal

from data_prep.ranges import Range

Preset = Literal["bert-tiny", "bert-mini", "bert-small", "bert-medium", "bert-base", "bert-large"]  # shape.py has them

STEPS = Range(1, 1e9, whole=True)
COUNT = Range(0, 1e9, whole=True)  # steps, evaluations, samples; 0 mostly means never
BATCH = Range(1, 1e8, whole=True)  # samples
SEQ_LEN = Range(8, 65_535, whole=True, why="[CLS], [SEP] and two sentences need room")  # the index has 16 bits for it
MAX_POSITIONS = 512  # of a new model, where nobody says how many
POSITIONS = Range(8, 65_535, whole=True)  # as long as a sample may be
LAYERS = Range(1, 1000, whole=True)
HIDDEN = Range(1, 65_536, whole=True)
HEADS = Range(1, 4096, whole=True)
INITIALIZER_RANGE = Range(0, 10, low_open=True)
BERT_INITIALIZER_RANGE = 0.02  # Devlin et al. 2019
SEED = Range(0, 2**63 - 1, whole=True)  # a signed integer of 64 bits everywhere
SECONDS = Range(0, 1e8)  # three years
MINUTES = Range(0, 1e6)  # two years
SHARE = Range(0, 1, high_open=True)
MASK_RATE = Range(0, 1, low_open=True, high_open=True)
PASSES = Range(0, 1e6, low_open=True)  # over a store, an epoch
TEMPERATURE = Range(0, 1, why="0: equal shares, 1: as they are")
LR = Range(0, 100, low_open=True)
WEIGHT_DECAY = Range(0, 100)
CLIP = Range(0, 1e9)
WARMUP = Range(0, 1e9)  # steps, or a share of them
