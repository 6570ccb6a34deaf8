"""The files of one prompt version, read into a Prompt, or refused. It must not know other versions or the lock."""

import difflib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from penstock.errors import ConfigurationError, InvalidRequestError, OutputInvalidError
from penstock.prompts.manifest import DOCUMENT, SECTIONS, Manifest, read_manifest
from penstock.prompts.prompt import Example, Negative, Prompt
from penstock.prompts.schema import JsonSchema, parse_json
from penstock.prompts.template import Placeholder, Template
from penstock.schemas import Frozen, PromptReference

REQUIRED_FILES = ("prompt.toml", "system.txt", "user.txt")
OPTIONAL_FILES = ("examples.jsonl", "input.schema.json", "negatives.jsonl", "output.schema.json", "reduce.txt")
_TEXT_CURE = "save the file as UTF-8 without a byte order mark, with LF line ends (.gitattributes: prompts/** eol=lf)"

LineT = TypeVar("LineT", bound=Frozen)


def read_prompt(directory: Path, prompt_id: str, version: str) -> Prompt:
    """Read and check every file of a version; raises ConfigurationError that names the file and the place."""
    raw = _read_files(directory)
    texts = {name: _decode(content, directory / name) for name, content in raw.items()}
    manifest = read_manifest(texts["prompt.toml"], str(directory / "prompt.toml"))
    prompt = Prompt(
        reference=PromptReference(id=prompt_id, version=version, digest=digest(raw)),
        manifest=manifest,
        system=_template(texts, directory, "system.txt"),
        user=_template(texts, directory, "user.txt"),
        reduce=_template(texts, directory, "reduce.txt") if "reduce.txt" in texts else None,
        input=_schema(texts, directory, "input.schema.json"),
        output=_schema(texts, directory, "output.schema.json"),
        negatives=tuple(negative for _, negative in _lines(texts, directory, "negatives.jsonl", Negative)),
    )
    _check_placeholders(prompt, directory)
    _check_reduction(prompt, str(directory / "reduce.txt"))
    return _with_examples(prompt, texts, directory)


def digest(files: Mapping[str, bytes]) -> str:
    """Give the SHA-256, in hex, over each file's name, length and bytes, by name in alphabetical order."""
    sha256 = hashlib.sha256()
    for name in sorted(files):
        sha256.update(f"{name}\0{len(files[name])}\0".encode())
        sha256.update(files[name])
    return sha256.hexdigest()


def _read_files(directory: Path) -> dict[str, bytes]:
    # Hidden files are an editor's or a desktop's: they are neither read nor part of the digest.
    found = {path.name: path for path in sorted(directory.iterdir()) if not path.name.startswith(".")}
    for name in REQUIRED_FILES:
        if name not in found:
            raise ConfigurationError(str(directory / name), "file", "is missing", "write it; see docs/prompts.md")
    for name, path in found.items():
        if name not in REQUIRED_FILES + OPTIONAL_FILES or not path.is_file():
            roles = ", ".join(REQUIRED_FILES + OPTIONAL_FILES)
            raise ConfigurationError(str(path), "file", "has no role in a prompt", f"remove it; the files are {roles}")
    return {name: path.read_bytes() for name, path in found.items()}


def _decode(content: bytes, path: Path) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(str(path), f"byte {error.start}", "is not UTF-8", _TEXT_CURE) from error
    for character, name in (("\ufeff", "a byte order mark"), ("\r", "a carriage return")):
        if character in text:
            line = text.count("\n", 0, text.index(character)) + 1
            raise ConfigurationError(str(path), f"line {line}", f"has {name}", _TEXT_CURE)
    if not text.strip():
        raise ConfigurationError(str(path), "file", "is empty", "write it, or remove it if it is optional")
    return text


def _template(texts: Mapping[str, str], directory: Path, name: str) -> Template:
    return Template.parse(texts[name].removesuffix("\n"), str(directory / name))


def _schema(texts: Mapping[str, str], directory: Path, name: str) -> JsonSchema | None:
    if name not in texts:
        return None
    try:
        return JsonSchema(parse_json(texts[name]))
    except ValueError as error:
        cure = "correct it (https://json-schema.org/draft/2020-12)"
        raise ConfigurationError(str(directory / name), "schema", str(error), cure) from error


