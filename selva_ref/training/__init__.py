"""Two-stage training of the model: a text-conditioned video encoder, then a generator that listens to it.

Data flows one way: videos and lists → `extract` → memory-mapped features → `stage1` → `stage2` → checkpoints under the
official names, in a folder that `selva-export` takes. Everything random is drawn from (seed, step, item), never from
the order of workers or processes: stopping, resuming and splitting a batch over machines change no loss.
"""
