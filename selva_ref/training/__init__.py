"""Two-stage training of the model: first a text-conditioned video encoder, then a generator conditioned on it.

Data flows one way: videos and lists → `extract` → memory-mapped features → `stage1` → `stage2` → checkpoints under the
official names, in a folder that `selva-export` accepts. All random numbers depend on (seed, step, item), never on the
order of workers or processes. So stopping, resuming and splitting a batch over machines do not change the loss.
"""
