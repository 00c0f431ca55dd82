"""A tiny random text encoder with a real tokenizer: a BERT from a config, no network."""

import torch
from tiny import TEXT

from sae.models.text_encoder import TextEncoder


def word_tokenizer(folder):
    """A lower-casing WordPiece tokenizer of whole words and letters, with [CLS] and [SEP], as BERT has."""
    from transformers import AutoTokenizer, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word.strip(".,:;()").lower() for word in TEXT.split()} - {""})]
    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789.,:;" for mark in ("", "##")]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*words, *letters])) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=40).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def tiny_bert(d_vocab, seed=0):
    """A BERT of 3 layers and width 24 with all weights random, biases and gains included."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
    model = BertModel(BertConfig(vocab_size=d_vocab, **sizes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_gain = name.endswith("LayerNorm.weight")
            parameter.copy_(1.0 + 0.2 * noise if is_gain else 0.3 * noise)
    return model.eval()


def tiny_encoder(folder, **settings):
    """A TextEncoder of width 24 that gives means of unit length, unless `settings` say otherwise; its tokenizer is kept in `folder`."""
    tokenizer = word_tokenizer(folder)
    return TextEncoder.load(tiny_bert(len(tokenizer)), tokenizer=tokenizer, **{"pooling": "mean", "normalise": True, **settings})
