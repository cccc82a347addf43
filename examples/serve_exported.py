"""Serves several streams of text with an exported model, without bwds.

    python examples/serve_exported.py DIR "the company said" "in new york"

It needs jax, flatbuffers, numpy and safetensors, and for a model of subwords tokenizers. DIR is a folder that
``bwds.export.export_programs`` has written. Every stream has a state of its own, a row of each array. One step of a
decoding program takes the rows of all streams that have not ended, whatever their number.
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file


class Text:
    """Text to ids and back."""

    def __init__(self, folder, about):
        self.words = json.loads((folder / about["vocabulary"]).read_text(encoding="utf-8"))
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.kind, self.subwords = about["tokens"], None
        if self.kind == "subword":
            from tokenizers import Tokenizer

            self.subwords = Tokenizer.from_file(str(folder / about["tokenizer"]))

    def encode(self, line):
        if self.subwords:
            return self.subwords.encode(line).ids
        tokens = line.split() if self.kind == "word" else list(line)
        unknown = [token for token in tokens if token not in self.ids]
        if unknown and "<unk>" not in self.ids:
            raise SystemExit(f"error: the vocabulary has no {unknown}, and no <unk> to stand for them.")
        if unknown:
            print(f"The vocabulary has no {unknown}; <unk> is read instead.", file=sys.stderr)
        return [self.ids.get(token, self.ids.get("<unk>")) for token in tokens]

    def decode(self, ids):
        if self.subwords:
            return self.subwords.decode(ids)
        return (" " if self.kind == "word" else "").join(self.words[i] for i in ids)


class Server:
    def __init__(self, directory):
        folder = Path(directory)
        self.about = json.loads((folder / "programs.json").read_text())
        self.text = Text(folder, self.about) if self.about["vocabulary"] else None
        self.parameters = jax.device_put(load_file(folder / self.about["parameters"]))
        self.call = {
            name: jax.jit(jax.export.deserialize((folder / program["file"]).read_bytes()).call)
            for name, program in self.about["programs"].items()
        }

    def new_carry(self, batch):
        """The state of streams that have read nothing."""
        wanted = self.about["programs"]["prefill"]["arguments"]["carry"]
        return {array["name"]: np.zeros((batch, *array["shape"][1:]), array["dtype"]) for array in wanted}

    def start(self, tokens):
        """Logits [V] after a prompt, and the state of its stream."""
        logits, carry = self.call["prefill"](self.parameters, np.int32([tokens]), self.new_carry(1))
        return logits[0, -1], carry

    def advance(self, tokens, carries):
        """Logits [V] of each of several streams after one more token of each, and their states."""
        few = len(tokens) <= self.about["programs"]["step_few"]["most_streams"]
        together = jax.tree.map(lambda *rows: jnp.concatenate(rows), *carries)
        logits, carry = self.call["step_few" if few else "step"](self.parameters, np.int32(tokens), together)
        apart = {name: jnp.split(rows, len(tokens)) for name, rows in carry.items()}
        return list(logits), [{name: apart[name][row] for name in apart} for row in range(len(tokens))]


def main(directory, prompts, length=30):
    """The most probable text after each prompt, until its line ends."""
    server = Server(directory)
    end = server.text.ids["<eos>"]
    lines = [server.text.encode(prompt) for prompt in prompts]
    # The end of the line before comes first.
    streams = dict(enumerate(server.start([end, *line]) for line in lines))
    for _ in range(length):
        chosen = {number: int(logits.argmax()) for number, (logits, _) in streams.items()}
        streams = {number: stream for number, stream in streams.items() if chosen[number] != end}
        if not streams:
            break
        for number in streams:
            lines[number].append(chosen[number])
        after = server.advance([chosen[number] for number in streams], [carry for _, carry in streams.values()])
        streams = dict(zip(streams, zip(*after, strict=True), strict=True))
    return [server.text.decode(line) for line in lines]


if __name__ == "__main__":
    print(*main(sys.argv[1], sys.argv[2:]), sep="\n")
