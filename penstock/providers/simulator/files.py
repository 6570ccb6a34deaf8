"""Files that an account has uploaded or been given. It must not know what stands in them."""

from dataclasses import dataclass
from uuid import uuid4

from penstock.clock import Clock
from penstock.providers.simulator.refusals import Refusal

LEAST_EXPIRY_S, MOST_EXPIRY_S = 3600, 2_592_000


@dataclass(frozen=True)
class StoredFile:
    """One file of one account."""

    id: str
    account: str
    name: str
    purpose: str
    content: bytes
    created_at: int
    expires_at: int | None

    def object(self) -> dict[str, object]:
        """Give it as OpenAI describes a file."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


class Files:
    """All files, until they expire or are deleted."""

    def __init__(self, clock: Clock) -> None:
        """Start empty."""
        self._clock = clock
        self._files: dict[str, StoredFile] = {}

    def add(self, account: str, name: str, purpose: str, content: bytes, expires_s: int | None = None) -> StoredFile:
        """Keep a file, for `expires_s` seconds if that is given."""
        now = int(self._clock.now().timestamp())
        expires_at = None if expires_s is None else now + expires_s
        stored = StoredFile(f"file-{uuid4().hex}", account, name, purpose, content, now, expires_at)
        self._files[stored.id] = stored
        return stored

    def find(self, account: str, file_id: str) -> StoredFile | None:
        """Find a file of an account that has not expired."""
        found = self._files.get(file_id)
        if found is None or found.account != account:
            return None
        now = self._clock.now().timestamp()
        return found if found.expires_at is None or now < found.expires_at else None

    def require(self, account: str, file_id: str) -> StoredFile:
        """Find a file of an account, or raise Refusal."""
        found = self.find(account, file_id)
        if found is None:
            raise Refusal(404, "No such File object.", param="id")
        return found

    def of(self, account: str) -> list[StoredFile]:
        """Give the files of an account, the newest first."""
        return [file for file in reversed(self._files.values()) if self.find(account, file.id)]

    def delete(self, file: StoredFile) -> None:
        """Forget a file."""
        del self._files[file.id]


def check_expiry(seconds: int, param: str) -> int:
    """Give the seconds that a file may be kept, or raise Refusal."""
    if not LEAST_EXPIRY_S <= seconds <= MOST_EXPIRY_S:
        message = f"Invalid '{param}': from {LEAST_EXPIRY_S} to {MOST_EXPIRY_S} seconds."
        raise Refusal(400, message, code="invalid_value", param=param)
    return seconds