def _lines(texts: Mapping[str, str], directory: Path, name: str, model: type[LineT]) -> Iterator[tuple[int, LineT]]:
    lines = texts[name].removesuffix("\n").split("\n") if name in texts else []
    for number, line in enumerate(lines, start=1):
        try:
            yield number, model.model_validate(parse_json(line), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"
            raise _line_error(directory / name, number, reason) from error
        except ValueError as error:
            raise _line_error(directory / name, number, f"is not JSON: {error}") from error


def _line_error(path: Path, number: int, reason: str) -> ConfigurationError:
    return ConfigurationError(str(path), f"line {number}", reason, "correct the line; see docs/prompts.md")


def _with_examples(prompt: Prompt, texts: Mapping[str, str], directory: Path) -> Prompt:
    examples = list(_lines(texts, directory, "examples.jsonl", Example))
    for number, example in examples:
        try:
            prompt.with_examples([example])
        except (InvalidRequestError, OutputInvalidError) as error:
            raise _line_error(directory / "examples.jsonl", number, str(error)) from error
    return prompt.with_examples(example for _, example in examples)


def _check_placeholders(prompt: Prompt, directory: Path) -> None:
    for name, template in (("system.txt", prompt.system), ("user.txt", prompt.user)):
        for placeholder in template.placeholders:
            _refuse_undeclared(placeholder, prompt.variables, str(directory / name))
    for placeholder in prompt.system.placeholders:
        _refuse_in_system(placeholder, prompt.manifest, str(directory / "system.txt"))
    _refuse_repeated(prompt, prompt.user, str(directory / "user.txt"))
    used = {placeholder.name for template in (prompt.system, prompt.user) for placeholder in template.placeholders}
    for name in prompt.variables:
        if name not in used:
            file, cure = str(directory / "prompt.toml"), "use it in user.txt or remove it"
            raise ConfigurationError(file, f"variables.{name}", "is declared and never used", cure)


def _check_reduction(prompt: Prompt, file: str) -> None:
    if prompt.reduce is None:
        return
    if DOCUMENT not in prompt.variables:
        raise ConfigurationError(file, "file", "is of no use: the prompt takes no document", "remove it")
    if SECTIONS in prompt.variables:
        raise ConfigurationError(file, "file", f"has a variable {SECTIONS!r} beside it", "give that another name")
    if prompt.input is not None and prompt.input.concerns(DOCUMENT):
        reason = "parts of a document would be judged by input.schema.json, which speaks of the document"
        raise ConfigurationError(file, "file", reason, "let the schema speak of the other variables alone")
    declared = [SECTIONS, *(name for name in prompt.variables if name != DOCUMENT)]
    for placeholder in prompt.reduce.placeholders:
        if placeholder.name == DOCUMENT:
            reason = "the document is too long to stand here"
            raise ConfigurationError(file, f"line {placeholder.line}", reason, "write {{ sections }} instead")
        _refuse_undeclared(placeholder, declared, file)
    if SECTIONS not in {placeholder.name for placeholder in prompt.reduce.placeholders}:
        raise ConfigurationError(file, "file", "lacks {{ sections }}", "put it where the partial answers shall stand")
    _refuse_repeated(prompt, prompt.reduce, file)


def _refuse_undeclared(placeholder: Placeholder, declared: Collection[str], file: str) -> None:
    if placeholder.name in declared:
        return
    near = difflib.get_close_matches(placeholder.name, declared, n=1)
    cure = f"did you mean {near[0]!r}?" if near else f"declare [variables.{placeholder.name}] in prompt.toml"
    raise ConfigurationError(file, f"line {placeholder.line}", f"{placeholder.name!r} is not declared", cure)


def _refuse_in_system(placeholder: Placeholder, manifest: Manifest, file: str) -> None:
    variable = manifest.variables[placeholder.name]
    if variable.untrusted:
        reason = f"{placeholder.name!r} is untrusted: a user's text is never a system message"
    elif not variable.choices:
        reason = f"{placeholder.name!r} is free text: the system message takes only variables with choices"
    else:
        return
    raise ConfigurationError(file, f"line {placeholder.line}", reason, "use it in user.txt instead")


def _refuse_repeated(prompt: Prompt, template: Template, file: str) -> None:
    untrusted = {SECTIONS, *(name for name, variable in prompt.variables.items() if variable.untrusted)}
    seen: set[str] = set()
    for placeholder in template.placeholders:
        if placeholder.name in seen and placeholder.name in untrusted:
            reason = f"the untrusted {placeholder.name!r} stands here a second time"
            raise ConfigurationError(file, f"line {placeholder.line}", reason, "use it once")
        seen.add(placeholder.name)
