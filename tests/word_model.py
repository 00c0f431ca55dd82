"""A tiny random language model whose vocabulary holds whole words of five letters of the alphabet."""

import functools
import tempfile

import torch

from sae.models.language_model import LanguageModel

SITE = "blocks.1.hook_resid_post"
LETTERS = "bcdfg"
ENDINGS = ("ab", "ack", "end", "ill", "ond", "ust", "ane", "ore", "ime", "ank", "ent", "ist", "oke", "une", "ask", "elt")


@functools.cache
def word_model():
    """Two layers of width 32; all words of a letter in LETTERS and an ending are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = ["<|endoftext|>", *alphabet]
    merges = []
    for letter in LETTERS:
        for ending in ENDINGS:
            built = "Ġ"
            for character in letter + ending:
                if built + character not in vocabulary:
                    vocabulary.append(built + character)
                    merges.append((built, character))
                built += character
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
        fast = PreTrainedTokenizerFast.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1.0 + 0.2 * noise if is_gain else noise / parameter.shape[-1] ** 0.5)
    return LanguageModel.load(model.eval(), tokenizer=fast)
