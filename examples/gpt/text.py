"""The text: what `help("for")`, `help("CLASSES")` … print, half a million characters of English about Python."""

from pydoc_data.topics import topics

import torch
from torch.utils.data import Dataset

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # the same for every version of Python
NUMBERS = {character: number for number, character in enumerate(CHARACTERS)}
VALIDATION = 0.1  # of the text, its end


def numbers_of(text: str) -> torch.Tensor:
    return torch.tensor([NUMBERS[character] for character in text if character in NUMBERS])


def text_of(numbers: torch.Tensor) -> str:
    return "".join(CHARACTERS[number] for number in numbers.tolist())


class Windows(Dataset):
    """Stretches of a text, one after the other; the target of each character is the next one."""

    def __init__(self, text: torch.Tensor, length: int) -> None:
        self.text = text
        self.length = length

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.length

    def __getitem__(self, index: int):
        begin = index * self.length
        return self.text[begin : begin + self.length], self.text[begin + 1 : begin + self.length + 1]


def training_and_validation(length: int) -> tuple[Windows, Windows]:
    text = numbers_of("\n".join(topics[name] for name in sorted(topics)))
    split = int(len(text) * (1 - VALIDATION))
    return Windows(text[:split], length), Windows(text[split:], length)
