"""A load on a server with another API, by its dialect."""

from pathlib import Path

from harness.dialects.load import load_dialect
from harness.drive.identities import make_identities
from harness.targets.local import LocalTarget
from loadtests.generator import Generator, Setting
from loadtests.metrics import read_load
from loadtests.pacer import steady
from loadtests.profiles import Profile, Storm

DIALECT = Path(__file__).parents[1] / "dialects" / "required.toml"
COMMAND = (
    "{python} -m tests.support.foreign_server required --listen {listen} --ca {ca} --cert {cert} "
    "--key {key}"
)


def test_a_load_reads_resumes_starts_and_stops_by_a_dialect(tmp_path: Path) -> None:
    dialect = load_dialect(str(DIALECT))
    store = make_identities(tmp_path / "identities", scheme=dialect.identities)
    # The readers disconnect and resume, of a server that knows no offsets.
    profile = Profile(
        "small", "small", 1000, steady(50, 1.0), streamers=3, storm=Storm(5, 1.0, 2),
        cut_every_bytes=20_000,
    )  # fmt: skip
    with LocalTarget(store, COMMAND, {}).launch() as server:
        setting = Setting(server, store.files("admin"), tmp_path / "load", dialect=dialect)
        Generator(profile, setting).run()
    load = read_load(tmp_path / "load").load
    assert load.exit_code == 0
    assert [(each.code, each.wrong, each.missed_bytes) for each in load.streams] == 3 * [
        ("OK", "", 0)
    ]
    assert all(each.checked_bytes >= 50_000 and each.connections > 1 for each in load.streams)
    assert [process.failures for process in load.processes if process.kind == "storm"] == [{}]
