"""Files shipped inside the package, each with the digest it must have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Asset:
    """A shipped file."""

    path: Path
    sha256: str

    def check(self) -> Path:
        """Return the path; ValueError if the file is missing or not the one that was shipped."""
        if not self.path.is_file():
            raise ValueError(f"data file {self.path.name} is missing from {self.path.parent}")
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"data file {self.path} is damaged: SHA-256 is {found}, expected {self.sha256}; "
                "reinstall the package"
            )
        return self.path


ASSETS: dict[str, Asset] = {
    "fashion-mnist-10k": Asset(
        _FOLDER / "fashion_mnist_10k.npz",
        "319b292707457c356186daf762270f48366dd96bb3ced7fbec277daae2ccdf8d",
    ),
    "state-of-the-union": Asset(
        _FOLDER / "state_of_the_union.jsonl.xz",
        "9548c3f814a1c711bb1bd3fcdfbb10be44071e827a59eebc79ff0d04a7919cc5",
    ),
}
