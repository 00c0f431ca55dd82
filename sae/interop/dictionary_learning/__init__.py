"""dictionary_learning (Marks, Karvonen & Mueller; git 60ec6bf): a folder of a trainer, or one checkpoint in it.

    config.json               {"trainer": {"trainer_class", "dict_class", "activation_dim", "dict_size", "k", ...}, "buffer": {"io", ...}}
    ae.pt                     the weights when training ended, or (while it runs) {"step", "ae", "optimizer", "config", "norm_factor"}
    checkpoints/ae_{step}.pt  the weights at a step

    AutoEncoder, AutoEncoderNew, GatedAutoEncoder     ReLU with and without b_dec subtracted, Gated
    AutoEncoderTopK                                   the k largest; `threshold` is kept, and not used, as in the library's own `encode`
    BatchTopKSAE, MatryoshkaBatchTopKSAE              what exceeds `threshold`, as in the library's own `encode`
    JumpReluAutoEncoder                               ReLU(pi H(pi - threshold)), b_dec not subtracted

The equations are those of the classes' `encode` and `decode` as `utils.load_dictionary` loads them: it scales the atoms of an AutoEncoder to unit
norm, and so its codes, and leaves every other class as it is in the file. The `ae` of a running training is in units of acts / norm_factor: its
biases and threshold are multiplied by norm_factor here, as the library does before it saves the other files. Whether those come from a training
on normalised activations is nowhere written, and makes no difference to their use.

`io` = "in_to_out" is a transcoder between two activations of one width. A class that subtracts b_dec does so on the input too; that is
rewritten to b_enc - b_dec W_enc, for a transcoder here never subtracts.
"""

from sae.interop.dictionary_learning.reading import read
from sae.interop.dictionary_learning.writing import write

__all__ = ["read", "write"]
