"""Shrink the icon CLIP for shipping: code its token embedding, and measure what that changes.

    python scripts/shrink_icon_clip.py FULL.safetensors OUT.safetensors

FULL is the float16 state dict as trained. Every tensor but the token embedding is kept as it is,
so image features do not change at all. Rows of the token embedding get 12 bits if training has
moved them or if a noun of the bundled list uses them, and 8 bits otherwise. The script then
compares the unit text features of the full and of the shrunk model on the prompts of the icon
classes, of every noun, and of every single token that is a word of ASCII letters.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Sequence

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlcal.assets import asset, icon_clip_config, pack_rows, unpack_rows

# rows that training never saw have shrunk from 0.02 to about 0.006 by weight decay alone
UNTRAINED = 0.008


def main() -> None:
    """Write the shrunk file and print the largest change of any feature."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full")
    parser.add_argument("out")
    args = parser.parse_args()
    full = load_file(args.full)
    classes = np.load(asset("icons139.npz"), allow_pickle=False)["class_names"].tolist()
    with gzip.open(asset("wordnet30_noun_lemmas.txt.gz"), "rt", encoding="utf-8") as file:
        nouns = [line.strip().replace("_", " ") for line in file]
    config = icon_clip_config()
    groups = {"class": classes, "noun": nouns, "single-token": single_tokens()}
    tokens = {name: tokenize(words, config) for name, words in groups.items()}

    embedding = full.pop("token_embedding.weight")
    used = torch.zeros(len(embedding), dtype=torch.bool)
    used[torch.cat([tokens["class"], tokens["noun"]]).unique()] = True
    packed = pack_rows(embedding, used | (embedding.float().std(1) > UNTRAINED))
    parts = {f"token_embedding.{name}": value.contiguous() for name, value in packed.items()}
    save_file(full | parts, args.out, {"format": "pt"})

    weights = {name: value.float() for name, value in full.items()}
    embeddings = [embedding.float(), unpack_rows(**packed)]
    print(f"rows with 12 bits: {int(packed['refined'].sum())} of {len(embedding)}")
    for name, prompts in tokens.items():
        change = largest_change(config, weights, embeddings, prompts)
        print(f"largest change, {len(prompts)} {name} prompts: {float(change.max()):.2e}")


def single_tokens() -> list[str]:
    """The words that are one token."""
    ends = [token for token in open_clip.SimpleTokenizer().encoder if token.endswith("</w>")]
    words = [token.removesuffix("</w>") for token in ends]
    return [word for word in words if word.isascii() and word.isalpha()]


def tokenize(words: Sequence[str], config: dict) -> Tensor:
    """The words in the model's template as token ids [N, L]."""
    length = config["model_cfg"]["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(context_length=length)
    return tokenizer([config["template"].replace("{}", word) for word in words])


@torch.inference_mode()
def largest_change(config: dict, weights: dict, embeddings: list[Tensor], tokens: Tensor) -> Tensor:
    """The largest difference of any coordinate of the unit text feature, per prompt [N]."""
    features = []
    for embedding in embeddings:
        model = open_clip.model.CLIP(**config["model_cfg"]).eval()
        model.load_state_dict(weights | {"token_embedding.weight": embedding})
        chunks = [model.encode_text(chunk, normalize=True) for chunk in tokens.split(1024)]
        features.append(torch.cat(chunks))
    return (features[0] - features[1]).abs().amax(1)


if __name__ == "__main__":
    main()
