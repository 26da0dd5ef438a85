"""What ranks mend by themselves: told to the user, and put on record. Nothing is decided here.

Hung on the loop by `training.py`.
"""

from __future__ import annotations

from orchestrator.journal import Journal
from orchestrator.loop import Loop
from orchestrator.notice import notice
from workers.messages import Mended

__all__ = ["note_mishaps"]


def note_mishaps(loop: Loop, journal: Journal) -> None:
    """From now on, note what ranks tell that they have mended.

    Args:
        loop: what comes.
        journal: the record.
    """

    def note(message: Mended) -> None:
        journal.write("MENDED", rank=message.rank, at=message.iteration, text=message.text)
        notice(f"rank {message.rank}: {message.text}")

    loop.handle({Mended: note})
