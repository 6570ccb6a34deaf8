"""The endpoints of files: what may be uploaded, and who may see it. It must not know what stands in a file."""

from email.parser import BytesHeaderParser

from starlette.datastructures import Headers
from starlette.requests import Request

from penstock.providers.simulator.calls import authenticate
from penstock.providers.simulator.delivery import Answer
from penstock.providers.simulator.files import StoredFile, check_expiry
from penstock.providers.simulator.refusals import Refusal
from penstock.providers.simulator.state import State

MOST_BYTES = 200_000_000
FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


class FileEndpoints:
    """What can be done with files."""

    def __init__(self, state: State) -> None:
        """Take the simulator's state."""
        self.state = state

    async def create(self, request: Request) -> Answer:
        """Take a file in; its lines are looked at when a batch is made of it."""
        account = authenticate(request.headers)
        fields, file = _read_form(request.headers, await request.body())
        if fields.keys() - FIELDS:
            unknown = min(fields.keys() - FIELDS)
            raise Refusal(400, "Unknown parameter.", code="unknown_parameter", param=unknown)
        if fields.get("purpose") != "batch":
            raise Refusal(400, "Invalid 'purpose': 'batch' is the only one.", code="invalid_value", param="purpose")
        if file is None:
            raise Refusal(400, "Missing required parameter: 'file'.", code="missing_required_parameter", param="file")
        name, content = file
        if not name.endswith(".jsonl"):
            raise Refusal(400, "Invalid file format for Batch API. Must be .jsonl", param="file")
        if len(content) > MOST_BYTES:
            raise Refusal(413, "The file is larger than 200 MB.", code="invalid_value", param="file")
        return Answer.json(self.state.files.add(account, name, "batch", content, _read_expiry(fields)).object())

    async def list(self, request: Request) -> Answer:
        """List an account's files, the newest first."""
        data = [file.object() for file in self.state.files.of(authenticate(request.headers))]
        return Answer.json({"object": "list", "data": data, "has_more": False})

    async def retrieve(self, request: Request) -> Answer:
        """Describe a file."""
        return Answer.json(self._named(request).object())

    async def content(self, request: Request) -> Answer:
        """Give a file's bytes."""
        return Answer.whole(self._named(request).content, "application/octet-stream")

    async def delete(self, request: Request) -> Answer:
        """Forget a file."""
        file = self._named(request)
        self.state.files.delete(file)
        return Answer.json({"id": file.id, "object": "file", "deleted": True})

    def _named(self, request: Request) -> StoredFile:
        return self.state.files.require(authenticate(request.headers), request.path_params["id"])


def _read_expiry(fields: dict[str, str]) -> int | None:
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at" or not (seconds or "").isdecimal():
        raise Refusal(400, "Invalid 'expires_after'.", code="invalid_value", param="expires_after")
    return check_expiry(int(seconds or ""), "expires_after.seconds")


def _read_form(headers: Headers, body: bytes) -> tuple[dict[str, str], tuple[str, bytes] | None]:
    """Read multipart/form-data: plain fields, and the name and content of the field `file`."""
    described = BytesHeaderParser().parsebytes(b"content-type: " + headers.get("content-type", "").encode())
    boundary = described.get_param("boundary")
    if described.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise Refusal(400, "We could not parse your multipart form.")
    fields: dict[str, str] = {}
    file = None
    for part in (b"\r\n" + body).split(f"\r\n--{boundary}".encode())[1:]:
        if part.startswith(b"--"):
            return fields, file
        head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        of_part = BytesHeaderParser().parsebytes(head)
        name = str(of_part.get_param("name", "", "content-disposition"))
        if name == "file":
            file = of_part.get_filename() or "", content
        else:
            fields[name] = content.decode()
    raise Refusal(400, "We could not parse your multipart form.")
