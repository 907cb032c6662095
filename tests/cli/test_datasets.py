"""Datasets, pins and garbage on the command line, against the small network."""

from pathlib import Path

from ioc_testnet.network import Testnet
from tests.cli.inside import Cli


def make_folder(folder: Path) -> Path:
    (folder / "tiles").mkdir(parents=True)
    (folder / "README").write_text("terrain")
    for number in range(5):
        (folder / "tiles" / f"t{number}.bin").write_bytes(bytes([number]) * 1000)
    return folder


def test_a_dataset_is_added_shown_fetched_and_verified(cli: Cli, shared_net: Testnet, tmp_path: Path) -> None:
    mine, other = shared_net["consumer-1"].home, shared_net["provider-1"].home
    folder = make_folder(tmp_path / "terrain")
    added = cli.json(mine, "dataset", "add", "terrain", folder)
    assert (added["version"], added["files"], added["size"], added["new"]) == (1, 6, 5007, True)
    name = added["dataset"]
    assert "nothing has changed" in cli.text(mine, "dataset", "add", "terrain", folder)
    assert "terrain" in cli.text(mine, "dataset", "list")
    assert "held by" in cli.text(mine, "dataset", "show", "terrain")

    shown = cli.json(other, "dataset", "show", name, "--path", "tiles")
    assert [entry["path"] for entry in shown["entries"]] == [f"tiles/t{number}.bin" for number in range(5)]
    assert len(shown["holders"]) == 1
    one = cli.json(other, "dataset", "get", name, "-o", tmp_path / "one", "--path", "tiles/t3.bin")
    assert (one["written"], one["bytes_moved"]) == (1, 1000)
    text = cli.text(other, "dataset", "get", name, "-o", tmp_path / "all")
    assert "wrote  " in text
    assert (tmp_path / "all" / "tiles" / "t3.bin").read_bytes() == b"\3" * 1000
    assert cli.json(other, "dataset", "verify", name, tmp_path / "all")["same"] == 6

    (tmp_path / "all" / "README").write_text("changed")
    (tmp_path / "all" / "tiles" / "t0.bin").unlink()
    (tmp_path / "all" / "more").write_text("more")
    code, out, err = cli.call(other, "dataset", "verify", name, tmp_path / "all")
    assert code == 5
    assert [line for line in out.splitlines() if ":" in line] == [
        "changed: README",
        "missing: tiles/t0.bin",
        "extra: more",
    ]
    assert "differs from" in err
    words = ["--replace"]
    cli.refused(other, "dataset", "get", name, "-o", tmp_path / "all", words=words, code=2)
    assert (tmp_path / "all" / "README").read_text() == "changed"
    cli.text(other, "dataset", "get", name, "-o", tmp_path / "all", "--replace")

    cli.refused(other, "dataset", "show", "UP", words=["no name of a dataset"], code=2)
    cli.refused(other, "dataset", "show", "nothing", words=["dataset n", "/nothing", "nobody told"])
    cli.refused(other, "dataset", "show", name, "--path", "../x", words=["'..'"], code=2)
    cli.refused(mine, "dataset", "add", "terrain", tmp_path / "nowhere", words=["does not exist"], code=2)
    assert cli.json(mine, "dataset", "remove", "terrain")["versions"] == 1
    cli.refused(mine, "dataset", "remove", "terrain", words=["no such version"])


def test_what_is_kept_is_listed_pinned_and_collected(cli: Cli, shared_net: Testnet, tmp_path: Path) -> None:
    mine, other = shared_net["consumer-1"].home, shared_net["provider-2"].home
    source = tmp_path / "file"
    source.write_bytes(b"pin me" * 1000)
    blob = cli.json(mine, "add", source)["blob"]
    row = next(row for row in cli.json(mine, "blobs")["blobs"] if row["blob"] == blob)
    assert (row["held"], row["shared"], row["size"]) == (["pinned"], True, 6000)
    cli.text(other, "get", blob, "-o", tmp_path / "copy")
    cli.refused(other, "get", blob, "-o", tmp_path / "part", "--range", "9000-", words=["bytes from 9000 on"])
    row = next(row for row in cli.json(other, "blobs")["blobs"] if row["blob"] == blob)
    assert (row["held"], row["shared"]) == ([], False)
    assert "a copy that may go" in cli.text(other, "blobs")
    assert cli.json(other, "pin", blob[:12])["pinned"]
    cli.json(other, "gc", "--unused", "0")
    assert blob in [row["blob"] for row in cli.json(other, "blobs")["blobs"]]
    cli.text(other, "unpin", blob)
    assert cli.json(other, "gc", "--unused", "0", "--dry-run")["blobs"] >= 1
    assert "removed" in cli.text(other, "gc", "--unused", "0")
    assert blob not in [row["blob"] for row in cli.json(other, "blobs")["blobs"]]
    cli.refused(other, "pin", blob, words=["not here"])
    cli.refused(mine, "unpin", "b" + "a" * 52, words=["not here"])
    cli.text(mine, "unpin", blob)
    cli.refused(mine, "unpin", blob, words=["is not pinned"], code=2)
    cli.refused(other, "get", blob, "-o", tmp_path / "again", words=["not shared"])
