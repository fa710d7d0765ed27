"""im2txt in NumPy: Show and Tell as its authors run it, from a checkpoint's own tensors and names. An independent
implementation to compare an import with: nothing of ours is used.

Sizes: V outputs, E embedding, U units, D image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Scope, matrix and bias of the LSTM in checkpoints of TensorFlow 0.12, 1.0 and 1.2.
SPELLINGS = {
    "0.12": ("lstm/BasicLSTMCell/Linear/Matrix", "lstm/BasicLSTMCell/Linear/Bias"),
    "1.0": ("lstm/basic_lstm_cell/weights", "lstm/basic_lstm_cell/biases"),
    "1.2": ("lstm/basic_lstm_cell/kernel", "lstm/basic_lstm_cell/bias"),
}
State = tuple[np.ndarray, np.ndarray]  # cell, output


def captioner_tensors(
    *, outputs: int, words: int, embedding: int, units: int, features: int = 2048, spelling: str = "1.2", seed: int = 0
) -> dict[str, np.ndarray]:
    """Opinionated random weights. Rows beyond `words` are as im2txt initialises them: uniform, never trained."""
    rng = np.random.default_rng(seed)
    matrix, bias = SPELLINGS[spelling]
    table = rng.normal(0, 1, (outputs, embedding))
    table[words:] = rng.uniform(-0.08, 0.08, (outputs - words, embedding))
    values = {
        "image_embedding/weights": rng.normal(0, 0.05, (features, embedding)),
        "seq_embedding/map": table,
        matrix: rng.normal(0, 0.8, (embedding + units, 4 * units)),
        bias: rng.normal(0, 0.5, 4 * units),
        "logits/weights": rng.normal(0, 2.5, (units, outputs)),
        "logits/biases": rng.normal(0, 0.5, outputs),
    }
    values["logits/biases"][1] += 2  # where the tests' words have the end token: captions of a few words
    return {name: value.astype(np.float32) for name, value in values.items()}


@dataclass(frozen=True)
class Im2txt:
    """`tensors` by the checkpoint's names, `words` as word_counts.txt lists them."""

    tensors: dict[str, np.ndarray]
    words: Sequence[str]

    @property
    def start_id(self) -> int:
        return list(self.words).index("<S>")

    @property
    def end_id(self) -> int:
        return list(self.words).index("</S>")

    def word(self, number: int) -> str:
        return self.words[number] if number < len(self.words) else "<UNK>"

    def feed_image(self, feature_D: np.ndarray) -> State:
        embedded_E = self._double(feature_D) @ self._of("image_embedding/weights")
        if "image_embedding/biases" in self.tensors:
            embedded_E = embedded_E + self._of("image_embedding/biases")
        zero_U = np.zeros(self._of("logits/weights").shape[0])
        return self._cell(embedded_E, (zero_U, zero_U))

    def next_word(self, word: int, state: State) -> tuple[np.ndarray, State]:
        """(log-probabilities [V], state) after a word."""
        state = self._cell(self._of("seq_embedding/map")[word], state)
        logits_V = state[1] @ self._of("logits/weights") + self._of("logits/biases")
        shifted_V = logits_V - logits_V.max()
        return shifted_V - np.log(np.exp(shifted_V).sum()), state

    def log_prob(self, feature_D: np.ndarray, words: Sequence[int], *, finished: bool) -> float:
        """Of a caption, the end token included where it has one."""
        state, last, total = self.feed_image(feature_D), self.start_id, 0.0
        for word in [*words, *([self.end_id] if finished else [])]:
            log_V, state = self.next_word(last, state)
            total, last = total + float(log_V[word]), word
        return total

    def search(
        self, feature_D: np.ndarray, *, beam: int, longest: int, never: Sequence[int] = (), shrinking: bool = False
    ) -> list[tuple[float, list[int]]]:
        """Captions that ended, the likeliest first, of at most `longest` words.

        Args:
            never: numbers of words that are not to be said.
            shrinking: a caption that ended keeps its place among `beam`, as in Xu et al. (2015); in im2txt's own search
                it takes none from those that go on.
        """
        alive: list[tuple[float, list[int], State]] = [(0.0, [], self.feed_image(feature_D))]
        ended: list[tuple[float, list[int]]] = []
        for _ in range(longest + 1):
            grown: list[tuple[float, list[int], State]] = []
            for total, caption, state in alive:
                log_V, after = self.next_word(caption[-1] if caption else self.start_id, state)
                log_V = log_V.copy()
                log_V[list(never)] = -np.inf
                likely = np.argsort(-log_V)[: beam + 1]
                grown += [(total + float(log_V[word]), [*caption, int(word)], after) for word in likely]
            grown.sort(key=lambda each: -each[0])
            if shrinking:
                grown = grown[: beam - len(ended)]
            ended += [(total, caption[:-1]) for total, caption, _ in grown if caption[-1] == self.end_id]
            alive = [each for each in grown if each[1][-1] != self.end_id][:beam]
            if not alive or (ended and shrinking and alive[0][0] <= max(total for total, _ in ended)):
                break
        return sorted(ended, key=lambda each: -each[0])[:beam]

    def _cell(self, input_E: np.ndarray, state: State) -> State:
        """BasicLSTMCell: one matrix, gates input, new cell, forget, output, 1 added to the forget gate."""
        cell_U, output_U = state
        matrix, bias = next(names for names in SPELLINGS.values() if names[0] in self.tensors)
        gates = np.concatenate([input_E, output_U]) @ self._of(matrix) + self._of(bias)
        i_U, j_U, f_U, o_U = np.split(gates, 4)
        cell_U = cell_U * _sigmoid(f_U + 1.0) + _sigmoid(i_U) * np.tanh(j_U)
        return cell_U, np.tanh(cell_U) * _sigmoid(o_U)

    def _of(self, name: str) -> np.ndarray:
        return self._double(self.tensors[name])

    @staticmethod
    def _double(value: np.ndarray) -> np.ndarray:
        return np.asarray(value, np.float64)


def _sigmoid(value: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-value))
