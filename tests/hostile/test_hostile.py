"""Every input of the corpus through its reader, in process: nothing runs, nothing stays, nothing but `InputError` comes out."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_polarizer import InputError

from . import pickles
from .corpus import ARCH, CASES, FOLDERS, Case, base, read, safe, write_hugging_face, zipped

MEMORY = 128 << 20  # bytes that one case may take: a bomb takes more, the inputs take 15 MB


@contextmanager
def bounded_memory(limit: int) -> Iterator[None]:
    """The peak of the process' memory, which Linux lets us reset, stays within `limit` of where it began."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmHWM")
    except (OSError, StopIteration):
        yield
        return
    yield
    grown = resident("VmHWM") - before
    assert grown < limit, f"took {grown >> 20} MiB"


def resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(re.findall(r"\d+", next(x for x in lines if x.startswith(key)))[0])


def listing(place: Path) -> list[tuple[str, bool]]:
    return sorted((str(p.relative_to(place)), p.is_file()) for p in place.rglob("*"))


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What the first reader of a kind imports is no case's memory."""
    for kind, write in FOLDERS.items():
        path = write(tmp_path_factory.mktemp("well") / "input")
        result = read(Case("", kind, lambda a, b: a), path)
        assert result is not None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(case, tmp_path):
    canary, place = tmp_path / "canary", tmp_path / "place"
    place.mkdir()
    path = case.write(place, canary)
    before = listing(tmp_path)
    with bounded_memory(MEMORY):
        try:
            result: Any = read(case, path)
        except InputError as error:
            message = str(error)
            assert message.isprintable(), "one line, without what moves a terminal's cursor"
            assert 10 < len(message) < 1500
        else:
            assert case.harmless, "this should have been refused"
            assert working(result)
    assert not canary.exists(), "code was run"
    assert listing(tmp_path) == before


def working(net: torch.nn.Module) -> bool:
    with torch.no_grad():
        logits = net(torch.full((1, 3, 8, 8), 0.5))
    return logits.shape == (1, 3) and bool(
        torch.isfinite(torch.cat([v.flatten() for v in net.state_dict().values()])).all()
    )


def test_enough_cases():
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.kind for case in CASES} == {"file", *FOLDERS}


@pytest.mark.parametrize(
    "name",
    ["os.system", "posix.mkdir", "builtins.exec", "_io.FileIO", "pickle.loads", "torch.storage._load_from_bytes"],
)
def test_the_corpus_means_it(name, tmp_path):
    """Run by `pickle.loads`, they do create the file."""
    canary = tmp_path / "canary"
    try:
        pickle.loads(pickles.whole(pickles.payloads(str(canary))[name]))  # noqa: S301
    except (pickle.UnpicklingError, OSError, RuntimeError):
        assert name == "torch.storage._load_from_bytes"
    assert canary.exists() or name == "torch.storage._load_from_bytes"


@pytest.mark.parametrize(
    "name", ["stack-global", "memoized-names", "inst", "obj", "protocol-0", "import", "map", "popped"]
)
def test_the_spellings_mean_it(name, tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickles.spellings(str(canary))[name])  # noqa: S301
    assert canary.exists()


def test_what_is_well_is_read(tmp_path):
    for name, content in (("a.safetensors", safe()), ("a.pt", zipped())):
        path = tmp_path / name
        path.write_bytes(content)
        net = read(Case("", "file", lambda a, b: a), path)
        assert all(torch.equal(v, base().state_dict()[k]) for k, v in net.state_dict().items())
    again = pickles.edited(zipped(), lambda pickled: pickled)  # the corpus' own archives are well, too
    (tmp_path / "b.pt").write_bytes(again)
    assert working(read(Case("", "file", lambda a, b: a), tmp_path / "b.pt"))
    assert read(Case("", "hugging face", lambda a, b: a), write_hugging_face(tmp_path / "h"))(
        torch.zeros(1, 3, 8, 8)
    ).shape == (1, 3)
    assert ARCH == "small_resnet"


def test_a_file_says_what_it_would_call(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(
        pickles.torch_zip(
            pickles.whole(b"(" + pickles.payloads("x")["os.system"] + pickles.payloads("x")["builtins.eval"] + b"t")
        )
    )
    with pytest.raises(InputError, match=r"calls 'os.system', 'builtins.eval' when it is opened; .*python -c"):
        read(Case("", "file", lambda a, b: a), path)
